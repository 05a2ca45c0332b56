"""Talk to the machine: device, precision, threads, processes, signals, time.

Importing this module imports no torch, so that the stages that need none start quickly.
"""

import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Literal

from resnets.errors import ParamsError, StoppedBySignal

Precision = Literal["fp32", "bf16"]

PARENT = os.getppid()  # from the start: DVC may die while torch is still being imported


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
