"""Define the errors that users see, their exit codes, and the one place that prints them."""

import errno
import os
import sys
import time
from collections.abc import Callable

import typer

GRACE_SECONDS = 10.0  # for process 0 to speak


class ResNetsError(Exception):
    """Say in one line what is wrong and where, and in one line what to do."""

    exit_code = 1

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix


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

    def __init__(self, what: str, fix: str, *, exit_code: int) -> None:
        super().__init__(what, fix)
        self.exit_code = exit_code


def printable(text: str) -> str:
    """Escape control characters, so that a file name cannot drive the terminal."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text.encode("utf-8", "backslashreplace").decode()
    )


def _as_ours(error: BaseException) -> ResNetsError | None:
    """Translate what the operating system raises; everything else is a bug and keeps its trace."""
    if isinstance(error, ResNetsError):
        return error
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return EnvironmentFault(
            f"out of memory: {error}", "lower batch_size, or run on a larger machine"
        )
    if isinstance(error, OSError):
        fixes = {
            errno.ENOSPC: "free some space and run the same command again",
            errno.EDQUOT: "free some of your quota and run the same command again",
            errno.EFBIG: "raise the file size limit (ulimit -f) and run the same command again",
            errno.EMFILE: "raise the number of open files (ulimit -n) and run again",
            errno.ENOENT: "check the path, or run the stage that makes it (dvc repro)",
        }
        fix = fixes.get(error.errno or 0, "check that the path exists and that you may write there")
        return EnvironmentFault(f"{error.filename or 'I/O'}: {error.strerror or error}", fix)
    return None


def run_app(command: Callable[..., object]) -> None:
    """Run a Typer app or one function as a command line; the only place that ends the process.

    ``--debug`` anywhere on the line shows the traceback as well. Of processes that train together,
    process 0 speaks first: the same error often strikes all, and its end is the end of all.
    """
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    if not isinstance(command, typer.Typer):
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command()(command)
        command = app
    try:
        code = command(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except Exception as error:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(GRACE_SECONDS)
        if hasattr(error, "show"):  # usage, which click words well; typer hides click's classes
            error.show()
            sys.exit(2)
        ours = _as_ours(error)
        if debug or ours is None:
            raise
        print(f"error: {printable(ours.what)}\nfix: {printable(ours.fix)}", file=sys.stderr)
        sys.exit(ours.exit_code)
    sys.exit(code if isinstance(code, int) else 0)
