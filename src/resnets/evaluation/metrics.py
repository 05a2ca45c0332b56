"""Keep the table of metrics, which all that computes, shows or compares them reads.

Values are scikit-learn's, and computed by it where they are no plain means. Macro averages run over
the classes that have images.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from resnets.evaluation.significance import Labels, Terms, balanced_terms, macro_f1_terms
from resnets.models.calibration import LogProbabilities

Use = Literal["headline", "card", "compare", "rank"]

BINS = 15  # of confidence, equally wide (Guo et al. 2017, arXiv 1706.04599)
TOP = 5  # top-5 accuracy, where there are more classes than that


@dataclass(frozen=True)
class Outcomes:
    """Hold what runs of a model made of N images, whose classes are `labels` (N,).

    `runs` (R, N) are the classes that each run predicted, `losses` (R, N) -log of the probability
    of the true class, `logs` (N, K) all log-probabilities of the first run, where they are known.
    """

    labels: Labels
    runs: Labels
    losses: NDArray[np.float64]
    logs: LogProbabilities = field(default_factory=lambda: np.empty((0, 0)))

    @property
    def right(self) -> NDArray[np.bool_]:
        """Return (R, N): which images were classified as what they are."""
        return np.equal(self.runs, self.labels)

    @cached_property
    def ranks(self) -> dict[str, dict[int, float]]:
        """Return one-vs-rest ROC AUC and average precision of each class that can have them."""
        from sklearn.metrics import average_precision_score, roc_auc_score

        present = np.unique(self.labels)
        if len(present) == 1:
            return {"roc_auc": {}, "average_precision": {}}
        sides = np.equal.outer(self.labels, present), self.logs[:, present]
        values = {
            "roc_auc": roc_auc_score(*sides, average=None).tolist(),
            "average_precision": average_precision_score(*sides, average=None).tolist(),
        }
        return {name: dict(zip(present.tolist(), x, strict=True)) for name, x in values.items()}


@dataclass(frozen=True)
class Metric:
    """Describe a metric: how it is measured, and what shows it besides scores.csv.

    `measure` gives terms (R, N), one per image, whose mean is the metric, or just the number of the
    first run; None where there is none. `uses`: "headline" is metrics/<model>.json, "card" the
    model card, "compare" `resnets compare` and its gates (by terms that do without `logs`), "rank"
    runs.csv and the leaderboard, which sorts by these metrics in this order.
    """

    name: str
    measure: Callable[[Outcomes], Terms | float | None]
    uses: tuple[Use, ...] = ()
    higher_is_better: bool = True  # then it is a share, and can be shown in percent
    is_calibrated: bool = True  # of softmax(logits / temperature), not softmax(logits)

    def terms(self, outcomes: Outcomes) -> Terms:
        """Return the terms (R, N) of a metric that is compared."""
        terms = self.measure(outcomes)
        assert isinstance(terms, np.ndarray)
        return terms


def reliability(logs: LogProbabilities, labels: Labels) -> list[dict[str, float]]:
    """Return images, mean confidence and accuracy of every bin of confidence that holds images.

    The bins are (0, 1/15], (1/15, 2/15] and so on.
    """
    confidence, right = np.exp(logs.max(1)), logs.argmax(1) == labels
    bins = np.clip(np.ceil(confidence * BINS) - 1, 0, BINS - 1)
    groups = [bins == k for k in np.unique(bins)]
    return [
        {
            "images": int(group.sum()),
            "confidence": float(confidence[group].mean()),
            "accuracy": float(right[group].mean()),
        }
        for group in groups
    ]


def _top(x: Outcomes) -> Terms | None:
    likeliest = np.argsort(x.logs, axis=1, kind="stable")[:, -TOP:]
    return (likeliest == x.labels[:, None]).any(1)[None] if x.logs.shape[1] > TOP else None


def _brier(x: Outcomes) -> Terms:
    truth = np.eye(x.logs.shape[1])[x.labels]
    halved = 0.5 if truth.shape[1] == 2 else 1.0  # scikit-learn's, of two classes in [0, 1]
    return np.asarray(halved * np.square(np.exp(x.logs) - truth).sum(1))[None]


def _ece(x: Outcomes) -> float:
    bins = reliability(x.logs, x.labels)
    gaps = (row["images"] * abs(row["confidence"] - row["accuracy"]) for row in bins)
    return sum(gaps) / len(x.labels)


def _mean_rank(x: Outcomes, name: str) -> float | None:
    return float(np.mean(list(x.ranks[name].values()))) if x.ranks[name] else None


def _average(x: Outcomes, score: Literal["precision", "f1"], average: str) -> float:
    from sklearn.metrics import precision_recall_fscore_support

    present = np.unique(x.labels)
    precision, _, f1, _ = precision_recall_fscore_support(
        x.labels, x.runs[0], labels=present, average=average, zero_division=0
    )
    return float(precision if score == "precision" else f1)


SHOWN: tuple[Use, ...] = ("headline", "card")
METRICS = (
    Metric("accuracy", lambda x: x.right, (*SHOWN, "compare", "rank")),
    Metric("balanced_accuracy", lambda x: balanced_terms(x.right, x.labels), (*SHOWN, "compare")),
    Metric("macro_f1", lambda x: macro_f1_terms(x.runs, x.labels), (*SHOWN, "compare")),
    Metric("top5", _top, SHOWN),
    Metric("roc_auc", lambda x: _mean_rank(x, "roc_auc"), ("card",)),
    Metric("loss", lambda x: x.losses, ("headline",), higher_is_better=False, is_calibrated=False),
    Metric("nll", lambda x: x.losses, (*SHOWN, "compare", "rank"), higher_is_better=False),
    Metric("ece", _ece, SHOWN, higher_is_better=False),
    Metric("ece_uncalibrated", _ece, higher_is_better=False, is_calibrated=False),
    Metric("brier", _brier, higher_is_better=False),
    Metric("brier_uncalibrated", _brier, higher_is_better=False, is_calibrated=False),
    Metric("average_precision", lambda x: _mean_rank(x, "average_precision")),
    Metric("macro_precision", lambda x: _average(x, "precision", "macro")),
    Metric("macro_recall", lambda x: balanced_terms(x.right, x.labels)),
    Metric("weighted_precision", lambda x: _average(x, "precision", "weighted")),
    Metric("weighted_recall", lambda x: x.right),
    Metric("weighted_f1", lambda x: _average(x, "f1", "weighted")),
)


def metrics_for(use: Use) -> dict[str, Metric]:
    """Return the metrics of one use by name, in the order of the table."""
    return {metric.name: metric for metric in METRICS if use in metric.uses}
