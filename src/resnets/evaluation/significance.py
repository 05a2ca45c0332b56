"""Say whether a difference between trained models is more than noise.

Other images might have been drawn, and another seed would have given another model. A test on
images alone (McNemar's) calls 12 to 24% of real runs different that differ in nothing but the seed,
on 2,000 images; so the variances of both are added, for Student's t with Satterthwaite's degrees of
freedom. A metric enters as one term per image whose mean is the metric.
`benchmarks/calibration.py` measures how often all this is wrong.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Terms = Floats | NDArray[np.bool_]
Verdict = Literal["better", "worse", "within noise"]

ALPHA = 0.05
Z = 1.959963984540054  # normal quantile of 97.5%
POWER_Z = 0.8416212335729143  # of 80%: the chance to find a difference that is there
# The assumed standard deviation, from seed to seed, of an accuracy, balanced accuracy or macro F1,
# beyond what the images' own chance explains. It is the largest at which 3 points on 10,000 images
# are still found about 95% of the time; small networks on 200 to 4,000 images had 0 to 0.0047.
SEED_SPREAD = 0.005
LOSS_SPREAD = 0.1  # that of a loss, as a share of it; the same networks had 0.015 to 0.09
POWER = 0.8  # of a test that is planned (Cohen 1988)
MIN_FREEDOM = 2  # runs beyond the first that can tell a spread


@dataclass(frozen=True)
class Difference:
    """Hold a paired difference, head - base, with its 95% interval and two-sided p value."""

    base: float
    head: float
    low: float
    high: float
    p: float
    test: str
    images: int
    decisive: int  # images that the two sides do not score alike
    num_groups: int  # of images that count as one
    num_runs: tuple[int, int]
    # parts of the variance: of images, of the chance in single answers, of seeds
    variances: tuple[float, float, float]

    @property
    def value(self) -> float:
        """Return head - base."""
        return self.head - self.base

    @property
    def is_spread_assumed(self) -> bool:
        """Tell whether there are too few runs to measure how much seeds matter."""
        return sum(self.num_runs) - 2 < MIN_FREEDOM


def independent_images(right: NDArray[np.bool_], groups: Labels | Sequence[str]) -> float:
    """Return how many independent images tell as much as these (N,), some of which are groups.

    That is N over the design effect of cluster samples (Kish 1965, section 5.4).
    """
    group = np.unique(groups, return_inverse=True)[1]
    num_groups, rest = int(group.max()) + 1, right - right.mean()
    squares = float(rest @ rest)
    if num_groups in (1, right.size) or not squares:  # one tells nothing of others
        return num_groups
    sums = np.bincount(group, rest)
    return right.size / max(1.0, float(sums @ sums) / squares)


def wilson(successes: float, total: float) -> tuple[float, float]:
    """Return Wilson's 95% interval of a proportion (Wilson 1927)."""
    share, shrink = successes / total, 1 + Z**2 / total
    centre = (share + Z**2 / (2 * total)) / shrink
    half = Z * math.sqrt(share * (1 - share) / total + Z**2 / (4 * total**2)) / shrink
    return max(0.0, centre - half), min(1.0, centre + half)


def images_to_tell(gap: float, variance: float) -> int:
    """Return how many images it takes to find a paired difference, 80% of the time at p < 0.05.

    `gap` is the difference of the means, above 0, `variance` that of an image's terms: for single
    runs d - gap² where the share d of the images is right on one side only (Miettinen 1968).
    """
    return math.ceil((Z + POWER_Z) ** 2 * variance / gap**2)


def gap_to_tell(images: int, variance: float) -> float:
    """Return the smallest paired difference that so many images find 80% of the time."""
    return (Z + POWER_Z) * math.sqrt(variance / images)


