"""Talk to the machine: device, precision, threads, signals, atomic files, locks, failpoints.

Importing this module imports no torch, so that the stages that need none start quickly.
"""

import errno
import fcntl
import json
import os
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from resnets.errors import EnvironmentFault, ParamsError, StoppedBySignal

Precision = Literal["fp32", "bf16"]

PARENT = os.getppid()  # from the start: DVC may die while torch is still being imported
PUBLISHED = "published"  # marks a state whose outs are in place


def resolve_device(device: str) -> str:
    """Return "cpu" or "cuda"; "auto" takes the GPU if there is one."""
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise ParamsError(f"there is no device {device!r}", "take auto, cpu or cuda")
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ParamsError("the device is cuda, but torch finds no CUDA device", "take auto or cpu")
    return "cuda" if available and device != "cpu" else "cpu"


def resolve_precision(precision: str, device: str) -> Precision:
    """Return "fp32" or "bf16"; "auto" means bf16 where the device computes it natively."""
    import torch

    if precision == "fp32":
        return "fp32"
    if precision == "bf16":
        return "bf16"
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    # torch has no public question for this; the flags of /proc/cpuinfo answer it on Linux
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32"


def process_number() -> int:
    """Return this process's number among those that train together, as torchrun counts them."""
    return int(os.environ.get("RANK", "0"))


def make_repeatable(threads: int) -> None:
    """Fix all that changes the last bits: the number of threads and the choice of kernels."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    torch.set_num_threads(threads)
    # use_deterministic_algorithms(True) does the same, and imports the compiler: 1.7 s each time
    torch.set_deterministic_debug_mode("error")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False  # fp32 is to mean fp32
    # filling fresh tensors guards against reading uninitialised memory; our operators do not
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


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
        limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        is_limited = error.errno == errno.EFBIG and limit != resource.RLIM_INFINITY
        free = f"{shutil.disk_usage(path.parent).free:,} are free"
        have = f"{limit:,} are allowed (ulimit -f)" if is_limited else free
        raise EnvironmentFault(
            f"{path}: {error.strerror}: needs at least {num_bytes:,} bytes, {have}",
            "make room and run the same command again; what was saved before is still good",
        ) from error


@contextmanager
def atomic_path(path: Path, num_bytes: int = 0) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes the place of `path` only when complete.

    File and folder are flushed to the disk, so that a crash leaves the old file or the new one.
    After an error the part is removed.
    """
    if path.exists() and not path.is_file():  # a rename would put a file in place of /dev/null
        raise EnvironmentFault(f"{path}: not a file", "name a file to write to")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with room_for(path, num_bytes):
            yield part
            failpoint("write.before_sync")
            with part.open("rb") as file:
                os.fsync(file.fileno())
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


def mark_published(folder: Path) -> None:
    """Note that the outs of a stage are in place; its state stays until DVC has recorded them.

    Were it removed here, a kill of DVC before it writes dvc.lock would cost the stage's work again.
    """
    write_text(folder / PUBLISHED, "")
    failpoint("publish.done")


def _forget_recorded(states: Path) -> None:
    """Remove the states that were published before dvc.lock was last written."""
    lock = Path("dvc.lock")
    recorded = lock.stat().st_mtime_ns if lock.exists() else 0
    for mark in states.glob(f"*/{PUBLISHED}"):
        if mark.stat().st_mtime_ns < recorded:
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
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
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


class StopRequest:
    """Remember that somebody asked to stop, so that the loop can end at a step boundary.

    Inside `with`, SIGINT, SIGTERM and SIGHUP only set a flag; a second signal ends at once, which
    is safe because every write is atomic. Under DVC, or as one process of several, the death of the
    parent counts as a request too: an orphan would train on and collide with the next run.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> "StopRequest":
        heard = [s for s in self.SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]  # nohup
        self._before = {s: signal.signal(s, self._receive) for s in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(130)
        self.received = number

    def is_set(self) -> bool:
        """Tell whether to stop."""
        watches = not os.environ.keys().isdisjoint({"DVC_STAGE", "RANK"})
        if self.received is None and watches and os.getppid() != PARENT:
            self.received = signal.SIGTERM
        return self.received is not None

    def error(self, where: str) -> StoppedBySignal:
        """Return the error to raise once the state is saved."""
        code = 130 if self.received == signal.SIGINT else 143
        return StoppedBySignal(
            f"stopped by {signal.Signals(self.received or signal.SIGTERM).name}; "
            f"state saved at {where}",
            "run the same command again to continue",
            exit_code=code,
        )


class Clock:
    """Measure a rate and guess the time left, for progress lines only."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.start = time.monotonic()

    def rate(self, done: int) -> float:
        """Return items per second since the start."""
        return done / max(time.monotonic() - self.start, 1e-9)

    def left(self, done: int) -> str:
        """Return the time left as minutes:seconds."""
        return duration((self.total - done) / max(self.rate(done), 1e-9))

    def spent(self) -> str:
        """Return the time since the start as minutes:seconds."""
        return duration(time.monotonic() - self.start)


def duration(seconds: float) -> str:
    """Write seconds as 1:05 or 2:00:00."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file whose bytes depend on the values only; NaN is refused."""
    write_text(path, json.dumps(values, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
