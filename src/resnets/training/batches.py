"""Draw the batches of any epoch: what is random is a pure function of (seed, epoch, index).

One Philox table per epoch holds all random words. Word i belongs to image i, whatever the batch
size, the number of workers or where a run was interrupted, so a resumed epoch sees the very same
pixels in the very same order, and no state of a random generator needs to be kept.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from resnets.system.progress import map_ahead
from resnets.system.runtime import process_number
from resnets.training.processes import num_processes

TRIES = 10  # boxes drawn before a random-resized crop gives up, as torchvision does
WORDS = 4 + 2 * TRIES  # order, flip, y, x, then area and aspect ratio of each try
ORDER, FLIP, Y, X, BOX = 0, 1, 2, 3, 4
WORKERS = 2  # threads that assemble batches ahead; slicing and resizing release the GIL

Rows = NDArray[np.int64]


def epoch_table(seed: int, epoch: int, num_images: int) -> NDArray[np.uint64]:
    """Return the random words of an epoch, (num_images, WORDS).

    Row i does not depend on how many images there are: Philox is a function of a counter. More
    words would move these; the key's second number is there for another table.
    """
    bits = np.random.Philox(key=np.array([seed, 0], np.uint64), counter=[0, 0, epoch, 0])
    return bits.random_raw(num_images * WORDS).reshape(num_images, WORDS)


def batch_bounds(num_images: int, batch_size: int, processes: int = 1) -> list[tuple[int, int]]:
    """Cut an epoch into batches; a last one with less than two images per process joins another.

    Batch normalisation cannot learn from one image: at 1×1 maps it fails, at larger ones it
    silently learns garbage.
    """
    starts = list(range(0, num_images, batch_size))
    if len(starts) > 1 and num_images - starts[-1] < 2 * processes:
        starts.pop()
    return list(zip(starts, [*starts[1:], num_images], strict=True))


@dataclass(frozen=True)
class Batch:
    """Hold one batch: `inputs` (N, C, H, W) uint8 or (N, F) float and `labels` (N,).

    Where several processes train together, these are this one's part of it; `rows` are all rows.
    """

    inputs: Tensor
    labels: Tensor
    rows: Rows


@dataclass(frozen=True)
class Batches:
    """Yield the batches of any epoch, from any batch on."""

    labels: Tensor
    inputs_of: Callable[[int], Callable[[Rows], Tensor]]  # epoch -> rows -> the batch's inputs
    batch_size: int
    seed: int

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self._bounds())

    def _bounds(self) -> list[tuple[int, int]]:
        return batch_bounds(len(self.labels), self.batch_size, num_processes())

    def order(self, epoch: int) -> Rows:
        """Return the order of the images in an epoch."""
        words = epoch_table(self.seed, epoch, len(self.labels))[:, ORDER]
        return np.argsort(words, kind="stable")

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from batch `start` on, assembled ahead in threads."""
        order, inputs = self.order(epoch), self.inputs_of(epoch)
        part = slice(process_number(), None, num_processes())

        def assemble(bounds: tuple[int, int]) -> Batch:
            rows = order[slice(*bounds)]
            return Batch(inputs(rows[part]), self.labels[rows[part]], rows)

        yield from map_ahead(assemble, self._bounds()[start:], workers=WORKERS)
