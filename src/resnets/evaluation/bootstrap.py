"""Compute scores: the point values, and those of many redrawings of the test set at once.

A redrawing is a row of weights: how often each image was drawn. The draw is stratified: every
class keeps its number of images. What a redrawing scores follows from sums over images, so all
of them come from one sparse product, and rankings from cumulative sums along sorted images.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Weights = NDArray[np.float32]

SEED = 0  # the same logits give the same intervals
CHUNK = 2_000_000  # weights held at once
LEVELS = 256  # of scores when a ranking is redrawn; the point value is exact
RANK_WORK = 1e9  # images × classes × resamples above which rankings are not redrawn
BINS = 15  # of confidence, equally wide (Guo et al. 2017, arXiv 1706.04599)
TOP = 5  # top-5 accuracy, where there are more classes than that
MEANS = ("loss", "nll", "brier_uncalibrated", "brier")  # averages of one value per image


def class_scores(labels: Labels, logits: Floats) -> dict[str, float]:
    """Return the scores that depend on the order of the logits only."""
    from sklearn import metrics

    num_classes, predicted = logits.shape[1], logits.argmax(1)
    scores = {"accuracy": float(metrics.accuracy_score(labels, predicted))}
    if num_classes > TOP:
        hits = metrics.top_k_accuracy_score(labels, logits, k=TOP, labels=np.arange(num_classes))
        scores[f"top{TOP}"] = float(hits)
    for average in ("macro", "weighted"):
        values = metrics.precision_recall_fscore_support(
            labels, predicted, labels=np.unique(labels), average=average, zero_division=0
        )
        for name, value in zip(("precision", "recall", "f1"), values[:3], strict=True):
            scores[f"{average}_{name}"] = float(value)
    return scores | {"balanced_accuracy": scores["macro_recall"]}


def rank_values(labels: Labels, scores: Floats) -> dict[str, dict[int, float]]:
    """Return one-vs-rest ROC AUC and average precision of each class that can have them."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    values: dict[str, dict[int, float]] = {"roc_auc": {}, "average_precision": {}}
    present = np.unique(labels)
    for k in present if len(present) > 1 else ():
        values["roc_auc"][int(k)] = float(roc_auc_score(labels == k, scores[:, k]))
        precision = average_precision_score(labels == k, scores[:, k])
        values["average_precision"][int(k)] = float(precision)
    return values


def redraw(
    table: "csr_array",
    labels: Labels,
    probabilities: Floats,
    ranked: Sequence[int],
    resamples: int,
) -> dict[str, Floats]:
    """Return the scores of every redrawing, (resamples,) each, and `f1_of_class` (resamples, K).

    `labels` are sorted, `ranked` are the classes that an AUC can be given for.
    """
    support = np.bincount(labels, minlength=probabilities.shape[1])
    if resamples * probabilities.size > RANK_WORK:
        ranked = ()
    chunks: list[dict[str, Floats]] = []
    for weights in _draw_weights(labels, resamples):
        chunk = rescore(np.asarray(table.T @ weights.T).T, support)
        if ranked:
            ranks = [rank_scores(weights, probabilities[:, k], labels == k) for k in ranked]
            chunk["roc_auc"], chunk["average_precision"] = np.mean(ranks, axis=0)
        chunks.append(chunk)
    names = chunks[0] if chunks else ()
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in names}


