"""Find the images whose label is least believed, by confident learning on fixed features.

A logistic regression on the features' first components learns from four fifths of train and val
and judges the last fifth, so that no label speaks for itself; the test side is judged by the mean
of the five. After Northcutt, Jiang and Chuang, "Confident Learning" (arXiv 1911.00068, section
3.1): an image counts for the most probable of the classes whose probability reaches the mean that
images of that label have. One that counts for another class than its label is suspected there; here
only where that class is also ODDS times as probable, as weak features err more often than people.

With 5% of the labels flipped, images are best ranked by the probability of their label alone: the
average precision is 0.86 on 12,000 pieces of clothing, where those that count for another class
first give 0.74 (benchmarks/label_issues.py).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from threadpoolctl import threadpool_limits

from resnets.evaluation.significance import Labels
from resnets.evaluation.yardsticks import Describe, Values
from resnets.tasks.manifest import SIDES
from resnets.tasks.task import Task

FOLDS = 5
COMPONENTS = 64
STRENGTH = 3.0  # C, for features with a mean square of 1 per image
MOST_IMAGES = 5000  # that a fold learns from
ODDS = 10

Probabilities = NDArray[np.float64]  # (N, K); NaN for a class that a fold did not learn


def judge_labels(task: Task, features: Describe) -> tuple[pd.DataFrame, dict[str, float]]:
    """Return a row per image of train, val and test, the least believed label first, and scores.

    `confidence` is the probability of the label, `suggested` the class that the image counts for,
    `suspected` whether that contradicts the label. No label of the test side plays a part in it.
    They are ranked by confidence, as the paper's normalised margin finds fewer flipped labels.
    The scores are those of `group_scores`, empty where the task has no groups of its own.
    """
    task = task.pooled()  # folds have no test side whose labels must stay unknown
    sides = [task.side(name) for name in SIDES]
    labels, num_test = np.concatenate([side.labels for side in sides]), len(sides[2].ids)
    num_known = len(labels) - num_test
    values = np.concatenate([features(side.images) for side in sides if side.ids])
    groups = [*task.groups("train"), *task.groups("val")]
    probabilities = out_of_fold(values, labels[:num_known], groups, len(task.classes))
    suggested, is_suspected = suspect(probabilities, labels, num_known)
    names = np.array(task.classes, dtype=object)
    table = pd.DataFrame(
        {
            "id": [name for side in sides for name in side.ids],
            "side": np.repeat(SIDES, [len(side.ids) for side in sides]),
            "label": names[labels],
            "suggested": names[suggested],
            "confidence": probabilities[np.arange(len(labels)), labels].round(4),
            "suspected": is_suspected,
        }
    )
    known = values[:num_known], labels[:num_known]
    has_groups = any(word.startswith(" ") for word in groups)  # not only copies: see data.split
    scores = group_scores(*known, probabilities[:num_known]) if has_groups else {}
    return table.sort_values(["confidence", "id"], kind="stable", ignore_index=True), scores


def counts_of(table: pd.DataFrame) -> dict[str, Any]:
    """Return what rows of `judge_labels`, with their `near_source`, come to.

    That is how many labels of each side are suspected, how many images of train and val count for
    their label, as a share, and how many are near an image of the source task.
    """
    suspected, known = table[table["suspected"]]["side"].value_counts(), table["side"] != "test"
    agrees = (table["suggested"] == table["label"])[known].mean()
    return {
        "suspected": {side: int(suspected.get(side, 0)) for side in SIDES},
        "agrees": round(float(agrees), 6),
        "near_source": int((table["near_source"] != "").sum()),
    }


def captions_of(worst: pd.DataFrame, *, has_sides: bool) -> list[str]:
    """Return the captions of these rows of `judge_labels`; with folds all were on each side."""
    words = worst["label"] + "\n" + worst["suggested"] + "?\n"
    sides = worst["side"] + " " if has_sides else ""
    return list(words + sides + worst["id"].str.rsplit("/", n=1).str[-1])


def group_scores(values: Values, labels: Labels, apart: Probabilities) -> dict[str, float]:
    """Return the accuracy of the linear model with groups kept `apart`, and of one that mixes them.

    The latter is what a random split pretends: it has seen other images of the same group.
    """
    mixed = out_of_fold(values, labels, [str(row) for row in range(len(labels))], apart.shape[1])
    both = {"apart": apart, "mixed": mixed}
    answers = {name: np.nan_to_num(x, nan=-1).argmax(axis=1) for name, x in both.items()}
    return {name: round(float((x == labels).mean()), 6) for name, x in answers.items()}


def out_of_fold(
    values: Values, labels: Labels, groups: Sequence[str], num_classes: int
) -> Probabilities:
    """Return the probabilities of all images, each from models that never saw its label.

    The first images have the `labels`, and `groups` that share a fold; the later ones have the mean
    of all folds.
    """
    number = np.unique(groups, return_inverse=True)[1]
    pairs = np.unique(np.stack([labels, number]), axis=1)  # a class and one of its groups
    num_folds = int(np.bincount(pairs[0])[np.unique(labels)].min().clip(2, FOLDS))
    folds = StratifiedGroupKFold(num_folds, shuffle=True, random_state=0)
    result = np.full((num_folds, len(values), num_classes), np.nan)
    fold_of = np.zeros(len(labels), int)
    with threadpool_limits(1):  # the number of threads changes the last bits of sums
        values = _components(values)
        for fold, (learned, held) in enumerate(folds.split(values[: len(labels)], labels, number)):
            fold_of[held] = fold
            learned = np.random.default_rng(fold).permutation(learned)[:MOST_IMAGES]
            if len(np.unique(labels[learned])) > 1:
                model = LogisticRegression(C=STRENGTH, max_iter=1000)
                model.fit(values[learned], labels[learned])
                result[fold][:, model.classes_] = model.predict_proba(values)
    own = result[fold_of, np.arange(len(labels))]
    return np.concatenate([own, result[:, len(labels) :].mean(axis=0)])


def _components(values: Values) -> Values:
    """Return the first principal components, scaled to a mean square of 1 of an image."""
    drawn = np.random.default_rng(0).permutation(len(values))[:MOST_IMAGES]
    number = min(COMPONENTS, len(drawn), values.shape[1])
    model = PCA(number, svd_solver="randomized", random_state=0).fit(values[drawn])
    reduced: Values = model.transform(values)
    reduced /= np.sqrt(np.mean(np.sum(reduced**2, axis=1)))
    return reduced


def suspect(
    probabilities: Probabilities, labels: Labels, num_known: int
) -> tuple[Labels, NDArray[np.bool_]]:
    """Return the class that each image counts for, the most probable if for none, and who is wrong.

    The thresholds come from the first `num_known` images.
    """
    rows = np.arange(len(labels))
    values = np.nan_to_num(probabilities, nan=-1)
    known = values[:num_known]
    counted = (labels[:num_known, None] == np.arange(values.shape[1])) & (known >= 0)
    sums, number = np.where(counted, known, 0).sum(axis=0), counted.sum(axis=0)
    thresholds = np.where(number > 0, sums / number.clip(1), np.inf)
    reached = np.where(values >= thresholds, values, -1)
    counts = reached.max(axis=1) > 0
    suggested = np.where(counts, reached.argmax(axis=1), values.argmax(axis=1))
    own = values[rows, labels]
    is_surer = (own >= 0) & (values[rows, suggested] >= ODDS * own)
    return suggested, counts & (suggested != labels) & is_surer
