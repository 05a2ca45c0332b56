"""Draw batches: order, augmentation and assembly, all a pure function of (seed, epoch, index).

One Philox table per epoch holds all random words. Word i belongs to image i, whatever the batch
size, the number of workers or where a run was interrupted, so a resumed epoch sees the very same
pixels in the very same order, and no state of a random generator needs to be kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from resnets.params.training import Augment, CenterCrop, PadCrop, RandomResizedCrop
from resnets.system.progress import map_ahead
from resnets.tasks.decode import Crops, crop_batch
from resnets.tasks.task import Side

TRIES = 10  # boxes drawn before a random-resized crop gives up, as torchvision does
WORDS = 4 + 2 * TRIES  # order, flip, y, x, then area and aspect ratio of each try
ORDER, FLIP, Y, X, BOX = 0, 1, 2, 3, 4
WORKERS = 2  # threads that assemble batches ahead; slicing and resizing release the GIL


@dataclass(frozen=True)
class Batch:
    """Hold one batch: `inputs` (N, C, H, W) uint8 or (N, F) float and `labels` (N,).

    Where several processes train together, these are this one's part of it; `rows` are all rows.
    """

    inputs: Tensor
    labels: Tensor
    rows: NDArray[np.int64]


def epoch_table(seed: int, epoch: int, num_images: int) -> NDArray[np.uint64]:
    """Return the random words of an epoch, (num_images, WORDS).

    Row i does not depend on how many images there are: Philox is a function of a counter.
    """
    bits = np.random.Philox(key=np.array([seed, 0], np.uint64), counter=[0, 0, epoch, 0])
    return bits.random_raw(num_images * WORDS).reshape(num_images, WORDS)


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


def random_box(
    height: int, width: int, draws: NDArray[np.float64], augment: RandomResizedCrop
) -> tuple[int, int, int, int]:
    """Draw a box (top, left, height, width) as torchvision's RandomResizedCrop does.

    `draws` are the numbers of one image, (WORDS,) in [0, 1).
    """
    low, high = np.log(augment.ratio)
    for area, aspect in draws[BOX:].reshape(TRIES, 2):
        target = height * width * (augment.scale[0] + area * (augment.scale[1] - augment.scale[0]))
        ratio = np.exp(low + aspect * (high - low))
        w, h = round(np.sqrt(target * ratio)), round(np.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(draws[Y] * (height - h + 1)), int(draws[X] * (width - w + 1)), h, w
    ratio = min(max(width / height, augment.ratio[0]), augment.ratio[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    return (height - h) // 2, (width - w) // 2, h, w


def resized_view(
    image: NDArray[np.uint8], draws: NDArray[np.float64], augment: RandomResizedCrop, *, crop: int
) -> Tensor:
    """Cut a random box of one packed image (H, W, C) and resize it: (C, crop, crop) uint8.

    `draws` (WORDS,) are the image's numbers of this epoch.
    """
    top, left, height, width = random_box(image.shape[0], image.shape[1], draws, augment)
    # torchvision's resized_crop for uint8 does this very thing; importing it takes seconds
    box = torch.from_numpy(image[top : top + height, left : left + width].copy())
    view = F.interpolate(box.permute(2, 0, 1)[None], (crop, crop), mode="bilinear", antialias=True)[
        0
    ]
    return view.flip(2) if augment.flip and draws[FLIP] < 0.5 else view


def shifted_views(
    crops: Crops, draws: NDArray[np.float64], augment: CenterCrop | PadCrop, fill: NDArray[np.uint8]
) -> Tensor:
    """Shift centre crops (N, crop, crop, C) by up to the padding, filled up with `fill` (C,).

    `draws` (N, WORDS) are their numbers of this epoch. Returns (N, C, crop, crop) uint8.
    """
    padding = augment.padding if isinstance(augment, PadCrop) else 0
    num_images, crop, _, channels = crops.shape
    padded = np.empty((num_images, crop + 2 * padding, crop + 2 * padding, channels), np.uint8)
    padded[:] = fill
    padded[:, padding : padding + crop, padding : padding + crop] = crops
    tops, lefts = (
        (draws[:, axis] * (2 * padding + 1)).astype(np.int64)[:, None] for axis in (Y, X)
    )
    rows, columns = tops + np.arange(crop), lefts + np.arange(crop)  # (N, crop)
    if augment.flip:
        is_flipped = draws[:, FLIP] < 0.5
        columns[is_flipped] = columns[is_flipped, ::-1]
    views = padded[np.arange(num_images)[:, None, None], rows[:, :, None], columns[:, None]]
    return torch.from_numpy(views).permute(0, 3, 1, 2)


class ImageBatches:
    """Yield augmented batches of one side of a task."""

    def __init__(
        self,
        side: Side,
        augment: Augment,
        *,
        batch_size: int,
        crop: int,
        mean: list[float],
        seed: int,
        views: int | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        """Take the side; `views` repeats the augmentation after so many epochs.

        `part` (k, n) takes every n-th image of each batch from its k-th on.
        """
        self.side, self.augment, self.crop, self.seed, self.views = (
            side, augment, crop, seed, views,
        )  # fmt: skip
        self.part = slice(part[0], None, part[1])
        self.bounds = batch_bounds(len(side.ids), batch_size, part[1])
        self.labels = torch.from_numpy(side.labels)
        self.fill = np.round(np.array(mean) * 255).astype(np.uint8)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self.bounds)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the order of the images in an epoch."""
        return np.argsort(self._table(epoch)[:, ORDER], kind="stable")

    def _table(self, epoch: int) -> NDArray[np.uint64]:
        return epoch_table(self.seed, epoch, len(self.side.ids))

    def cut(self, rows: NDArray[np.int64], draws: NDArray[np.float64]) -> Tensor:
        """Return the training views of these images, (N, C, crop, crop) uint8, channels last."""
        images, augment = self.side.images, self.augment
        if not isinstance(augment, RandomResizedCrop):
            return shifted_views(
                crop_batch(images, rows, self.crop), draws[rows], augment, self.fill
            )
        views = [resized_view(images[row], draws[row], augment, crop=self.crop) for row in rows]
        return torch.stack(views).contiguous(memory_format=torch.channels_last)

    def draws(self, epoch: int) -> NDArray[np.float64]:
        """Return the augmentation's numbers of an epoch."""
        return uniform(self._table(epoch if self.views is None else epoch % self.views))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from batch `start` on, assembled ahead in threads."""
        order, draws = self.order(epoch), self.draws(epoch)

        def assemble(bounds: tuple[int, int]) -> Batch:
            rows = order[slice(*bounds)]
            mine = rows[self.part]
            return Batch(self.cut(mine, draws), self.labels[mine], rows)

        yield from map_ahead(assemble, self.bounds[start:], workers=WORKERS)


class FeatureBatches:
    """Yield batches of cached features: one matrix (images, features) per augmented view."""

    def __init__(
        self,
        features: list[Tensor],
        labels: Tensor,
        *,
        batch_size: int,
        seed: int,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        """Take the features of each view; epoch e uses view e modulo the number of views."""
        self.features, self.labels, self.seed = features, labels, seed
        self.part = slice(part[0], None, part[1])
        self.bounds = batch_bounds(len(labels), batch_size, part[1])

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self.bounds)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, in the order that `ImageBatches` would have."""
        table = epoch_table(self.seed, epoch, len(self.labels))
        order = np.argsort(table[:, ORDER], kind="stable")
        view = self.features[epoch % len(self.features)]
        for low, high in self.bounds[start:]:
            rows = order[low:high]
            mine = rows[self.part]
            yield Batch(view[mine], self.labels[mine], rows)
