"""Open a prepared and split task: its classes, and the images and labels of each side.

Pixels come from a memory map, so nothing is read before it is used; each image is compared with
its checksum the first time that a process uses it. Opening a side reads no other side's pixels.
"""

import zlib
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from resnets.system.errors import ArtefactError
from resnets.tasks.decode import Pixels
from resnets.tasks.manifest import (
    LETTERS,
    ManifestRow,
    SideName,
    digest,
    read_manifest,
    read_split,
)

COPY_BYTES = 2**26


class PixelStore:
    """Give the packed images of some rows: `store[i]` is uint8 (H, W, C), read-only."""

    def __init__(self, path: Path, rows: Sequence[ManifestRow]) -> None:
        self.path, self.rows = path, rows
        # an empty file cannot be mapped
        self._bytes = np.memmap(path, np.uint8, "r") if rows else np.empty(0, np.uint8)
        self._is_checked = np.zeros(len(rows), bool)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Pixels:
        """Return one image, a view of the memory map.

        Raises ArtefactError when its bytes are not those that were packed.
        """
        row = self.rows[index]
        packed = self._bytes[row.offset : row.offset + row.num_bytes]
        if not self._is_checked[index]:
            if zlib.crc32(packed.data) != row.crc32:
                raise ArtefactError(
                    f"{self.path}: the pixels of {row.id!r} have changed since they were packed",
                    "delete it and run the prepare stage again (dvc repro)",
                )
            self._is_checked[index] = True
        return packed.reshape(row.shape)

    @cached_property
    def uniform(self) -> Pixels | None:
        """Return a copy of all images as one array (N, H, W, C), for images of few pixels.

        None where their sizes differ or the copy would take more than COPY_BYTES.
        """
        num_shapes = len({row.shape for row in self.rows})
        if num_shapes != 1 or sum(row.num_bytes for row in self.rows) > COPY_BYTES:
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
    images: PixelStore

    def digest(self) -> str:
        """Return 16 hex digits that stand for the names, the pixels and the labels."""
        lines = [repr((row.id, row.pixel_sha256, row.label)) for row in self.images.rows]
        return digest("\n".join(lines).encode("utf-8", "surrogateescape"))

    def packed_digest(self) -> str:
        """Return 16 hex digits that stand for all that training sees: as packed, by class."""
        packed = [(row.crc32, row.packed_height, row.packed_width) for row in self.images.rows]
        return digest(repr((self.digest(), self.classes, packed)).encode())


class Task:
    """Hold a prepared and split dataset.

    Raises ArtefactError when a file of its folder is damaged, was edited, or belongs to other data.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows, self._data = read_manifest(folder / "manifest.csv")
        split = read_split(folder / "split.csv", self._rows, self._data)
        self._split = digest((folder / "split.csv").read_bytes())
        self._folds = _folds([row.side for row in split])
        self._sides = np.array(["test" if self._folds else row.side for row in split])
        self._groups = [row.group for row in split]
        self.classes = sorted({row.label for row in self._rows}, key=str.encode)

    @property
    def num_folds(self) -> int:
        """Return the number of folds, 0 where the task has a fixed test side."""
        return len(next(iter(self._folds.values()), ()))

    def folds(self, repeat: int) -> list["Task"]:
        """Return the tasks that test each image once: those of a repeat's folds, or just itself.

        Of a task with folds, all images are on the test side. Raises ArtefactError for an entry of
        `repeat` that the split does not know.
        """
        if not self._folds:
            return [self]
        if repeat not in self._folds:
            what = f"{self.folder}/split.csv: has no folds for {repeat}, an entry of repeat"
            raise ArtefactError(what, "run the split stage again (dvc repro)")
        return [self._with(sides) for sides in self._folds[repeat]]

    def pooled(self) -> "Task":
        """Return a task with folds with all images on train; any other as it is."""
        return self._with(np.full(len(self._rows), "train")) if self._folds else self

    def _with(self, sides: npt.NDArray[np.str_]) -> "Task":
        task = copy(self)
        task._sides, task._folds = sides, {}
        task._split = digest(" ".join(sides).encode())  # another repeat leaves this one as it is
        return task

    def rows(self, name: SideName) -> npt.NDArray[np.int64]:
        """Return the places of a side's images among all images."""
        return np.flatnonzero(self._sides == name)

    def side(self, name: SideName) -> Side:
        """Return one side."""
        rows = [self._rows[index] for index in self.rows(name)]
        number = {label: index for index, label in enumerate(self.classes)}
        return Side(
            ids=[row.id for row in rows],
            labels=np.array([number[row.label] for row in rows], np.int64),
            classes=self.classes,
            images=PixelStore(self.folder / "images.bin", rows),
        )

    def groups(self, name: SideName) -> list[str]:
        """Return a word per image of a side; images with one word belong together."""
        return [self._groups[index] for index in self.rows(name)]

    def redrawn(self, seed: int | None) -> "Task":
        """Return the task with train and val drawn anew from both; itself for None.

        Its val holds images that belong to train, which is the point: see `redraw_split`.
        """
        if seed is None:
            return self
        both = np.flatnonzero(np.isin(self._sides, ("train", "val")))
        order = np.random.default_rng(seed).permutation(both)
        task = copy(self)
        task._sides = self._sides.copy()
        task._sides[order] = "train"
        task._sides[order[: np.sum(self._sides == "val")]] = "val"
        return task

    def hashes(self) -> dict[str, str]:
        """Return digests of the data, the split and the classes."""
        return {
            "data": self._data,
            "split": self._split,
            "classes": digest("\0".join(self.classes).encode()),
        }


def _folds(words: Sequence[str]) -> dict[int, list[npt.NDArray[np.str_]]]:
    """Return of each repeat the sides of all images in each fold, as split.csv has them."""
    if not words or ":" not in words[0]:
        return {}
    side_of = {letter: side for side, letter in LETTERS.items()}
    folds = {}
    for column in zip(*(word.split() for word in words), strict=True):
        repeat = int(column[0].split(":")[0])
        letters = zip(*(word.split(":")[1] for word in column), strict=True)
        folds[repeat] = [np.array([side_of[letter] for letter in fold]) for fold in letters]
    return folds
