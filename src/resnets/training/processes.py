"""Train in several processes that act as one: torchrun starts them, DistributedDataParallel sums.

Each process takes its part of every batch, and the gradients are those of the whole. BatchNorm
normalises each part by itself, and its running statistics are the means over the processes; with
`sync_batchnorm` it normalises the whole. Process 0 alone evaluates, saves and publishes.
"""

import atexit
import logging
import os
import signal
import sys
import time
import warnings
from datetime import timedelta
from threading import Thread
from typing import Any, TypeVar

import torch
import typer
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from resnets.system.errors import (
    LOST_CONTACT,
    ArtefactError,
    EnvironmentFault,
    ParamsError,
    ResNetsError,
    StoppedBySignal,
)
from resnets.system.runtime import PARENT, process_number

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
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # errors are worded here
    Thread(target=_follow_parent, daemon=True).start()
    command = ["--no-python", sys.executable, *sys.orig_argv[1:]]
    options = ["--standalone", f"--nproc-per-node={processes}", *command]
    try:
        run(get_args_parser().parse_args(options))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        raise _first_error(error.failures, processes) from None
    except SignalException as stop:
        raise StoppedBySignal(stop.sigval, f"state saved by {processes} processes") from None
    raise typer.Exit(0)


def _follow_parent() -> None:
    """Stop with the death of the parent: an orphan would train on and collide with the next run."""
    while os.getppid() == PARENT:
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _first_error(failures: dict[int, Any], processes: int) -> ResNetsError:
    """Return the error that ended all; others then lost contact or were stopped because of it."""
    in_time = sorted(failures.items(), key=lambda item: item[1].timestamp)
    said = [failure.message for _, failure in in_time if isinstance(failure.message, dict)]
    for error in said:  # run_app has written what it says
        if error["message"] != LOST_CONTACT and error["exit_code"] < STOPPED:
            return ResNetsError(error["message"], error["fix"], error["exit_code"])
    silent = [item for item in in_time if not isinstance(item[1].message, dict)]
    number, failure = (silent or in_time)[0]
    process = f"process {number} of {processes}"
    if failure.exitcode >= 0:
        return ResNetsError(f"{process} failed", "read what it printed above")
    return EnvironmentFault(
        f"{process} was killed by {signal.Signals(-failure.exitcode).name}",
        "if memory ran out, lower batch_size; run the same command again to continue",
    )


def join(device: str) -> None:
    """Meet the other processes, if there are any; on GPUs each takes the one of its number."""
    if num_processes() == 1 or distributed.is_initialized():
        return
    if device == "cuda":
        number, available = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= available:
            what = f"more processes than CUDA devices ({available})"
            raise ParamsError(what, "lower runtime.processes")
        torch.cuda.set_device(number)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    # process 0 evaluates alone, which may take long; a dead process ends all anyway
    distributed.init_process_group(backend, timeout=timedelta(days=1))
    atexit.register(distributed.destroy_process_group)


def check_alike(identity: dict[str, Any], smallest_batch: int) -> None:
    """Refuse processes with next to nothing to do, or that would train something else each."""
    count = num_processes()
    if count > 1 and smallest_batch < 2 * count:
        raise ParamsError(
            f"a batch of {smallest_batch} images cannot be shared by {count} processes",
            "two images each is the least: raise batch_size, or lower runtime.processes",
        )
    first = share(identity)
    differing = [key for key in identity if identity[key] != first.get(key)]
    if differing:
        raise ArtefactError(
            f"process {process_number()} differs from process 0 in {', '.join(differing)}",
            "give every machine the same commit, parameters, data, torch and runtime.threads",
        )


def share(value: Value) -> Value:
    """Return process 0's value in all processes."""
    values = [value]
    if num_processes() > 1:
        distributed.broadcast_object_list(values, src=0)
    return values[0]


def totals(*values: float) -> list[float]:
    """Return the sums of these numbers over all processes."""
    sums = torch.tensor(values, dtype=torch.float64)
    if num_processes() > 1:
        distributed.all_reduce(sums)
    return sums.tolist()


def in_parallel(module: nn.Module) -> nn.Module:
    """Wrap a module so that its gradients are the means over all processes; itself in one alone.

    Only what needs gradients now takes part: wrap again where other parameters train.
    """
    if num_processes() == 1:
        return module
    # with find_unused_parameters the layout of the buckets never changes; otherwise it does after
    # the first step, and with three processes a resumed run would round differently
    warnings.filterwarnings("ignore", "find_unused_parameters=True was specified")
    return DistributedDataParallel(
        module, init_sync=False, find_unused_parameters=True, broadcast_buffers=False
    )


def average_statistics(module: nn.Module) -> None:
    """Give each BatchNorm that trains the mean of all processes' running statistics.

    Done after each step, so that the state of one process is that of all; since running statistics
    are linear in the batches', it comes to the same as once at the end of an epoch.
    """
    norms = [x for x in module.modules() if isinstance(x, _BatchNorm) and x.training]
    statistics = [x for norm in norms for x in norm.buffers() if x.is_floating_point()]
    if num_processes() == 1 or not statistics:
        return
    means = torch.cat(statistics)
    distributed.all_reduce(means)
    means /= num_processes()
    sizes = [len(own) for own in statistics]
    for own, mean in zip(statistics, torch.split(means, sizes), strict=True):
        own.copy_(mean)


def synchronise(module: nn.Module, device: str) -> None:
    """Let the BatchNorm layers inside a module normalise over all processes.

    Raises ParamsError on a CPU, for which torch has no such layer.
    """
    if device == "cpu":
        what = "training.sync_batchnorm is true, but torch synchronises BatchNorm only on GPUs"
        raise ParamsError(what, "set training.sync_batchnorm to false, or runtime.device to cuda")
    nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
