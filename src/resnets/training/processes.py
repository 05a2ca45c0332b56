"""Train in several processes that act as one: same steps, same weights, one voice.

Each process takes its part of every batch. After the backward pass, one sum over one flat tensor
makes the gradients and the BatchNorm statistics those of the whole batch in all processes, so that
each holds the same bits at every step: process 0 alone evaluates, saves and publishes, and a
resumed run is exact. torch's DistributedDataParallel is not used: it keeps process 0's BatchNorm
statistics only, needs to be rebuilt whenever other groups train, and sums in another order after
its first step than before, so that with three processes a resumed run would differ.
"""

import atexit
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from resnets.errors import (
    GRACE_SECONDS,
    ArtefactError,
    EnvironmentFault,
    ParamsError,
    ResNetsError,
)
from resnets.runtime import StopRequest, process_number

if TYPE_CHECKING:
    from torch import Tensor, nn

MEETING = "RESNETS_MEETING"  # where the processes that `launch` starts find each other
POLL_SECONDS = 0.05
Value = TypeVar("Value")


def num_processes() -> int:
    """Return how many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launch(processes: int) -> None:
    """Run this very command in so many processes on this machine, and leave with their exit code.

    Returns at once where one is enough, or inside a process that this or torchrun started. The
    first process that fails ends all. Raises EnvironmentFault when the system killed it.
    """
    if processes == 1 or "RANK" in os.environ:
        return
    with tempfile.TemporaryDirectory() as folder, StopRequest() as stop:
        common = {**os.environ, "WORLD_SIZE": str(processes), MEETING: f"file://{folder}/meeting"}
        children = [
            subprocess.Popen(
                [sys.executable, *sys.orig_argv[1:]],
                env={**common, "RANK": str(number), "LOCAL_RANK": str(number)},
                start_new_session=True,  # Ctrl-C comes from here, not a second time from the shell
            )
            for number in range(processes)
        ]
        try:
            code = _wait(children, stop)
        finally:
            for child in children:
                child.kill()
                child.wait()
    raise typer.Exit(code)


def _wait(children: Sequence[subprocess.Popen[bytes]], stop: StopRequest) -> int:
    """Return the exit code of the first process that fails, or 0 when all are done."""
    is_told = False
    while True:
        codes = [child.poll() for child in children]
        for number, code in enumerate(codes):
            if code is not None and code < 0 and not is_told:
                name = signal.Signals(-code).name
                raise EnvironmentFault(
                    f"process {number} of {len(children)} was killed by {name}",
                    "if memory ran out, lower batch_size; run the same command again to continue",
                )
            if code:
                return code if code > 0 else 128 - code
        if None not in codes:
            return 0
        if stop.is_set() and not is_told:
            is_told = True
            for child in children:
                child.send_signal(stop.received or signal.SIGTERM)
        time.sleep(POLL_SECONDS)


def join(device: str) -> None:
    """Meet the other processes, if there are any; on GPUs each takes the one of its number."""
    import torch
    from torch import distributed

    if num_processes() == 1 or distributed.is_initialized():
        return
    if device == "cuda":
        number, available = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= available:
            raise ParamsError(
                f"more processes than CUDA devices ({available})", "lower runtime.processes"
            )
        torch.cuda.set_device(number)
    with _contact():
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
            init_method=os.environ.get(MEETING, "env://"),
            rank=process_number(),
            world_size=num_processes(),
            timeout=timedelta(days=1),  # process 0 evaluates alone; a dead process ends all anyway
        )
    atexit.register(distributed.destroy_process_group)


def check_alike(identity: dict[str, Any], smallest_batch: int) -> None:
    """Refuse processes with next to nothing to do, or that would train something else each."""
    number, count = process_number(), num_processes()
    if count > 1 and smallest_batch < 2 * count:
        raise ParamsError(
            f"a batch of {smallest_batch} images cannot be shared by {count} processes",
            "two images each is the least: raise batch_size, or lower runtime.processes",
        )
    first = share(identity)
    differing = [key for key in identity if identity[key] != first.get(key)]
    if differing:
        raise ArtefactError(
            f"process {number} differs from process 0 in {', '.join(differing)}",
            "give every machine the same commit, parameters, data and torch",
        )


@contextmanager
def _contact() -> Iterator[None]:
    """Let the process that failed speak first, where a sum fails because another one is gone."""
    try:
        yield
    except RuntimeError as error:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whoever started us ends us meanwhile
        time.sleep(2 * GRACE_SECONDS)
        raise EnvironmentFault(
            f"lost contact with the other processes ({error})",
            "look for the error of another one; run the same command again to continue",
        ) from error


def share(value: Value) -> Value:
    """Return process 0's value in all processes."""
    if num_processes() == 1:
        return value
    from torch import distributed

    values = [value]
    with _contact():
        distributed.broadcast_object_list(values, src=0)
    return values[0]


def agreed(error: ResNetsError) -> Exception:
    """Return what to raise where all processes meet the same end: process 0 alone speaks of it."""
    return typer.Exit(0) if process_number() else error


def any_of(flag: bool) -> bool:
    """Tell whether the flag is set in any process."""
    if num_processes() == 1:
        return flag
    import torch

    return bool(_add_up(torch.tensor([float(flag)])).item())


def _add_up(values: "Tensor") -> "Tensor":
    from torch import distributed

    with _contact():
        distributed.all_reduce(values)
    return values


def combine(model: "nn.Module", loss: float, num_correct: int, part: float) -> tuple[float, int]:
    """Make gradients and BatchNorm statistics those of the whole batch; return loss and correct.

    Losses and gradients are parts of sums. Statistics are means over the images: `part`, this
    process's share of the batch's, weights them. Those of frozen layers are left alone.
    """
    import torch

    tensors = [p.grad for p in model.parameters() if p.grad is not None]
    scaled = [grad.flatten() for grad in tensors]
    for module in model.modules():
        if module.training:
            statistics = [x for x in module.buffers(recurse=False) if x.is_floating_point()]
            tensors += statistics
            scaled += [x.flatten() * part for x in statistics]
    sums = tensors[0].new_tensor([loss, num_correct])
    total = _add_up(torch.cat([*scaled, sums]))
    *combined, sums = torch.split(total, [*(tensor.numel() for tensor in tensors), 2])
    for tensor, values in zip(tensors, combined, strict=True):
        tensor.copy_(values.view(tensor.shape))
    return sums[0].item(), int(sums[1])
