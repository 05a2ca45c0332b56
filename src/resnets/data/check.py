"""Show what a dataset holds and what is wrong with it, before anything else is set up."""

import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from resnets.data.layout import Source
from resnets.data.pack import Packing
from resnets.data.prepare import judge_all, select_members
from resnets.data.sources import open_source
from resnets.system.errors import DataError, printable
from resnets.tasks.manifest import Rejected, Row, copies

MAX_MEGAPIXELS = 64.0  # as params.yaml has it
SIDES = ("train", "val", "test")
OVERRIDES = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})
LOOKALIKES = str.maketrans(  # Cyrillic and Greek letters, and the Latin ones that look like them
    "авекмнорстухіјѕԁһαβεζηικμνορτυχ",
    "abekmhopctyxijsdhabezhikmnoptyx",
)


def check(path: Path, *, max_megapixels: float) -> None:
    """Judge every image as `prepare` does and print classes, sizes, formats and findings.

    Raises DataError when there are findings that would stop `prepare`.
    """
    source = open_source(path)
    with tempfile.TemporaryDirectory() as folder:
        packing = Packing(3, 4, "stretch", max_megapixels)
        rows, rejected = judge_all(source, source.members, packing, Path(folder) / "images.bin")
    console = Console(highlight=False, soft_wrap=True)
    console.print(_classes(source, rows, rejected))
    for line in _numbers(rows):
        console.print(line)
    found = findings(source, rows, rejected) | odd_sizes(source, rows) | odd_names(source)
    for title, lines in found.items():
        console.print(f"\n{escape(printable(title))} ({len(lines)})")
        for line in lines:
            console.print(f"  {escape(printable(line))}")
    if rejected:
        raise DataError(
            f"{path}: {len(rejected)} of {len(rows) + len(rejected)} images are bad, as listed",
            "repair or remove them, name them in tasks.*.exclude, or set data.on_bad: quarantine",
        )
    select_members(source, None, None, ())


def _classes(source: Source, rows: list[Row], rejected: list[Rejected]) -> Table:
    """Return a table of classes and counts, per given side."""
    good = Counter((row.label, row.side) for row in rows)
    bad = Counter(one.label for one in rejected)
    sides = [side for side in SIDES if any(row.side == side for row in rows)]
    table = Table("class", *(sides or ["images"]), "bad")
    for label in source.classes:
        counts = [*(good[label, side] for side in sides or [""]), bad[label]]
        table.add_row(escape(printable(label)), *map(str, counts))
    return table


def _numbers(rows: list[Row]) -> Iterator[str]:
    """Yield the formats and the sizes in words."""
    formats = Counter(row.format for row in rows)
    yield ", ".join(f"{number} {name}" for name, number in sorted(formats.items()))
    for name in ("width", "height") if rows else ():
        values = [getattr(row, name) for row in rows]
        yield f"{name} {min(values)} to {max(values)} pixels, median {median(values):g}"


def findings(source: Source, rows: list[Row], rejected: list[Rejected]) -> dict[str, list[str]]:
    """Return what was found, under titles that say what becomes of it."""
    found: dict[str, list[str]] = defaultdict(list)
    for one in rejected:
        found[f"Bad, {one.reason}: {one.fix}"].append(f"{one.id}: {one.detail}")
    for row in rows:
        if row.note:
            found["Odd: tasks.*.exclude leaves out what you name there"].append(
                f"{row.id}: {row.note}"
            )
    for group in copies(rows, "near"):
        if len(group) > 1:
            found[_kind(group)].append(", ".join(row.id for row in group))
    if source.ignored:
        found["Ignored: hidden, of a tool, or no image"] = source.ignored
    return found


def _kind(group: list[Row]) -> str:
    """Return a title for copies of one picture."""
    kind = "Near-duplicates"
    if len({row.group for row in group}) == 1:
        kind = "The same picture" if len({row.sha256 for row in group}) > 1 else "Exact copies"
    if len({row.side for row in group}) > 1:
        return f"{kind} across sides: only those on the last side (train, val, test) are used"
    return f"{kind}: split keeps each line together on one side"


def odd_sizes(source: Source, rows: list[Row]) -> dict[str, list[str]]:
    """Return the classes that are too small to split, and those much smaller than the largest."""
    found: dict[str, list[str]] = defaultdict(list)
    rows_of: dict[str, list[Row]] = {label: [] for label in source.classes}
    for row in rows:
        if row.side in ("", "train"):  # of these the sides are drawn that the dataset lacks
            rows_of[row.label].append(row)
    num_sides = 1 + len({"val", "test"} - {row.side for row in rows})
    largest = max(source.classes, key=lambda label: len(rows_of[label]))
    most = len(rows_of[largest])
    small = f"Too small for {num_sides} sides: add images, or leave it out (tasks.*.classes)"
    few = f"Fewer than a third of the {most} of {largest}: set loss.class_weights: balanced"
    for label, pool in rows_of.items():
        num_groups = len({row.near for row in pool})
        if num_groups < num_sides:
            found[small].append(f"{label}: {len(pool)} images, {num_groups} of them no copies")
        if 3 * len(pool) < most:
            found[few].append(f"{label}: {len(pool)} images")
    return found


def odd_names(source: Source) -> dict[str, list[str]]:
    """Return names that show as what they are not, and those that look like another."""
    found: dict[str, list[str]] = defaultdict(list)
    twins: dict[tuple[str, str], list[str]] = defaultdict(list)
    named = [("", label, label) for label in source.classes]
    for member in source.members:
        folder, _, file = member.name.rpartition("/")
        named.append((folder, file, member.name))
    for folder, own, name in named:
        twins[folder, skeleton(own)].append(name)
        if any(unicodedata.bidirectional(character) in OVERRIDES for character in own):
            found["The name turns the direction of the text around: rename it"].append(name)
    for names in twins.values():
        if len(names) > 1:
            found["Names that differ only in case or look alike: rename all but one"].append(
                ", ".join(map(ascii, names))
            )
    return found


def skeleton(name: str) -> str:
    """Return what names have in common that look alike: no case, no width, no script."""
    folded = unicodedata.normalize("NFKC", name).casefold().translate(LOOKALIKES)
    return "".join(c for c in folded if unicodedata.category(c) != "Cf")
