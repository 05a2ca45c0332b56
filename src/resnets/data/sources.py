"""Open a dataset in place: class folders in a folder, zip or tar, or the four IDX files of MNIST.

An IDX file has two zeros, 8 for bytes, the number of axes, their lengths as big-endian 32-bit
numbers, and the values. A file `classes.txt` beside the four names the labels, one a line; without
it they are called 0, 1, 2 and so on.
"""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from resnets.data.containers import Container, open_container
from resnets.data.layout import Member, Source, arrange, class_name
from resnets.system.errors import DataError
from resnets.tasks.decode import Pixels

SIDES = {"train": "train", "t10k": "test"}  # the start of the file names, and the side it means


def open_source(path: Path) -> Source:
    """List the images of a dataset and their classes, without opening any.

    Raises DataError when there is no dataset, or one that is not clear.
    """
    if not path.exists():
        raise DataError(f"{path}: no such folder or archive", "correct the path, or fetch the data")
    if _file(path, "train-images-idx3").is_file():
        return _open_idx(path)
    return arrange(open_container(path), path)


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


def _open_idx(folder: Path) -> Source:
    """Open a folder of IDX files; images are called train/00017 after side and position."""
    labels: dict[str, int] = {}
    pixels: dict[str, Pixels] = {}
    for prefix, side in SIDES.items():
        paths = _file(folder, f"{prefix}-images-idx3"), _file(folder, f"{prefix}-labels-idx1")
        if not any(path.is_file() for path in paths):
            continue
        images, numbers = _read(paths[0], 3), _read(paths[1], 1)
        if len(images) != len(numbers):
            what = f"{len(images)} {prefix} images, but {len(numbers)} labels"
            raise DataError(f"{folder}: {what}", "fetch it again")
        names = [f"{side}/{number:05}" for number in range(len(images))]
        pixels |= zip(names, images[..., None], strict=True)
        labels |= zip(names, numbers.tolist(), strict=True)
    classes = _class_names(folder, max(labels.values(), default=0) + 1)
    members = [Member(name, classes[n], name.split("/")[0], name) for name, n in labels.items()]
    container = Container(list(pixels), [], [], pixels.__getitem__)
    return Source(folder, members, sorted(set(classes)), [], [], container)


def _class_names(folder: Path, num_classes: int) -> list[str]:
    """Return the names of the labels."""
    path = folder / "classes.txt"
    if not path.is_file():
        return [str(number) for number in range(num_classes)]
    names = [class_name(line, path) for line in path.read_text(encoding="utf-8").splitlines()]
    if len(set(names)) < len(names) or len(names) < num_classes:
        what = f"{len(set(names))} names for {num_classes} labels"
        raise DataError(f"{path}: {what}", "name each label once")
    return names
