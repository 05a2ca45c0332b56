"""Show what a dataset holds and what is wrong with it, before anything else is set up."""

import tempfile
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from resnets.data.manifest import Row
from resnets.data.prepare import Summary, prepare_task
from resnets.errors import DataError, printable

MAX_MEGAPIXELS = 64.0


def check(path: Path) -> None:
    """Judge every image as `prepare` does and print classes, sizes, formats and findings.

    Raises DataError when there are findings that would stop `prepare`.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = prepare_task(
            path, Path(folder), classes=None, num_classes=None, channels=3, resize=4,
            fit="shorter_side", on_bad="quarantine", max_bad_fraction=1.0,
            max_megapixels=MAX_MEGAPIXELS,
        )  # fmt: skip
    console = Console(highlight=False, soft_wrap=True)
    console.print(_classes(found.rows))
    console.print(_numbers(found))
    for line in findings(found):
        console.print(escape(printable(line)))
    if found.rejected:
        total = len(found.rows) + len(found.rejected)
        raise DataError(
            f"{path}: {len(found.rejected)} of {total} images are bad, as listed above",
            "do what the list says for each, or set data.on_bad: quarantine",
        )


def _classes(rows: list[Row]) -> Table:
    """Return a table of classes and counts, per given side."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        counts[row.label][row.side] += 1
    sides = [side for side in ("train", "val", "test") if any(c[side] for c in counts.values())]
    table = Table("class", "images", *sides)
    for label in sorted(counts, key=str.encode):
        numbers = [sum(counts[label].values()), *(counts[label][side] for side in sides)]
        table.add_row(escape(printable(label)), *map(str, numbers))
    return table


def _numbers(found: Summary) -> str:
    """Return sizes and formats in words."""
    metrics = found.metrics
    sizes = [
        f"{key} {metrics[key]['min']} to {metrics[key]['max']} (median {metrics[key]['median']:g})"
        for key in ("width", "height")
    ]
    formats = [f"{number} {name}" for name, number in metrics["formats"].items()]
    return f"{metrics['images']} images; {', '.join(sizes)}; {', '.join(formats)}"


def findings(found: Summary) -> list[str]:
    """Return one line per finding: what is refused, what is worth a look, which are copies."""
    lines = [f"bad: {one.id}: {one.detail}; {one.fix}" for one in found.rejected]
    lines += [f"note: {row.id}: {row.note}" for row in found.rows if row.note]
    copies: dict[str, list[Row]] = defaultdict(list)
    for row in found.rows:
        copies[row.near].append(row)
    for rows in copies.values():
        if len(rows) > 1:
            kind = (
                "the same picture" if len({row.group for row in rows}) == 1 else "near-duplicates"
            )
            kind += " on two sides" if len({row.side for row in rows}) > 1 else ""
            lines.append(f"{kind}: {', '.join(row.id for row in rows)}")
    return lines + [f"ignored: {path}" for path in found.ignored]
