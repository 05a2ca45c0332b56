"""Assign images to train, val and test.

The split is stratified: every side gets its exact number of images of each class, and at least one.
What must stay together is a group: copies of one picture, near-duplicates, images whose names share
a part. Groups are taken in the order of seeded hashes, so the order of files does not matter. Each
side has hashes of its own, so another size of val moves no test image. Where groups make a number
impossible, the metrics say by how much it is missed.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from resnets.data.duplicates import join
from resnets.system.errors import DataError, ParamsError
from resnets.tasks.manifest import Row, digest, read_manifest, write_split

SIDES = ("train", "val", "test")

Key = tuple[float | str, ...]  # a group: the hash that orders it, its word


@dataclass(frozen=True)
class Assigned:
    """Hold the side and the group of each manifest row, and how many copies were set aside.

    `quotas` are the numbers asked for, per drawn side and class.
    """

    sides: list[str]
    groups: list[str]
    num_leaks: int
    quotas: dict[str, Counter[str]]

    def metrics(self, rows: list[Row]) -> dict[str, Any]:
        """Return counts per side and class, and the leakage, which is 0 by construction.

        `off_quota` says by how many images groups that stay together made a side miss its number.
        """
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        sides_of: dict[str, set[str]] = defaultdict(set)
        for row, side, group in zip(rows, self.sides, self.groups, strict=True):
            counts[side][row.label] += 1
            sides_of[group] |= {side} - {"unused"}
        return {
            "images": {side: counts[side].total() for side in (*SIDES, "unused")},
            "classes": {side: dict(sorted(counts[side].items())) for side in SIDES},
            "off_quota": {
                side: {x: counts[side][x] - n for x, n in quota.items() if counts[side][x] != n}
                for side, quota in self.quotas.items()
            },
            "groups": len(sides_of),
            "copies_across_given_sides": self.num_leaks,
            "leakage": sum(len(sides) > 1 for sides in sides_of.values()),
        }


class Options(TypedDict):
    """Say how to split; a float is a fraction of the images, an int a number per class."""

    seed: int
    train: Literal["rest"] | int
    val: float | int
    test: float | int
    group_regex: str | None
    group_near: bool


def split_rows(rows: list[Row], **options: Unpack[Options]) -> Assigned:
    """Return the side of each row: train, val, test or unused.

    Raises DataError when a class is too small for a side, ParamsError when the regular expression
    is not one.
    """
    seed, train = options["seed"], options["train"]
    groups = _groups(rows, options["group_regex"], options["group_near"])
    sides = [row.side or "train" for row in rows]
    num_leaks = _set_leaks_aside(sides, groups)
    sizes = {"test": options["test"], "val": options["val"]}
    asked = {side: size for side, size in sizes.items() if side not in sides}
    asked["train"] = 1 if train == "rest" else train
    quotas = _quotas(rows, sides, groups, asked)
    if train == "rest":
        del quotas["train"]
    for number, (side, quota) in enumerate(quotas.items(), start=1):
        pool: dict[Key, list[int]] = defaultdict(list)
        for row in [row for row, old in enumerate(sides) if old == "train"]:
            key: Key = (_hash(seed, side, groups[row]), groups[row])
            if side == "train":  # what is not chosen is unused, so groups need not stay whole
                key = (*key, rows[row].group, rows[row].id)
                sides[row] = "unused"
            pool[key].append(row)
        labels = {key: Counter(rows[row].label for row in pool[key]) for key in pool}
        for key in _choose(labels, quota, reserve=len(asked) - number):
            for row in pool[key]:
                sides[row] = side
    _check_sides(rows, sides)
    return Assigned(sides, groups, num_leaks, quotas)


def _groups(rows: list[Row], group_regex: str | None, group_near: bool) -> list[str]:
    """Return a word per row; rows with one word stay together."""
    if group_regex is None:
        return [row.near if group_near else row.group for row in rows]
    try:
        pattern = re.compile(group_regex)
    except re.error as error:
        raise ParamsError(
            f"split.*.group_regex: {group_regex!r}: {error}", "correct the regular expression"
        ) from error
    pairs = []
    for row in rows:
        own = row.near if group_near else row.group
        found = pattern.search(row.id)
        # the space lets a part of a name sort before a hash, so that it names the group
        pairs.append((own, " " + "|".join(found.groups("") or (found[0],)) if found else own))
    if all(own == word for own, word in pairs):
        raise DataError(
            f"split.*.group_regex: {group_regex!r} matches no name, such as {rows[0].id!r}",
            "correct it, or set it to null",
        )
    joined = join(pairs)
    return [joined[own] for own, _ in pairs]


def _set_leaks_aside(sides: list[str], groups: list[str]) -> int:
    """Make copies of an evaluation image on a lesser side unused; return how many they are."""
    best: dict[str, str] = {}
    for side, group in zip(sides, groups, strict=True):
        best[group] = max(best.get(group, side), side, key=SIDES.index)
    leaks = [row for row, group in enumerate(groups) if sides[row] != best[group]]
    for row in leaks:
        sides[row] = "unused"
    return len(leaks)


def _hash(seed: int, side: str, word: str) -> float:
    """Return a number in [0, 1) that a seed, a side and a word determine."""
    text = f"{seed}|{side}|{word}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(text).digest()[:7]) / 2**56


def _quotas(
    rows: list[Row], sides: list[str], groups: list[str], asked: dict[str, float]
) -> dict[str, Counter[str]]:
    """Return how many of the images on train each side is to get of each class.

    A fraction is rounded, to one at least, and leaves one for each later side. Raises DataError
    when a class has too few images or groups.
    """
    pool = [(r.label, g) for r, side, g in zip(rows, sides, groups, strict=True) if side == "train"]
    num_images = Counter(label for label, _ in pool)
    num_groups = Counter(label for label, _ in set(pool))
    quotas: dict[str, Counter[str]] = {side: Counter() for side in asked}
    for label in sorted({row.label for row in rows}):
        left = num_images[label]
        for num_earlier, (side, size) in enumerate(asked.items()):
            if isinstance(size, float):
                most = left - (len(asked) - num_earlier - 1)
                size = max(1, min(most, math.floor(size * num_images[label] + 0.5)))
            quotas[side][label] = size
            left -= size
        if left < 0 or num_groups[label] < len(asked):
            needed = ", ".join(f"{quotas[side][label]} on {side}" for side in asked)
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


def _check_sides(rows: list[Row], sides: list[str]) -> None:
    """Stop when a class is missing on a side that is given, or that groups of many classes fill."""
    counts = Counter(zip((row.label for row in rows), sides, strict=True))
    for label in sorted({row.label for row in rows}):
        if not all(counts[label, side] for side in SIDES):
            shown = ", ".join(f"{counts[label, side]} {side}" for side in (*SIDES, "unused"))
            raise DataError(
                f"class {label!r} is missing on a side: {shown}",
                "add images of this class there, or group fewer together (split.*.group_regex)",
            )


def split_task(folder: Path, **options: Unpack[Options]) -> dict[str, Any]:
    """Split the packed task in `folder`, write its split.csv and return the counts for metrics."""
    path = folder / "manifest.csv"
    rows = read_manifest(path)
    assigned = split_rows(rows, **options)
    data = digest(path.read_bytes())
    write_split(folder / "split.csv", rows, assigned.sides, assigned.groups, data)
    return assigned.metrics(rows)
