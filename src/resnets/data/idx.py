"""Read the IDX files of MNIST and Fashion-MNIST: images as one block of bytes, labels beside it.

The format: two zeros, 8 for bytes, the number of axes, their lengths as big-endian 32-bit numbers,
the values. A file `classes.txt` in the folder names the labels, one a line; without it they are
called 0, 1, 2 and so on.
"""

import gzip
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from resnets.data.decode import Pixels
from resnets.data.layout import class_name
from resnets.data.sources import Content, Member, Source
from resnets.errors import DataError

SIDES = {"train": "train", "t10k": "test"}  # the start of the file names, and the side it means
MAX_BYTES = 2**31  # ten times the largest IDX file that is published


def _find(folder: Path, prefix: str, kind: str) -> Path | None:
    """Return the file of one side, plain or compressed; `kind` is images-idx3 or labels-idx1."""
    names = (f"{prefix}-{kind}-ubyte{suffix}" for suffix in ("", ".gz"))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def is_idx_folder(folder: Path) -> bool:
    """Tell whether a folder holds the training images of an IDX dataset."""
    return _find(folder, "train", "images-idx3") is not None


def read_idx(path: Path, num_axes: int) -> Pixels:
    """Read one IDX file of bytes, whole.

    Raises DataError when it is damaged or another kind of file.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(MAX_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged: {error}", "fetch it again") from error
    header = 4 + 4 * num_axes
    if data[:4] != bytes((0, 0, 8, num_axes)) or len(data) < header:
        raise DataError(f"{path}: no IDX file with {num_axes} axes of bytes", "fetch it again")
    shape = struct.unpack_from(f">{num_axes}I", data, 4)
    values = np.frombuffer(data, np.uint8, offset=header)
    if values.size != np.prod(shape, dtype=object):
        raise DataError(
            f"{path}: {values.size} values, but its header says {shape}", "fetch it again"
        )
    return values.reshape(shape)


def _read_side(folder: Path, prefix: str) -> tuple[Pixels, Pixels]:
    """Read the images and the labels of one side."""
    images, labels = _find(folder, prefix, "images-idx3"), _find(folder, prefix, "labels-idx1")
    if images is None or labels is None:
        raise DataError(
            f"{folder}: {prefix} has images without labels, or labels without images",
            "put all of the four files there",
        )
    pixels, numbers = read_idx(images, 3), read_idx(labels, 1)
    if len(pixels) != len(numbers):
        raise DataError(
            f"{folder}: {len(pixels)} {prefix} images, but {len(numbers)} labels", "fetch it again"
        )
    return pixels, numbers


def _class_names(folder: Path, num_classes: int) -> list[str]:
    """Return the names of the labels."""
    path = folder / "classes.txt"
    if not path.is_file():
        return [str(number) for number in range(num_classes)]
    names = [class_name(line, str(path)) for line in path.read_text(encoding="utf-8").splitlines()]
    if len(set(names)) < len(names) or len(names) < num_classes:
        raise DataError(
            f"{path}: {len(set(names))} names for {num_classes} labels", "name each label once"
        )
    return names


def open_idx(folder: Path) -> Source:
    """Open a folder of IDX files; images are called train/00017 after side and position."""
    blocks = {
        prefix: _read_side(folder, prefix)
        for prefix in SIDES
        if _find(folder, prefix, "images-idx3") or _find(folder, prefix, "labels-idx1")
    }
    top = max((int(labels.max(initial=0)) for _, labels in blocks.values()), default=0)
    names = _class_names(folder, top + 1)
    members, pixels = [], {}
    for prefix, (images, labels) in blocks.items():
        side = SIDES[prefix]
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            name = f"{side}/{number:05}"
            members.append(Member(name, names[label], side, name, str(zlib.crc32(image))))
            pixels[name] = image[:, :, None]

    def read(paths: Iterable[str]) -> Iterator[tuple[str, Content]]:
        for path in paths:
            yield path, pixels[path]

    return Source(folder, members, sorted(set(names), key=str.encode), [], [], read)
