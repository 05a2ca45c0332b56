"""Describe a training: optimiser, schedule (a class and a case here), augmentation, loss."""

import math
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from resnets.params.section import (
    Count,
    Fraction,
    NonNegative,
    Positive,
    Section,
    Share,
    SideLength,
)


class Optimizer(Section):
    """Choose the optimiser; `betas` of Adam are the usual ones."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Positive
    momentum: Fraction = 0.9  # of sgd, as nesterov
    nesterov: bool = True
    weight_decay: NonNegative = 0.0005  # not on biases and BatchNorm
    lr_decay: Share = 1.0  # below 1, each group away from the head learns that much slower
    clip_norm: Positive | None = None  # clip the gradient's norm to this

    @model_validator(mode="before")
    @classmethod
    def _adam_has_no_momentum(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("name") in ("adam", "adamw"):
            return {"momentum": 0.0, "nesterov": False, **values}
        return values

    @model_validator(mode="after")
    def _momentum_is_of_sgd(self) -> Self:
        if self.name != "sgd" and (self.momentum or self.nesterov):
            raise ValueError(f"momentum and nesterov belong to sgd; remove them for {self.name}")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class Constant(Section):
    """Keep the learning rate."""

    name: Literal["constant"]
    warmup_epochs: NonNegative = 0.0


class Cosine(Section):
    """Let the learning rate fall to zero along a half cosine."""

    name: Literal["cosine"]
    warmup_epochs: NonNegative = 0.0


class OneCycle(Section):
    """Let the learning rate rise in a straight line to its peak and fall to zero."""

    name: Literal["one_cycle"]
    peak: Annotated[float, Field(gt=0, lt=1)] = 0.25  # where, as a share of all steps
    warmup_epochs: ClassVar[float] = 0.0


class Step(Section):
    """Multiply the learning rate by gamma every so many epochs, or after each of those listed."""

    name: Literal["step"]
    warmup_epochs: NonNegative = 0.0
    epochs: Count | Annotated[list[Count], Field(min_length=1)]
    gamma: Share

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if isinstance(self.epochs, list) and self.epochs != sorted(set(self.epochs)):
            raise ValueError(f"epochs is {self.epochs}; let each be after the one before")
        return self


Schedule = Annotated[Constant | Cosine | OneCycle | Step, Field(discriminator="name")]


def lr_schedule(
    schedule: Schedule, *, lr: float, steps_per_epoch: int, epochs: int
) -> Callable[[int], float]:
    """Return the learning rate as a function of the step, counted from 0 over the whole run.

    A function of the step needs no state: a resumed run cannot be off by one. The warm-up rises in
    a straight line and reaches `lr` at its end; the cosine is that of SGDR (arXiv 1608.03983, eq.
    5) without restarts.
    """
    warmup, total = schedule.warmup_epochs * steps_per_epoch, epochs * steps_per_epoch

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        match schedule:
            case Constant():
                return 1.0
            case Cosine():
                return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))
            case OneCycle():
                top = schedule.peak * total
                return (step + 1) / (top + 1) if step < top else (total - step) / (total - top)
            case Step():
                epoch, drops = step // steps_per_epoch, schedule.epochs
                if isinstance(drops, list):
                    return schedule.gamma ** sum(drop <= epoch for drop in drops)
                return schedule.gamma ** (epoch // drops)

    return lambda step: lr * factor(step)


class _Crop(Section):
    """Hold what is done to an image besides its crop, and with every kind of crop."""

    flip: bool = True
    trivial: bool = False  # one operation of TrivialAugment (arXiv 2103.10158), after crop and flip
    erasing: Fraction = 0.0  # probability of an erased box (arXiv 1708.04896)
    mixup: NonNegative = 0.0  # alpha of the shares of two mixed images (arXiv 1710.09412)

    def view_sides(self, crop: int) -> list[int]:
        """Return the sizes of the views in pixels, in equal parts of the training."""
        return [crop]


class CenterCrop(_Crop):
    """Train on the evaluation crop."""

    crop: Literal["center"]


class PadCrop(_Crop):
    """Shift by up to `padding` pixels: pad with the mean, crop at random (ResNet paper, 4.2)."""

    crop: Literal["pad"]
    padding: Count


class RandomResizedCrop(_Crop):
    """Crop a random box of this share of the area and aspect ratio, resized to the crop size."""

    crop: Literal["random_resized"]
    scale: tuple[Positive, Positive] = Field(strict=False)
    ratio: tuple[Positive, Positive] = Field((0.75, 1.3333), strict=False)
    # the boxes' size in pixels in equal parts of the training, small ones first: small images cost
    # less, and boxes show things larger than a centre crop does (FixRes, arXiv 1906.06423);
    # null: that of the crop at evaluation
    sides: Annotated[list[SideLength], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for key, (low, high) in {"scale": self.scale, "ratio": self.ratio}.items():
            if low > high:
                raise ValueError(f"{key} is [{low}, {high}]; write the smaller number first")
        if self.scale[1] > 1:
            raise ValueError(f"scale ends at {self.scale[1]}, above the whole image (1)")
        return self

    def view_sides(self, crop: int) -> list[int]:
        """Return `sides`, or the size of the evaluation crop."""
        return self.sides or super().view_sides(crop)


Augment = Annotated[CenterCrop | PadCrop | RandomResizedCrop, Field(discriminator="crop")]


class Loss(Section):
    """Describe the cross-entropy."""

    label_smoothing: Fraction = 0.0
    class_weights: Literal["none", "balanced"] = "none"


class Training(Section):
    """Hold what the backbone and the variants have in common."""

    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]  # batch normalisation cannot train on one image
    optimizer: Optimizer
    schedule: Schedule
    augment: Augment
    loss: Loss = Loss()
    # decay per step of an exponential moving average of the weights, which is what is validated
    # and shipped; null: the weights themselves
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    # normalise over the images of all processes, on GPUs; false: each process over its own
    sync_batchnorm: bool = False
    # which epoch is shipped: the last, or the best of the noisy validation, as tutorials do
    select: Literal["last", "best"] = "last"

    @model_validator(mode="after")
    def _warm_up_ends(self) -> Self:
        warmup = self.schedule.warmup_epochs
        if warmup >= self.epochs:
            raise ValueError(
                f"schedule.warmup_epochs is {warmup}, but there are only {self.epochs} epochs"
            )
        return self
