"""Find photos that are odd for their dataset: blurred, dark, pale, plain, grey, long or small.

Each rule has a measure, low where an image is odd. A finding is below the rule's floor and, among
the logarithms of the whole set, more than SPREADS robust standard deviations below the median: what
is usual in a set is no finding (black clothes on black, soft thumbnails), nor are the softest of
sharp photos. All is measured on the packed pixels, the most that a model sees.

Of 4,317 flowers 84 are found, 70 of which are the black-and-white photos among them; of 398 ants
and bees 4; of 12,000 pieces of Fashion-MNIST 14, black on black.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import PurePath

import numpy as np

from resnets.tasks.decode import Images, Pixels, to_picture
from resnets.tasks.manifest import ManifestRow, copies

SPREADS, LEAST_SPREAD = 3.5, 0.15  # a set of very few or very similar images has hardly a spread
WORST = 10  # of each kind, on the sheet
IMBALANCE = 3  # times the images of a class that the largest may have before that is said
ACROSS = "copied across sides"
RULES = {  # by kind, in the order of `_measure`: the floor, and what was measured
    "dark": (50, "its light pixels have grey level {:.0f}"),
    "pale": (55, "its dark pixels are {:.0f} levels below white"),
    "plain": (32, "its grey levels differ by {:.0f}"),
    "blurred": (30, "the variance of its Laplacian is {:.1f}"),
    "grey among colour": (2, "its colours differ by {:.1f} levels"),
    "long": (0.4, "its shorter side is {:.2f} of the longer one"),
    "small": (64, "its shorter side has {:.0f} pixels"),
}


@dataclass(frozen=True)
class Finding:
    """Name one odd image; `kind` is a key of RULES, or ACROSS."""

    kind: str
    index: int  # of its row in the manifest
    words: str


def _measure(image: Pixels, row: ManifestRow) -> list[float]:
    """Return the measures of an image (H, W, C), one for each rule."""
    picture = to_picture(image).convert("L")
    grey = np.asarray(picture).astype(np.int32)
    around = grey[2:, 1:-1] + grey[:-2, 1:-1] + grey[1:-1, 2:] + grey[1:-1, :-2]
    laplacian = around - 4 * grey[1:-1, 1:-1]
    shares = np.cumsum(picture.histogram()) / grey.size
    dark, light = (int(np.searchsorted(shares, share)) for share in (0.05, 0.95))
    colour = np.ptp(np.moveaxis(image, 2, 0).copy(), axis=0)  # 20 times as fast as along axis 2
    short, long = sorted((row.width, row.height))
    sharpness = float(laplacian.var()) if laplacian.size else 0.0
    return [light, 255 - dark, light - dark, sharpness, float(colour.mean()), short / long, short]


def find_odd(rows: Sequence[ManifestRow], images: Images) -> list[Finding]:
    """Return the findings among packed images, rule by rule, the worst of each first.

    An image is found once, by the first rule.
    """
    values = np.array([_measure(images[index], row) for index, row in enumerate(rows)])
    logs = np.log(values + 0.01)
    medians = np.median(logs, axis=0)
    spreads = 1.4826 * np.median(np.abs(logs - medians), axis=0).clip(LEAST_SPREAD)
    floors = [floor for floor, _ in RULES.values()]
    is_odd = (values < floors) & (logs < medians - SPREADS * spreads)
    is_odd &= np.cumsum(is_odd, axis=1) == 1
    found = []
    for (kind, (_, words)), column, odd in zip(RULES.items(), values.T, is_odd.T, strict=True):
        worst = [int(index) for index in np.argsort(column, kind="stable") if odd[index]]
        found += [Finding(kind, index, words.format(column[index])) for index in worst]
    return found


def find_across(rows: Sequence[ManifestRow]) -> list[Finding]:
    """Return the copies of one picture that stand on several given sides, group by group."""
    index = {row.id: index for index, row in enumerate(rows)}
    groups = [group for group in copies(rows, "near") if len({row.side for row in group}) > 1]
    return [Finding(ACROSS, index[row.id], row.side) for group in groups for row in group]


def count(findings: Sequence[Finding]) -> dict[str, int]:
    """Return the number of findings of every kind."""
    numbers = Counter(finding.kind for finding in findings)
    return {kind: numbers[kind] for kind in (*RULES, ACROSS)}


def worst_first(
    findings: Sequence[Finding], rows: Sequence[ManifestRow]
) -> tuple[list[ManifestRow], list[str]]:
    """Return the rows of the worst of each kind, and captions for a sheet."""
    kinds = groupby(findings, lambda finding: finding.kind)
    shown = [finding for _, group in kinds for finding in islice(group, WORST)]
    chosen = [rows[finding.index] for finding in shown]
    names = [f"{f.kind}\n{PurePath(row.id).name}" for f, row in zip(shown, chosen, strict=True)]
    return chosen, names
