"""Train in several processes that act as one: torchrun starts them, DistributedDataParallel sums.

Each process takes its part of every batch. Gradients are summed while they are computed; BatchNorm
statistics, which each process gathers from its own parts, are averaged at the end of every epoch.
Process 0 alone evaluates, saves and publishes.
"""

import atexit
import os
import signal
import sys
import time
import warnings
from datetime import timedelta
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from resnets.system.errors import (
    LOST_CONTACT,
    ArtefactError,
    EnvironmentFault,
    ParamsError,
    ResNetsError,
    StoppedBySignal,
)
from resnets.system.runtime import PARENT, process_number

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

POLL_SECONDS = 0.1
STOPPED = 128  # exit codes above are signals'
Value = TypeVar("Value")


def num_processes() -> int:
    """Return how many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launch(processes: int) -> None:
    """Run this very command in so many processes on this machine, as torchrun does, and leave.

    Returns at once where one is enough, or inside a process that torchrun started. The first
    process that fails ends all, and its error is raised here.
    """
    if processes == 1 or "RANK" in os.environ:
        return
    import logging

    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # errors are worded here
    Thread(target=_follow_parent, daemon=True).start()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="resnets",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,  # the state is on the disk: the same command continues
        monitor_interval=POLL_SECONDS,
    )
    try:
        elastic_launch(config, sys.executable)(*sys.orig_argv[1:])
    except ChildFailedError as error:
        raise _first_error(error, processes) from None
    except SignalException as stop:
        raise StoppedBySignal(stop.sigval, f"state saved by {processes} processes") from None
    raise typer.Exit(0)


def _follow_parent() -> None:
    """Stop with the death of the parent: an orphan would train on and collide with the next run."""
    while os.getppid() == PARENT:
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _first_error(error: "ChildFailedError", processes: int) -> ResNetsError:
    """Return the error that ended all; others then lost contact or were stopped because of it."""
    failures = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
    messages: list[object] = [failure.message for _, failure in failures]
    for message in messages:
        if not isinstance(message, dict):  # run_app says it in a dict
            continue
        if message["message"] != LOST_CONTACT and message["exit_code"] < STOPPED:
            return ResNetsError(message["message"], message["fix"], message["exit_code"])
    number, failure = next(
        (item for item in failures if not isinstance(item[1].message, dict)), failures[0]
    )
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        return EnvironmentFault(
            f"process {number} of {processes} was killed by {name}",
            "if memory ran out, lower batch_size; run the same command again to continue",
        )
    return ResNetsError(f"process {number} of {processes} failed", "read what it printed above")


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
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    # process 0 evaluates alone, which may take long; a dead process ends all anyway
    distributed.init_process_group(backend, timeout=timedelta(days=1))
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
            "give every machine the same commit, parameters, data, torch and runtime.threads",
        )


def share(value: Value) -> Value:
    """Return process 0's value in all processes."""
    if num_processes() == 1:
        return value
    from torch import distributed

    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def gather(value: Value) -> list[Value]:
    """Return the values of all processes, in their order."""
    if num_processes() == 1:
        return [value]
    from torch import distributed

    values: list[Any] = [None] * num_processes()
    distributed.all_gather_object(values, value)
    return values


def totals(*values: float) -> list[float]:
    """Return the sums of these numbers over all processes."""
    if num_processes() == 1:
        return list(values)
    import torch
    from torch import distributed

    sums = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(sums)
    return sums.tolist()


def in_parallel(module: "nn.Module") -> "nn.Module":
    """Wrap a module so that its gradients are the means over all processes; itself in one alone.

    Only what needs gradients now takes part: wrap again where other parameters train.
    """
    if num_processes() == 1:
        return module
    from torch.nn.parallel import DistributedDataParallel

    # with find_unused_parameters the layout of the buckets never changes; otherwise it does after
    # the first step, and with three processes a resumed run would round differently
    warnings.filterwarnings("ignore", "find_unused_parameters=True was specified")
    return DistributedDataParallel(
        module, init_sync=False, forward_sync_buffers=False, find_unused_parameters=True
    )


def statistics_of(module: "nn.Module") -> "dict[str, Tensor]":
    """Return the BatchNorm statistics that a training module gathers from its own images."""
    return {
        f"{place}.{name}": buffer
        for place, part in module.named_modules()
        for name, buffer in part.named_buffers(recurse=False)
        if part.training and buffer.is_floating_point()
    }


def average_statistics(module: "nn.Module") -> None:
    """Make the BatchNorm statistics of what trains those of all processes, by their mean."""
    if num_processes() == 1:
        return
    from torch import distributed

    for buffer in statistics_of(module).values():
        distributed.all_reduce(buffer)
        buffer /= num_processes()
