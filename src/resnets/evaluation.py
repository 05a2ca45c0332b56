"""Score logits against labels: metrics as pure functions, each with a 95% interval.

Point values come from scikit-learn wherever it has the metric. Intervals are Wilson's for
proportions and a stratified bootstrap for the rest, centred on the point value, because
redrawing biases F1 and calibration errors. What cannot be known is None, never NaN: the recall
of a class without images, an AUC of one class, a bootstrap without any spread. Macro averages
run over the classes that have images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resnets.errors import DataError, NumericalError
from resnets.scores import (
    MEANS,
    TOP,
    bin_of,
    class_scores,
    image_table,
    rank_values,
    redraw,
    rescore,
)
from resnets.statistics import wilson

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Row = dict[str, str | int | float | None]

CALIBRATION = (*MEANS, "ece_uncalibrated", "ece")
HEADLINE = ("accuracy", "balanced_accuracy", "macro_f1", "top5", "loss", "nll", "ece")


@dataclass(frozen=True)
class Score:
    """Hold one metric with its 95% interval; bounds are None where none can be given."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """Hold all that was measured on one side of a split.

    `scores` maps each metric to its value and interval. `per_class` has a row per class,
    `reliability` a row per bin of confidence that holds images. `confusion` is (K, K): rows are
    true classes, columns predicted ones.
    """

    images: int
    scores: dict[str, Score]
    per_class: list[Row]
    reliability: list[Row]
    confusion: Labels

    def headline(self) -> dict[str, float]:
        """Return the few numbers that a pull request should show, to six decimals."""
        accuracy = self.scores["accuracy"]
        row = {k: round(self.scores[k].value, 6) for k in HEADLINE if k in self.scores}
        bounds = {"accuracy_low": accuracy.low, "accuracy_high": accuracy.high}
        row |= {k: round(v, 6) for k, v in bounds.items() if v is not None}
        return row | {"images": self.images}

    def score_rows(self) -> list[Row]:
        """Return every metric as a row of metric, value, low and high."""
        return [
            {"metric": name, "value": score.value, "low": score.low, "high": score.high}
            for name, score in self.scores.items()
        ]


def evaluate(
    logits: NDArray[np.floating],
    labels: Labels,
    classes: Sequence[str],
    *,
    temperature: float = 1.0,
    resamples: int = 1000,
) -> Evaluation:
    """Score logits (N, K) against labels (N,).

    `nll`, `brier` and `ece` belong to the calibrated probabilities softmax(logits / temperature);
    `loss` (the cross-entropy), `brier_uncalibrated` and `ece_uncalibrated` to the logits as they
    are. `resamples=0` leaves Wilson's as the only intervals. Raises DataError without images and
    NumericalError for logits that are not finite.
    """
    if not len(labels):
        raise DataError("there are no images to evaluate", "check the split: one side is empty")
    if not np.isfinite(logits).all():
        raise NumericalError("the logits are not finite", "lower the learning rate and retrain")
    order = np.argsort(labels, kind="stable")  # the bootstrap wants them sorted
    logits, labels = np.asarray(logits, np.float64)[order], np.asarray(labels, np.int64)[order]
    predicted, calibrated = logits.argmax(1), log_softmax(logits / temperature)
    table = image_table(labels, predicted, log_softmax(logits), calibrated)
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    sums = rescore(np.asarray(table.sum(0), np.float64)[None], confusion.sum(1))
    ranks = rank_values(labels, calibrated)
    point = class_scores(labels, logits)
    point |= {name: float(sums[name][0]) for name in CALIBRATION}
    point |= {name: float(np.mean(list(of.values()))) for name, of in ranks.items() if of}
    drawn = redraw(table, labels, np.exp(calibrated), list(ranks["roc_auc"]), resamples)
    return Evaluation(
        images=len(labels),
        scores={name: _score(name, x, drawn.get(name), len(labels)) for name, x in point.items()},
        per_class=_per_class(confusion, classes, ranks, drawn.get("f1_of_class")),
        reliability=_reliability(np.exp(calibrated.max(1)), labels == predicted),
        confusion=confusion,
    )


def log_softmax(logits: NDArray[np.floating]) -> Floats:
    """Return the natural logarithm of the softmax of logits (N, K)."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def fit_temperature(logits: NDArray[np.floating], labels: Labels) -> float:
    """Return the temperature T that makes softmax(logits / T) fit validation labels best.

    Guo et al. 2017, with the smoothed targets of Platt 1999: without them a validation side
    without a single error would drive T to zero and every confidence to 1.
    """
    from scipy.optimize import minimize_scalar

    num_images, num_classes = logits.shape
    smoothing = 1 / (num_images + 2)
    targets = np.full(logits.shape, smoothing / num_classes)
    targets[np.arange(num_images), labels] += 1 - smoothing

    def cross_entropy(log_temperature: float) -> float:
        return float(-(targets * log_softmax(logits / np.exp(log_temperature))).sum())

    bounds = (float(np.log(0.02)), float(np.log(50)))
    best = minimize_scalar(cross_entropy, bounds=bounds, method="bounded")
    return round(float(np.exp(best.x)), 4)


