"""Talk to the machine: device, precision, cores, memory, locks, processes, signals, time.

What one of Linux, macOS and Windows lacks is asked for here and nowhere else. Importing this module
imports no torch, so that the stages that need none start quickly.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path, PurePosixPath
from types import FrameType
from typing import IO, Any, Literal

from resnets.system.errors import EnvironmentFault, ParamsError, StoppedBySignal

Precision = Literal["fp32", "bf16"]
Threads = int | Literal["auto"]

QUOTA = ("quota", "period")  # in microseconds

PARENT = os.getppid()  # from the start: DVC may die while torch is still being imported


def resolve_device(device: str) -> str:
    """Return "cuda", "mps" or "cpu"; "auto" takes the first of them that there is."""
    import torch

    is_there = {
        "cuda": torch.cuda.is_available(),
        # a Mac has one, which processes cannot share
        "mps": torch.backends.mps.is_available() and os.environ.get("WORLD_SIZE", "1") == "1",
        "cpu": True,
    }
    if device not in ("auto", *is_there):
        raise ParamsError(f"there is no device {device!r}", "take auto, cpu, cuda or mps")
    if device != "auto" and not is_there[device]:
        raise ParamsError(f"torch finds no device {device} for this process", "take auto or cpu")
    return next(name for name in is_there if is_there[name] and device in ("auto", name))


def resolve_precision(precision: str, device: str) -> Precision:
    """Return "fp32" or "bf16"; "auto" means bf16 where the device computes it natively."""
    import torch

    if precision == "fp32":
        return "fp32"
    if precision == "bf16":
        return "bf16"
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    # torch has no public question for the others; the flags of /proc/cpuinfo answer it on Linux
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    is_native = device == "cpu" and ("avx512_bf16" in flags or "amx_bf16" in flags)
    return "bf16" if is_native else "fp32"


def process_number() -> int:
    """Return this process's number among those that train together, as torchrun counts them."""
    return int(os.environ.get("RANK", "0"))


def allowed_cpus() -> list[int]:
    """Return the numbers of the CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS, which binds no process
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def num_cores(root: Path = Path("/")) -> int:
    """Return how many physical cores this process may keep busy, at least 1.

    The two threads of a core share its units, and what a container's quota does not pay for waits.
    Linux tells both below `root`; a Mac that torch runs on has one thread per core.
    """
    topology = root / "sys/devices/system/cpu"
    files = [topology / f"cpu{cpu}/topology/thread_siblings_list" for cpu in allowed_cpus()]
    cores = {file.read_text() if file.exists() else file for file in files}
    return max(1, math.floor(min([len(cores), *_cpu_quotas(root)])))


def _cpu_quotas(root: Path) -> Iterator[float]:
    """Yield the share of time that each control group of this process may compute, as CPUs."""
    table = root / "proc/self/cgroup"
    for line in table.read_text().splitlines() if table.exists() else ():
        group = PurePosixPath(line.split(":", 2)[2])
        for folder in (group, *group.parents):  # a container sees its own as the last one
            newer = [root / f"sys/fs/cgroup/{folder}/cpu.max"]
            older = [root / f"sys/fs/cgroup/cpu/{folder}/cpu.cfs_{x}_us" for x in QUOTA]
            for files in (newer, older):
                words = " ".join(file.read_text() for file in files if file.exists()).split()
                if words and words[0] not in ("max", "-1"):
                    yield int(words[0]) / int(words[1])


def resolve_threads(threads: Threads) -> int:
    """Return a number of threads; "auto" means this process's share of the physical cores."""
    beside = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE", "1")
    return max(1, num_cores() // int(beside)) if threads == "auto" else threads


def memory_left() -> str:
    """Say how much memory is free; macOS tells only how much there is."""
    words = {"SC_AVPHYS_PAGES": "of this machine are free", "SC_PHYS_PAGES": "are there in all"}
    name = next(name for name in words if name in os.sysconf_names)
    return f"{os.sysconf(name) * os.sysconf('SC_PAGE_SIZE'):,} bytes {words[name]}"


def refuse_windows() -> None:
    """Raise EnvironmentFault where Python cannot lock files; Windows can inside WSL."""
    try:
        for name in ("fcntl", "resource"):  # at once: later, no file may be open to load them from
            import_module(name)
    except ImportError:
        raise EnvironmentFault(
            "Windows itself is not supported: it has no fcntl, which locks files",
            "run the same command inside WSL (wsl --install)",
        ) from None


def lock_file(file: IO[Any]) -> None:
    """Lock an open file until this process ends; raise BlockingIOError where another one has it."""
    import fcntl

    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def limit_of(name: Literal["NOFILE", "FSIZE"]) -> float:
    """Return how many open files, or bytes in a file, the system allows to this process."""
    import resource

    limit = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[0]
    return math.inf if limit == resource.RLIM_INFINITY else limit


@contextmanager
def stop_signals(receive: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP call `receive` inside `with`; what nohup ignores stays so."""
    numbers = [getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")]
    heard = [n for n in numbers if n and signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, receive) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def forbid_tf32() -> None:
    """Let fp32 mean fp32 on a GPU too, in convolutions and in products of matrices."""
    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def make_repeatable(threads: Threads) -> None:
    """Fix all that changes the last bits: the number of threads and the choice of kernels."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    torch.set_num_threads(resolve_threads(threads))
    # use_deterministic_algorithms(True) does the same, and imports the compiler: 1.7 s each time
    torch.set_deterministic_debug_mode("error")
    torch.backends.cudnn.benchmark = False
    forbid_tf32()
    # filling fresh tensors guards against reading uninitialised memory; our operators do not
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


class StopRequest:
    """Remember that somebody asked to stop, so that the loop can end at a step boundary.

    Inside `with`, SIGINT, SIGTERM and SIGHUP only set a flag; a second signal ends at once, which
    is safe because every write is atomic. Under DVC, or as one process of several, the death of the
    parent counts as a request too: an orphan would train on and collide with the next run.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._heard = stop_signals(self._receive)

    def __enter__(self) -> "StopRequest":
        self._heard.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._heard.__exit__(None, None, None)

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


class Room:
    """Let threads hold at once what together is within a limit; what is larger goes alone."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self.change = threading.Condition()

    @contextmanager
    def hold(self, amount: int) -> Iterator[None]:
        """Wait for room and hold it; a thread that holds some must not ask for more."""
        amount = min(amount, self.limit)
        with self.change:
            self.change.wait_for(lambda: self.taken + amount <= self.limit)
            self.taken += amount
        try:
            yield
        finally:
            with self.change:
                self.taken -= amount
                self.change.notify_all()


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
