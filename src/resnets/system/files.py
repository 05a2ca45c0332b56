"""Write files that are whole or absent, lock folders, and die on purpose where a test asks.

A crash at any instant leaves the old file or the new one; a lock dies with its process.
"""

import errno
import hashlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO, Any

from resnets.system.errors import EnvironmentFault
from resnets.system.runtime import process_number

PUBLISHED = "published"  # marks a state whose outs are in place, and holds a hash of them

_passages = count(1)


def failpoint(name: str) -> None:
    """Die here if a test asks for it: RESNETS_FAULT="name@3" kills at the third passage."""
    wanted, _, number = os.environ.get("RESNETS_FAULT", "").partition("@")
    if wanted == name and next(_passages) == int(number):
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def room_for(path: Path, num_bytes: int) -> Iterator[None]:
    """Name the file that cannot be written and, where room is short, what it needs and has.

    Python names the file only when opening it fails. `num_bytes` may be a lower bound.
    """
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        free = shutil.disk_usage(path.parent).free
        raise EnvironmentFault(
            f"{path}: {error.strerror}: needs at least {num_bytes:,} bytes, {free:,} are free",
            "make room (or raise ulimit -f) and run the same command again; nothing saved is lost",
        ) from error


def _lock(file: IO[Any], refusal: str) -> None:
    """Lock an open file until this process ends or closes it."""
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise EnvironmentFault(refusal, "wait until it ends, or stop it, and run again") from None


@contextmanager
def atomic_path(path: Path, num_bytes: int = 0) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes the place of `path` only when complete.

    After an error the part is removed; what a killed writer left, the next one writes over. Raises
    EnvironmentFault where another process is writing the same file.
    """
    if path.exists() and not path.is_file():  # a rename would put a file in place of /dev/null
        raise EnvironmentFault(f"{path}: not a file", "name a file to write to")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with room_for(path, num_bytes), part.open("ab") as held:
        _lock(held, f"{path}: another process is writing it")
        try:
            yield part
            os.fsync(held.fileno())
            failpoint("write.before_rename")
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
    failpoint("write.after_rename")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic_path(path, len(content)) as part, part.open("wb") as file:
        view, half = memoryview(content), len(content) // 2
        file.write(view[:half])
        file.flush()
        failpoint("write.half")
        file.write(view[half:])


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, with Unix line ends on every system."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file whose bytes depend on the values only; NaN is refused."""
    write_text(path, json.dumps(values, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def mark_published(state: Path, history: Path) -> None:
    """Note that the outs of a training are in place; its state stays until DVC has recorded them.

    Were it removed here, a kill of DVC before it writes dvc.lock would cost the training again. The
    history is an out, which dvc.lock has by its MD5; where it is the same, so are the others.
    """
    md5 = hashlib.md5(history.read_bytes(), usedforsecurity=False).hexdigest()
    write_text(state / PUBLISHED, md5)
    failpoint("publish.done")


def _forget_recorded(states: Path) -> None:
    """Remove the states whose outs are in dvc.lock."""
    lock = Path("dvc.lock")
    recorded = lock.read_text(errors="replace") if lock.exists() else ""
    for mark in states.glob(f"*/{PUBLISHED}"):
        if mark.read_text() in recorded:
            for state in mark.parent.glob("*/"):
                shutil.rmtree(state)
            mark.unlink()


@contextmanager
def locked(folder: Path, owner: str) -> Iterator[None]:
    """Hold a folder for one process; the lock dies with the process, so none is ever stale.

    What DVC has recorded is removed from this folder and those beside it. Of processes that train
    together, process 0 holds it for all. Raises EnvironmentFault that names the holder when another
    process has it.
    """
    if process_number():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as file:
        file.seek(0)
        _lock(file, f"{folder}: in use by {file.read() or 'another process'}")
        file.truncate(0)
        file.write(f"{owner} (process {os.getpid()})")
        file.flush()
        _forget_recorded(folder.parent)
        (folder / PUBLISHED).unlink(missing_ok=True)
        yield