def predictions_table(
    ids: Sequence[str],
    labels: Labels,
    logits: NDArray[np.floating],
    classes: Sequence[str],
    temperature: float,
) -> "pd.DataFrame":
    """Return a row per image: id, label, predicted, then one calibrated probability per class.

    Its readers go by position, since a class may be called `id`.
    """
    import pandas as pd

    names = np.asarray(classes, dtype=object)
    words = {"id": list(ids), "label": names[labels], "predicted": names[logits.argmax(1)]}
    probabilities = np.exp(log_softmax(logits / temperature)).round(6)
    numbers = pd.DataFrame(probabilities, columns=list(classes))
    return pd.concat([pd.DataFrame(words), numbers], axis=1)


def metrics_record(
    runs: Mapping[int, tuple[Evaluation, Evaluation]],
    *,
    training: Mapping[str, int | float | str],
    measured_on: Mapping[str, str],
) -> dict[str, Any]:
    """Return what metrics/<variant>.json holds.

    `runs` maps each repeat to its (test, val); the first is the one that is shipped, and gives
    `test` and `val`. `seeds` has `n`, mean and sample standard deviation of the accuracies
    (`mean`, `std`, `val_mean`, `val_std`; no std of one run), and for each repeat `test`, `val`
    and `nll` (of the test), as mappings because DVC drops lists. `training` should have `epochs`,
    `best_epoch`, `parameters`, `parameters_trained`, `model_bytes`; `measured_on` has `data`,
    `split`, `classes`, `test_set`, `preprocess`, `weights`.
    """
    test, val = next(iter(runs.values()))
    seeds: dict[str, Any] = {"n": len(runs)}
    for side, prefix in enumerate(("", "val_")):
        accuracies = [run[side].scores["accuracy"].value for run in runs.values()]
        seeds[f"{prefix}mean"] = round(float(np.mean(accuracies)), 6)
        if len(runs) > 1:
            seeds[f"{prefix}std"] = round(float(np.std(accuracies, ddof=1)), 6)
    for name, side, metric in (("test", 0, "accuracy"), ("val", 1, "accuracy"), ("nll", 0, "nll")):
        seeds[name] = {str(k): round(run[side].scores[metric].value, 6) for k, run in runs.items()}
    record = {"test": test.headline(), "val": val.headline(), "seeds": seeds}
    return record | {"training": dict(training), "measured_on": dict(measured_on)}


def _score(name: str, value: float, drawn: Floats | None, num_images: int) -> Score:
    """Give a value its interval: Wilson's, or the middle 95% of the redrawn values around it."""
    if name in ("accuracy", f"top{TOP}"):
        return Score(value, *wilson(round(value * num_images), num_images))
    if drawn is None or np.ptp(drawn) == 0:
        return Score(value)
    low, high = value + np.quantile(drawn, [0.025, 0.975]) - drawn.mean()
    # a few draws far away pull the mean past both quantiles: the interval holds its value anyway
    low, high = min(max(low, 0.0), value), max(high if name in MEANS else min(high, 1.0), value)
    return Score(value, float(low), float(high))


def _per_class(
    confusion: Labels,
    classes: Sequence[str],
    ranks: Mapping[str, Mapping[int, float]],
    drawn_f1: Floats | None,
) -> list[Row]:
    """Return per class: support; precision, recall and F1 with intervals; AUC and AP."""
    rows: list[Row] = []
    for k, name in enumerate(classes):
        hits, support, picks = (
            int(n) for n in (confusion[k, k], confusion[k].sum(), confusion[:, k].sum())
        )
        f1 = Score(2 * hits / (support + picks)) if support else None
        if f1 and drawn_f1 is not None:
            f1 = _score("f1", f1.value, drawn_f1[:, k], support)
        scores = {
            "precision": Score(hits / picks, *wilson(hits, picks)) if picks else None,
            "recall": Score(hits / support, *wilson(hits, support)) if support else None,
            "f1": f1,
        }
        row: Row = {"class": name, "support": support}
        for metric, score in scores.items():
            row[metric] = score.value if score else None
            row[f"{metric}_low"] = score.low if score else None
            row[f"{metric}_high"] = score.high if score else None
        rows.append(row | {metric: of.get(k) for metric, of in ranks.items()})
    return rows


def _reliability(confidence: Floats, right: NDArray[np.bool_]) -> list[Row]:
    """Return the mean confidence and the accuracy of every bin that holds images."""
    bins = bin_of(confidence)
    return [
        {
            "images": int((bins == k).sum()),
            "confidence": float(confidence[bins == k].mean()),
            "accuracy": float(right[bins == k].mean()),
        }
        for k in np.unique(bins)
    ]
