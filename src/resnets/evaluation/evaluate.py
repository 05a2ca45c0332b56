"""Score logits against labels with every metric of the table, and with 95% intervals.

A metric has one if it is the mean of one term per image: Wilson's for a proportion, else a normal
one from the spread of the terms within each class, as the split fixes how many images a class has.
Images of a group stand or fall together, and count as fewer: as many as tell the same alone.
What cannot be known is None, never NaN.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from resnets.evaluation.metrics import METRICS, Metric, class_ranks, metrics_for
from resnets.evaluation.predictions import Predictions, predictions_of
from resnets.evaluation.significance import Labels, Z, independent_images, wilson
from resnets.system.errors import DataError

ScoreRow = dict[str, str | int | float | None]


@dataclass(frozen=True)
class Score:
    """Hold one metric with its 95% interval, as far as it is known."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """Hold the numbers of one side of a split, as a whole and class by class."""

    images: int
    scores: dict[str, Score]
    per_class: list[ScoreRow]

    def value(self, metric: str) -> float:
        """Return a metric to six decimals."""
        return round(self.scores[metric].value, 6)

    def details(self) -> dict[str, float]:
        """Return the numbers that a reviewer may ask for, and the interval of the accuracy."""
        row = {name: self.value(name) for name in metrics_for("details") if name in self.scores}
        bounds = asdict(self.scores["accuracy"])
        row |= {f"accuracy_{key}": round(bounds[key], 6) for key in ("low", "high")}
        return row | {"images": self.images}


def evaluate(
    logits: NDArray[np.floating],
    labels: Labels,
    classes: Sequence[str],
    *,
    temperature: float | NDArray[np.float64] = 1,
    groups: Sequence[str] = (),
) -> Evaluation:
    """Score logits (N, K) against labels (N,); the temperature may be one per image, (N, 1).

    Images with the same word in `groups` (N,) stand or fall together; without any, none do.
    Raises DataError without images.
    """
    if not len(labels):
        raise DataError("there are no images to evaluate", "check the split: one side is empty")
    exact = np.asarray(logits, np.float64)
    group = np.unique(groups or np.arange(len(labels)), return_inverse=True)[1]
    uncalibrated, calibrated = (predictions_of([exact / t], labels) for t in (1, temperature))
    scores = {
        metric.name: score
        for metric in METRICS
        if (score := _score(metric, calibrated if metric.is_calibrated else uncalibrated, group))
    }
    return Evaluation(len(labels), scores, _per_class(calibrated, classes, group))


def read_evaluation(folder: Path) -> Evaluation:
    """Read back what scores.csv and per_class.csv in a folder hold."""
    tables: list[list[dict[Any, Any]]] = []
    for name, word in (("scores", "metric"), ("per_class", "class")):
        file = folder / f"{name}.csv"  # a class may be called NA or 007
        table = pd.read_csv(file, dtype={word: str}, keep_default_na=False, na_values="")
        tables.append(table.astype(object).where(table.notna(), None).to_dict("records"))
    scores = {row.pop("metric"): Score(**row) for row in tables[0]}
    return Evaluation(sum(row["support"] for row in tables[1]), scores, tables[1])


def _score(metric: Metric, predictions: Predictions, group: Labels) -> Score | None:
    """Return a metric of the first run with the interval that its terms give it."""
    measured, labels = metric.measure(predictions), predictions.labels
    if not isinstance(measured, np.ndarray):
        return None if measured is None else Score(measured)
    terms = measured[0]
    if terms.dtype == np.bool_:
        return _proportion(terms, group)
    rest = terms - np.bincount(labels, terms)[labels] / np.bincount(labels)[labels]
    pairs = np.unique(labels * labels.size + group)  # of a class and a group of it
    num_groups = np.bincount(pairs // labels.size)[labels]
    sums = np.bincount(group, rest * np.sqrt(num_groups / np.maximum(num_groups - 1, 1)))
    variance = float(sums @ sums) / terms.size**2
    value, half = float(terms.mean()), Z * math.sqrt(variance)
    if half < 1e-9:
        return Score(value)
    most = 1.0 if metric.higher_is_better else math.inf
    return Score(value, max(value - half, 0.0), min(value + half, most))


def _proportion(right: NDArray[np.bool_], group: Labels) -> Score:
    share, number = float(right.mean()), independent_images(right, group)
    return Score(share, *wilson(share * number, number))


def _per_class(predictions: Predictions, classes: Sequence[str], group: Labels) -> list[ScoreRow]:
    """Return per class: support; precision and recall with intervals; F1, AUC and AP."""
    right, ranks, rows = predictions.right()[0], class_ranks(predictions), []
    for k, name in enumerate(classes):
        sides = {"precision": predictions.runs[0] == k, "recall": predictions.labels == k}
        picks, support = (int(side.sum()) for side in sides.values())
        row: ScoreRow = {"class": name, "support": support}
        for metric, side in sides.items():
            known = astuple(_proportion(right[side], group[side])) if side.any() else (None,) * 3
            row |= zip((metric, f"{metric}_low", f"{metric}_high"), known, strict=True)
        hits = int(right[sides["recall"]].sum())
        row["f1"] = 2 * hits / (support + picks) if support else None
        rows.append(row | {name: values.get(k) for name, values in ranks.items()})
    return rows
