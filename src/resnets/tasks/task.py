"""Open a prepared and split task: its classes, and the images and labels of each side.

Pixels come from a memory map, so nothing is read before it is used; each image is compared with
its checksum the first time that a process uses it. Opening a side reads no other side's pixels.
"""

import hashlib
import zlib
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from resnets.system.errors import ArtefactError, EnvironmentFault
from resnets.tasks.decode import Pixels
from resnets.tasks.manifest import Row, digest, read_manifest, read_split

COPY_BYTES = 2**26


class Images:
    """Give the packed images of some rows: `images[i]` is uint8 (H, W, C), read-only."""

    def __init__(self, path: Path, rows: Sequence[Row]) -> None:
        self.path, self.rows = path, list(rows)
        self._store = np.memmap(path, np.uint8, "r") if self.rows else np.empty(0, np.uint8)
        self._is_checked = np.zeros(len(self.rows), bool)
        if max((row.offset + row.num_bytes for row in self.rows), default=0) > self._store.size:
            raise ArtefactError(
                f"{path}: ends too early", "run the prepare stage again (dvc repro)"
            )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Pixels:
        """Return one image, a view of the memory map.

        Raises ArtefactError when its bytes are not those that were packed.
        """
        row = self.rows[index]
        packed = self._store[row.offset : row.offset + row.num_bytes]
        if not self._is_checked[index]:
            if zlib.crc32(packed.data) != row.crc32:
                raise ArtefactError(
                    f"{self.path}: the pixels of {row.id!r} have changed since they were packed",
                    "delete it and run the prepare stage again (dvc repro)",
                )
            self._is_checked[index] = True
        return packed.reshape(row.packed_height, row.packed_width, row.channels)

    def take(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> "Images":
        """Return some of the images."""
        return Images(self.path, [self.rows[index] for index in indices])

    @cached_property
    def uniform(self) -> Pixels | None:
        """Return a copy of all images as one array (N, H, W, C), for images of few pixels.

        None where their sizes differ or the copy would take more than COPY_BYTES.
        """
        shapes = {(row.packed_height, row.packed_width, row.channels) for row in self.rows}
        if len(shapes) != 1 or sum(row.num_bytes for row in self.rows) > COPY_BYTES:
            return None
        images = np.stack([self[index] for index in range(len(self))])
        images.setflags(write=False)
        return images


@dataclass(frozen=True)
class Side:
    """Hold one side of a task; labels are the positions in `classes`, int64."""

    ids: list[str]
    labels: npt.NDArray[np.int64]
    classes: list[str]
    images: Images

    def digest(self) -> str:
        """Return 16 hex digits that stand for the names, the pixels and the labels."""
        lines = [repr((row.id, row.pixel_sha256, row.label)) for row in self.images.rows]
        return digest("\n".join(lines).encode("utf-8", "surrogateescape"))

    def packed_digest(self) -> str:
        """Return 16 hex digits that stand for all that training sees: as packed, by class."""
        packed = [(row.crc32, row.packed_height, row.packed_width) for row in self.images.rows]
        return digest(repr((self.digest(), self.classes, packed)).encode())


class Task:
    """Hold a prepared and split dataset."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows = read_manifest(folder / "manifest.csv")
        self._data = digest((folder / "manifest.csv").read_bytes())
        self._sides, self._groups = read_split(folder / "split.csv", self._rows, self._data)
        self.classes = sorted({row.label for row in self._rows}, key=str.encode)

    def side(self, name: Literal["train", "val", "test"]) -> Side:
        """Return one side."""
        rows = [row for row, side in zip(self._rows, self._sides, strict=True) if side == name]
        number = {label: index for index, label in enumerate(self.classes)}
        return Side(
            ids=[row.id for row in rows],
            labels=np.array([number[row.label] for row in rows], np.int64),
            classes=self.classes,
            images=Images(self.folder / "images.bin", rows),
        )

    def groups(self, name: Literal["train", "val", "test"]) -> list[str]:
        """Return a word per image of a side; images with one word belong together."""
        pairs = zip(self._groups, self._sides, strict=True)
        return [group for group, side in pairs if side == name]

    def redrawn(self, seed: int | None) -> "Task":
        """Return the task with train and val drawn anew from both; itself for None.

        Its val holds images that belong to train, which is the point: see `redraw_split`.
        """
        if seed is None:
            return self
        both = [i for i, side in enumerate(self._sides) if side in ("train", "val")]
        sides, num_val = list(self._sides), self._sides.count("val")
        for position, row in enumerate(np.random.default_rng(seed).permutation(both)):
            sides[row] = "val" if position < num_val else "train"
        task = copy(self)
        task._sides = sides
        return task

    def hashes(self) -> dict[str, str]:
        """Return digests of the data, the split and the classes."""
        return {
            "data": self._data,
            "split": digest((self.folder / "split.csv").read_bytes()),
            "classes": hashlib.sha256("\0".join(self.classes).encode()).hexdigest()[:16],
        }


def open_task(folder: Path) -> Task:
    """Open a task folder and check that its files belong together.

    Raises EnvironmentFault when a file is missing, ArtefactError when one is damaged, was edited,
    or belongs to other data.
    """
    for name in ("images.bin", "manifest.csv", "split.csv"):
        if not (folder / name).is_file():
            raise EnvironmentFault(
                f"{folder / name}: no such file", "run the prepare and split stages (dvc repro)"
            )
    return Task(folder)
