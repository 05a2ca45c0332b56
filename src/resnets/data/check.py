"""Show what a dataset holds and what is wrong with it, before anything else is set up."""

import json
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from resnets.data.findings import IMBALANCE, WORST, Finding, find_odd
from resnets.data.layout import Member, Source
from resnets.data.pack import Packing
from resnets.data.prepare import check_classes, judge_all, select_members, summarise
from resnets.data.sources import open_source
from resnets.system.errors import DataError, printable
from resnets.tasks.manifest import SIDES, ManifestRow, Rejected, copies
from resnets.tasks.task import PixelStore

MAX_MEGAPIXELS = 64.0  # as the schema has it
PACKED_SIDE = {False: 128, True: 32}  # pixels, where there are MANY images: a gigabyte at most
MANY = 10_000
MANY_CLASSES = 40  # of more only the smallest and the largest are shown
STORE = "images.bin"
LOOKALIKES = str.maketrans(  # Cyrillic and Greek letters, and the Latin ones that look like them
    "авекмнорстухіјѕԁһαβεζηικμνορτυχ",
    "abekmhopctyxijsdhabezhikmnoptyx",
)

Line = tuple[str, str]  # a title that says what becomes of it, and what stands below it


def check(path: Path, *, max_megapixels: float) -> None:
    """Judge every image as `prepare` does and print classes, sizes, formats and findings.

    Raises DataError when there are findings that would stop `prepare`.
    """
    source = open_source(path)
    with tempfile.TemporaryDirectory() as folder:
        rows, rejected, found = examine(source, source.members, Path(folder), max_megapixels)
    Console(highlight=False, soft_wrap=True).print(_classes(source, rows, rejected))
    if len(source.classes) > MANY_CLASSES:
        shown = f"the {WORST} smallest and the {WORST} largest are shown"
        print(f"{len(source.classes):,} classes, {len(rows):,} images: {shown};")
        print("`dvc repro` counts all of them in metrics/data_target.json")
    if rows:
        summary = summarise(rows, rejected)
        print(", ".join(f"{number} {name}" for name, number in summary["formats"].items()))
        for name in ("width", "height"):
            print("{} {min} to {max} pixels, median {median:g}".format(name, **summary[name]))
    lines_below: dict[str, list[str]] = defaultdict(list)
    odd_images = _odd_images(source, rows, rejected)
    for title, line in chain(odd_images, _odd_sizes(source, rows), odd_names(source)):
        lines_below[title].append(line)
    for finding in found:
        line = f"{rows[finding.index].id}: {finding.words}"
        lines_below[f"Odd, {finding.kind}: look at them"].append(line)
    bad = [image.id for image in rejected if image.reason != "bad_name"]  # printed otherwise
    if names := [*(rows[finding.index].id for finding in found), *bad]:
        title = "To leave all of them out, put this in place of `exclude:` under tasks.target"
        title += " in params.yaml"
        lines_below[title].append(f"exclude: {json.dumps(names, ensure_ascii=False)}")
    for title, lines in lines_below.items():
        print(f"\n{printable(title)} ({len(lines)})", *map(printable, lines), sep="\n  ")
    if rejected:
        raise DataError(
            f"{path}: {len(rejected)} of {len(rows) + len(rejected)} images are bad, as listed",
            "repair or remove them, name them in tasks.target.exclude, or set checks.on_bad: "
            "quarantine",
        )
    check_classes(path, {member.label for member in select_members(source)}, rows)


def examine(
    source: Source, members: list[Member], folder: Path, max_megapixels: float = MAX_MEGAPIXELS
) -> tuple[list[ManifestRow], list[Rejected], list[Finding]]:
    """Judge images as `prepare` does, pack them small into `folder`, and find the odd ones."""
    side, store = PACKED_SIDE[len(source.members) > MANY], folder / STORE
    packing = Packing(3, side, "shorter_side", max_megapixels, scaled_decoding=True)
    rows, rejected = judge_all(source, members, packing, store)
    return rows, rejected, find_odd(rows, PixelStore(store, rows)) if rows else []


