"""Time 2 processes of one thread each against one of 2 threads, and what communication costs.

    python benchmarks/processes.py [--quick]

resnet20 on generated images of 32 px and ResNet-18 on such of 112 px, the same batches for all.
What communication costs is the difference to two trainings on half a batch each, side by side.
"""

import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
import typer
from _timing import compare, describe_machine, options
from training_step import Ours

from resnets.system.runtime import process_number
from resnets.tasks.task import Side
from resnets.training.processes import in_parallel, join, launch

CASES = {"resnet20": (32, 128, 20), "resnet18": (112, 32, 8)}  # pixels, batch, steps of a turn


def work(network: str, processes: int, share: int, steps: int, out: Path) -> None:
    """Train on batches of which `share` is the divisor; write images per second."""
    launch(processes)
    join("cpu")
    size, batch, _ = CASES[network]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4 * batch, size, size, 3), np.uint8)
    names = [str(number) for number in range(len(images))]
    side = Side(names, np.arange(len(images)) % 10, [str(k) for k in range(10)], images)
    ours = Ours(network, side, size, batch // share, "cpu")
    torch.set_num_threads(2 // max(processes, share))
    ours.model = in_parallel(ours.model)
    value = ours.rate(steps)
    if process_number() == 0:
        out.write_text(str(value))


def measure(network: str, steps: int, folder: Path, *, processes: int = 1, share: int = 1) -> float:
    """Return images per second, together, of as many trainings as share a batch."""
    started = []
    for number in range(share):
        arguments = (network, processes, share, steps, folder / f"{number}.txt")
        command = [sys.executable, __file__, "--work", *map(str, arguments)]
        started.append((subprocess.Popen(command, stdout=subprocess.DEVNULL), arguments[-1]))
    if any(process.wait() for process, _ in started):
        sys.exit("a training failed")
    return sum(float(out.read_text()) for _, out in started)


def main() -> None:
    """Measure both networks."""
    quick = options(__doc__).quick
    describe_machine()
    with tempfile.TemporaryDirectory() as name:
        for network, (size, batch, steps) in CASES.items():
            run = partial(measure, network, 2 if quick else steps, Path(name))
            compare(
                f"{network}, {size} px, batches of {batch}",
                {
                    "1 process, 2 threads": run,
                    "2 trainings of half a batch": partial(run, share=2),
                    "2 processes": partial(run, processes=2),
                },
                unit="images/s",
                rounds=1 if quick else 5,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        name, *numbers, path = sys.argv[2:]
        with suppress(typer.Exit):  # how `launch` ends once its processes have
            work(name, *map(int, numbers), Path(path))
    else:
        main()
