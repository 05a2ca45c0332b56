"""Define the errors that users see, their exit codes, and the one place that prints them."""

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import typer

LOST_CONTACT = "lost contact with the other processes"


class ResNetsError(Exception):
    """Say in one line what is wrong and where, and in one line what to do."""

    exit_code = 1

    def __init__(self, what: str, fix: str, exit_code: int | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix
        self.exit_code = self.exit_code if exit_code is None else exit_code


class ParamsError(ResNetsError, ValueError):
    """Report a bad parameter or bad usage."""

    exit_code = 2


class DataError(ResNetsError, ValueError):
    """Report bad input data."""

    exit_code = 3


class ArtefactError(ResNetsError, ValueError):
    """Report a model, weights file, packed store or split that is damaged or does not fit."""

    exit_code = 4


class EnvironmentFault(ResNetsError):
    """Report a full disk, missing memory, file or package, or a lock that somebody else holds."""

    exit_code = 5


class NumericalError(ResNetsError):
    """Report a loss or a weight that is not finite."""

    exit_code = 6


class StoppedBySignal(ResNetsError):
    """Report a run that was asked to stop, after its state is saved; 130 or 143 as shells do."""


def printable(text: str) -> str:
    """Escape control characters, so that a file name cannot drive the terminal."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text.encode("utf-8", "backslashreplace").decode()
    )


# torch and the loader of libraries have no class of their own for it
OUT_OF_MEMORY = (
    "OutOfMemoryError", "can't allocate memory", "can't start new thread", "failed to map segment",
    "bad_alloc",
)  # fmt: skip
CONTACT = ("gloo/transport", "DistBackendError")  # of a sum whose other process is gone


class _Interrupt(BaseException):
    """Carry a signal's number to the end; typer would swallow a KeyboardInterrupt."""


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise _Interrupt(number)


def _as_ours(error: BaseException) -> ResNetsError | None:
    """Translate what the operating system raises; everything else is a bug and keeps its trace."""
    from resnets.system.runtime import limit_of, memory_left

    if isinstance(error, ResNetsError):
        return error
    words = " ".join(str(error).split())
    if isinstance(error, MemoryError) or any(mark in repr(error) for mark in OUT_OF_MEMORY):
        return EnvironmentFault(
            f"out of memory: {words or 'a small piece'}; {memory_left()}",
            "lower batch_size, raise the limit (ulimit -v), or run on a larger machine",
        )
    if any(mark in repr(error) for mark in CONTACT):
        return EnvironmentFault(LOST_CONTACT, "look for the error of another one, and run it again")
    if isinstance(error, OSError):
        fixes = {
            errno.ENOSPC: "free some space and run the same command again",
            errno.EMFILE: f"raise the {limit_of('NOFILE')} open files that are allowed (ulimit -n)",
            errno.ENOENT: "check the path, or run the stage that makes it (dvc repro)",
        }
        fix = fixes.get(error.errno or 0, "check that the path exists and that you may write there")
        return EnvironmentFault(f"{error.filename or 'I/O'}: {error.strerror or error}", fix)
    return None


def _run_the_copys_code() -> None:
    """Start again with the code beside dvc.yaml, if that is not the code running now.

    `dvc exp run --queue` and `--temp` work in a copy of the repository, while an editable install
    keeps pointing at the original, whose code may have moved on since.
    """
    source = Path(os.environ.get("DVC_ROOT", "/"), "src").resolve()
    is_ours = Path(__file__).resolve().is_relative_to(source)
    if (source / "resnets").is_dir() and not is_ours and sys.path[1:2] != [str(source)]:
        path = os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        os.environ["PYTHONPATH"] = path
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _say(error: ResNetsError) -> None:
    """Print an error; of processes that train together, torchrun prints the first one for all."""
    what, fix = printable(error.what), printable(error.fix)
    text = f"error: {what}\nfix: {fix}"
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        more = {"py_callstack": text, "timestamp": str(int(time.time()))}
        message = {"message": what, "fix": fix, "exit_code": error.exit_code, "extraInfo": more}
        Path(path).write_text(json.dumps({"message": message}))
    else:
        print(text, file=sys.stderr)


def run_app(command: Callable[..., object]) -> None:
    """Run a Typer app or one function as a command line; the only place that ends the process.

    ``--debug`` anywhere on the line shows the traceback as well.
    """
    from resnets.system.runtime import refuse_windows, stop_signals  # it imports the errors

    _run_the_copys_code()
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    if not isinstance(command, typer.Typer):
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command()(command)
        command = app
    try:
        refuse_windows()
        with stop_signals(_interrupt):
            code = command(standalone_mode=False)
    except _Interrupt as stop:
        name = signal.Signals(stop.args[0]).name
        what, fix = f"stopped by {name}; nothing is half written", "run the same command again"
        error = StoppedBySignal(what, fix, 130 if name == "SIGINT" else 143)
        _say(error)
        sys.exit(error.exit_code)
    except Exception as error:
        if hasattr(error, "show"):  # usage, which click words well; typer hides click's classes
            error.show()
            sys.exit(2)
        ours = _as_ours(error)
        if debug or ours is None:
            raise
        _say(ours)
        sys.exit(ours.exit_code)
    sys.exit(code if isinstance(code, int) else 0)
