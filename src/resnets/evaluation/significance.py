"""Say whether a difference between trained models is more than noise.

Two kinds of noise stand between two numbers measured on the same images: other images might have
been drawn, and another seed would have given another model. A test on images alone (McNemar's)
sees only the first: of real runs that differ in nothing but the seed it calls 12 to 24% different
on 2,000 images, and the more the more images there are. Therefore:

- Where a side has several runs, and both together at least four, the spread from seed to seed is
  measured. A difference counts if it passes both Student's t test over runs and the paired test
  over images. The first is exact when only the seed differs, however large the spread, so both
  together are wrong at most 5% of the time; the second keeps chance agreement of few runs, and
  of few images, from looking certain.
- With fewer runs nothing can measure the spread, so it is assumed (SEED_SPREAD, LOSS_SPREAD), and
  an accuracy must pass McNemar's exact test as well.

A metric enters as one term per image whose mean is the metric, so that one test serves them all.
`benchmarks/calibration.py` measures how often all this is wrong, and what it finds.
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
# The assumed standard deviation, from seed to seed, of an accuracy, balanced accuracy or macro F1,
# beyond what the images' own chance explains. It is the largest at which 3 points on 10,000 images
# are still found about 95% of the time; small networks on 200 to 4,000 images had 0 to 0.0047.
SEED_SPREAD = 0.005
LOSS_SPREAD = 0.1  # that of a loss, as a share of it; the same networks had 0.015 to 0.09
MIN_FREEDOM = 2  # of the t test: the runs of both sides beyond one each


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

    @property
    def value(self) -> float:
        """Return head - base."""
        return self.head - self.base


def wilson(successes: int, total: int) -> tuple[float, float]:
    """Return Wilson's 95% interval of a proportion (Wilson 1927)."""
    share, shrink = successes / total, 1 + Z**2 / total
    centre = (share + Z**2 / (2 * total)) / shrink
    half = Z * math.sqrt(share * (1 - share) / total + Z**2 / (4 * total**2)) / shrink
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(base_only: int, head_only: int) -> float:
    """Return the exact two-sided p value of McNemar's test.

    The arguments count the images that only base, and only head, got right.
    """
    from scipy.special import bdtr

    fewer, total = min(base_only, head_only), base_only + head_only
    return min(1.0, 2 * float(bdtr(fewer, total, 0.5))) if total else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values adjusted for looking at all of them (Holm 1979), in their order."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
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
    base_means: Sequence[float] = (),
    head_means: Sequence[float] = (),
) -> Difference:
    """Compare the terms of runs, (runs, images) each, on the same images.

    The means are the metric of every run, for when terms are known of fewer runs than means.
    Booleans (right or wrong) of single runs must pass McNemar's test as well.
    """
    base_runs = np.asarray(base_means) if base_means else base.mean(1)
    head_runs = np.asarray(head_means) if head_means else head.mean(1)
    value = float(head_runs.mean() - base_runs.mean())
    gap = head.mean(0) - base.mean(0)
    if len(base_runs) + len(head_runs) - 2 < MIN_FREEDOM:
        half, p = _with_assumed_spread(value, gap, base_runs, head_runs, spread)
        test = f"paired over images, with an assumed spread between seeds of {spread:.3g}"
        if base.dtype == np.bool_ and len(base_runs) == len(head_runs) == 1:
            p = max(p, mcnemar(int((gap < 0).sum()), int((gap > 0).sum())))
            test = f"McNemar's, and {test}"
    else:
        half, p = _with_measured_spread(value, gap, base_runs, head_runs)
        test = f"t over {len(base_runs)} + {len(head_runs)} runs, and paired over images"
    return Difference(
        base=float(base_runs.mean()),
        head=float(head_runs.mean()),
        low=value - half,
        high=value + half,
        p=p,
        test=test,
        images=gap.size,
        decisive=int((np.abs(gap) > 1e-9).sum()),
    )


def _with_assumed_spread(
    value: float, gap: Floats, base_runs: Floats, head_runs: Floats, spread: float
) -> tuple[float, float]:
    """Return half the 95% interval, and p, of one normal error from images and seeds."""
    from scipy.special import ndtr

    per_run = 1 / len(base_runs) + 1 / len(head_runs)
    error = math.sqrt(_image_variance(gap) + per_run * spread**2)
    return Z * error, 2 * float(ndtr(-abs(value) / error))


def _with_measured_spread(
    value: float, gap: Floats, base_runs: Floats, head_runs: Floats
) -> tuple[float, float]:
    """Return the larger half interval, and the larger p, of the tests over runs and images."""
    from scipy.special import ndtr, stdtr, stdtrit

    freedom = len(base_runs) + len(head_runs) - 2
    squares = base_runs.var() * len(base_runs) + head_runs.var() * len(head_runs)
    per_run = 1 / len(base_runs) + 1 / len(head_runs)
    over_runs = math.sqrt(squares / freedom * per_run) or 1e-12  # runs may be all alike
    over_images = math.sqrt(_image_variance(gap))
    half = max(Z * over_images, float(stdtrit(freedom, 0.975)) * over_runs)
    p = max(ndtr(-abs(value) / over_images), stdtr(freedom, -abs(value) / over_runs))
    return half, 2 * float(p)


def _image_variance(gap: Floats) -> float:
    """Return the variance of the mean gap (images,) over the draw of images.

    Two imaginary images, one won by either side, keep few images from looking certain
    (Bonett & Price 2012).
    """
    size = gap.size + 2
    return float(gap @ gap + 2 - gap.sum() ** 2 / size) / size**2


def balanced_terms(right: NDArray[np.bool_], labels: Labels) -> Floats:
    """Return terms (runs, images) whose mean is the balanced accuracy."""
    classes, index, support = np.unique(labels, return_inverse=True, return_counts=True)
    return right * (labels.size / len(classes) / support[index])


def macro_f1_terms(predicted: Labels, labels: Labels) -> Floats:
    """Return terms (runs, images) whose mean is the macro F1, by its first-order expansion.

    The terms' variance is the delta method's. Classes without images do not count.
    """
    present = np.unique(labels)
    position = np.full(int(max(labels.max(), predicted.max())) + 1, -1)
    position[present] = np.arange(len(present))
    support = np.bincount(position[labels])
    terms = []
    for run in predicted:
        picked, true = position[run], position[labels]
        picks = np.bincount(picked[picked >= 0], minlength=len(present))
        hits = np.bincount(true[run == labels], minlength=len(present))
        f1, total = 2 * hits / (support + picks), support + picks
        of_label = (2 * (run == labels) - f1[true]) / total[true]
        of_pick = np.where(picked >= 0, f1[picked] / total[picked], 0)
        terms.append(f1.mean() + (of_label - of_pick) * labels.size / len(present))
    return np.stack(terms)
