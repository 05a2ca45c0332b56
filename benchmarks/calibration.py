"""Measure how often an interval covers, and how often `resnets compare` gives a verdict.

    python benchmarks/calibration.py                      simulated runs (minutes)
    python benchmarks/calibration.py plots/*/seeds.csv    real runs that differ in the seed only

Simulated: every image has its own difficulty, and a run gets it right by chance. A seed makes all
images of a run a little easier or harder: `seed spread` is the standard deviation of the accuracy
from that, in points, beyond what the images' own chance explains. Two sides find the same images
difficult, or share only half of that. Images of one group share their difficulty, and nearly
always their answer.
Real: groups of runs of one variant are drawn and compared with other groups of it.
"""

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import expit, ndtri

from resnets.evaluation.markdown import table
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
GAP = 0.03  # the real difference to be found
DIFFICULTY = 3.0  # standard deviation over images, in logits
COPIED = 0.9  # answers that an image takes from its group
SIZES = [(1, 1), (2, 2), (3, 3), (5, 5)]  # runs of base and head
POPULATION = DIFFICULTY * ndtri((np.arange(4000) + 0.5) / 4000)


@dataclass(frozen=True)
class Case:
    """Describe a setting; `spreads` are those of base and head, `alike` their shared difficulty."""

    name: str
    sides: tuple[int, int]
    images: int
    spreads: tuple[float, float]
    alike: float = 1.0
    most_copies: int = 1
    frequencies: tuple[float, ...] = (0.35, 0.25, 0.2, 0.15, 0.05)  # of classes: metrics differ


def cases():
    """Yield all settings."""
    for sides in [*SIZES, (10, 10)]:
        for images in (400, 10_000) if sides != (10, 10) else (2000,):
            for spread in (0.0, 0.005, 0.01):
                yield Case("same hard images", sides, images, (spread, spread))
    for sides in ((3, 3), (5, 5), (7, 7), (10, 10)):
        for spread in (0.003, 0.005, 0.01):
            yield Case("other hard images", sides, 2000, (spread, spread), alike=0.5)
    for sides in ((5, 5), (10, 10), (5, 10), (10, 5)):
        yield Case("unequal spreads", sides, 2000, (0.002, 0.02), alike=0.5)
    for spread in (0.0, 0.005, 0.02):
        yield Case("one against five", (1, 5), 2000, (spread, spread), alike=0.5)
    for sides in ((1, 1), (3, 3), (5, 5)):
        few = {"alike": 0.5, "frequencies": (0.5, 0.5)}
        yield Case("two classes, few images", sides, 40, (0.005, 0.005), **few)
        yield Case("two classes, few images", sides, 100, (0.005, 0.005), **few)
        copies = {"alike": 0.5, "most_copies": 7}
        yield Case("near-duplicates", sides, 400, (0.005, 0.005), **copies)
        yield Case("near-duplicates", sides, 2000, (0.005, 0.005), **copies)


def simulate(rng, case, side, accuracy, group, shared, labels):
    """Return the predicted classes (runs, images) of one side."""
    size, spread = (case.sides[side], len(shared)), case.spreads[side]
    start = shift_for(accuracy, DIFFICULTY)
    chance = expit(POPULATION + start)
    of_seed = spread / (chance * (1 - chance)).mean()  # in logits
    own = DIFFICULTY * rng.normal(size=size[1])
    logits = np.sqrt(case.alike) * shared + np.sqrt(1 - case.alike) * own
    logits += shift_for(accuracy, np.hypot(DIFFICULTY, of_seed))
    chance = expit(logits + of_seed * rng.normal(size=(size[0], 1)))
    luck = rng.random(size)
    if case.most_copies > 1:
        is_own = rng.random((size[0], len(group))) > COPIED
        luck = np.where(is_own, rng.random(is_own.shape), luck[:, group])
    right, num_classes = luck < chance[:, group], len(case.frequencies)
    wrong = (labels + rng.integers(1, num_classes, right.shape)) % num_classes
    return np.where(right, labels, wrong)


