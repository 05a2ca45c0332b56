"""Talk to the machine: device, precision, cores, processes and requests to stop.

Importing this module imports no torch, so that the stages that need none start quickly.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Literal

from resnets.system.errors import ParamsError, StoppedBySignal, hear

Engine = Literal["auto", "onnxruntime", "openvino", "torch"]
Precision = Literal["fp32", "bf16"]
Threads = int | Literal["auto"]

PARENT = os.getppid()  # from the start: DVC may die while torch is still being imported


def resolve_device(device: str) -> str:
    """Return "cpu" or what torch finds beside it, "cuda" or "mps", which "auto" prefers."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    present = [accelerator.type, "cpu"] if accelerator else ["cpu"]
    if device not in ("auto", *present):
        fix = f"take auto, or one that is here: {', '.join(present)}"
        raise ParamsError(f"torch finds no device {device!r} for this process", fix)
    return present[0] if device == "auto" else device


def resolve_precision(precision: str, device: str) -> Precision:
    """Return "fp32" or "bf16"; "auto" means bf16 where that is faster.

    On a CPU that takes matrix units, AMX, or AMD's AVX-512. On two cores, torch 2.15, images a
    second of training a ResNet-18: an Emerald Rapids without AMX 16 in bf16 and 23 in fp32 at 224
    pixels, an EPYC of Zen 5 260 and 163 at 96 pixels.
    """
    if device == "cuda":
        import torch

        is_faster = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # torch has no public question for it; the flags of /proc/cpuinfo answer it on Linux
        cpuinfo = Path("/proc/cpuinfo")
        flags = cpuinfo.read_text() if device == "cpu" and cpuinfo.exists() else ""
        is_amd = "AuthenticAMD" in flags
        is_faster = "amx_bf16" in flags or (is_amd and "avx512_bf16" in flags)
    return "bf16" if precision == "bf16" or (precision == "auto" and is_faster) else "fp32"


def process_number() -> int:
    """Return this process's number among those that train together, as torchrun counts them."""
    return int(os.environ.get("RANK", "0"))


def allowed_cpus() -> list[int]:
    """Return the numbers of the CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS, which binds no process
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def num_cores() -> int:
    """Return how many physical cores this process may keep busy, at least 1.

    The two threads of a core share its units, as Linux tells; a Mac that torch runs on has one
    thread per core. What a container's quota does not pay for waits, as joblib tells.
    """
    from joblib import cpu_count

    cpus = [Path(f"/sys/devices/system/cpu/cpu{cpu}") for cpu in allowed_cpus()]
    siblings = [cpu / "topology/thread_siblings_list" for cpu in cpus]
    cores = {file.read_text() if file.exists() else file for file in siblings}
    return min(len(cores), int(cpu_count()))


def resolve_threads(threads: Threads) -> int:
    """Return a number of threads; "auto" means this process's share of the physical cores."""
    beside = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE", "1")
    return max(1, num_cores() // int(beside)) if threads == "auto" else threads


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

    received = 0

    def __enter__(self) -> "StopRequest":
        self.before = hear(self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received:
            os._exit(130)
        self.received = number

    def is_set(self) -> bool:
        """Tell whether to stop."""
        has_parent = {"DVC_STAGE", "RANK"} & os.environ.keys()
        if not self.received and has_parent and os.getppid() != PARENT:
            self.received = signal.SIGTERM
        return self.received > 0

    def error(self, where: str) -> StoppedBySignal:
        """Return the error to raise once the state is saved."""
        return StoppedBySignal(self.received or signal.SIGTERM, f"state saved at {where}")


class Room:
    """Let threads hold at once what together is within a limit; what is larger goes alone."""

    def __init__(self, limit: int) -> None:
        self.limit, self.taken, self.change = limit, 0, threading.Condition()

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