def mcnemar(base_only: int, head_only: int) -> float:
    """Return McNemar's exact two-sided p; counted are images that only one side got right."""
    from scipy.special import bdtr

    fewer, total = min(base_only, head_only), base_only + head_only
    return min(1.0, 2 * float(bdtr(fewer, total, 0.5))) if total else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values adjusted for looking at all of them (Holm 1979), in their order."""
    order = np.argsort(p_values, kind="stable")
    steps = np.array(p_values)[order] * np.arange(len(order), 0, -1)
    adjusted: list[float] = np.minimum(np.maximum.accumulate(steps), 1)[order.argsort()].tolist()
    return adjusted


def judge(difference: Difference, p: float, *, higher_is_better: bool) -> Verdict:
    """Return the verdict on head, given the p value adjusted for the number of looks."""
    if p >= ALPHA or difference.value == 0:
        return "within noise"
    return "better" if (difference.value > 0) == higher_is_better else "worse"


def compare_runs(
    base: Terms,
    head: Terms,
    *,
    spread: float = SEED_SPREAD,
    groups: Labels | Sequence[str] | None = None,
) -> Difference:
    """Compare the terms of runs, (runs, images) each, on the same images.

    Images with one number or word in `groups` (images,), as near-duplicates, count as one. Booleans
    (right or wrong) of single runs must pass McNemar's test as well. Where no side's runs can tell
    the standard deviation from seed to seed, it is taken to be `spread`.

    A term is its side's mean + image + seed + rest, all random. With the mean squares S over the
    runs of a side and R of its rest (Searle, Casella & McCulloch 1992, chapter 4), n runs and
    I images, the variance of the difference is the mean gap's over images + sum over sides of
    (S - R / I) / n: the chance in single answers is in the gap and in S, so it is subtracted once.
    """
    from scipy.special import stdtr, stdtrit

    gap, value = head.mean(0) - base.mean(0), float(head.mean() - base.mean())
    group = np.unique(np.arange(gap.size) if groups is None else groups, return_inverse=True)[1]
    sides = [_per_group(side, group) for side in (base, head)]
    num_groups, num_runs = sides[0].shape[1], (len(base), len(head))
    over_images = _image_variance(sides[1].mean(0) - sides[0].mean(0))
    over_seeds, chance, freedom = _seed_variances(sides, spread)
    answers = min(over_images, float(chance.sum()))  # are in both
    variances = over_images - answers, answers, max(0.0, float(over_seeds.sum() - chance.sum()))
    variance = over_images + variances[2]
    squares = over_images**2 / (num_groups + 1) + float((over_seeds**2 / freedom).sum())
    least = min(num_groups + 1.0, float(freedom.min()))  # a difference could bring it below
    error, degrees = math.sqrt(variance), max(least, variance**2 / squares)
    half, p = float(stdtrit(degrees, 0.975)) * error, 2 * float(stdtr(degrees, -abs(value) / error))
    images = "images" if num_groups == gap.size else f"{num_groups:,} groups of images"
    test = f"t over {images} and {num_runs[0]} + {num_runs[1]} runs"
    if np.isinf(freedom).any():
        test += f", with an assumed spread between seeds of {spread:.3g}"
    if base.dtype == np.bool_ and num_runs == (1, 1):
        wins = np.bincount(group, gap)
        p = max(p, mcnemar(int((wins < 0).sum()), int((wins > 0).sum())))
        test = f"McNemar's, and {test}"
    bounds, decisive = (value - half, value + half), int((np.abs(gap) > 1e-9).sum())
    return Difference(
        *(float(base.mean()), float(head.mean()), *bounds, p, test),
        images=gap.size,
        decisive=decisive,
        num_groups=num_groups,
        num_runs=num_runs,
        variances=variances,
    )


def least_found(
    difference: Difference, alpha: float, *, images: float = 1.0, runs: float = 1.0
) -> float:
    """Return the difference that would be found at `alpha` in 80% of all cases.

    `images` and `runs` say how many times as many there would be. It is the standard error times
    the sum of both errors' quantiles (Julious 2004), of Student's t with degrees as above.
    """
    from scipy.special import stdtrit

    shared, answers, seeds = difference.variances
    over_images, over_seeds = shared / images, seeds / runs
    over_answers = answers / (images * runs)
    freedom = sum(difference.num_runs) * runs - 2
    freedom = math.inf if freedom < MIN_FREEDOM else freedom
    squares = (over_images + over_answers) ** 2 / (images * difference.num_groups)
    squares += (over_seeds + over_answers) ** 2 / freedom
    variance = over_images + over_answers + over_seeds
    quantiles = stdtrit(variance**2 / squares, (1 - alpha / 2, POWER))
    return float(quantiles.sum()) * math.sqrt(variance)


def _per_group(terms: Terms, group: Labels) -> Floats:
    """Return terms (runs, groups) of the same means, that vary as the sums over groups do."""
    means = terms.mean(1, keepdims=True)
    sums = np.stack([np.bincount(group, run) for run in terms - means])
    grouped: Floats = means + sums * (sums.shape[1] / group.size)
    return grouped


def _image_variance(gap: Floats) -> float:
    """Return the variance of the mean gap (images,) over the draw of images.

    Two imaginary images, one won by either side by as much as the others are, keep few images
    from looking certain (Bonett & Price 2012, for right and wrong).
    """
    size, total = gap.size + 2, float(gap @ gap)
    num_decided = int((np.abs(gap) > 1e-9).sum())
    imagined = 2 * (total / num_decided if num_decided else 1.0)
    return (total + imagined - float(gap.sum()) ** 2 / size) / size**2


def _seed_variances(sides: list[Floats], spread: float) -> tuple[Floats, Floats, Floats]:
    """Return variances of the means over seeds, the part of them by chance, degrees of freedom.

    There is one of each per side (Welch), or one for both where a side's runs are too few.
    """
    num_runs = np.array([len(side) for side in sides])
    squares, freedom = np.array([_squares(side) for side in sides]), num_runs - 1.0
    weights = 1 / num_runs
    if freedom.min() < MIN_FREEDOM:
        squares, freedom, weights = (x.sum(0, keepdims=True) for x in (squares, freedom, weights))
    if freedom.min() < MIN_FREEDOM:
        return spread**2 * weights, np.zeros(1), np.array([np.inf])
    over_seeds, chance = squares.T / freedom * weights
    return over_seeds, chance, freedom


def _squares(terms: Floats) -> tuple[float, float]:
    """Return the sum of squares of the runs' means, and what chance in single answers adds."""
    means, size = terms.mean(1), terms.shape[1]
    rest = terms - terms.mean(0) - (means - means.mean())[:, None]
    by_chance = float((rest**2).sum()) / (size * max(1, size - 1))
    return float(means.var()) * means.size, by_chance


def balanced_terms(right: NDArray[np.bool_], labels: Labels) -> Floats:
    """Return terms (runs, images) whose mean is the balanced accuracy."""
    classes, index, support = np.unique(labels, return_inverse=True, return_counts=True)
    return right * (labels.size / len(classes) / support[index])


def macro_f1_terms(predicted: Labels, labels: Labels) -> Floats:
    """Return terms (runs, images) whose mean is the macro F1, as the delta method has them.

    Classes without images do not count.
    """
    present = np.unique(labels)
    is_true, terms = np.equal.outer(labels, present), []  # (images, classes)
    for run in predicted:
        is_picked = np.equal.outer(run, present)
        hits, either = is_true & is_picked, is_true.astype(float) + is_picked
        f1, total = 2 * hits.sum(0) / either.sum(0), either.sum(0)
        moves = (2 * hits - f1 * either) / total
        terms.append(f1.mean() + moves.sum(1) * labels.size / len(present))
    return np.stack(terms)
