"""Write Markdown that reads well on GitHub and on a terminal, whatever users call their things."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from resnets.system.errors import printable

MOST_ROWS = 40  # of a section


def code(text: object, most_letters: int = 60) -> str:
    """Quote a name that somebody else made up as code, where GitHub interprets nothing.

    No markup, mention, link or line break survives; a long name loses its middle.
    """
    name = printable(str(text))
    if len(name) > most_letters:
        name = f"{name[: most_letters // 2]}…{name[-most_letters // 2 :]}"
    longest = max((len(run) for run in re.findall("`+", name)), default=0)
    fence, pad = "`" * (longest + 1), " " if longest or name != name.strip() or not name else ""
    return f"{fence}{pad}{name}{pad}{fence}"


def table(header: Sequence[str], rows: Iterable[Sequence[object]], *, words: int = 1) -> str:
    """Return a table with aligned columns; all but the first `words` columns hold numbers."""
    cells = [[str(cell).replace("|", r"\|") for cell in row] for row in (header, *rows)]
    columns = []
    for k, column in enumerate(zip(*cells, strict=True)):
        width = max(3, *map(len, column))
        rule = "-" * width if k < words else "-" * (width - 1) + ":"
        align = str.ljust if k < words else str.rjust
        first, *others = (align(cell, width) for cell in column)
        columns.append([first, rule, *others])
    return "\n".join(f"| {' | '.join(row)} |" for row in zip(*columns, strict=True))


def section(
    title: str, header: Sequence[str], rows: Sequence[Sequence[object]], *, words: int = 1
) -> list[str]:
    """Return a title and a table, if it has rows, and how many beyond MOST_ROWS there are."""
    more = [f"and {len(rows) - MOST_ROWS:,} more"] * (len(rows) > MOST_ROWS)
    return [title, table(header, rows[:MOST_ROWS], words=words), *more] if rows else []


def measured(row: Mapping[str, Any]) -> str:
    """Say how the test numbers of a row of the leaderboard came about, by a fixed side or folds."""
    if not row["folds"]:
        return "a test side that chose nothing"
    repeats = f"{row['seeds']} repetition{'s' if row['seeds'] > 1 else ''}"
    return (
        f"{row['folds']}-fold cross-validation, {repeats}; "
        f"the shipped model saw all {row['images']:,} images"
    )


def difference(row: Mapping[str, Any]) -> str:
    """Say how the test accuracy of a row of the leaderboard differs from that of the best."""
    if "difference" not in row:
        return "best"
    value, low, high = (points(row[key], signed=True) for key in ("difference", "low", "high"))
    return f"{'≈ ' if row['is_like_best'] else ''}{value} ({low} to {high})"


def points(share: float, *, signed: bool = False) -> str:
    """Write a share in percent: 0.0123 as 1.23, or as +1.23."""
    return decimal(100 * share, 2, signed=signed)


def decimal(value: float, digits: int, *, signed: bool = False) -> str:
    """Write a number with this many decimals, and never as -0."""
    return f"{round(value, digits) + 0.0:{'+' if signed else ''}.{digits}f}"


def chance(p: float) -> str:
    """Write a p value."""
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"
