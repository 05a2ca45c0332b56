"""Augment images: each view is a pure function of (seed, epoch, index), by the words of `batches`.

A kind of crop is a class in the schema and a function here; `View.take` chooses among them.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from resnets.params.section import Preprocess
from resnets.params.training import Augment, CenterCrop, PadCrop, RandomResizedCrop
from resnets.tasks.decode import Crops, Images, Pixels, crop_batch
from resnets.training.batches import (
    AREA,
    ASPECT,
    BOX,
    ERASE,
    ERASE_X,
    ERASE_Y,
    FLIP,
    MAGNITUDE,
    OPERATION,
    SIGN,
    TRIES,
    Rows,
    X,
    Y,
    epoch_table,
    uniform,
)

Draws = NDArray[np.float64]  # the numbers of one image (WORDS,) or of several (N, WORDS)


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


def trivial(view: Tensor, draws: Draws, fill: list[float]) -> Tensor:
    """Do one operation of TrivialAugment's wide space to an image (C, H, W) uint8.

    Operation, magnitude (of 31) and sign are drawn alike; table 5 of arXiv 2103.10158. Operations
    are torchvision's; colour does nothing to a grey image.
    """
    import torchvision.transforms.v2.functional as T

    strength = int(draws[MAGNITUDE] * 31) / 30
    signed = strength if draws[SIGN] < 0.5 else -strength
    degrees, pixels, factor = math.degrees(math.atan(0.99 * signed)), 32 * signed, 1 + 0.99 * signed
    move = {"interpolation": T.InterpolationMode.NEAREST, "fill": fill}
    still: dict[str, Any] = {"angle": 0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    operations: list[Callable[[], Tensor]] = [
        lambda: view,
        lambda: T.affine(view, **{**still, "shear": [degrees, 0.0]}, **move),
        lambda: T.affine(view, **{**still, "shear": [0.0, degrees]}, **move),
        lambda: T.affine(view, **{**still, "translate": [int(pixels), 0]}, **move),
        lambda: T.affine(view, **{**still, "translate": [0, int(pixels)]}, **move),
        lambda: T.rotate(view, 135 * signed, **move),
        lambda: T.adjust_brightness(view, factor),
        lambda: T.adjust_saturation(view, factor),
        lambda: T.adjust_contrast(view, factor),
        lambda: T.adjust_sharpness(view, factor),
        lambda: T.posterize(view, 8 - round(6 * strength)),
        lambda: T.solarize(view, 255 - 255 * strength),
        lambda: T.autocontrast(view),
        lambda: T.equalize(view),
    ]
    return operations[int(draws[OPERATION] * len(operations))]()


def erase(views: Tensor, draws: Draws, probability: float, fill: Pixels) -> None:
    """Fill a random box of some images (N, C, H, W) with `fill` (C,), in place.

    As in arXiv 1708.04896, algorithm 1: 2 to 40% of the area, aspect ratios from 0.3 to 1/0.3; one
    that does not fit is cut to the image's side.
    """
    height, width = views.shape[2:]
    colour = torch.from_numpy(fill)[:, None, None]
    for view, drawn in zip(views, draws, strict=True):
        if drawn[ERASE] < probability:
            area = height * width * (0.02 + 0.38 * drawn[AREA])
            ratio = 0.3 ** (1 - 2 * drawn[ASPECT])
            h, w = (round(math.sqrt(area * r)) for r in (ratio, 1 / ratio))
            h, w = min(h, height), min(w, width)
            top = int(drawn[ERASE_Y] * (height - h + 1))
            left = int(drawn[ERASE_X] * (width - w + 1))
            view[:, top : top + h, left : left + w] = colour


class View:
    """Give the augmented images of one epoch: in batches to training, one by one to `infer`."""

    def __init__(
        self,
        images: Images,
        augment: Augment,
        preprocess: Preprocess,
        *,
        seed: int,
        epoch: int,
        epochs: int,
    ) -> None:
        self.images, self.augment = images, augment
        sides = augment.view_sides(preprocess.crop)
        self.crop = sides[int(epoch / epochs * len(sides))]
        self.seed, self.epoch = seed, epoch
        self.fill = np.round(np.array(preprocess.mean) * 255).astype(np.uint8)
        self.draws = uniform(epoch_table(seed, epoch, len(images)))
        self.more_draws = uniform(epoch_table(seed, epoch, len(images), 1))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, row: int) -> Pixels:
        """Return one image, (crop, crop, C)."""
        return np.ascontiguousarray(self.take(np.array([row]))[0].permute(1, 2, 0).numpy())

    def take(self, rows: Rows) -> Tensor:
        """Return these images, (N, C, crop, crop) uint8, channels last."""
        augment, more = self.augment, self.more_draws[rows]
        views = self._cropped(rows)
        if augment.trivial:
            pairs = zip(views, more, strict=True)
            views = torch.stack([trivial(view, d, self.fill.tolist()) for view, d in pairs])
        if augment.erasing:
            erase(views, more, augment.erasing, self.fill)
        return views.contiguous(memory_format=torch.channels_last)

    def _cropped(self, rows: Rows) -> Tensor:
        augment, draws = self.augment, self.draws[rows]
        if not isinstance(augment, RandomResizedCrop):
            crops = crop_batch(self.images, rows, self.crop)
            return shifted_views(crops, draws, augment, self.fill)
        pairs = zip(rows, draws, strict=True)
        views = [resized_view(self.images[row], d, augment, crop=self.crop) for row, d in pairs]
        return torch.stack(views)
