"""Open a dataset in place: class folders in a folder, zip or tar, a table, IDX or CIFAR files.

A table (.csv, .tsv; comma, tab or semicolon) has a line per image with the columns path, below the
table's own folder, and label. `group` names what belongs together (a patient, who took the photo)
and stays on one side of the split; `side` is respected as folders called train, val and test are.

An IDX file has two zeros, 8 for bytes, the number of axes, their lengths as big-endian 32-bit
numbers, and the values. A file `classes.txt` beside the four names the labels, one a line; without
it they are called 0, 1, 2 and so on. CIFAR-10's binary archive has batches of records, each a byte
for the label and 3,072 for the pixels, and `batches.meta.txt` for the names.
"""

import codecs
import csv
import gzip
import io
import posixpath
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from resnets.data.containers import Container, open_container
from resnets.data.layout import (
    SIDE_OF,
    Member,
    Source,
    arrange,
    class_name,
    refuse_twins,
    with_class_folders,
)
from resnets.system.errors import DataError, list_kinds
from resnets.tasks.decode import BadImageError, Pixels, read_file

IDX_SIDES = {"train": "train", "t10k": "test"}  # how a file name starts: the side that it means
TABLES = (".csv", ".tsv")
CIFAR_FILE = re.compile(r"(^|/)(data_batch_\d|test_batch)\.bin$")
COLUMNS = ("path", "label", "group", "side")
MOST_NAMED = 10  # lines of a table, in an error
CIFAR_RECORD = 1 + 3 * 32 * 32  # bytes

Block = tuple[str, Pixels, Pixels]  # a side, its images (N, H, W, C) and labels (N,)


def open_source(path: Path) -> Source:
    """List the images of a dataset and their classes, without opening any.

    Raises DataError when there is no dataset, or one that is not clear.
    """
    if not path.exists():
        raise DataError(f"{path}: no such folder or archive", "correct the path, or fetch the data")
    if path.suffix.lower() in TABLES:
        return _open_table(path)
    if _file(path, "train-images-idx3").is_file():
        listed = open_container(path)
        text = (
            listed.read_text("classes.txt").splitlines() if "classes.txt" in listed.files else None
        )
        return _open_blocks(path, _idx_blocks(path), text)
    container = open_container(path)
    if any(map(CIFAR_FILE.search, container.files)):
        meta = [file for file in container.files if file.endswith("batches.meta.txt")]
        text = container.read_text(meta[0]).splitlines() if meta else None
        return _open_blocks(path, _cifar_blocks(container, path), text)
    return arrange(with_class_folders(container), path)


