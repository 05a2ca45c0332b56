"""Write Markdown that reads well on GitHub and on a terminal, whatever users call their things."""

import re
from collections.abc import Iterable, Sequence

from resnets.system.errors import printable


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
    widths = [max(3, *(len(row[k]) for row in cells)) for k in range(len(header))]

    def line(row: Sequence[str]) -> str:
        pairs = enumerate(zip(row, widths, strict=True))
        parts = (cell.ljust(w) if k < words else cell.rjust(w) for k, (cell, w) in pairs)
        return f"| {' | '.join(parts)} |"

    rule = ["-" * w if k < words else "-" * (w - 1) + ":" for k, w in enumerate(widths)]
    return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])])


def points(share: float, *, signed: bool = False) -> str:
    """Write a share in percent: 0.0123 as 1.23, or as +1.23."""
    return decimal(100 * share, 2, signed=signed)


def decimal(value: float, digits: int, *, signed: bool = False) -> str:
    """Write a number with this many decimals, and never as -0."""
    return f"{round(value, digits) + 0.0:{'+' if signed else ''}.{digits}f}"


def chance(p: float) -> str:
    """Write a p value."""
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"
