"""Measure how accuracy grows with the labelled images per class, and so when transfer pays.

    python benchmarks/learning_curve.py           10, 30, 100 and 300 images per class
    python benchmarks/learning_curve.py --quick   10 and 30, one seed

Each number is a DVC experiment of this commit, `images-30`, so that a second run computes only what
is missing. With fewer images than params.yaml has, a training takes as many steps as there, with
more as many epochs. Writes learning_curve.csv and .png beside this file.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from _timing import PARAMS, ROOT, describe_machine, options
from matplotlib.figure import Figure

from resnets.evaluation.markdown import points, table

HERE = Path(__file__).parent
COUNTS = (10, 30, 100, 300)
LINES = {"finetune": "C0", "scratch": "C1", "frozen": "C2", "svm": "0.4", "probe": "0.7"}


def run(*command: str, stdout: int | None = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """Run a command in the project; its output is kept, or seen where `stdout` is None."""
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": tools}
    return subprocess.run(command, cwd=ROOT, env=environment, stdout=stdout, text=True)


def changes(count: int, *, quick: bool) -> list[str]:
    """Return the options of `dvc exp run` for so many training images per class."""
    classes, usual = PARAMS.tasks["target"].classes, PARAMS.split["target"].train
    values: dict[str, Any] = {"split.target.train": count}
    for name, variant in PARAMS.transfer.items():
        steps, fewer = (math.ceil(len(classes) * n / variant.batch_size) for n in (usual, count))
        values[f"transfer.{name}.epochs"] = math.ceil(variant.epochs * max(steps / fewer, 1))
    if quick:
        values["repeat"] = [0]
    return [word for key, value in values.items() for word in ("-S", f"{key}={value}")]


def measure(count: int, *, quick: bool) -> list[dict[str, Any]]:
    """Return a row per variant and yardstick, of an experiment that is run if need be."""
    head, name = run("git", "rev-parse", "HEAD").stdout.strip(), f"images-{count}{'-1' * quick}"
    board = f"refs/exps/{head[:2]}/{head[2:]}/{name}:metrics/leaderboard.json"
    if run("git", "cat-file", "-e", board).returncode:
        command = ("dvc", "exp", "run", "--temp", "--name", name, *changes(count, quick=quick))
        if run(*command, stdout=None).returncode:
            sys.exit(f"{name} failed: see above")
    found = json.loads(run("git", "show", board).stdout)
    return [
        {"images": count, "model": name, "accuracy": row["seeds_mean"], "std": row["seeds_std"]}
        for kind in ("variants", "yardsticks")
        for name, row in found[kind].items()
    ]


def draw(rows: pd.DataFrame, file: Path) -> None:
    """Draw a line per model."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for name, colour in LINES.items():
        of_one = rows[rows["model"] == name]
        label = f"{name} (yardstick)" if name in ("svm", "probe") else name
        axes.errorbar(
            of_one["images"], 100 * of_one["accuracy"], 100 * of_one["std"].astype(float),
            label=label, color=colour, capsize=3,
        )  # fmt: skip
    axes.set(xscale="log", xlabel="training images per class", ylabel="test accuracy, %")
    axes.set_xticks(COUNTS, [str(count) for count in COUNTS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=110)


def main() -> None:
    """Run what is missing, print the table and draw it."""
    quick = options(__doc__).quick
    describe_machine()
    counts = COUNTS[:2] if quick else COUNTS
    rows = pd.DataFrame([row for n in counts for row in measure(n, quick=quick)])
    wide = rows.pivot(index="images", columns="model", values="accuracy")[list(LINES)]
    cells = [[count, *map(points, row)] for count, *row in wide.itertuples()]
    print(table(["images per class", *LINES], cells))
    if not quick:
        rows.to_csv(HERE / "learning_curve.csv", index=False, lineterminator="\n")
        draw(rows, HERE / "learning_curve.png")


if __name__ == "__main__":
    main()
