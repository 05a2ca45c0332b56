"""Open a dataset in place: class folders in a folder, zip or tar, a table, IDX or CIFAR files.

A table (.csv, .tsv; comma, tab or semicolon) has a line per image with the columns path, below the
table's own folder, and label. `group` names what belongs together (a patient, who took the photo)
and stays on one side of the split; `side`, or `split`, is respected as folders called train, val
and test are.

An IDX file has two zeros, 8 for bytes, the number of axes, their lengths as big-endian 32-bit
numbers, and the values. A file `classes.txt` beside the four names the labels, one a line; without
it they are called 0, 1, 2 and so on. CIFAR-10's binary archive has batches of records, each a byte
for the label and 3,072 for the pixels, and `batches.meta.txt` for the names.
"""

import codecs
import csv
import glob
import gzip
import io
import os
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
    TABLES,
    Member,
    Source,
    arrange,
    class_name,
    looks_like_image,
    refuse_twins,
    with_class_folders,
)
from resnets.system.errors import DataError, list_kinds
from resnets.tasks.decode import BadImageError, Pixels, read_file

IDX_SIDES = {"train": "train", "t10k": "test"}  # how a file name starts: the side that it means
CIFAR_FILE = re.compile(r"(^|/)(data_batch_\d|test_batch)\.bin$")
COLUMNS = ("path", "label", "group", "side")
LIKE_SIDE = ("set", "subset", "partition", "fold")
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


def _read_lines(path: Path) -> dict[int, list[str]]:
    """Return the cells of each line of a table that is not blank, by its number."""
    try:
        data = path.read_bytes()
        is_wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # Excel's text
        text = data.decode("utf-16" if is_wide else "utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", "name a table that can be read") from error
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        fix = 'save it as UTF-8 (in Excel: "Save as", "CSV UTF-8")'
        raise DataError(f"{path}: line {number} is not UTF-8", fix) from error
    separator = max(",\t;", key=text.split("\n", 1)[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    lines, number = dict[int, list[str]](), 1
    try:
        for cells in reader:
            lines[number] = [cell.strip() for cell in cells]
            number = reader.line_num + 1  # text in quotation marks may have several lines
    except csv.Error as error:
        what = f"{path}: line {number} has an open quotation mark: {error}"
        raise DataError(what, "close the quotation mark, or double one within a text") from error
    return {number: cells for number, cells in lines.items() if any(cells)}


def _read_table(path: Path) -> list[dict[str, str]]:
    """Return the lines of a table of labels, each with the columns path and label at least."""
    lines = _read_lines(path)
    if len(lines) < 2:
        raise DataError(f"{path}: it lists no images", "write a line for each below path,label")
    header = lines.pop(min(lines))
    names = ["side" if name.lower() == "split" else name.lower() for name in header]
    if missing := [name for name in ("path", "label") if name not in names]:
        what = " and ".join(f"no column {name}" for name in missing)
        if any(map(looks_like_image, header)):
            raise DataError(f"{path}: its first line names {what}", "put path,label above it")
        fix = f"rename the column{'s' * (len(missing) - 1)} to {' and '.join(missing)}"
        raise DataError(f"{path}: has {what} (it has {', '.join(header)})", fix)
    twice = [name for name, number in Counter(names).items() if number > 1 and name in COLUMNS]
    fix = "keep one of each; split is another word for side"
    _refuse(path, twice, "column is there twice|columns are there twice", fix)
    alike = [name for name in names if name in LIKE_SIDE and "side" not in names]
    _refuse(path, alike, "column looks like a side|columns look like a side", "call it side")
    uneven = [f"line {n}: {', '.join(x)}" for n, x in lines.items() if len(x) != len(names)]
    words = f"line has not {len(names)} cells|lines have not {len(names)} cells"
    fix = "take the extra cell out, fill in the missing one, or quote text with commas"
    _refuse(path, uneven, words, fix)
    for name in ("path", "label"):
        empty = [f"line {n}" for n, cells in lines.items() if not cells[names.index(name)]]
        fix = f"write a {name if name == 'path' else 'class'} into each line, or take it out"
        _refuse(path, empty, f"image has no {name}|images have no {name}", fix)
    return [dict(zip(names, cells, strict=True)) for cells in lines.values()]


def _refuse(path: Path, bad: Sequence[str], words: str, fix: str) -> None:
    """Raise DataError that counts and names bad entries, if any; `words` are for one|several."""
    if bad:
        kind = words.split("|")[len(bad) > 1]
        raise DataError(f"{path}: {list_kinds({kind: bad}, MOST_NAMED)}", fix)


def _from_folder(folder: Path, written: str) -> str:
    """Return a path as seen from a folder, with ../ ahead where it lies outside."""
    path = folder / written.replace("\\", "/")
    name = os.path.relpath(path, folder)  # one that leads outside may come back through a link
    return os.path.relpath(path.resolve(), folder) if name.startswith("../") else name


def _advise_path(folder: Path, name: str) -> str:
    """Say how to write a path that does not exist, with the file that it may mean."""
    pattern = (f"[{c.lower()}{c.upper()}]" if c.isalpha() else glob.escape(c) for c in name)
    for path in filter(Path.is_file, folder.glob("".join(pattern))):
        return f"did you mean {path.relative_to(folder).as_posix()}?"
    return f"write paths as seen from {folder}"


def _open_table(path: Path) -> Source:
    """Open a table of labels; other files of its folder are left alone."""
    folder, lines = path.parent.resolve(), _read_table(path)
    names = [_from_folder(folder, line["path"]) for line in lines]
    sides = [line.get("side", "").lower() for line in lines]
    written = {name: line["path"] for name, line in zip(names, lines, strict=True)}
    missing = {name: text for name, text in written.items() if not (folder / name).is_file()}
    fix = _advise_path(folder, next(iter(missing))) if missing else ""
    _refuse(path, [*missing.values()], "path does not exist|paths do not exist", fix)
    outside = [text for name, text in written.items() if name.startswith("../")]
    words = "path lies outside of the table's folder|paths lie outside of the table's folder"
    _refuse(path, outside, words, "put the table into a folder that holds them all")
    twice = [name for name, number in Counter(names).items() if number > 1]
    _refuse(path, twice, "image is listed twice|images are listed twice", "keep one line for each")
    odd = sorted(set(sides).difference(SIDE_OF, [""]))
    words = "side is none of train, val, test|sides are none of train, val, test"
    _refuse(path, odd, words, "write train, val or test, or take the column out")
    if {SIDE_OF.get(side, "train") for side in sides}.isdisjoint(["train"]):
        raise DataError(f"{path}: no image is on the side train", "move some images to it")
    labels = {line["label"]: class_name(line["label"], path) for line in lines}
    refuse_twins(labels, path)
    other = "train" if any(sides) else ""  # what has no side where others have one
    members = [
        Member(name, labels[line["label"]], SIDE_OF.get(side, other), name, line.get("group", ""))
        for name, side, line in zip(names, sides, lines, strict=True)
    ]
    container = Container([*written], [], [], lambda name: read_file(folder / name))
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
