"""Time things side by side: in turns, in one run, so that a busy machine disturbs all alike."""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from resnets.data.prepare import prepare_task
from resnets.data.split import split_task
from resnets.evaluation.report import table
from resnets.params import load_params, schema
from resnets.system.runtime import num_cores
from resnets.tasks.task import Task

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
PARAMS = load_params(ROOT / "params.yaml")
Sides = dict[str, Callable[[], float]]


def options(text: str, *names: str) -> argparse.Namespace:
    """Read the command line; `quick` asks for a short, rough run, `names` are further options."""
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short, rough run")
    for name in names:
        parser.add_argument(name)
    return parser.parse_args()


def photos(name: str = "hymenoptera_data.zip") -> Path:
    """Return an archive of real photos, or end the benchmark with words where it is absent."""
    if not (SHARED / name).is_file():
        print(f"skipped: {name} is not in ../shared/data beside the checkout")
        sys.exit(0)
    return SHARED / name


def unpack(archive: Path, folder: Path, limit: int | None = None) -> list[Path]:
    """Write the photos of an archive into a folder for the time of a benchmark."""
    with zipfile.ZipFile(archive) as source:
        names = [name for name in source.namelist() if name.lower().endswith((".jpg", ".png"))]
        count = min(limit or len(names), len(names))  # from all of its folders
        chosen = [names[number * len(names) // count] for number in range(count)]
        return [Path(source.extract(name, folder)) for name in chosen]


def pack(source: Path, folder: Path, *, channels: int, resize: int) -> Task:
    """Prepare and split a dataset with our own stages."""
    prepare(source, folder, channels=channels, resize=resize)
    split_task(folder, PARAMS.split["source"])
    return Task(folder)


def prepare(source: Path, folder: Path, *, channels: int, resize: int) -> None:
    """Prepare a dataset with our own stage."""
    checks = schema.Checks(on_bad="quarantine", max_bad_fraction=0.5)
    data, task = (
        PARAMS.data.model_copy(update={"resize": resize}),
        schema.TaskSection(path=str(source)),
    )
    prepare_task(task, data, checks, channels, folder)


def describe_machine() -> None:
    """Print what the figures depend on, and nothing that names the machine."""
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.machine()
    load = os.getloadavg()[0]
    print(f"{cpu}, {num_cores()} cores (load {load:.1f}), torch {torch.__version__}")
    if torch.cuda.is_available():
        print(torch.cuda.get_device_name())


def rate(count: int, action: Callable[[], object]) -> float:
    """Return how many things per second an action does; what it prints is dropped."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        start = time.perf_counter()
        action()
        return count / (time.perf_counter() - start)


def alternate(sides: Sides, rounds: int) -> dict[str, list[float]]:
    """Measure the sides in turns, ABAB…, after a round that does not count."""
    values: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, measure in sides.items():
            value = measure()
            if turn:
                values[name].append(value)
    return values


def spread(values: list[float], digits: int = 1) -> str:
    """Write a median with the smallest and the largest value."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f}–{high:,.{digits}f})"


def compare(title: str, sides: Sides, *, unit: str, rounds: int, target: str = "") -> None:
    """Print the rates of the sides, and how often the first one's the others are, turn by turn."""
    values = alternate(sides, rounds)
    base, *_ = values
    rows = []
    for name, own in values.items():
        ratios = [a / b for a, b in zip(own, values[base], strict=True)]
        rows.append([name, spread(own), "1" if name == base else spread(ratios, 2)])
    print(f"\n{title}{f' (target: {target})' if target else ''}")
    print(table(["", unit, f"times {base}"], rows))


MEASURE = """
import os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(time.perf_counter() - start, usage.ru_maxrss)
sys.exit(status != 0)
"""


def run_measured(
    command: list[str], folder: Path | None = None, **environment: str
) -> tuple[float, float]:
    """Run a command to its end and return its seconds and its peak memory in MB.

    A small process starts it: Linux counts the memory of the one that forks as well.
    """
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *command],
        cwd=folder, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"failed: {' '.join(command)}")
    seconds, peak = map(float, done.stdout.split())
    return seconds, peak / (2**20 if sys.platform == "darwin" else 2**10)  # there it is in bytes
