"""Assign images to train, val and test.

The split is stratified: every side gets its exact number of images of each class, and at least one.
What must stay together is a group: copies of one picture, near-duplicates, images whose names share
a part or that a table of labels puts into one group. Groups are taken in the order of seeded
hashes, so the order of files does not matter. Each side has hashes of its own, so another size of
val moves no test image. Where groups make a number impossible, the metrics say by how much it is
missed.

Hashes depend on pixels (or on the shared part of the name), so a split hardly moves with the data:
when 10% are added (val 0.1, test 0.2, 40 seeds), 2.5% of the old images change sides in classes of
20 to 50, 1.1% in classes of 200, 0.5% in classes of 1,000, 0.2% in classes of 5,000.

A side that the dataset brings is respected. Where copies of one picture stand on two given sides,
those on the lesser side become "unused" (test counts above val, val above train): the published
test set stays whole, and nothing that is trained on is in it.

With folds, there is no fixed test: each entry of `repeat` has a partition of its own into folds,
and each fold in turn is the test, as if the dataset had brought it.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnets.data.groups import GroupKey, choose_groups, group_key, group_words
from resnets.params.schema import Split
from resnets.system.errors import DataError
from resnets.tasks.manifest import (
    LETTERS,
    SIDES,
    ManifestRow,
    SplitRow,
    assign,
    read_manifest,
    write_table,
)

Quotas = dict[str, Counter[str]]  # per side and class, the number of images


def split_task(folder: Path, options: Split, repeats: Sequence[int] = (0,)) -> dict[str, Any]:
    """Split the packed task in `folder`, write its split.csv and return the counts for metrics."""
    rows, data = read_manifest(folder / "manifest.csv")
    sides, groups, metrics = split_rows(rows, options, repeats)
    triples = zip(rows, sides, groups, strict=True)
    write_table(folder / "split.csv", SplitRow, [assign(*triple, data) for triple in triples])
    return metrics


def split_rows(
    rows: list[ManifestRow], options: Split, repeats: Sequence[int] = (0,)
) -> tuple[list[str], list[str], dict[str, Any]]:
    """Return the side (train, val, test or unused) and the group of each row, and the metrics.

    Raises DataError when a class is too small for a side, ParamsError when the regular expression
    is not one.
    """
    if options.folds:
        return fold_rows(rows, options, repeats)
    groups = group_words(rows, options)
    sides = _given_sides(rows, groups)
    num_leaks = sides.count("unused")
    quotas = _draw(rows, sides, groups, options, str(options.seed))
    return sides, groups, _count(rows, sides, groups, quotas, num_leaks)


def _draw(
    rows: list[ManifestRow], sides: list[str], groups: list[str], options: Split, salt: str
) -> Quotas:
    """Move images from train, in place, to the sides that have none; return the quotas."""
    quotas = _quotas(rows, sides, groups, options)
    num_later = len(quotas)
    if options.train == "rest":
        del quotas["train"]
    for side, quota in quotas.items():
        num_later -= 1
        pool: dict[GroupKey, list[int]] = defaultdict(list)
        for row in [row for row, old in enumerate(sides) if old == "train"]:
            key = group_key(salt, side, groups[row])
            if side == "train":  # what is not chosen is unused, so groups need not stay whole
                key = (*key, rows[row].group, rows[row].id)
                sides[row] = "unused"
            pool[key].append(row)
        labels = {key: Counter(rows[row].label for row in pool[key]) for key in pool}
        for key in choose_groups(labels, quota, reserve=num_later):
            for row in pool[key]:
                sides[row] = side
    return quotas


def fold_rows(
    rows: list[ManifestRow], options: Split, repeats: Sequence[int]
) -> tuple[list[str], list[str], dict[str, Any]]:
    """Return the sides of each row in all folds of all repeats, its group, and the metrics.

    Given sides are pooled. The counts are those of the first fold. Raises as `split_rows`.
    """
    groups, counts = group_words(rows, options), dict[str, dict[str, Any]]()
    words = [list[str]() for _ in rows]
    for repeat in repeats:
        tests, test_quotas = _test_folds(rows, groups, options, f"{options.seed}|{repeat}")
        columns = []
        for fold, quota in enumerate(test_quotas):
            sides = ["test" if own == fold else "train" for own in tests]
            quotas = _draw(rows, sides, groups, options, f"{options.seed}|{repeat}|{fold}")
            counted = _count(rows, sides, groups, {"test": quota, **quotas}, 0)
            counts[f"fold {fold} of repeat {repeat}"] = counted
            columns.append([LETTERS[side] for side in sides])
        for word, letters in zip(words, zip(*columns, strict=True), strict=True):
            word.append(f"{repeat}:{''.join(letters)}")
    off_quota = {
        f"{side} of {name}": classes
        for name, counted in counts.items()
        for side, classes in counted["off_quota"].items()
        if classes
    }
    metrics = next(iter(counts.values())) | {
        "folds": options.folds,
        "counts_of": next(iter(counts)),
        "pooled": Counter(row.side for row in rows if row.side),
        "off_quota": off_quota,
        "leakage": sum(counted["leakage"] for counted in counts.values()),
    }
    return [" ".join(word) for word in words], groups, metrics


def _test_folds(
    rows: list[ManifestRow], groups: list[str], options: Split, salt: str
) -> tuple[list[int], list[Counter[str]]]:
    """Return the fold in which each row is tested, and how many of each class each is to have.

    What a fold misses, as groups stay whole, the next one makes up for.
    """
    num_folds, pool = options.folds or 1, defaultdict[GroupKey, list[int]](list)
    for row, group in enumerate(groups):
        pool[group_key(salt, group)].append(row)
    left = {key: Counter(rows[row].label for row in pool[key]) for key in pool}
    num_groups = Counter(label for labels in left.values() for label in labels)
    labels = sorted(row.label for row in rows)
    if few := [label for label in num_groups if num_groups[label] <= num_folds]:
        has = labels.count(few[0]), num_groups[few[0]]
        raise DataError(
            f"{_compare(few[0], has, num_folds + 1)} for {num_folds} folds",
            "add images of this class, leave it out (tasks.*.classes), or set fewer folds "
            "(split.*.folds)",
        )
    quotas = [Counter(labels[fold::num_folds]) for fold in range(num_folds)]
    tests, wanted = [num_folds - 1] * len(rows), Counter[str]()
    for fold, quota in enumerate(quotas[:-1]):
        wanted.update(quota)
        for key in choose_groups(left, wanted, reserve=num_folds - 1 - fold):
            wanted.subtract(left.pop(key))
            for row in pool[key]:
                tests[row] = fold
    return tests, quotas


def _compare(label: str, has: tuple[int, int], needed: int, *, has_given: bool = False) -> str:
    """Say how many images, in how many groups, a class has on train, and how many are needed."""
    num_images, num_groups = has
    words = f"{num_images} image{'s' * (num_images != 1)}" + " on train" * has_given
    if num_groups < num_images:
        words += f" in {num_groups} group{'s' * (num_groups != 1)} (copies of one picture are one)"
    kind = "different ones" if num_images < needed else "groups"
    return f"class {label!r} is too small: it has {words}; at least {needed} {kind} are needed"


def _given_sides(rows: list[ManifestRow], groups: list[str]) -> list[str]:
    """Return the given sides, "train" where there is none; copies on a lesser side are unused."""
    sides = [row.side or "train" for row in rows]
    best: dict[str, str] = {}
    for side, group in zip(sides, groups, strict=True):
        best[group] = max(best.get(group, side), side, key=SIDES.index)
    homes = [best[group] for group in groups]
    return [side if side == home else "unused" for side, home in zip(sides, homes, strict=True)]


def _quotas(rows: list[ManifestRow], sides: list[str], groups: list[str], options: Split) -> Quotas:
    """Return how many of the images on train each side that is drawn is to get of each class.

    A fraction is rounded, to one at least, and leaves one for each later side. Raises DataError
    when a class has too few images or groups.
    """
    sizes: dict[str, float] = {"test": options.test, "val": options.val}
    sizes = {side: size for side, size in sizes.items() if side not in sides}
    sizes["train"] = 1 if options.train == "rest" else options.train
    pool = [(r.label, g) for r, side, g in zip(rows, sides, groups, strict=True) if side == "train"]
    num_images = Counter(label for label, _ in pool)
    num_groups = Counter(label for label, _ in set(pool))
    quotas: Quotas = {side: Counter() for side in sizes}
    for label in sorted({row.label for row in rows}):
        left = num_images[label]
        for num_earlier, (side, size) in enumerate(sizes.items()):
            if isinstance(size, float):
                most = left - (len(sizes) - num_earlier - 1)
                size = max(1, min(most, math.floor(size * num_images[label] + 0.5)))
            quotas[side][label] = size
            left -= size
        if left < 0 or num_groups[label] < len(sizes):
            needed = {side: quotas[side][label] if left < 0 else 1 for side in sizes}
            has = num_images[label], num_groups[label]
            words = _compare(label, has, sum(needed.values()), has_given=len(sizes) < len(SIDES))
            raise DataError(
                f"{words}: {', '.join(f'{number} on {side}' for side, number in needed.items())}",
                "add images of this class, leave it out (tasks.*.classes), ask for fewer "
                "(split.*.val, test, train), or group fewer together (group_regex, group_near)",
            )
    return quotas


def _count(
    rows: list[ManifestRow], sides: list[str], groups: list[str], quotas: Quotas, num_leaks: int
) -> dict[str, Any]:
    """Return counts per side and class, and the leakage, which is 0 by construction.

    `off_quota` says by how many images groups that stay together made a side miss its number.
    Raises DataError when a class is missing on a side, be it given or filled by other classes.
    """
    counts = Counter((side, row.label) for row, side in zip(rows, sides, strict=True))
    classes = sorted({row.label for row in rows})
    for label in classes:
        if not all(counts[side, label] for side in SIDES):
            shown = ", ".join(f"{counts[side, label]} {side}" for side in (*SIDES, "unused"))
            raise DataError(
                f"class {label!r} is missing on a side: {shown}",
                "add images of this class there, or group fewer together (split.*.group_regex)",
            )
    homes = {home for home in zip(groups, sides, strict=True) if home[1] != "unused"}
    num_homes = Counter(group for group, _ in homes)
    return {
        "images": {side: sides.count(side) for side in (*SIDES, "unused")},
        "classes": {side: {label: counts[side, label] for label in classes} for side in SIDES},
        "off_quota": {
            side: {x: counts[side, x] - n for x, n in quota.items() if counts[side, x] != n}
            for side, quota in quotas.items()
        },
        "groups": len(set(groups)),
        "copies_across_given_sides": num_leaks,
        "leakage": sum(number > 1 for number in num_homes.values()),
    }