def shift_for(accuracy, deviation, *, known={}):  # noqa: B006  (a cache)
    """Return what to add to logits of this standard deviation for this mean accuracy."""
    if (accuracy, deviation) not in known:
        low, high = -30.0, 30.0
        for _ in range(60):
            middle = (low + high) / 2
            mean = expit(POPULATION * (deviation / DIFFICULTY) + middle).mean()
            low, high = (middle, high) if mean < accuracy else (low, middle)
        known[accuracy, deviation] = low
    return known[accuracy, deviation]


def verdicts(labels, base, head, groups):
    """Return the difference of accuracy, and whether it, any number, and McNemar's alone say so."""
    base_right, head_right = base == labels, head == labels
    lost, won = base_right[0] & ~head_right[0], head_right[0] & ~base_right[0]
    naive = mcnemar(int(lost.sum()), int(won.sum())) < ALPHA
    terms = [(balanced_terms(base_right, labels), balanced_terms(head_right, labels))]
    terms.append((macro_f1_terms(base, labels), macro_f1_terms(head, labels)))
    others = [compare_runs(*pair, groups=groups).p for pair in terms]
    accuracy = compare_runs(base_right, head_right, groups=groups)
    (_, first), (_, second) = SHARES
    is_found = accuracy.p < ALPHA * first
    any_found = is_found or min(holm([*others, 1.0])) < ALPHA * second
    return accuracy, (is_found, any_found, naive)


def simulated_row(case):
    """Return one setting's row: coverage, false verdicts, the share of real differences found."""
    rng = np.random.default_rng(0)
    covered, false, found = [], [], []
    first = SHARES[0][1]
    for _ in range(COMPARISONS):
        sizes = rng.integers(1, case.most_copies + 1, case.images)
        group = np.repeat(np.arange(case.images), sizes)[: case.images]
        num_groups = group[-1] + 1
        shared = DIFFICULTY * rng.normal(size=num_groups)
        classes = rng.choice(len(case.frequencies), num_groups, p=case.frequencies)
        labels = classes[group]
        base, same, head = (
            simulate(rng, case, side, accuracy, group, shared, labels)
            for side, accuracy in ((0, ACCURACY), (1, ACCURACY), (1, ACCURACY + GAP))
        )
        nothing, said = verdicts(labels, base, same, group)
        real = compare_runs(base == labels, head == labels, groups=group)
        covered += [nothing.low <= 0 <= nothing.high, real.low <= GAP <= real.high]
        false.append(said)
        found.append(real.p < ALPHA * first)
    share = [f"{100 * x:.1f}" for x in (np.mean(covered), *np.mean(false, 0), np.mean(found))]
    spread = " / ".join(dict.fromkeys(f"{100 * x:.1f}" for x in case.spreads))
    return [case.name, "{} + {}".format(*case.sides), f"{case.images:,}", spread, *share]


def real_rows(path):
    """Yield a row per size of group: the share of false verdicts."""
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    columns = dict(zip(header, np.array(rows).T, strict=True))
    repeats = [name for name in header if name.isdigit()]
    names = np.unique([columns[name] for name in ("label", *repeats)])
    labels, *runs = (np.searchsorted(names, columns[name]) for name in ("label", *repeats))
    runs, groups = np.array(runs), columns.get("group", columns["id"])
    groups = np.where(groups == "", columns["id"], groups)
    right = runs == labels
    chance = right.var(0, ddof=1).sum() / len(labels) ** 2
    spread = np.sqrt(max(0, right.mean(1).var(ddof=1) - chance))
    rng = np.random.default_rng(0)
    for sides in SIZES:
        if sum(sides) > len(runs):
            continue
        drawn = [rng.permutation(len(runs)) for _ in range(COMPARISONS)]
        pairs = [(order[: sides[0]], order[sides[0] : sum(sides)]) for order in drawn]
        false = np.mean([verdicts(labels, runs[a], runs[b], groups)[1] for a, b in pairs], 0)
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
        header = ["case", "runs", "images", "seed spread", "95% covered", *verdict]
        header.append(f"{100 * GAP:.0f} points found")
        print(table(header, map(simulated_row, cases())))


if __name__ == "__main__":
    main()
