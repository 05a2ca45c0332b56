"""Prepare a task: pack a dataset, find duplicates and label conflicts, and report what is wrong."""

import statistics
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from resnets.data.decode import FIXES
from resnets.data.duplicates import label_conflicts, mark_near
from resnets.data.manifest import Rejected, Row, digest, write_manifest, write_rejected
from resnets.data.pack import Packing, pack
from resnets.data.sources import Member, Source, open_source
from resnets.errors import DataError, printable

NAMES_SHOWN = 3


@dataclass(frozen=True)
class Summary:
    """Hold what `prepare_task` found; `metrics` is ready for JSON."""

    rows: list[Row]
    rejected: list[Rejected]
    ignored: list[str]
    metrics: dict[str, Any]


def prepare_task(
    source_path: Path,
    out_folder: Path,
    *,
    classes: list[str] | None,
    num_classes: int | None,
    channels: Literal[1, 3],
    resize: int,
    fit: Literal["shorter_side", "stretch"],
    on_bad: Literal["stop", "quarantine"],
    max_bad_fraction: float,
    max_megapixels: float,
) -> Summary:
    """Judge and pack a dataset into `out_folder`: images.bin, manifest.csv and rejected.csv.

    Raises DataError when the classes are not the expected ones, or when more is wrong than
    `on_bad` and `max_bad_fraction` allow; rejected.csv lists it all even then.
    """
    source = open_source(source_path)
    members = _choose(source, classes, num_classes)
    packing = Packing(channels, resize, fit, max_megapixels)
    (out_folder / "manifest.csv").unlink(missing_ok=True)  # it would not fit the new images.bin
    rows, rejected = pack(source, members, packing, out_folder / "images.bin")
    rejected += [_homeless(name) for name in source.homeless] + label_conflicts(rows)
    refused = {one.id for one in rejected}
    rows = mark_near([row for row in rows if row.id not in refused])
    write_rejected(out_folder / "rejected.csv", rejected)
    _check_bad(rows, rejected, on_bad, max_bad_fraction, out_folder / "rejected.csv")
    _check_classes(rows, {member.label for member in members}, source_path)
    write_manifest(out_folder / "manifest.csv", rows)
    data = digest((out_folder / "manifest.csv").read_bytes())
    metrics = {
        **summarise(rows, rejected),
        "ignored": len(source.ignored),
        "hashes": {"data": data},
    }
    return Summary(rows, rejected, source.ignored, metrics)


def _homeless(name: str) -> Rejected:
    """Refuse an image that has no class."""
    detail = "an image outside the class folders"
    return Rejected(printable(name), "", "no_class", detail, FIXES["no_class"])


def _choose(source: Source, classes: list[str] | None, num_classes: int | None) -> list[Member]:
    """Return the images of the wanted classes."""
    have = source.classes
    missing = sorted(set(classes or []) - set(have))
    if missing:
        raise DataError(
            f"{source.path}: has no class {missing[0]!r}; it has {', '.join(have)}",
            "correct tasks.*.classes",
        )
    wanted = set(classes or have)
    if num_classes not in (None, len(wanted)):
        raise DataError(
            f"{source.path}: num_classes is {num_classes}, but there are {len(wanted)} classes: "
            f"{', '.join(sorted(wanted))}",
            "correct tasks.*.num_classes or the folders",
        )
    if len(wanted) < 2:
        raise DataError(
            f"{source.path}: need at least 2 classes, found {len(wanted)} ({', '.join(wanted)})",
            "put the images of each class into a folder of its own",
        )
    members = [member for member in source.members if member.label in wanted]
    empty = sorted(wanted - {member.label for member in members})
    if empty:
        raise DataError(
            f"{source.path}: class {empty[0]!r} has 0 images", "fill its folder, or remove it"
        )
    return members


def list_bad(rejected: list[Rejected]) -> str:
    """Say how many files are refused for which reason, with the first names."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for one in rejected:
        by_reason[one.reason].append(one.id)
    parts = []
    for reason, names in sorted(by_reason.items()):
        more = ", …" if len(names) > NAMES_SHOWN else ""
        parts.append(f"{len(names)} {reason} ({', '.join(names[:NAMES_SHOWN])}{more})")
    return "; ".join(parts)


def _check_bad(
    rows: list[Row],
    rejected: list[Rejected],
    on_bad: Literal["stop", "quarantine"],
    max_bad_fraction: float,
    listed: Path,
) -> None:
    """Stop when more images are bad than allowed; otherwise say which are left out."""
    total = len(rows) + len(rejected)
    bad = f"{len(rejected)} of {total} images are bad: {list_bad(rejected)}; see {listed}"
    if rejected and on_bad == "stop":
        raise DataError(bad, "do what the list says for each, or set data.on_bad: quarantine")
    if len(rejected) > max_bad_fraction * total:
        raise DataError(
            f"more than data.max_bad_fraction ({max_bad_fraction}): {bad}",
            "do what the list says for each, or raise data.max_bad_fraction",
        )
    if rejected:
        print(printable(f"left out: {bad}"), file=sys.stderr)


def _check_classes(rows: list[Row], classes: set[str], path: Path) -> None:
    """Stop when a class has no good image left: the numbers of the classes would shift."""
    empty = sorted(classes - {row.label for row in rows})
    if empty:
        raise DataError(f"{path}: class {empty[0]!r} has 0 good images", "repair its images")


def _counts(values: list[str]) -> dict[str, int]:
    """Count values, sorted by value."""
    return dict(sorted(Counter(values).items()))


def _range(values: list[int]) -> dict[str, int | float]:
    """Return the smallest, the middle and the largest value."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def summarise(rows: list[Row], rejected: list[Rejected]) -> dict[str, Any]:
    """Count images, refusals, duplicates, formats, sizes and notes."""
    files, groups = len({row.sha256 for row in rows}), len({row.group for row in rows})
    return {
        "images": len(rows),
        "classes": _counts([row.label for row in rows]),
        "given_sides": _counts([row.side for row in rows if row.side]),
        "rejected": {"all": len(rejected), **_counts([one.reason for one in rejected])},
        "duplicates": {  # copies beyond the first
            "exact": len(rows) - files,
            "same_pixels": files - groups,
            "near": groups - len({row.near for row in rows}),
        },
        "formats": _counts([row.format for row in rows]),
        "width": _range([row.width for row in rows]),
        "height": _range([row.height for row in rows]),
        "notes": _counts([note for row in rows for note in row.note.split("; ") if note]),
    }
