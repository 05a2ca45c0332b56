"""Score logits against labels: metrics as pure functions, each with a 95% interval.

Point values come from scikit-learn wherever it has the metric. Intervals are Wilson's for
proportions and a stratified bootstrap for the rest, centred on the point value, because
redrawing biases F1 and calibration errors. What cannot be known is None, never NaN: the recall
of a class without images, an AUC of one class, a bootstrap without any spread. Macro averages
run over the classes that have images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnets.calibration import log_softmax
from resnets.errors import DataError, NumericalError
from resnets.evaluation.bootstrap import (
    MEANS,
    TOP,
    Floats,
    Labels,
    bin_of,
    class_scores,
    image_table,
    rank_values,
    redraw,
    rescore,
)
from resnets.evaluation.significance import wilson

Row = dict[str, str | int | float | None]

CALIBRATION = (*MEANS, "ece_uncalibrated", "ece")
HEADLINE = ("accuracy", "balanced_accuracy", "macro_f1", "top5", "loss", "nll", "ece")


@dataclass(frozen=True)
class Score:
    """Hold one metric with its 95% interval, as far as it is known."""

    value: float | None
    low: float | None = None
    high: float | None = None


def _rounded(value: float | None) -> float:
    assert value is not None  # what is headlined is known wherever there are images
    return round(float(value), 6)


@dataclass(frozen=True)
class Evaluation:
    """Hold all that was measured on one side of a split.

    `per_class` has a row per class, `reliability` a row per bin of confidence that holds images.
    `confusion` is (K, K): rows are true classes, columns predicted ones.
    """

    images: int
    scores: dict[str, Score]
    per_class: list[Row]
    reliability: list[Row]
    confusion: Labels

    def value(self, metric: str) -> float:
        """Return a metric, to six decimals."""
        return _rounded(self.scores[metric].value)

    def headline(self) -> dict[str, float]:
        """Return the few numbers that a pull request should show."""
        row = {name: self.value(name) for name in HEADLINE if name in self.scores}
        accuracy = self.scores["accuracy"]
        for name, bound in (("accuracy_low", accuracy.low), ("accuracy_high", accuracy.high)):
            row[name] = _rounded(bound)
        return row | {"images": self.images}

    def score_rows(self) -> list[Row]:
        """Return every metric as a row of metric, value, low and high."""
        return [{"metric": name, **asdict(score)} for name, score in self.scores.items()]


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
        reliability=reliability(calibrated, labels),
        confusion=confusion,
    )


def reliability(log_probabilities: Floats, labels: Labels) -> list[Row]:
    """Return images, mean confidence and accuracy of every bin of confidence that holds images."""
    confidence, right = np.exp(log_probabilities.max(1)), log_probabilities.argmax(1) == labels
    bins = bin_of(confidence)
    return [
        {
            "images": int((bins == k).sum()),
            "confidence": float(confidence[bins == k].mean()),
            "accuracy": float(right[bins == k].mean()),
        }
        for k in np.unique(bins)
    ]


def metrics_record(
    runs: Mapping[int, tuple[Evaluation, Evaluation]],
    *,
    training: Mapping[str, int | float | str],
    measured_on: Mapping[str, str],
) -> dict[str, Any]:
    """Return what metrics/<variant>.json holds.

    `runs` maps each repeat to its (test, val); the first is the one that is shipped, and gives
    `test` and `val`. `seeds` has `n`, mean and sample standard deviation of the accuracies (no
    deviation of one run), and the numbers of each repeat, as mappings because DVC drops lists.
    """
    test, val = next(iter(runs.values()))
    seeds: dict[str, Any] = {"n": len(runs)}
    for side, prefix in enumerate(("", "val_")):
        accuracies = [run[side].value("accuracy") for run in runs.values()]
        seeds[f"{prefix}mean"] = round(float(np.mean(accuracies)), 6)
        if len(runs) > 1:
            seeds[f"{prefix}std"] = round(float(np.std(accuracies, ddof=1)), 6)
    for name, side, metric in (("test", 0, "accuracy"), ("val", 1, "accuracy"), ("nll", 0, "nll")):
        seeds[name] = {str(repeat): run[side].value(metric) for repeat, run in runs.items()}
    record = {"test": test.headline(), "val": val.headline(), "seeds": seeds}
    return record | {"training": dict(training), "measured_on": dict(measured_on)}


def _score(name: str, value: float, drawn: Floats | None, num_images: int) -> Score:
    """Give a value its interval: Wilson's, or the middle 95% of the redrawn values around it."""
    if name in ("accuracy", f"top{TOP}"):
        return _proportion(round(value * num_images), num_images)
    if drawn is None or np.ptp(drawn) == 0:
        return Score(value)
    low, high = value + np.quantile(drawn, [0.025, 0.975]) - drawn.mean()
    # a few draws far away pull the mean past both quantiles: the interval holds its value anyway
    low, high = min(max(low, 0.0), value), max(high if name in MEANS else min(high, 1.0), value)
    return Score(value, float(low), float(high))


def _proportion(successes: int, total: int) -> Score:
    """Return a share with Wilson's interval; nothing is known of none of none."""
    return Score(successes / total, *wilson(successes, total)) if total else Score(None)


def _per_class(
    confusion: Labels,
    classes: Sequence[str],
    ranks: Mapping[str, Mapping[int, float]],
    drawn_f1: Floats | None,
) -> list[Row]:
    """Return per class: support; precision, recall and F1 with intervals; AUC and AP."""
    rows: list[Row] = []
    counts = zip(confusion.diagonal(), confusion.sum(1), confusion.sum(0), strict=True)
    for k, (hits, support, picks) in enumerate((int(a), int(b), int(c)) for a, b, c in counts):
        drawn = None if drawn_f1 is None else drawn_f1[:, k]
        of_f1 = _score("f1", 2 * hits / (support + picks), drawn, support) if support else None
        scores = {
            "precision": _proportion(hits, picks),
            "recall": _proportion(hits, support),
            "f1": of_f1 or Score(None),
        }
        row: Row = {"class": classes[k], "support": support}
        for metric, score in scores.items():
            row |= {metric: score.value, f"{metric}_low": score.low, f"{metric}_high": score.high}
        rows.append(row | {metric: of.get(k) for metric, of in ranks.items()})
    return rows
