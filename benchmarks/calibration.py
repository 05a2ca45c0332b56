"""Measure how often `resnets compare` gives a verdict: falsely, and on a real difference.

    python benchmarks/calibration.py                      simulated runs (minutes)
    python benchmarks/calibration.py plots/*/seeds.csv    real runs that differ in the seed only

Simulated: every image has its own difficulty, and a run gets it right by chance. A seed makes all
images of a run a little easier or harder: `seed spread` is the standard deviation of the accuracy
from that, in points, beyond what the images' own chance explains.
Real: groups of runs of one variant are drawn and compared with other groups of it.
"""

import csv
import sys
from pathlib import Path

import numpy as np
from scipy.special import expit

from resnets.evaluation.report import table
from resnets.evaluation.significance import (
    ALPHA,
    balanced_terms,
    compare_runs,
    holm,
    macro_f1_terms,
    mcnemar,
)
from resnets.review.compare import SHARES

COMPARISONS = 500
ACCURACY = 0.9
FREQUENCIES = [0.35, 0.25, 0.2, 0.15, 0.05]  # of classes: unequal, so that the metrics differ
NUM_CLASSES = len(FREQUENCIES)
GAP = 0.03  # the real difference to be found
SIZES = [(1, 1), (2, 2), (3, 3), (5, 5)]  # runs of base and head


def verdicts(labels, base, head):
    """Return whether accuracy, any number, and McNemar's test alone say that two sides differ."""
    was, now = base[0] == labels, head[0] == labels
    naive = mcnemar(int((was & ~now).sum()), int((~was & now).sum())) < ALPHA
    pairs = [(run == labels for run in (base, head))]
    pairs.append(balanced_terms(run == labels, labels) for run in (base, head))
    pairs.append(macro_f1_terms(run, labels) for run in (base, head))
    accuracy, *others = (compare_runs(*pair).p for pair in pairs)
    first, second = SHARES.values()
    found = accuracy < ALPHA * first
    return found, found or min(holm([*others, 1.0])) < ALPHA * second, naive


def shift_for(difficulty, accuracy):
    """Return what to add to the logits of being right for this mean accuracy."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if expit(difficulty + middle).mean() < accuracy else (low, middle)
        )
    return low


def simulate(rng, labels, logits, num_runs, spread):
    """Return predicted classes (runs, images)."""
    chance = expit(logits)
    slope = (chance * (1 - chance)).mean()
    moved = logits + rng.normal(size=(num_runs, 1)) * spread / slope
    right = rng.random(moved.shape) < expit(moved)
    return np.where(
        right, labels, (labels + rng.integers(1, NUM_CLASSES, right.shape)) % NUM_CLASSES
    )


def simulated_rows():
    """Yield a row per setting: false verdicts, and how often the real difference is found."""
    for sides in SIZES:
        for num_images in (400, 10_000):
            for spread in (0.0, 0.003, 0.005, 0.01):
                yield simulated_row(sides, num_images, spread)


def simulated_row(sides, num_images, spread):
    """Return one setting's row."""
    rng = np.random.default_rng(0)
    false, found = [], []
    for _ in range(COMPARISONS):
        labels = rng.choice(NUM_CLASSES, num_images, p=FREQUENCIES)
        difficulty = 3 * rng.normal(size=num_images)
        logits = [difficulty + shift_for(difficulty, ACCURACY + gap) for gap in (0, GAP)]
        base, same = (simulate(rng, labels, logits[0], n, spread) for n in sides)
        head = simulate(rng, labels, logits[1], sides[1], spread)
        false.append(verdicts(labels, base, same))
        found.append(verdicts(labels, base, head)[0])
    share = [f"{100 * x:.1f}" for x in (*np.mean(false, 0), np.mean(found))]
    return [f"{sides[0]} + {sides[1]}", f"{num_images:,}", f"{100 * spread:.1f}", *share]


def real_rows(path):
    """Yield a row per size of group: the share of false verdicts."""
    with path.open(encoding="utf-8", newline="") as file:
        _, labels, *runs = zip(*list(csv.reader(file))[1:], strict=True)
    names = np.unique([labels, *runs])
    labels, runs = np.searchsorted(names, labels), np.searchsorted(names, np.array(runs))
    right = runs == labels
    chance = right.var(0, ddof=1).sum() / len(labels) ** 2
    spread = np.sqrt(max(0, right.mean(1).var(ddof=1) - chance))
    rng = np.random.default_rng(0)
    for sides in SIZES:
        if sum(sides) > len(runs):
            continue
        drawn = [rng.permutation(len(runs)) for _ in range(COMPARISONS)]
        groups = [(order[: sides[0]], order[sides[0] : sum(sides)]) for order in drawn]
        false = np.mean([verdicts(labels, runs[a], runs[b]) for a, b in groups], 0)
        share = [f"{100 * x:.1f}" for x in false]
        yield [
            f"{path.parent.name} ({len(runs)} runs)",
            f"{sides[0]} + {sides[1]}",
            f"{len(labels):,}",
            f"{100 * right.mean():.1f}",
            f"{100 * spread:.2f}",
            *share,
        ]


def main():
    """Print the tables; all but runs and images in percent or points."""
    verdict = ["false: accuracy", "any number", "McNemar alone"]
    if paths := [Path(argument) for argument in sys.argv[1:]]:
        header = ["variant", "runs", "images", "accuracy", "seed spread", *verdict]
        print(table(header, [row for path in paths for row in real_rows(path)]))
    else:
        header = ["runs", "images", "seed spread", *verdict, f"{100 * GAP:.0f} points found"]
        print(table(header, simulated_rows()))


if __name__ == "__main__":
    main()
