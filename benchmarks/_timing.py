"""Time things side by side: in turns, in one run, so that a busy machine disturbs all alike."""

import argparse
import json
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

import numpy as np
from PIL import Image

from resnets.data.prepare import prepare_task
from resnets.data.sources import open_source
from resnets.data.split import split_task
from resnets.evaluation.markdown import table
from resnets.params import load_params, schema
from resnets.system.runtime import num_cores
from resnets.tasks.task import Task

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
PARAMS = load_params(ROOT / "params.yaml")
ROWS = "RESNETS_BENCH_ROWS"  # names a file to which every result is added, for run.py
Sides = dict[str, Callable[[], float]]
Texts = dict[str, str]


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


def class_folders(
    source: Path, out: Path, *, limit: int | None = None, val: float = 0, side: int | None = None
) -> None:
    """Write images of a dataset as files in class folders, a share of them below val/.

    Those that are no files are written as PNG, `side` pixels wide and high.
    """
    opened, rng = open_source(source), np.random.default_rng(0)
    chosen = rng.permutation(len(opened.members))[:limit]
    members = [opened.members[row] for row in sorted(chosen)]
    for member, content in opened.read(members):
        part = "" if not val else "val" if rng.random() < val else "train"
        label, name = (word.replace("/", "_") for word in (member.label, member.name))
        path = out / part / label / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            image = Image.fromarray(content.squeeze()).convert("RGB")
            size = (side, side) if side else image.size
            image.resize(size).save(path.with_name(f"{name}.png"))


def pack(source: Path, folder: Path, *, channels: int, resize: int) -> Task:
    """Prepare and split a dataset with our own stages."""
    prepare(source, folder, channels=channels, resize=resize)
    split_task(folder, PARAMS.split["source"])
    return Task(folder)


def prepare(source: Path, folder: Path, *, channels: int, **data: object) -> None:
    """Prepare a dataset with our own stage; `data` is as the section of that name has it."""
    checks = schema.Checks(on_bad="quarantine", max_bad_fraction=0.5)
    section, task = PARAMS.data.model_copy(update=data), schema.TaskSection(path=str(source))
    prepare_task(task, section, checks, channels, folder)


def machine() -> str:
    """Say what the figures depend on, and nothing that names the machine."""
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.machine()
    amx = " with AMX" if info.exists() and "amx_tile" in info.read_text() else ""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{cpu}{amx}, {num_cores()} cores{gpu}, torch {torch.__version__}"


def describe_machine() -> None:
    """Print what the figures depend on."""
    print(f"{machine()} (load {os.getloadavg()[0]:.1f})")


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


def record(what: str, ours: str, peer: str, ratios: list[float], limit: str) -> None:
    """Keep a result for the page of performance, where run.py asks for it."""
    if ROWS in os.environ:
        ratio = spread(ratios, 2) if len(ratios) > 1 else f"{ratios[0]:.2f}"
        row = {"what": what, "ours": ours, "peer": peer, "ratio": ratio, "limit": limit or "-"}
        with Path(os.environ[ROWS]).open("a") as file:
            file.write(json.dumps({**row, "machine": machine()}) + "\n")


def compare(
    title: str,
    sides: Sides,
    *,
    unit: str,
    rounds: int,
    target: str = "",
    limits: Texts | None = None,
) -> None:
    """Print the rates of the sides, and how often the first one's the others are, turn by turn.

    With `limits`, the last side is ours and stands beside each of the others; `limits` say how many
    times as fast it is to be.
    """
    values = alternate(sides, rounds)
    names = list(values)
    pairs = [(name, names[0], target) for name in names[1:]]
    if limits is not None:
        pairs = [(names[-1], peer, limits.get(peer, "")) for peer in names[:-1]]
    rows = []
    for name, peer, limit in pairs:
        ratios = [a / b for a, b in zip(values[name], values[peer], strict=True)]
        rates = [f"{spread(values[side])} {unit}" for side in (name, peer)]
        rows.append([name, rates[0], peer, rates[1], spread(ratios, 2), limit or "-"])
        what = title if limits is not None else f"{title}: {name}"
        record(what, rates[0], f"{peer}, {rates[1]}", ratios, limit)
    print(f"\n{title}")
    print(table(["", "", "against", "", "ratio", "limit"], rows))


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
