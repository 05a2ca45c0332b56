"""Augment images: each view is a pure function of (seed, epoch, index), by the words of `batches`.

A kind of crop is a class in the schema and a function here; `View.take` chooses among them.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from resnets.params.schema import Preprocess
from resnets.params.training import Augment, CenterCrop, PadCrop, RandomResizedCrop
from resnets.tasks.decode import Crops, Images, Pixels, crop_batch
from resnets.training.batches import BOX, FLIP, TRIES, Rows, X, Y, epoch_table

Draws = NDArray[np.float64]  # the numbers of one image (WORDS,) or of several (N, WORDS)


def uniform(words: NDArray[np.uint64]) -> Draws:
    """Map 64-bit words to numbers in [0, 1)."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def random_box(
    height: int, width: int, draws: Draws, augment: RandomResizedCrop
) -> tuple[int, int, int, int]:
    """Draw a box (top, left, height, width) as torchvision's RandomResizedCrop does."""
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


def resized_view(image: Pixels, draws: Draws, augment: RandomResizedCrop, *, crop: int) -> Tensor:
    """Cut a random box of one image and resize it: (C, crop, crop) uint8."""
    top, left, height, width = random_box(image.shape[0], image.shape[1], draws, augment)
    # torchvision's resized_crop for uint8 does this very thing; importing it takes seconds
    box = torch.from_numpy(image[top : top + height, left : left + width].copy())
    pixels = box.permute(2, 0, 1)[None]
    view = F.interpolate(pixels, (crop, crop), mode="bilinear", antialias=True)[0]
    return view.flip(2) if augment.flip and draws[FLIP] < 0.5 else view


def shifted_views(
    crops: Crops, draws: Draws, augment: CenterCrop | PadCrop, fill: Pixels
) -> Tensor:
    """Shift centre crops by up to the padding, filled up with `fill` (C,): (N, C, crop, crop)."""
    padding = augment.padding if isinstance(augment, PadCrop) else 0
    num_images, crop, _, channels = crops.shape
    padded = np.empty((num_images, crop + 2 * padding, crop + 2 * padding, channels), np.uint8)
    padded[:] = fill
    padded[:, padding : padding + crop, padding : padding + crop] = crops
    shifts = (draws[:, [Y, X]] * (2 * padding + 1)).astype(np.int64)
    rows, columns = (shift[:, None] + np.arange(crop) for shift in shifts.T)  # (N, crop)
    if augment.flip:
        is_flipped = draws[:, FLIP] < 0.5
        columns[is_flipped] = columns[is_flipped, ::-1]
    views = padded[np.arange(num_images)[:, None, None], rows[:, :, None], columns[:, None]]
    return torch.from_numpy(views).permute(0, 3, 1, 2)


class View:
    """Give the augmented images of one epoch: in batches to training, one by one to `infer`."""

    def __init__(
        self, images: Images, augment: Augment, preprocess: Preprocess, *, seed: int, epoch: int
    ) -> None:
        self.images, self.augment, self.crop = images, augment, preprocess.crop
        self.seed, self.epoch = seed, epoch
        self.fill = np.round(np.array(preprocess.mean) * 255).astype(np.uint8)
        self.draws = uniform(epoch_table(seed, epoch, len(images)))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, row: int) -> Pixels:
        """Return one image, (crop, crop, C)."""
        return np.ascontiguousarray(self.take(np.array([row]))[0].permute(1, 2, 0).numpy())

    def take(self, rows: Rows) -> Tensor:
        """Return these images, (N, C, crop, crop) uint8, channels last."""
        augment, draws = self.augment, self.draws[rows]
        if not isinstance(augment, RandomResizedCrop):
            crops = crop_batch(self.images, rows, self.crop)
            return shifted_views(crops, draws, augment, self.fill)
        pairs = zip(rows, draws, strict=True)
        views = [resized_view(self.images[row], d, augment, crop=self.crop) for row, d in pairs]
        return torch.stack(views).contiguous(memory_format=torch.channels_last)