def _read_table(path: Path) -> list[dict[str, str]]:
    """Return the lines of a table of labels, each with the columns path and label at least."""
    try:
        data = path.read_bytes()
        is_wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # Excel's text
        text = data.decode("utf-16" if is_wide else "utf-8-sig")
        separator = max(",\t;", key=text.split("\n", 1)[0].count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        header, *lines = [line for line in reader if any(line)] or [[]]
    except (OSError, UnicodeError, csv.Error) as error:
        what = f"{path}: no table of labels: {error}"
        raise DataError(what, "save it as CSV in UTF-8") from error
    names = [name.strip().lower() for name in header]
    twice = [name for name, number in Counter(names).items() if number > 1 and name in COLUMNS]
    _refuse(path, twice, "columns are there twice", "keep one of each")
    if not {"path", "label"} <= set(names) or not lines:
        what = f"{path}: {len(lines)} images in the columns {', '.join(names)}"
        raise DataError(what, "name the columns path, label and, if you like, group and side")
    uneven = [separator.join(line) for line in lines if len(line) != len(names)]
    _refuse(path, uneven, f"lines have not {len(names)} columns", "put quotes around the text")
    return [dict(zip(names, line, strict=True)) for line in lines]


def _refuse(path: Path, bad: Sequence[str], what: str, fix: str) -> None:
    """Raise DataError with the number of bad entries and the first of them, if there are any."""
    if bad:
        raise DataError(f"{path}: {list_kinds({what: bad}, MOST_NAMED)}", fix)


def _open_table(path: Path) -> Source:
    """Open a table of labels; other files of its folder are left alone."""
    folder, lines = path.parent, _read_table(path)
    names = [posixpath.normpath(line["path"].strip().replace("\\", "/")) for line in lines]
    sides = [line.get("side", "").strip().lower() for line in lines]
    files = list(dict.fromkeys(names))
    missing = [x for x in files if x.startswith(("../", "/")) or not (folder / x).is_file()]
    _refuse(path, missing, "paths do not exist", f"write them as seen from {folder}")
    twice = [name for name, number in Counter(names).items() if number > 1]
    _refuse(path, twice, "images are listed twice", "keep one line for each")
    odd = sorted(set(sides).difference(SIDE_OF, [""]))
    _refuse(path, odd, "sides are none of train, val, test", "correct the column side")
    if {SIDE_OF.get(side, "train") for side in sides}.isdisjoint(["train"]):
        raise DataError(f"{path}: no image is on the side train", "correct the column side")
    labels = {line["label"]: class_name(line["label"].strip(), path) for line in lines}
    refuse_twins(labels, path)
    other = "train" if any(sides) else ""  # what has no side where others have one
    members = [
        Member(
            name,
            labels[line["label"]],
            SIDE_OF.get(side, other),
            name,
            line.get("group", "").strip(),
        )
        for name, side, line in zip(names, sides, lines, strict=True)
    ]
    container = Container(files, [], [], lambda name: read_file(folder / name))
    return Source(path, members, sorted(set(labels.values())), [], [], container)


def _file(folder: Path, name: str) -> Path:
    """Return the place of an IDX file, such as train-images-idx3, compressed or plain."""
    compressed = folder / f"{name}-ubyte.gz"
    return compressed if compressed.is_file() else folder / f"{name}-ubyte"


def _read(path: Path, num_axes: int) -> Pixels:
    """Read one IDX file of bytes, whole."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read()
        if data[:4] != bytes((0, 0, 8, num_axes)):
            raise ValueError("it starts otherwise")
        shape = struct.unpack_from(f">4x{num_axes}I", data)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * num_axes).reshape(shape)
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        what = f"{path}: no IDX file with {num_axes} axes of bytes, or damaged: {error}"
        raise DataError(what, "fetch it again") from error


def _idx_blocks(folder: Path) -> Iterator[Block]:
    """Yield what each pair of IDX files in a folder holds."""
    for prefix, side in IDX_SIDES.items():
        paths = _file(folder, f"{prefix}-images-idx3"), _file(folder, f"{prefix}-labels-idx1")
        if not any(path.is_file() for path in paths):
            continue
        images, numbers = _read(paths[0], 3), _read(paths[1], 1)
        if len(images) != len(numbers):
            what = f"{len(images)} {prefix} images, but {len(numbers)} labels"
            raise DataError(f"{folder}: {what}", "fetch it again")
        yield side, images[..., None], numbers


def _cifar_blocks(container: Container, where: Path) -> Iterator[Block]:
    """Yield what each binary file of CIFAR-10 holds: 32×32 pixels as planes R, G, B."""
    files = [file for file in container.files if CIFAR_FILE.search(file)]
    for file, data in sorted(zip(files, container.read(files), strict=True)):
        if isinstance(data, BadImageError) or len(data) % CIFAR_RECORD:
            raise DataError(f"{where}: {file} is damaged or not of CIFAR-10", "fetch it again")
        records = np.frombuffer(data, np.uint8).reshape(-1, CIFAR_RECORD)
        images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        side = "test" if file.endswith("test_batch.bin") else "train"
        yield side, np.ascontiguousarray(images), records[:, 0]


def _open_blocks(path: Path, blocks: Iterable[Block], names: list[str] | None) -> Source:
    """Open images that are pixels already, called train/00017 after side and position."""
    labels: dict[str, int] = {}
    pixels: dict[str, Pixels] = {}
    num_images = Counter[str]()
    for side, images, numbers in blocks:
        first = num_images[side]
        ids = [f"{side}/{number:05}" for number in range(first, first + len(images))]
        num_images[side] += len(images)
        pixels |= zip(ids, images, strict=True)
        labels |= zip(ids, numbers.tolist(), strict=True)
    classes = _class_names(path, names, max(labels.values(), default=0) + 1)
    members = [Member(name, classes[n], name.split("/")[0], name) for name, n in labels.items()]
    container = Container(list(pixels), [], [], pixels.__getitem__)
    found = classes if names else {member.label for member in members}  # not all numbers occur
    return Source(path, members, sorted(set(found)), [], [], container)


def _class_names(where: Path, lines: list[str] | None, num_classes: int) -> list[str]:
    """Return the names of the labels, which are numbers where no lines name them."""
    if lines is None:
        return [str(number) for number in range(num_classes)]
    names = [class_name(line, where) for line in lines if line]
    if len(set(names)) < len(names) or len(names) < num_classes:
        what = f"{len(set(names))} names for {num_classes} labels"
        raise DataError(f"{where}: {what}", "name each label once")
    return names
