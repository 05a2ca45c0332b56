"""Tabulate and plot time and memory of the stages against the number and the size of images.

    python benchmarks/cost_curves.py            1k to 64k generated images (ten minutes)
    python benchmarks/cost_curves.py --quick    250 and 1,000

Each stage is a process of its own, so the figures hold its start as well (importing torch: seconds,
and some 500 MB). `backbone` trains a small network for one epoch. The plot goes to
benchmarks/cost_curves.png, in a quick run to a temporary folder.
"""

import io
import math
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from _timing import ROOT, describe_machine, options, run_measured
from PIL import Image
from ruamel.yaml import YAML

from resnets.evaluation.markdown import table

COUNTS, SIZES = (1_000, 4_000, 16_000, 64_000), (32, 128, 512, 2048)
QUICK_COUNTS, QUICK_SIZES = (250, 1000), (32, 128)
FEW = 500  # images of every size
NUMBERS, QUICK_FEW = "number of images, 32 px each", 100
STAGES = {
    "prepare": "prepare source --out data --metrics m.json --samples s.png --findings f.png",
    "split": "split source --task data --metrics m.json",
    "backbone": "backbone --out model --history h.csv",
}
Costs = dict[int, dict[str, tuple[float, float]]]


def write_images(path: Path, count: int, size: int) -> None:
    """Write a zip of two classes of JPEG pictures, all different."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(count):
            coarse = rng.integers(0, 256, (16, 16, 3), np.uint8)
            picture = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
            content = io.BytesIO()
            picture.save(content, "JPEG")
            archive.writestr(f"{'ab'[number % 2]}/{number}.jpg", content.getvalue())


def write_params(path: Path, size: int) -> None:
    """Write parameters for these images: one epoch of a small network."""
    values = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    for task in values["tasks"].values():
        task.update(path="images.zip", classes=None)
    values["data"].update(resize=min(size, 256))
    values["checks"].update(on_bad="quarantine", max_bad_fraction=0.5)
    values["preprocess"].update(crop=min(size, 224), mean=[0.5] * 3, std=[0.25] * 3)
    values["model"].update(name="resnet8", in_channels=3, stem="small")
    if size > 64:
        values["model"].update(name="resnet18", stem="imagenet", shortcut="projection")
    values["backbone"].update(epochs=1, input="data")
    with path.open("w") as file:
        YAML(typ="safe", pure=True).dump(values, file)


def measure(count: int, size: int) -> dict[str, tuple[float, float]]:
    """Return seconds and megabytes of every stage."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "images.zip", count, size)
        write_params(folder / "params.yaml", size)
        costs = {
            stage: run_measured(
                [sys.executable, "-m", *f"resnets.stages.{line}".split()],
                folder=folder, PYTHONPATH=str(ROOT / "src"),
            )
            for stage, line in STAGES.items()
        }  # fmt: skip
        model = str(folder / "model/model.safetensors")
        command = ["-m", "resnets.cli", "predict", "images.zip", "--model", model, "-o", "p.csv"]
        costs["predict"] = run_measured(
            [sys.executable, *command], folder=folder, PYTHONPATH=str(ROOT / "src")
        )
        return costs


def show(costs: Costs, label: str) -> None:
    """Print a table, and how each stage's time grows with its input."""
    header = [label, *(f"{stage}: s, MB" for stage in next(iter(costs.values())))]
    rows = [
        [f"{value:,}", *(f"{seconds:,.1f}, {peak:,.0f}" for seconds, peak in stages.values())]
        for value, stages in costs.items()
    ]
    print(f"\n{table(header, rows)}")
    if len(costs) > 2:
        *_, before, last = costs
        steps = {stage: costs[last][stage][0] / costs[before][stage][0] for stage in costs[last]}
        words = ", ".join(f"{stage} {step:.1f}" for stage, step in steps.items())
        print(f"from {before:,} to {last:,} the time grows by a factor of: {words}")
        exponents = (math.log(max(step, 1e-9), last / before) for step in steps.values())
        print(f"largest exponent of growth: {max(exponents):.2f} (1 is linear)")


def plot(curves: dict[str, Costs], path: Path) -> None:
    """Draw seconds and megabytes of every stage, on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 8), layout="constrained")
    for row, (label, costs) in zip(figure.subplots(2, 2), curves.items(), strict=True):
        for column, (panel, unit) in enumerate(zip(row, ("seconds", "peak MB"), strict=True)):
            for stage in next(iter(costs.values())):
                values = [stages[stage][column] for stages in costs.values()]
                panel.loglog(list(costs), values, "o-", label=stage)
            panel.set(xlabel=label, ylabel=unit)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    figure.savefig(path, dpi=100)
    print(f"\nplot: {path}")


def main() -> None:
    """Measure both curves."""
    quick = options(__doc__).quick
    describe_machine()
    few = QUICK_FEW if quick else FEW
    curves = {
        NUMBERS: {count: measure(count, 32) for count in (QUICK_COUNTS if quick else COUNTS)},
        f"pixels of each side, {few} images": {
            size: measure(few, size) for size in (QUICK_SIZES if quick else SIZES)
        },
    }
    for label, costs in curves.items():
        show(costs, label)
    folder = Path(tempfile.mkdtemp()) if quick else ROOT / "benchmarks"
    plot(curves, folder / "cost_curves.png")


if __name__ == "__main__":
    main()
