"""Measure how often intervals from repeated cross-validation cover what they are said to.

    python benchmarks/folds.py          (two minutes)

Simulated data sets of two classes are learned by ridge regression on random ReLU features, which a
seed draws, so that models differ by their seed and by their training images as networks do. In each
of 5 folds a model learns from four fifths, less a validation side. The truth is the mean accuracy
of such models, over data sets and seeds, on 4,000 other images each: of one learner, and by how
much a wider one is better. `variants` are the intervals of `compare_runs` with a repetition as a
run, beside the corrected resampled t-test (Nadeau & Bengio 2003), which takes each fold for one
observation; `test side` has the same from 20% of the images, which are no folds.
"""

import numpy as np
from scipy.special import stdtrit

from resnets.evaluation.markdown import table
from resnets.evaluation.significance import compare_runs, wilson

FOLDS, VAL = 5, 0.2
FEATURES, DISTANCE = 16, 2.2  # of the images; between the means of the classes
WIDTHS = (12, 40)  # of the two learners
DATASETS, NEW = 500, 4000


def draw(rng, size):
    """Return images (size, FEATURES) and labels; the classes differ along all features."""
    labels = np.arange(size) % 2
    images = rng.normal(size=(size, FEATURES)) + np.outer(labels - 0.5, np.ones(FEATURES)) * (
        DISTANCE / np.sqrt(FEATURES)
    )
    return images, labels


def learn(rng, images, labels, width):
    """Return what says which of other images a newly drawn model gets right."""
    first = rng.normal(size=(FEATURES + 1, width))

    def hidden(values):
        return np.maximum(np.hstack([values, np.ones((len(values), 1))]) @ first, 0)

    inner = hidden(images)
    weights = np.linalg.solve(inner.T @ inner + np.eye(width), inner.T @ (2 * labels - 1))
    return lambda values, truth: (hidden(values) @ weights > 0) == truth


def partition(rng, labels, parts):
    """Return a part of each image, stratified."""
    number = np.empty(len(labels), int)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        number[rows] = (np.arange(len(rows)) + rng.integers(parts)) % parts
    return number


def fits(rng, images, labels, train, width):
    """Learn from the training images less a validation side."""
    rows = train[partition(rng, labels[train], round(1 / VAL)) > 0]
    return learn(rng, images[rows], labels[rows], width)


def cross_validate(rng, images, labels, num_repeats):
    """Return which images each learner gets right, (learners, repeats, images), and the folds."""
    right = np.empty((len(WIDTHS) + 1, num_repeats, len(labels)), bool)
    folds = np.stack([partition(rng, labels, FOLDS) for _ in range(num_repeats)])
    for repeat, fold in np.ndindex(num_repeats, FOLDS):
        test = folds[repeat] == fold
        for learner, width in enumerate((*WIDTHS, WIDTHS[0])):
            model = fits(rng, images, labels, np.flatnonzero(~test), width)
            right[learner, repeat, test] = model(images[test], labels[test])
    return right, folds


def nadeau_bengio(base, head, folds):
    """Return the interval of the corrected resampled t-test."""
    gaps = [
        np.mean((head[r] * 1.0 - base[r])[folds[r] == fold])
        for r in range(len(folds))
        for fold in range(FOLDS)
    ]
    share = 1 / (FOLDS - 1)  # of test to training images
    half = stdtrit(len(gaps) - 1, 0.975) * np.sqrt((1 / len(gaps) + share) * np.var(gaps, ddof=1))
    return np.mean(gaps) - half, np.mean(gaps) + half


def truth(rng, size):
    """Return the mean accuracy of the learners that see as many images as in a fold."""
    rights = []
    for _ in range(1000):
        images, labels = draw(rng, size)
        test = partition(rng, labels, FOLDS) == 0
        new = draw(rng, NEW)
        models = [fits(rng, images, labels, np.flatnonzero(~test), width) for width in WIDTHS]
        rights.append([model(*new).mean() for model in models])
    return np.mean(rights, 0)


def row(size, num_repeats):
    """Return a row of the table: how often intervals cover, their mean half width, in percent."""
    rng = np.random.default_rng([size, num_repeats])
    accuracy, better = truth(rng, size)
    covered, halves, false = [], [], []
    for _ in range(DATASETS):
        images, labels = draw(rng, size)
        right, folds = cross_validate(rng, images, labels, num_repeats)
        side = folds[0] == 0  # one of the folds alone is a test side
        one = wilson(right[0, 0].sum(), size)
        ours = compare_runs(right[0], right[1])
        alone = compare_runs(right[0][:, side][:1], right[1][:, side][:1])
        same = compare_runs(right[0], right[2])
        gap = better - accuracy
        pairs = [(ours.low, ours.high), nadeau_bengio(*right[:2], folds), (alone.low, alone.high)]
        covered.append([one[0] <= accuracy <= one[1]] + [low <= gap <= high for low, high in pairs])
        halves.append([(high - low) / 2 for low, high in pairs])
        resampled = nadeau_bengio(right[0], right[2], folds)
        false.append([same.p < 0.05, not resampled[0] <= 0 <= resampled[1]])
    numbers = [*np.mean(covered, 0), *np.mean(halves, 0), *np.mean(false, 0)]
    head = [size, num_repeats, f"{100 * accuracy:.1f}", f"{100 * (better - accuracy):.1f}"]
    return [*head, *(f"{100 * x:.1f}" for x in numbers)]


def main():
    """Print the table."""
    kinds = ["variants", "corrected t", "test side"]
    header = ["images", "repetitions", "accuracy", "difference", "covered: accuracy"]
    header += [f"covered: {kind}" for kind in kinds] + [f"± {kind}" for kind in kinds]
    header += ["false: variants", "false: corrected t"]
    print(table(header, [row(size, n) for size in (60, 200, 400) for n in (1, 3, 5)], words=0))


if __name__ == "__main__":
    main()
