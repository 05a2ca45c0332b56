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
"""

import hashlib
import math
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from resnets.data.duplicates import join
from resnets.params.schema import Split
from resnets.system.errors import DataError, ParamsError
from resnets.tasks.manifest import ManifestRow, SplitRow, assign, read_manifest, write_table

SIDES = ("train", "val", "test")

Key = tuple[str, ...]  # a group: the hash that orders it, its word
Quotas = dict[str, Counter[str]]  # per side and class, the number of images


def split_task(folder: Path, options: Split) -> dict[str, Any]:
    """Split the packed task in `folder`, write its split.csv and return the counts for metrics."""
    rows, data = read_manifest(folder / "manifest.csv")
    sides, groups, metrics = split_rows(rows, options)
    triples = zip(rows, sides, groups, strict=True)
    write_table(folder / "split.csv", SplitRow, [assign(*triple, data) for triple in triples])
    return metrics


def split_rows(
    rows: list[ManifestRow], options: Split
) -> tuple[list[str], list[str], dict[str, Any]]:
    """Return the side (train, val, test or unused) and the group of each row, and the metrics.

    Raises DataError when a class is too small for a side, ParamsError when the regular expression
    is not one.
    """
    groups = _groups(rows, options)
    sides = _given_sides(rows, groups)
    num_leaks = sides.count("unused")
    quotas = _quotas(rows, sides, groups, options)
    num_later = len(quotas)
    if options.train == "rest":
        del quotas["train"]
    for side, quota in quotas.items():
        num_later -= 1
        pool: dict[Key, list[int]] = defaultdict(list)
        for row in [row for row, old in enumerate(sides) if old == "train"]:
            word = f"{options.seed}|{side}|{groups[row]}".encode("utf-8", "surrogateescape")
            key: Key = (hashlib.sha256(word).hexdigest(), groups[row])
            if side == "train":  # what is not chosen is unused, so groups need not stay whole
                key = (*key, rows[row].group, rows[row].id)
                sides[row] = "unused"
            pool[key].append(row)
        labels = {key: Counter(rows[row].label for row in pool[key]) for key in pool}
        for key in _choose(labels, quota, reserve=num_later):
            for row in pool[key]:
                sides[row] = side
    return sides, groups, _count(rows, sides, groups, quotas, num_leaks)


def _groups(rows: list[ManifestRow], options: Split) -> list[str]:
    """Return a word per row; rows with one word stay together."""
    own = [row.near if options.group_near else row.group for row in rows]
    # the space lets a name sort before a hash, so that it names the group
    pairs = [
        (word, row.given_group and f" group {row.given_group}")
        for word, row in zip(own, rows, strict=True)
    ]
    if options.group_regex is not None:
        pairs += zip(own, _matches(rows, options.group_regex), strict=True)
    joined = join((word, name or word) for word, name in pairs)
    return [joined[word] for word in own]


def _matches(rows: list[ManifestRow], pattern: str) -> list[str]:
    """Return what the pattern finds in the name of each row, "" where it finds nothing."""
    try:
        matches = [re.search(pattern, row.id) for row in rows]
    except re.error as error:
        raise ParamsError(
            f"split.*.group_regex: {pattern!r}: {error}",
            "correct the regular expression",
        ) from error
    if not any(matches):
        raise DataError(
            f"split.*.group_regex: {pattern!r} matches no name, such as {rows[0].id!r}",
            "correct it, or set it to null",
        )
    return [" " + "|".join(match.groups("") or (match[0],)) if match else "" for match in matches]


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
            needed = ", ".join(f"{quotas[side][label]} on {side}" for side in sizes)
            raise DataError(
                f"class {label!r} is too small for {needed}: {num_images[label]} images in "
                f"{num_groups[label]} groups (copies of one picture are one)",
                "add images of this class, leave it out (tasks.*.classes), ask for fewer "
                "(split.*.val, test, train), or group fewer together (group_regex, group_near)",
            )
    return quotas


def _choose(pool: dict[Key, Counter[str]], quota: Counter[str], *, reserve: int) -> list[Key]:
    """Choose groups, given as images per class, until each class has its quota.

    The smallest class chooses first, as few of its groups fit, and takes what exceeds no quota in
    the order of the keys. Then, from the smallest group, follows what brings the numbers nearer to
    the quotas or a class its first image. Of each class `reserve` groups are left to later sides.
    """
    num_images = Counter(label for labels in pool.values() for label in labels.elements())
    num_groups = Counter(label for labels in pool.values() for label in labels)
    by_class = sorted((num_images[label], label, key) for key in pool for label in pool[key])
    by_size = sorted(pool, key=lambda key: (pool[key].total(), key))
    missing, chosen = Counter(quota), dict[Key, None]()
    turns = [(key, True) for _, _, key in by_class] + [(key, False) for key in by_size]
    for key, must_fit in turns:
        labels = pool[key]
        if key in chosen or any(num_groups[label] <= reserve for label in labels):
            continue
        if must_fit:
            is_good = all(missing[label] >= number for label, number in labels.items())
        else:
            gain = sum(abs(missing[x]) - abs(missing[x] - number) for x, number in labels.items())
            is_good = gain > 0 or any(missing[label] == quota[label] for label in labels)
        if is_good:
            chosen[key] = None
            missing.subtract(labels)
            num_groups.subtract(labels.keys())
    return list(chosen)


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
