"""Write the model card: what a model is, what it was measured on, and what it is not good for.

The words are those of card.md, where a name in braces stands for a value.
"""

from collections.abc import Mapping
from dataclasses import astuple
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from resnets.evaluation.evaluate import Evaluation
from resnets.evaluation.markdown import code, measured, table
from resnets.evaluation.metrics import metrics_for
from resnets.models.bundle import Bundle
from resnets.tasks.manifest import SIDES
from resnets.tasks.task import Task

Facts = Mapping[str, Any]

WEAK = 3  # classes named as the weakest
COLUMNS = ("support", "precision", "recall", "recall_low", "recall_high", "f1")
SEEDS = (
    "\n\nOver {seeds} {repetitions} the test accuracy is {seeds_mean:.4f} ± "
    "{seeds_std:.4f} (standard deviation)."
)


def model_card(bundle: Bundle, task: Task, scores: Evaluation, row: Facts, report: Facts) -> str:
    """Return the card in Markdown.

    `scores` are of the test, `row` is the model's in the leaderboard, whose seeds are quoted,
    `report` is what the export measured.
    """
    meta, preprocess = bundle.meta, bundle.meta.preprocess
    runs = "repetitions" if row["folds"] else "training runs with different seeds"
    template = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    return template.format(
        meta=meta,
        p=preprocess,
        scores=scores,
        report=report,
        name=meta.architecture["name"],
        num_classes=len(meta.classes),
        classes=", ".join(map(code, meta.classes)),
        colours="RGB" if preprocess.channels == 3 else "grey",
        fit="shorter side" if preprocess.fit == "shorter_side" else "two sides, stretched,",
        images=_count_images(task),
        hashes=_pairs("hash of", {**meta.hashes, "weights": bundle.sha256}),
        training=_pairs("training", meta.training),
        results=_results(scores),
        measured=measured(row),
        checked="images, which it was trained on," if row["folds"] else "test images",
        seeds=SEEDS.format(repetitions=runs, **row) if row["seeds"] > 1 else "",
        int8=_int8(report["int8"]) if "int8" in report else "",
        weakest=_weakest(scores),
    )


def _cell(value: object) -> str:
    """Write a score with four decimals; None, which cannot be known, as nothing."""
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)


def _pairs(title: str, values: Facts) -> str:
    return table((title, "value"), sorted(values.items()), words=2)


def _count_images(task: Task) -> str:
    """Count the images of each class on each side; with folds, all are trained on and tested."""
    sides = SIDES[:1] if task.num_folds else SIDES
    sets = (task.pooled().side(side).labels for side in sides)
    counts = np.stack([np.bincount(labels, minlength=len(task.classes)) for labels in sets], 1)
    rows = [(code(name), *numbers) for name, numbers in zip(task.classes, counts, strict=True)]
    header = ("images",) if task.num_folds else ("train", "validation", "test")
    return table(("class", *header), [*rows, ("all", *counts.sum(0))])


def _results(scores: Evaluation) -> str:
    """Give the scores with their 95% intervals, and the classes one by one."""
    shown = [name for name in metrics_for("card") if name in scores.scores]
    rows = [(name, *map(_cell, astuple(scores.scores[name]))) for name in shown]
    numbers = itemgetter(*COLUMNS)
    classes = [(code(row["class"]), *map(_cell, numbers(row))) for row in scores.per_class]
    tables = table(("score", "value", "low", "high"), rows), table(("class", *COLUMNS), classes)
    return "\n\n".join(tables)


def _weakest(scores: Evaluation) -> str:
    """Name the classes of the lowest recall."""
    present = [row for row in scores.per_class if row["support"]]
    weakest = sorted(present, key=itemgetter("recall"))[:WEAK]
    return ", ".join(f"{code(row['class'])} (recall {row['recall']:.2f})" for row in weakest)


def _int8(int8: Facts) -> str:
    """Say what int8 loses, and whether it is shipped."""
    keys = ("accuracy", "fp32_accuracy", "agreement")
    names = {"val": "val", "test": "test"} if "val" in int8 else {"test": "trained on"}
    rows = [(name, *(_cell(int8[side][key]) for key in keys)) for side, name in names.items()]
    verdict = "`model_int8.onnx` is the default of `resnets predict`."
    if not int8["is_default"]:
        side = "validation" if "val" in int8 else "the images that it was trained on"
        verdict = f"It loses {int8['drop']:.4f} on {side}, above max_drop: it is not shipped."
    header = ("int8", "accuracy", "accuracy fp32", "same answer")
    return f"\n\n{table(header, rows)}\n\nint8 takes {int8['bytes']:,} bytes. {verdict}"
