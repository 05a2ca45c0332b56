"""Make the embedded sample of Fashion-MNIST: the first images of each class of both sides.

    python data/sample/make_sample.py [FOLDER WITH THE FOUR IDX .gz FILES]

The published order is shuffled, so the first images of a class are a fair sample of it. Official
training and test membership is kept. The output bytes are the same on every run: no name and no
time go into the gzip headers.
"""

import gzip
import struct
import sys
from pathlib import Path

import numpy as np

SOURCE = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist puts it
PER_CLASS = {"train": 1000, "t10k": 200}


def read_idx(path: Path) -> np.ndarray:
    """Read one IDX file of bytes: two zeros, type 8, the number of axes, the axes, the values."""
    data = gzip.decompress(path.read_bytes())
    num_axes = data[3]
    shape = struct.unpack_from(f">{num_axes}I", data, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * num_axes).reshape(shape)


def write_idx(path: Path, values: np.ndarray) -> None:
    """Write one IDX file of bytes, compressed, without name or time in its header."""
    header = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes(), compresslevel=9, mtime=0))


def main() -> None:
    """Choose the images and write the four files beside this script."""
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE
    here = Path(__file__).resolve().parent
    for side, per_class in PER_CLASS.items():
        labels = read_idx(source / f"{side}-labels-idx1-ubyte.gz")
        images = read_idx(source / f"{side}-images-idx3-ubyte.gz")
        first = [np.flatnonzero(labels == label)[:per_class] for label in range(10)]
        chosen = np.sort(np.concatenate(first))
        write_idx(here / f"{side}-images-idx3-ubyte.gz", images[chosen])
        write_idx(here / f"{side}-labels-idx1-ubyte.gz", labels[chosen])


if __name__ == "__main__":
    main()
