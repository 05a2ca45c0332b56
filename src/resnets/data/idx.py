"""Read the IDX files of MNIST and Fashion-MNIST: images as one block of bytes, labels beside it.

The format: two zeros, 8 for bytes, the number of axes, their lengths as big-endian 32-bit numbers,
the values. A file `classes.txt` in the folder names the labels, one a line; without it they are
called 0, 1, 2 and so on.
"""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from resnets.data.layout import Member, Source, class_name
from resnets.system.errors import DataError
from resnets.tasks.decode import Pixels

SIDES = {"train": "train", "t10k": "test"}  # the start of the file names, and the side it means
MAX_BYTES = 2**31  # ten times the largest IDX file that is published


def _find(folder: Path, name: str) -> Path | None:
    """Return one of the four files, plain or compressed, such as train-images-idx3."""
    paths = (folder / f"{name}-ubyte{suffix}" for suffix in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def is_idx_folder(folder: Path) -> bool:
    """Tell whether a folder holds the training images of an IDX dataset."""
    return _find(folder, "train-images-idx3") is not None


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


def open_idx(folder: Path) -> Source:
    """Open a folder of IDX files; images are called train/00017 after side and position."""
    labels: dict[str, int] = {}
    pixels: dict[str, Pixels] = {}
    for prefix, side in SIDES.items():
        paths = _find(folder, f"{prefix}-images-idx3"), _find(folder, f"{prefix}-labels-idx1")
        if paths[0] is None and paths[1] is None:
            continue
        if paths[0] is None or paths[1] is None:
            raise DataError(
                f"{folder}: {prefix} has images without labels, or labels without images",
                "put all of the four files there",
            )
        images, numbers = read_idx(paths[0], 3), read_idx(paths[1], 1)
        if len(images) != len(numbers):
            raise DataError(
                f"{folder}: {len(images)} {prefix} images, but {len(numbers)} labels",
                "fetch it again",
            )
        names = [f"{side}/{number:05}" for number in range(len(images))]
        pixels |= zip(names, images[..., None], strict=True)
        labels |= zip(names, numbers.tolist(), strict=True)
    classes = _class_names(folder, max(labels.values(), default=0) + 1)
    members = [Member(name, classes[n], name.split("/")[0], name) for name, n in labels.items()]
    names = sorted(set(classes), key=str.encode)
    return Source(folder, members, names, [], [], lambda paths: ((x, pixels[x]) for x in paths))


def _class_names(folder: Path, num_classes: int) -> list[str]:
    """Return the names of the labels."""
    path = folder / "classes.txt"
    if not path.is_file():
        return [str(number) for number in range(num_classes)]
    names = [class_name(line, path) for line in path.read_text(encoding="utf-8").splitlines()]
    if len(set(names)) < len(names) or len(names) < num_classes:
        raise DataError(
            f"{path}: {len(set(names))} names for {num_classes} labels", "name each label once"
        )
    return names
