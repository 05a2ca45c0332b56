"""Assign images to train, val and test.

Everything is decided by seeded hashes of groups. A group is all that must stay together: copies of
one picture, near-duplicates, images whose names share a part. Each side has hashes of its own, so
another size of val moves no test image; hashes depend on pixels (or on the shared part of the
name), so adding, removing or renaming images moves no other image. Only where images join groups,
or where counts are asked for, can a neighbour move.

A side that the dataset brings is respected. Where copies of one picture stand on two given sides,
those on the lesser side become "unused" (test counts above val, val above train): the published
test set stays whole, and nothing that is trained on is in it.
"""

import hashlib
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from resnets.data.duplicates import join
from resnets.errors import DataError, ParamsError
from resnets.tasks.manifest import Row, digest, read_manifest, write_split

SIDES = ("train", "val", "test")


@dataclass(frozen=True)
class Assigned:
    """Hold the side and the group of each manifest row, and how many copies were set aside."""

    sides: list[str]
    groups: list[str]
    num_leaks: int

    def metrics(self, rows: list[Row]) -> dict[str, Any]:
        """Return counts per side and class, and the leakage, which is 0 by construction."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        sides_of: dict[str, set[str]] = defaultdict(set)
        for row, side, group in zip(rows, self.sides, self.groups, strict=True):
            counts[side][row.label] += 1
            sides_of[group] |= {side} - {"unused"}
        return {
            "images": {side: counts[side].total() for side in (*SIDES, "unused")},
            "classes": {side: dict(sorted(counts[side].items())) for side in SIDES},
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
    drawn = {side: size for side, size in sizes.items() if side not in sides}
    if train != "rest":
        drawn["train"] = train
    left = 1.0
    for side, size in drawn.items():
        if isinstance(size, float):
            _draw_fraction(sides, groups, side, size / left, seed)
            left -= size
        else:
            _draw_count(rows, sides, groups, side, size, seed)
    _check_sizes(rows, sides, drawn)
    return Assigned(sides, groups, num_leaks)


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


def _draw_fraction(sides: list[str], groups: list[str], side: str, size: float, seed: int) -> None:
    """Move the groups whose hash is below the size from train to a side."""
    for row, group in enumerate(groups):
        if sides[row] == "train" and _hash(seed, side, group) < size:
            sides[row] = side


def _draw_count(
    rows: list[Row], sides: list[str], groups: list[str], side: str, size: int, seed: int
) -> None:
    """Move so many images per class, in the order of their hashes, from train to a side.

    A group is taken while any of its classes has room; what is too much of it becomes unused, so
    that no copy trains. More images are a superset of fewer.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        if sides[row] == "train":
            members[group].append(row)
            if side == "train":
                sides[row] = "unused"
    taken: Counter[str] = Counter()
    for group in sorted(members, key=lambda word: (_hash(seed, side, word), word)):
        chosen = sorted(members[group], key=lambda row: (rows[row].group, rows[row].id))
        if all(taken[rows[row].label] >= size for row in chosen):
            continue
        for row in chosen:
            has_room = taken[rows[row].label] < size
            sides[row] = side if has_room else "unused"
            taken[rows[row].label] += has_room


def _check_sizes(rows: list[Row], sides: list[str], drawn: dict[str, float]) -> None:
    """Stop when a class has no image on a side, or fewer than the number asked for."""
    counts = Counter(zip((row.label for row in rows), sides, strict=True))
    # a number that was asked for explains more than a side that it left empty
    order = sorted(SIDES, key=lambda side: not isinstance(drawn.get(side), int))
    for label in sorted({row.label for row in rows}):
        for side in order:
            wanted = drawn.get(side)
            needed = wanted if isinstance(wanted, int) else 1
            if counts[label, side] < needed:
                shown = ", ".join(f"{counts[label, s]} {s}" for s in (*SIDES, "unused"))
                raise DataError(
                    f"class {label!r} is too small for {needed} on {side}: {shown}",
                    "add images of this class, or change the sizes or the seed of the split",
                )


def split_task(folder: Path, **options: Unpack[Options]) -> dict[str, Any]:
    """Split the packed task in `folder`, write its split.csv and return the counts for metrics."""
    path = folder / "manifest.csv"
    rows = read_manifest(path)
    assigned = split_rows(rows, **options)
    data = digest(path.read_bytes())
    write_split(folder / "split.csv", rows, assigned.sides, assigned.groups, data)
    return assigned.metrics(rows)
