"""Draw the batches of any epoch: what is random is a pure function of (seed, epoch, index).

One Philox table per epoch holds all random words. Word i belongs to image i, whatever the batch
size, the number of workers or where a run was interrupted, so a resumed epoch sees the very same
pixels in the very same order, and no state of a random generator needs to be kept.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from resnets.system.progress import map_ahead
from resnets.system.runtime import process_number, resolve_threads
from resnets.training.processes import num_processes

TRIES = 10  # boxes drawn before a random-resized crop gives up, as torchvision does
WORDS = 4 + 2 * TRIES  # order, flip, y, x, then area and aspect ratio of each try
ORDER, FLIP, Y, X, BOX = 0, 1, 2, 3, 4
# of a second table, so that the words above stay: operation, magnitude and sign of TrivialAugment,
# whether, how large, how wide and where to erase, and the share of a mixed image
OPERATION, MAGNITUDE, SIGN, ERASE, AREA, ASPECT, ERASE_Y, ERASE_X, SHARE = range(9)
MORE_WORDS = 9
MOST_WORKERS = 16  # threads that assemble batches ahead; slicing and resizing release the GIL

Rows = NDArray[np.int64]


def epoch_table(seed: int, epoch: int, num_images: int, table: int = 0) -> NDArray[np.uint64]:
    """Return the random words of an epoch, (num_images, WORDS), or those of table 1, MORE_WORDS.

    Row i does not depend on how many images there are: Philox is a function of a counter.
    """
    words = (WORDS, MORE_WORDS)[table]
    bits = np.random.Philox(key=np.array([seed, table], np.uint64), counter=[0, 0, epoch, 0])
    return bits.random_raw(num_images * words).reshape(num_images, words)


def uniform(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Map 64-bit words to numbers in [0, 1)."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


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
    A batch to mix has for each image that which follows in the epoch's order, and its own share.
    """

    inputs: Tensor
    labels: Tensor
    rows: Rows
    others: "Batch | None" = None
    shares: NDArray[np.float64] | None = None  # of all rows


@dataclass(frozen=True)
class Batches:
    """Yield the batches of any epoch, from any batch on."""

    labels: Tensor
    inputs_of: Callable[[int], Callable[[Rows], Tensor]]  # epoch -> rows -> the batch's inputs
    batch_size: int
    seed: int
    mixup: float = 0.0  # alpha
    is_pinned: bool = False  # in memory from which a GPU copies while it computes

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self._bounds())

    def _bounds(self) -> list[tuple[int, int]]:
        return batch_bounds(len(self.labels), self.batch_size, num_processes())

    def _shares(self, epoch: int) -> NDArray[np.float64] | None:
        """Return the share that each image has of itself in its mixture, at least one half."""
        if not self.mixup:
            return None
        from scipy.stats import beta

        drawn = uniform(epoch_table(self.seed, epoch, len(self.labels), 1)[:, SHARE])
        share = beta.ppf(drawn, self.mixup, self.mixup)
        return np.asarray(np.maximum(share, 1 - share))

    def order(self, epoch: int) -> Rows:
        """Return the order of the images in an epoch."""
        words = epoch_table(self.seed, epoch, len(self.labels))[:, ORDER]
        return np.argsort(words, kind="stable")

    def epoch(self, epoch: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Yield the batches of an epoch from `start` to before `stop`, made ahead in threads."""
        order, inputs = self.order(epoch), self.inputs_of(epoch)
        part, shares = slice(process_number(), None, num_processes()), self._shares(epoch)

        def take(rows: Rows) -> Batch:
            pixels, labels = inputs(rows[part]), self.labels[rows[part]]
            if self.is_pinned:
                pixels, labels = pixels.pin_memory(), labels.pin_memory()
            return Batch(pixels, labels, rows)

        def assemble(bounds: tuple[int, int]) -> Batch:
            rows = order[slice(*bounds)]
            if shares is None:
                return take(rows)
            others = np.roll(order, -1)[slice(*bounds)]
            return replace(take(rows), others=take(others), shares=shares[rows])

        bounds = self._bounds()[start:stop]
        workers = min(MOST_WORKERS, max(2, resolve_threads("auto")))
        yield from map_ahead(assemble, bounds, workers=workers, ahead=workers + 2)
