"""Define the tables of a task, `manifest.csv` and `split.csv`, and read and write them.

One row per packed image, in the order of the names. A digest of the file stands for the whole
dataset: each row holds the checksum of its packed pixels.
"""

import csv
import hashlib
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from resnets.system.errors import ArtefactError, printable
from resnets.system.files import write_text
from resnets.tasks.decode import BadImageError


@dataclass(frozen=True)
class Row:
    """Describe one packed image."""

    id: str  # its path below the root of the dataset
    label: str
    side: str  # the side it comes with: train, val, test, or "" where the dataset has none
    sha256: str  # of the file
    pixel_sha256: str  # of the decoded pixels and their shape
    phash: str  # perceptual hash, 64 hex digits; "" where the picture is too small or too plain
    near: str  # one word for all copies of one picture, also resized, re-encoded, slightly cropped
    format: str
    width: int
    height: int
    channels: int
    offset: int  # of the first packed byte in images.bin
    packed_height: int
    packed_width: int
    crc32: int  # of the packed bytes
    note: str

    @property
    def group(self) -> str:
        """Return one word for all copies with the same pixels."""
        return self.pixel_sha256[:16]

    @property
    def num_bytes(self) -> int:
        """Return the size of the packed image."""
        return self.packed_height * self.packed_width * self.channels


@dataclass(frozen=True)
class Rejected:
    """Describe one file that is not packed."""

    id: str
    label: str
    reason: str  # a key of `decode.FIXES`
    detail: str
    fix: str


def refuse(name: str, label: str, error: BadImageError) -> Rejected:
    """Describe a file that is not packed because of an error."""
    return Rejected(printable(name), label, error.reason, error.detail, error.fix)


def copies(rows: Iterable[Row], kind: Literal["group", "near"]) -> list[list[Row]]:
    """Return the images with the same pixels, or with nearly the same picture."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[getattr(row, kind)].append(row)
    return list(groups.values())


COLUMNS = [field.name for field in fields(Row)]
SPLIT_COLUMNS = ("id", "label", "side", "group", "check")
KINDS: list[Callable[[str], Any]] = [int if field.type is int else str for field in fields(Row)]


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a CSV file atomically, with one spelling for every machine."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    write_text(path, text.getvalue())


def read_table(path: Path, columns: Sequence[str]) -> list[list[str]]:
    """Read a CSV file with exactly these columns.

    Raises ArtefactError that names the file and the line.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.reader(file, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise _damaged(path, f"not a readable CSV file: {error}") from error
    if not lines or lines[0] != list(columns):
        raise _damaged(path, f"its columns are not {', '.join(columns)}")
    for number, line in enumerate(lines):
        if len(line) != len(columns):
            raise _damaged(path, f"row {number} is not complete")
    return lines[1:]


def _damaged(path: Path, what: str) -> ArtefactError:
    """Say what is wrong with a table and how to make it again."""
    again = f"delete {path.name} and run the stage that writes it (dvc repro)"
    return ArtefactError(f"{path}: {what}", again)


def write_manifest(path: Path, rows: Iterable[Row]) -> None:
    """Write the rows."""
    write_table(path, COLUMNS, (vars(row).values() for row in rows))


def read_manifest(path: Path) -> list[Row]:
    """Read the rows.

    Raises ArtefactError when the file is not one that `write_manifest` wrote.
    """
    rows = []
    for number, line in enumerate(read_table(path, COLUMNS), start=1):
        try:
            rows.append(Row(*(kind(value) for kind, value in zip(KINDS, line, strict=True))))
        except ValueError as error:
            raise _damaged(path, f"row {number}: {error}") from error
    return rows


def digest(text: bytes) -> str:
    """Return 16 hex digits that stand for these bytes in metrics."""
    return hashlib.sha256(text).hexdigest()[:16]


def _check_word(*words: str) -> str:
    """Return what ties a row of split.csv to its manifest, image, side and group."""
    return hashlib.sha256("\0".join(words).encode("utf-8", "surrogateescape")).hexdigest()[:8]


def write_split(
    path: Path, rows: list[Row], sides: list[str], groups: list[str], data: str
) -> None:
    """Write the assignment of the rows of the manifest with digest `data`."""
    lines = (
        (row.id, row.label, side, group, _check_word(data, row.id, side, group))
        for row, side, group in zip(rows, sides, groups, strict=True)
    )
    write_table(path, SPLIT_COLUMNS, lines)


def read_split(path: Path, rows: list[Row], data: str) -> tuple[list[str], list[str]]:
    """Read the side and the group of each row of the manifest with digest `data`.

    Raises ArtefactError when the file was edited or cut, or belongs to other data.
    """
    lines = read_table(path, SPLIT_COLUMNS)
    again = "do not edit it: change params.yaml and run the split stage again (dvc repro)"
    if len(lines) != len(rows):
        raise ArtefactError(f"{path}: {len(lines)} rows, but the manifest has {len(rows)}", again)
    for row, (name, label, side, group, word) in zip(rows, lines, strict=True):
        if (name, label) != (row.id, row.label) or word != _check_word(data, name, side, group):
            raise ArtefactError(
                f"{path}: the row of {name!r} was edited or belongs to other data", again
            )
    return [line[2] for line in lines], [line[3] for line in lines]
