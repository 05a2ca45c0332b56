"""Measure how many flipped labels are found, on flowers and on Fashion-MNIST.

    python benchmarks/label_issues.py [--quick] [--backbone FOLDER]

5% of the labels are replaced by another class, with three seeds, and judged from thumbnails, or
from the features of a backbone. Rankings: by the probability of the label (self-confidence), by the
normalised margin, and by confident learning: those that count for another class first, then either.
"""

import tempfile
from pathlib import Path

import numpy as np
from _timing import PARAMS, ROOT, SHARED, describe_machine, options, pack
from sklearn.metrics import average_precision_score

from resnets.evaluation.label_issues import ODDS, SIDES, out_of_fold, suspect
from resnets.evaluation.markdown import table
from resnets.evaluation.yardsticks import backbone_features, thumbnails

FLIPPED = 0.05
SETS = {  # the dataset, its channels and the size that it is packed at
    "Fashion-MNIST": (ROOT / "data/sample", 1, 28),
    "flowers": (SHARED / "flowers_128px.zip", 3, 128),
}


def flip(labels, num_classes, rng):
    """Return the labels with some replaced by another class, and which are."""
    rows = rng.permutation(len(labels))[: round(FLIPPED * len(labels))]
    changed = labels.copy()
    changed[rows] = (labels[rows] + rng.integers(1, num_classes, len(rows))) % num_classes
    return changed, changed != labels


def rankings(probabilities, labels):
    """Return what each way to rank sorts by, smallest first."""
    rows = np.arange(len(labels))
    own, others = probabilities[rows, labels], probabilities.copy()
    others[rows, labels] = -1
    margin = own - others.max(axis=1)
    counted = probabilities >= [
        probabilities[labels == label, label].mean() for label in range(probabilities.shape[1])
    ]
    best = np.where(counted, probabilities, -1).argmax(axis=1)
    is_off = counted.any(axis=1) & (best != labels)
    return {
        "self-confidence": own, "normalised margin": margin,
        "confident learning, self-confidence": own - 2 * is_off,
        "confident learning, normalised margin": margin - 4 * is_off,
    }, is_off  # fmt: skip


def measure(values, truth, groups, seeds):
    """Return a row per ranking and one per choice, each over the seeds."""
    num_classes = int(truth.max()) + 1
    scores, choices = {}, {}
    for seed in seeds:
        labels, is_flipped = flip(truth, num_classes, np.random.default_rng(seed))
        probabilities = out_of_fold(values, labels, groups, num_classes)
        ways, is_off = rankings(probabilities, labels)
        for name, value in ways.items():
            first = np.argsort(value, kind="stable")[: is_flipped.sum()]
            both = is_flipped[first].mean(), average_precision_score(is_flipped, -value)
            scores.setdefault(name, []).append(both)
        _, is_suspected = suspect(probabilities, labels, len(labels))
        for name, chosen in ("off-diagonal", is_off), (f"and odds of {ODDS}", is_suspected):
            row = chosen.mean(), is_flipped[chosen].mean(), chosen[is_flipped].mean()
            choices.setdefault(name, []).append(row)
    return scores, choices


def spread(values):
    """Write the mean and the range of the seeds."""
    return f"{np.mean(values):.3f} ({min(values):.3f}–{max(values):.3f})"


def main():
    """Print the tables of both sets."""
    given = options(__doc__, "--backbone")
    seeds = range(1 if given.quick else 3)
    describe_machine()
    for name, (source, channels, size) in SETS.items():
        if not source.exists():
            print(f"\n{name}: skipped, {source.name} is not in ../shared/data beside the checkout")
            continue
        with tempfile.TemporaryDirectory() as folder:
            task = pack(source, Path(folder), channels=channels, resize=size)
            sides = [task.side(side) for side in SIDES]
            features = thumbnails
            if given.backbone and channels == PARAMS.model.in_channels:
                features = backbone_features(Path(given.backbone), PARAMS.preprocess, "cpu")
            values = np.concatenate([features(side.images) for side in sides])
            groups = [group for side in SIDES for group in task.groups(side)]
            truth = np.concatenate([side.labels for side in sides])
            scores, choices = measure(values, truth, groups, seeds)
        way = "thumbnails" if features is thumbnails else "the backbone's features"
        print(f"\n{name}, {len(truth)} images, {way}, {len(seeds)} seeds")
        rows = [[key, *map(spread, zip(*own, strict=True))] for key, own in scores.items()]
        print(table(["ranked by", "precision at k", "average precision"], rows))
        rows = [[key, *map(spread, zip(*own, strict=True))] for key, own in choices.items()]
        print(table(["chosen", "share of images", "of these flipped", "of flipped"], rows))


if __name__ == "__main__":
    main()
