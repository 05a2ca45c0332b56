"""Define the tables of a task, `manifest.csv` and `split.csv`, and read and write them.

One row per packed image, in the order of the names. A digest of the manifest stands for the whole
dataset: each row holds the checksum of its packed pixels.
"""

import csv
import hashlib
import io
import math
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Literal, TypeVar, get_args

from pydantic import TypeAdapter

from resnets.system.errors import ArtefactError, printable
from resnets.system.files import write_text
from resnets.tasks.decode import BadImageError

SideName = Literal["train", "val", "test"]
SIDES: tuple[SideName, ...] = get_args(SideName)


@dataclass(frozen=True)
class ManifestRow:
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
    given_group: str = ""  # one word for all that a table of labels keeps together

    @property
    def group(self) -> str:
        """Return one word for all copies with the same pixels."""
        return self.pixel_sha256[:16]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the shape of the packed image, (H, W, C)."""
        return self.packed_height, self.packed_width, self.channels

    @property
    def num_bytes(self) -> int:
        """Return the size of the packed image."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Rejected:
    """Describe one file that is not packed."""

    id: str
    label: str
    reason: str  # a key of `decode.FIXES`
    detail: str
    fix: str


@dataclass(frozen=True)
class SplitRow:
    """Assign one image of the manifest to a side."""

    id: str
    label: str
    # train, val, test or unused; with folds, for each repeat the LETTERS of its sides in each fold:
    # `0:--tv- 1:v---t` is tested in the third fold of repeat 0 and in the last of repeat 1
    side: str
    group: str  # one word for all images that stay together
    check: str  # ties the row to its manifest: an edited one is noticed


LETTERS = {"train": "-", "val": "v", "test": "t", "unused": "u"}

TableRow = TypeVar("TableRow", ManifestRow, Rejected, SplitRow)


def has_control_characters(name: str) -> bool:
    """Tell whether a name would break a table: control characters, or bytes that are not UTF-8."""
    return not name.isprintable() and any(unicodedata.category(c) in ("Cc", "Cs") for c in name)


def refuse(name: str, label: str, error: BadImageError) -> Rejected:
    """Describe a file that is not packed because of an error, by its name if a table can hold it.

    Blanks of other kinds stay, as in macOS's names of screenshots: they tell images apart.
    """
    name = printable(name) if has_control_characters(name) else name
    return Rejected(name, label, error.reason, error.what, error.fix)


def copies(rows: Iterable[ManifestRow], kind: Literal["group", "near"]) -> list[list[ManifestRow]]:
    """Return the images with the same pixels, or with nearly the same picture."""
    groups: dict[str, list[ManifestRow]] = defaultdict(list)
    for row in rows:
        groups[getattr(row, kind)].append(row)
    return list(groups.values())


def digest(text: bytes) -> str:
    """Return 16 hex digits that stand for these bytes in metrics."""
    return hashlib.sha256(text).hexdigest()[:16]


def write_table(path: Path, kind: type[TableRow], rows: Iterable[TableRow]) -> None:
    """Write a CSV file atomically, with one spelling for every machine.

    An empty column that has a default is left out, so that it changes no bytes of other datasets.
    """
    rows, text = list(rows), io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    names = [
        field.name
        for field in fields(kind)
        if field.default is MISSING or any(getattr(row, field.name) for row in rows)
    ]
    lines.writerow(names)
    lines.writerows([getattr(row, name) for name in names] for row in rows)
    write_text(path, text.getvalue())


def read_table(path: Path, kind: type[TableRow]) -> list[TableRow]:
    """Read what `write_table` wrote.

    Raises ArtefactError that names the file and the line when it is something else.
    """
    read = TypeAdapter(kind).validate_python
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.DictReader(file, strict=True)
        try:
            return [read(line) for line in lines]
        except (ValueError, csv.Error) as error:
            again = f"delete {path.name} and run the stage that writes it (dvc repro)"
            raise ArtefactError(f"{path}: damaged in line {lines.line_num}", again) from error


def read_manifest(path: Path) -> tuple[list[ManifestRow], str]:
    """Return the rows of a manifest and its digest."""
    return read_table(path, ManifestRow), digest(path.read_bytes())


def assign(row: ManifestRow, side: str, group: str, data: str) -> SplitRow:
    """Return the row of split.csv for one image of the manifest with digest `data`."""
    words = "\0".join((data, row.id, side, group)).encode("utf-8", "surrogateescape")
    return SplitRow(row.id, row.label, side, group, hashlib.sha256(words).hexdigest()[:8])


def read_split(path: Path, rows: list[ManifestRow], data: str) -> list[SplitRow]:
    """Read the assignment of the rows of the manifest with digest `data`.

    Raises ArtefactError when the file was edited or cut, or belongs to other data.
    """
    split = read_table(path, SplitRow)
    pairs = zip(rows, split, strict=False)
    wanted = [assign(row, given.side, given.group, data) for row, given in pairs]
    if split != wanted or len(split) != len(rows):
        raise ArtefactError(
            f"{path}: was edited or cut, or belongs to other data",
            "do not edit it: change params.yaml and run the split stage again (dvc repro)",
        )
    return split
