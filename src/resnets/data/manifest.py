"""Define the table of a task's images, `manifest.csv`, and read and write it.

One row per packed image, in the order of the names. A digest of the file stands for the whole
dataset: each row holds the checksum of its packed pixels.
"""

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from resnets.errors import ArtefactError
from resnets.runtime import write_text


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


COLUMNS = [field.name for field in fields(Row)]
NUMBERS = [index for index, field in enumerate(fields(Row)) if field.type is int]


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a CSV file atomically, with one spelling for every machine."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_table(path: Path, columns: Sequence[str]) -> list[list[str]]:
    """Read a CSV file with exactly these columns.

    Raises ArtefactError that names the file and the line.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.reader(file, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ArtefactError(f"{path}: not a readable CSV file: {error}", _again(path)) from error
    if not lines or lines[0] != list(columns):
        raise ArtefactError(f"{path}: its columns are not {', '.join(columns)}", _again(path))
    for number, line in enumerate(lines):
        if len(line) != len(columns):
            raise ArtefactError(f"{path}: row {number} is not complete", _again(path))
    return lines[1:]


def _again(path: Path) -> str:
    """Say how to make a table again."""
    return f"delete {path.name} and run the stage that writes it (dvc repro)"


def write_manifest(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows."""
    write_table(path, COLUMNS, [list(vars(row).values()) for row in rows])


def write_rejected(path: Path, rejected: Sequence[Rejected]) -> None:
    """Write what was refused, and why."""
    columns = [field.name for field in fields(Rejected)]
    write_table(path, columns, [list(vars(one).values()) for one in rejected])


def read_manifest(path: Path) -> list[Row]:
    """Read the rows.

    Raises ArtefactError when the file is not one that `write_manifest` wrote.
    """
    rows = []
    for number, line in enumerate(read_table(path, COLUMNS), start=1):
        values: list[str | int] = list(line)
        try:
            for index in NUMBERS:
                values[index] = int(line[index])
        except ValueError as error:
            raise ArtefactError(f"{path}: row {number}: {error}", _again(path)) from error
        rows.append(Row(*values))  # type: ignore[arg-type]  # the columns are the fields
    return rows


def digest(text: bytes) -> str:
    """Return 16 hex digits that stand for these bytes in metrics."""
    return hashlib.sha256(text).hexdigest()[:16]
