"""Define the errors that users see, their exit codes, and the one place that prints them."""

import errno
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from inspect import getdoc
from pathlib import Path
from types import FrameType
from typing import Any

from typer import Typer

LOST_CONTACT = "lost contact with the other processes"
CONTACT = "gloo/transport|DistBackendError"  # of a sum whose other process is gone
# torch and the loader of libraries have no class of their own for it
OUT_OF_MEMORY = (
    "OutOfMemoryError|[Cc]an(not|'t) allocate memory|can't start new thread"
    "|failed to map segment|bad_alloc"
)
JOINERS = "\u200c\u200d"  # without which Persian and Indian names are misspelt
FIXES = {
    errno.ENOSPC: "free some space and run the same command again",
    errno.EMFILE: "raise the number of open files that are allowed (ulimit -n)",
    errno.ENOENT: "check the path, or run the stage that makes it (dvc repro)",
}


class ResNetsError(Exception):
    """Say in one line what is wrong and where, and in one line what to do."""

    exit_code = 1

    def __init__(self, what: str, fix: str, exit_code: int | None = None) -> None:
        super().__init__(what)
        self.what, self.fix, self.exit_code = what, fix, exit_code or self.exit_code


@contextmanager
def about_task(name: str) -> Iterator[None]:
    """Name the task in the keys that an error names: tasks.*.exclude is tasks.target.exclude."""
    try:
        yield
    except ResNetsError as error:
        for field in ("what", "fix"):
            text = getattr(error, field)
            setattr(error, field, re.sub(r"\b(tasks|split)\.\*\.", rf"\1.{name}.", text))
        error.args = (error.what,)
        raise


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

    def __init__(self, number: int, what: str) -> None:
        name, code = signal.Signals(number).name, 130 if number == signal.SIGINT else 143
        super().__init__(f"stopped by {name}; {what}", "run the same command again", code)


class _Interrupt(BaseException):
    """Carry a signal's number to the end; typer would swallow a KeyboardInterrupt."""


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise _Interrupt(number)


def hear(receive: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Let SIGINT, SIGTERM and SIGHUP, unless nohup ignores them, call this; return what did."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, receive) for number in heard}


def printable(text: str) -> str:
    """Escape control characters, so that a file name cannot drive the terminal."""
    safe = (char if char.isprintable() or char in JOINERS else ascii(char)[1:-1] for char in text)
    return "".join(safe)


def list_kinds(names: Mapping[str, Sequence[str]], most: int = 5) -> str:
    """Write how many names there are of each kind, and the first of them."""
    words = []
    for kind, known in names.items():
        shown = ", ".join([*known[:most], *["…"] * (len(known) > most)])
        words.append(f"{len(known)} {kind}" + (f" ({shown})" if known else ""))
    return "; ".join(words)


def _as_ours(error: Exception) -> ResNetsError | None:
    """Translate what the system and DVC raise; everything else is a bug and keeps its trace."""
    if isinstance(error, ResNetsError):
        return error
    if isinstance(error, MemoryError) or re.search(OUT_OF_MEMORY, repr(error)):
        words = " ".join(str(error).split()) or "a small piece"
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return EnvironmentFault(
            f"out of memory: {words}; this machine has {memory:,} bytes in all",
            "lower batch_size, raise the limit (ulimit -v), or run on a larger machine",
        )
    if re.search(CONTACT, repr(error)):
        return EnvironmentFault(LOST_CONTACT, "look for the error of another one, and run it again")
    if any(kind.__module__.startswith(("dvc.", "scmrepo.")) for kind in type(error).__mro__):
        fix = "run it in a clone of the project that has the commit, when no other `dvc` runs there"
        return EnvironmentFault(f"DVC: {error}".replace("\n", " "), fix)
    if isinstance(error, OSError):
        words = "check that the path exists and that you may read or write there"
        fix = FIXES.get(error.errno or 0, words)
        return EnvironmentFault(f"{error.filename or 'I/O'}: {error.strerror or error}", fix)
    return None


def _run_the_copys_code() -> None:
    """Start again with the code beside dvc.yaml, if that is not the code running now.

    `dvc exp run --queue` and `--temp` work in a copy of the repository, while an editable install
    keeps pointing at the original, whose code may have moved on since.
    """
    source = Path(os.environ.get("DVC_ROOT", "/"), "src").resolve()
    is_ours = Path(__file__).resolve().is_relative_to(source)
    if (source / "resnets").is_dir() and not is_ours:
        os.environ["PYTHONPATH"] = f"{source}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _end_with(error: ResNetsError) -> None:
    """Print an error and exit; of processes that train together, torchrun prints the first one."""
    what, fix = printable(error.what), printable(error.fix)
    text = f"error: {what}\nfix: {fix}"
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        more = {"py_callstack": text, "timestamp": str(int(time.time()))}
        message = {"message": what, "fix": fix, "exit_code": error.exit_code, "extraInfo": more}
        Path(path).write_text(json.dumps({"message": message}))
    else:
        print(text, file=sys.stderr)
    sys.exit(error.exit_code)


def run_app(command: Callable[..., object]) -> None:
    """Run a Typer app or one function as a command line; `--debug` shows the traceback as well."""
    _run_the_copys_code()
    is_debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    if not isinstance(command, Typer):
        app = Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command()(command)
        command = app
    for info in command.registered_commands:  # Typer keeps the line breaks of the source
        info.help = re.sub(r"(?<=\S)\n(?=\S)", " ", getdoc(info.callback) or "")
    before: dict[int, Any] = {}
    try:
        if find_spec("fcntl") is None:
            what = "Windows itself is not supported: it has no fcntl, which locks files"
            raise EnvironmentFault(what, "run the same command inside WSL (wsl --install)")
        before = hear(_interrupt)
        sys.exit(command(standalone_mode=False) or 0)
    except _Interrupt as stop:
        _end_with(StoppedBySignal(stop.args[0], "nothing is half written"))
    except Exception as error:
        if hasattr(error, "show"):  # usage, which click words well; typer hides click's classes
            error.show()
            sys.exit(2)
        ours = _as_ours(error)
        if is_debug or ours is None:
            raise
        _end_with(ours)
    finally:
        for number, receive in before.items():  # nothing is there any more to hear an interrupt
            signal.signal(number, receive)