def _classes(source: Source, rows: list[ManifestRow], rejected: list[Rejected]) -> Table:
    """Return a table of classes and counts, per given side; of many classes both ends by size."""
    good, sizes = Counter((row.label, row.side) for row in rows), Counter(row.label for row in rows)
    bad = Counter(image.label for image in rejected)
    sides: list[str] = [side for side in SIDES if any(row.side == side for row in rows)]
    table = Table("class", *(sides or ["images"]), "bad")
    labels = source.classes
    if len(labels) > MANY_CLASSES:
        by_size = sorted(labels, key=sizes.__getitem__)
        labels = [*by_size[:WORST], *by_size[-WORST:]]
    for label in labels:
        counts = [*(good[label, side] for side in sides or [""]), bad[label]]
        table.add_row(escape(printable(label)), *map(str, counts))
    if labels is not source.classes:
        table.rows[WORST - 1].end_section = True
    return table


def _odd_images(
    source: Source, rows: list[ManifestRow], rejected: list[Rejected]
) -> Iterator[Line]:
    """Yield what is wrong with single images and which are copies of one picture."""
    for image in rejected:
        yield f"Bad, {image.reason}: {image.fix}", f"{image.id}: {image.detail}"
    for row in rows:
        if row.note:
            yield (
                "Odd: tasks.target.exclude leaves out what you name there",
                f"{row.id}: {row.note}",
            )
    for group in copies(rows, "near"):
        if len(group) > 1:
            yield _kind(group), ", ".join(row.id for row in group)
    for name in source.ignored:
        yield "Ignored: hidden, of a tool, or no image", name


def _kind(group: list[ManifestRow]) -> str:
    """Return a title for copies of one picture."""
    kind = "Near-duplicates"
    if len({row.group for row in group}) == 1:
        kind = "The same picture" if len({row.sha256 for row in group}) > 1 else "Exact copies"
    if len({row.side for row in group}) > 1:
        return f"{kind} across sides: only those on the last side (train, val, test) are used"
    return f"{kind}: split keeps each line together on one side"


def _odd_sizes(source: Source, rows: list[ManifestRow]) -> Iterator[Line]:
    """Yield the classes too small to split, much smaller than the largest, or without a side."""
    # of these images the sides are drawn that the dataset lacks
    pool = [row for row in rows if row.side in ("", "train")]
    num_sides = 1 + len({"val", "test"} - {row.side for row in rows})
    num_images = Counter(row.label for row in pool)
    num_groups = Counter(label for label, _ in {(row.label, row.near) for row in pool})
    largest = max(source.classes, key=lambda label: num_images[label])
    most = num_images[largest]
    small = f"Too small for {num_sides} sides: add images, or leave it out (tasks.target.classes)"
    few = f"Few: {largest} has {most}, over {IMBALANCE} times as many"
    few += ": add images, and set training.loss.class_weights: balanced"
    absent = "Missing on a given side: add images there, or leave it out (tasks.target.classes)"
    present = {(row.label, row.side) for row in rows}
    given = [side for side in ("val", "test") if any(row.side == side for row in rows)]
    lines: dict[str, list[str]] = {small: [], few: [], absent: []}
    for label in sorted(source.classes, key=lambda label: num_images[label]):
        images = f"{label}: {num_images[label]} image{'s' * (num_images[label] != 1)}"
        if num_groups[label] < num_sides:
            pictures = f" of {num_groups[label]} picture{'s' * (num_groups[label] != 1)}"
            has_copies = num_groups[label] < num_images[label]
            lines[small].append(images + pictures * has_copies)
        if IMBALANCE * num_images[label] < most:
            lines[few].append(images)
        if missing := [side for side in given if (label, side) not in present]:
            lines[absent].append(f"{label}: none on {' and '.join(missing)}")
    for title, named in lines.items():
        cut = f"; the smallest of {len(named):,}" * (len(named) > WORST)
        yield from ((title + cut, line) for line in named[:WORST])


def odd_names(source: Source) -> Iterator[Line]:
    """Yield the names of classes and images that look like another."""
    twins: dict[str, list[str]] = defaultdict(list)
    for name in [*source.classes, *(member.name for member in source.members)]:
        # what is left has no case, no width, no script and no invisible characters
        folded = unicodedata.normalize("NFKC", name).casefold().translate(LOOKALIKES)
        twins["".join(c for c in folded if unicodedata.category(c) != "Cf")].append(name)
    for names in twins.values():
        if len(names) > 1:
            title = "Names that differ only in case or look alike: rename all but one"
            yield title, ", ".join(map(ascii, names))
