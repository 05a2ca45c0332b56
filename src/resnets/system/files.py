"""Write files that are whole or absent, lock folders, and die on purpose where a test asks.

A crash at any instant leaves the old file or the new one; a lock dies with its process.
"""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from resnets.system.errors import EnvironmentFault
from resnets.system.runtime import limit_of, lock_file, process_number

PUBLISHED = "published"  # marks a state whose outs are in place, and holds their hashes
RECORDED = re.compile(r"^ +- path: (.+)\n +hash: md5\n +md5: (\S+)$", re.MULTILINE)  # in dvc.lock


def failpoint(name: str) -> None:
    """Die here if the environment says so: RESNETS_FAULT="name@3" kills at the third passage.

    For the tests that prove that nothing is lost wherever a run dies.
    """
    fault = os.environ.get("RESNETS_FAULT", "")
    if not fault:
        return
    wanted, _, count = fault.partition("@")
    if wanted == name:
        _passages[name] = _passages.get(name, 0) + 1
        if _passages[name] == int(count or 1):
            os.kill(os.getpid(), signal.SIGKILL)


_passages: dict[str, int] = {}


@contextmanager
def room_for(path: Path, num_bytes: int) -> Iterator[None]:
    """Name the file that cannot be written and, where room is short, what it needs and has.

    Python names the file only when opening it fails. `num_bytes` may be a lower bound.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            error.filename = error.filename or str(path)
            raise
        limit = limit_of("FSIZE")
        is_limited = error.errno == errno.EFBIG and limit != math.inf
        free = f"{shutil.disk_usage(path.parent).free:,} are free"
        have = f"{limit:,} are allowed (ulimit -f)" if is_limited else free
        raise EnvironmentFault(
            f"{path}: {error.strerror}: needs at least {num_bytes:,} bytes, {have}",
            "make room and run the same command again; what was saved before is still good",
        ) from error


def _own_part(held: IO[bytes], part: Path, path: Path) -> None:
    """Lock a part for this process; the lock dies with it, so that no part is ever stale."""
    try:
        lock_file(held)
        if os.path.samestat(os.fstat(held.fileno()), part.stat()):
            return
    except (BlockingIOError, FileNotFoundError):
        pass  # another process has it, or had it until now: what is open here became its file
    fix = "wait until it ends, or name another file"
    raise EnvironmentFault(f"{path}: another process is writing it", fix)


@contextmanager
def atomic_path(path: Path, num_bytes: int = 0) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes the place of `path` only when complete.

    File and folder are flushed to the disk, so that a crash leaves the old file or the new one.
    After an error the part is removed; what a killed writer left, the next one writes over. Raises
    EnvironmentFault where another process is writing the same file.
    """
    if path.exists() and not path.is_file():  # a rename would put a file in place of /dev/null
        raise EnvironmentFault(f"{path}: not a file", "name a file to write to")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with room_for(path, num_bytes), part.open("ab") as held:
        _own_part(held, part, path)
        try:
            yield part
            failpoint("write.before_sync")
            os.fsync(held.fileno())
            failpoint("write.before_rename")
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
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


def md5_of(path: Path) -> str:
    """Return the MD5 of a file or a folder as dvc.lock gives it."""
    if path.is_file():
        return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    listed = [{"md5": md5_of(files[name]), "relpath": name} for name in sorted(files)]
    content = json.dumps(listed, sort_keys=True).encode()
    return hashlib.md5(content, usedforsecurity=False).hexdigest() + ".dir"


def mark_published(folder: Path, outs: Sequence[Path]) -> None:
    """Note that the outs of a stage are in place; its state stays until dvc.lock has their hashes.

    Were it removed here, a kill of DVC before it writes dvc.lock would cost the stage's work again.
    """
    write_json(folder / PUBLISHED, {out.as_posix(): md5_of(out) for out in outs})
    failpoint("publish.done")


def _forget_recorded(states: Path) -> None:
    """Remove the states whose outs are in dvc.lock, hash by hash."""
    marks = list(states.glob(f"*/{PUBLISHED}"))
    lock = Path("dvc.lock")
    text = lock.read_text(errors="replace") if marks and lock.exists() else ""
    recorded = set(RECORDED.findall(text))
    for mark in marks:
        if recorded.issuperset(json.loads(mark.read_text() or "{}").items()):
            for path in mark.parent.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
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
        try:
            lock_file(file)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise EnvironmentFault(
                f"{folder}: in use by {holder}", "wait until it ends, or stop it, and run again"
            ) from None
        file.truncate(0)
        file.write(f"{owner} (process {os.getpid()})")
        file.flush()
        _forget_recorded(folder.parent)
        (folder / PUBLISHED).unlink(missing_ok=True)
        yield