def image_table(
    labels: Labels, predicted: Labels, plain: Floats, calibrated: Floats
) -> "csr_array":
    """Return what each image (row) adds to each sum (column); `rescore` reads the columns.

    `plain` and `calibrated` are log-probabilities (N, K).
    """
    from scipy.sparse import csr_array, hstack

    rows, shape = np.arange(len(labels)), plain.shape
    truth = np.eye(shape[1])[labels]
    halved = 0.5 if shape[1] == 2 else 1.0  # scikit-learn's: the binary Brier score is in [0, 1]
    means = [-logs[rows, labels] for logs in (plain, calibrated)]
    means += [halved * ((np.exp(logs) - truth) ** 2).sum(1) for logs in (plain, calibrated)]
    columns = [csr_array(np.stack(means, 1))]
    for logs in (plain, calibrated):
        confidence = np.exp(logs.max(1))
        gap = confidence - (predicted == labels)
        columns.append(csr_array((gap, (rows, bin_of(confidence))), (len(rows), BINS)))
    for counted in (predicted == labels, np.ones(len(rows))):
        columns.append(csr_array((counted.astype(np.float64), (rows, predicted)), shape))
    return csr_array(hstack(columns))


def rescore(sums: Floats, support: Labels) -> dict[str, Floats]:
    """Turn sums over images, (b, columns of the table), into scores, (b,) each."""
    present, num_images = support > 0, support.sum()
    ends = np.cumsum([len(MEANS), BINS, BINS, len(support)])
    means, plain, calibrated, hits, picks = np.split(sums, ends, axis=1)
    scores = dict(zip(MEANS, means.T / num_images, strict=True))
    scores["ece_uncalibrated"] = np.abs(plain).sum(1) / num_images
    scores["ece"] = np.abs(calibrated).sum(1) / num_images
    of_class = {
        "precision": hits / np.maximum(picks, 1),
        "recall": hits / np.maximum(support, 1),
        "f1": 2 * hits / np.maximum(support + picks, 1),
    }
    for name, value in of_class.items():
        scores[f"macro_{name}"] = value[:, present].mean(1)
        scores[f"weighted_{name}"] = value @ (support / num_images)
    return scores | {"balanced_accuracy": scores["macro_recall"], "f1_of_class": of_class["f1"]}


def rank_scores(weights: Weights, scores: Floats, positive: NDArray[np.bool_]) -> Floats:
    """Return ROC AUC and average precision, (2, b), of one class for each row of weights.

    Scores are cut into at most LEVELS levels, as many for the positives as for the negatives;
    images of one level are tied, and ties are one threshold, as in scikit-learn.
    """
    from scipy.sparse import csr_array

    shares = np.linspace(0, 1, LEVELS // 2)
    cuts = [np.quantile(scores[side], shares, method="nearest") for side in (positive, ~positive)]
    levels = np.unique(np.concatenate(cuts))
    level = len(levels) - np.searchsorted(levels, scores, side="right")  # 0 is the highest
    rows = np.arange(len(scores))
    member = csr_array((np.ones(len(rows), np.float32), (level, rows)))
    new_true = (member[:, positive] @ weights[:, positive].T).astype(np.float64)
    new_false = (member[:, ~positive] @ weights[:, ~positive].T).astype(np.float64)
    true, false = np.cumsum(new_true, axis=0), np.cumsum(new_false, axis=0)
    area = (new_false * (true - new_true / 2)).sum(0) / (true[-1] * false[-1])
    precision = (new_true * true / np.maximum(true + false, 1)).sum(0) / true[-1]
    return np.stack([area, precision])


def bin_of(confidence: Floats) -> Labels:
    """Return the bin of each confidence; the bins are (0, 1/15], (1/15, 2/15] and so on."""
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)


def _draw_weights(labels: Labels, resamples: int) -> Iterator[Weights]:
    """Yield chunks (b, N) of stratified redrawings of the images; `labels` are sorted."""
    rng = np.random.default_rng(SEED)
    num_images = len(labels)
    first_of_class = np.searchsorted(labels, labels)
    size_of_class = np.bincount(labels)[labels]
    step = max(1, CHUNK // num_images)
    for done in range(0, resamples, step):
        count = min(step, resamples - done)
        drawn = first_of_class + (rng.random((count, num_images)) * size_of_class).astype(np.int64)
        drawn += num_images * np.arange(count)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=count * num_images)
        yield weights.reshape(count, num_images).astype(np.float32)
