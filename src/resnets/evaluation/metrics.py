"""Keep the table of metrics, which all that computes, shows or compares them reads.

Values are scikit-learn's. Averages over classes run over those that have images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from resnets.evaluation.predictions import Predictions
from resnets.evaluation.significance import Floats, Labels, Terms, balanced_terms, macro_f1_terms
from resnets.models.calibration import LogProbabilities

Use = Literal["headline", "details", "card", "compare", "rank"]

BINS = 15  # of confidence, equally wide (Guo et al. 2017, arXiv 1706.04599)
TOP = 5  # top-5 accuracy, where there are more classes than that


@dataclass(frozen=True)
class Metric:
    """Describe a metric: how it is measured, and what shows it besides scores.csv.

    `measure` gives terms (R, N), one per image, whose mean is the metric, or just the number of the
    first run; None where there is none. `uses`: "headline" is metrics/<model>.json, "details" the
    file of that name, "card" the model card, "compare" `resnets compare` and its gates (by terms
    that do without `logs`; all headlines are), "rank" the leaderboard, which sorts by these
    headlines in this order.
    """

    name: str
    measure: Callable[[Predictions], Terms | float | None]
    uses: tuple[Use, ...] = ()
    higher_is_better: bool = True  # then it is a share, and can be shown in percent
    is_calibrated: bool = True  # of softmax(logits / temperature), not softmax(logits)

    def terms(self, predictions: Predictions) -> Terms:
        """Return the terms (R, N) of a metric that is compared."""
        terms = self.measure(predictions)
        assert isinstance(terms, np.ndarray)
        return terms


def reliability(logs: LogProbabilities, labels: Labels) -> dict[str, Floats]:
    """Return images, mean confidence and accuracy of every bin of confidence that holds images.

    The bins are (0, 1/15], (1/15, 2/15] and so on.
    """
    confidence, right = np.exp(logs.max(1)), logs.argmax(1) == labels
    bins = np.clip(np.ceil(confidence * BINS) - 1, 0, BINS - 1).astype(int)
    images = np.bincount(bins)
    sums = {"confidence": np.bincount(bins, confidence), "accuracy": np.bincount(bins, right)}
    held = images > 0
    return {
        "images": images[held].astype(np.float64),
        **{k: x[held] / images[held] for k, x in sums.items()},
    }


def class_ranks(x: Predictions) -> dict[str, dict[int, float]]:
    """Return one-vs-rest ROC AUC and average precision of each class that can have them."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    scores = {"roc_auc": roc_auc_score, "average_precision": average_precision_score}
    present = np.unique(x.labels).tolist()
    if len(present) == 1:
        return {name: {} for name in scores}
    sides = np.equal.outer(x.labels, present), x.logs[:, present]
    values = {name: score(*sides, average=None) for name, score in scores.items()}
    return {k: dict(zip(present, v.tolist(), strict=True)) for k, v in values.items()}


def _mean_rank(x: Predictions, name: str) -> float | None:
    values = class_ranks(x)[name].values()
    return float(np.mean(list(values))) if values else None


def _top(x: Predictions) -> Terms | None:
    likeliest = np.argsort(x.logs, axis=1, kind="stable")[:, -TOP:]
    return (likeliest == x.labels[:, None]).any(1)[None] if x.logs.shape[1] > TOP else None


def _brier(x: Predictions) -> Terms:
    truth = np.eye(x.logs.shape[1])[x.labels]
    halved = 0.5 if truth.shape[1] == 2 else 1.0  # scikit-learn's, of two classes in [0, 1]
    return np.asarray(halved * np.square(np.exp(x.logs) - truth).sum(1))[None]


def _ece(x: Predictions) -> float:
    bins = reliability(x.logs, x.labels)
    return float(bins["images"] @ abs(bins["confidence"] - bins["accuracy"])) / len(x.labels)


def _average(x: Predictions, place: int, average: str) -> float:
    """Return an average over classes of scikit-learn's precision (place 0) or F1 (place 2)."""
    from sklearn.metrics import precision_recall_fscore_support

    present = np.unique(x.labels)
    scores = precision_recall_fscore_support(
        x.labels, x.runs[0], labels=present, average=average, zero_division=0
    )
    return float(scores[place])


SHOWN: tuple[Use, ...] = ("details", "card")
FIRST: tuple[Use, ...] = ("headline", *SHOWN, "compare")
METRICS = (
    Metric("accuracy", Predictions.right, (*FIRST, "rank")),
    Metric("balanced_accuracy", lambda x: balanced_terms(x.right(), x.labels), (*SHOWN, "compare")),
    Metric("macro_f1", lambda x: macro_f1_terms(x.runs, x.labels), FIRST),
    Metric("top5", _top, SHOWN),
    Metric("roc_auc", lambda x: _mean_rank(x, "roc_auc"), ("card",)),
    Metric("loss", lambda x: x.losses, ("details",), higher_is_better=False, is_calibrated=False),
    Metric("nll", lambda x: x.losses, (*FIRST, "rank"), higher_is_better=False),
    Metric("ece", _ece, SHOWN, higher_is_better=False),
    Metric("ece_uncalibrated", _ece, higher_is_better=False, is_calibrated=False),
    Metric("brier", _brier, higher_is_better=False),
    Metric("brier_uncalibrated", _brier, higher_is_better=False, is_calibrated=False),
    Metric("average_precision", lambda x: _mean_rank(x, "average_precision")),
    Metric("macro_precision", lambda x: _average(x, 0, "macro")),
    Metric("macro_recall", lambda x: balanced_terms(x.right(), x.labels)),
    Metric("weighted_precision", lambda x: _average(x, 0, "weighted")),
    Metric("weighted_recall", Predictions.right),
    Metric("weighted_f1", lambda x: _average(x, 2, "weighted")),
)


def metrics_for(use: Use) -> dict[str, Metric]:
    """Return the metrics of one use by name, in the order of the table."""
    return {metric.name: metric for metric in METRICS if use in metric.uses}
