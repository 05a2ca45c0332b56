"""Define the schema of params.yaml.

The schema has no defaults: every value stands in params.yaml, once. Unknown keys, wrong types and
contradictions stop a stage before any work, with the key, the value and what is allowed.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from resnets.params.architecture import Architecture, Init, Shortcut, Stem, StrideOn
from resnets.system.errors import ParamsError

# a variant's name becomes that of files and folders, beside these; some systems ignore the case
RESERVED = re.compile(
    r"(data|split)_.*|backbone|best|curves|export|leaderboard|random", re.IGNORECASE
)
# marks a key that no training depends on, so that a stopped one goes on although it was changed;
# a key without this mark starts it afresh
CHANGES_NO_RESULT = "changes no result of training"
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"  # names of tasks and variants become file names

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Side = Annotated[int, Field(ge=4, le=4096)]  # of an image, in pixels
Name = Annotated[str, Field(pattern=NAME)]
# the size of a side that is drawn: a fraction of the images, or a number of images per class
Size = Annotated[float, Field(gt=0, lt=1)] | Annotated[int, Field(ge=1)]


def _refuse_bool(value: object) -> object:
    """Refuse true where 1 is allowed; Python takes them for equal."""
    if isinstance(value, bool):
        raise ValueError(f"{value} is no number")
    return value


def _refuse_unscaled(value: float) -> float:
    """Refuse a mean or standard deviation of pixels from 0 to 255."""
    if value > 1:
        fix = "divide it by 255: it is of pixels that are scaled to 0…1"
        raise ParamsError(f"{value} is larger than 1", fix)
    return value


Channels = Annotated[Literal[1, 3], BeforeValidator(_refuse_bool)]  # grey or RGB


class Section(BaseModel):
    """Hold one section: frozen, strict (no silent conversion) and closed (no unknown keys)."""

    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True, strict=True)


class Runtime(Section):
    """Say where and how precisely to compute."""

    device: Literal["auto", "cpu", "cuda", "mps"]
    precision: Literal["auto", "fp32", "bf16"]
    # auto: this process's share of the physical cores; a number gives the same last bits of every
    # sum on machines with other numbers of cores
    threads: Literal["auto"] | Count
    checkpoint_steps: Annotated[Count, CHANGES_NO_RESULT]  # how often, not what is saved
    processes: Count  # that train together on this machine; each has `threads`


class Task(Section):
    """Name a dataset and the classes to take from it."""

    path: str
    classes: list[str] | None
    num_classes: Count | None
    exclude: list[str]  # images to leave out on purpose, by their names below the root

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.classes is not None:
            if len(set(self.classes)) != len(self.classes):
                raise ValueError("classes are listed twice")
            if self.num_classes not in (None, len(self.classes)):
                raise ValueError(
                    f"num_classes is {self.num_classes}, but {len(self.classes)} classes are listed"
                )
        return self


class Data(Section):
    """Say how images of every task are judged and packed."""

    resize: Side
    fit: Literal["shorter_side", "stretch"]
    # which images are packed; those that are count by their bytes
    on_bad: Annotated[Literal["stop", "quarantine"], CHANGES_NO_RESULT]
    max_bad_fraction: Annotated[Fraction, CHANGES_NO_RESULT]
    max_megapixels: Annotated[Positive, CHANGES_NO_RESULT]


class Preprocess(Section):
    """Say what the model sees at evaluation: the centre crop, normalised per channel."""

    crop: Side
    mean: list[Annotated[NonNegative, AfterValidator(_refuse_unscaled)]]
    std: list[Annotated[Positive, AfterValidator(_refuse_unscaled)]]


class Split(Section):
    """Say how large the sides are that the dataset does not bring along."""

    seed: Annotated[int, Field(ge=0)]
    train: Literal["rest"] | Count
    val: Size
    test: Size
    group_regex: str | None
    group_near: bool  # near-duplicates (resized, re-encoded, cropped) stay on one side

    @model_validator(mode="after")
    def _leave_some(self) -> Self:
        val, test = (x if isinstance(x, float) else 0.0 for x in (self.val, self.test))
        if val + test >= 1:
            raise ValueError(f"val {val} and test {test} leave nothing to train on")
        return self


class Model(Section):
    """Describe the network; `resnets.models.build_model` explains the options."""

    name: str
    in_channels: Channels
    stem: Stem
    shortcut: Shortcut
    stride_on: StrideOn
    conv_bias: bool
    zero_init_residual: bool
    init: Init

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        Architecture(**self.model_dump(), num_classes=2, include_top=True)
        return self

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of `build_model`, all but the number of classes."""
        return self.model_dump()


class ModelChange(Section):
    """Say where one variant's network differs from `model`; what is not named stays."""

    name: str | None = None
    stem: Stem | None = None
    shortcut: Shortcut | None = None
    stride_on: StrideOn | None = None
    conv_bias: bool | None = None
    zero_init_residual: bool | None = None
    init: Init | None = None


class Optimizer(Section):
    """Choose the optimiser; `betas` of Adam are the usual ones."""

    name: Literal["sgd", "adam", "adamw"]
    lr: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)]
    nesterov: bool
    weight_decay: NonNegative
    lr_decay: Annotated[float, Field(gt=0, le=1)]  # lr × lr_decay per group away from the head
    clip_norm: Positive | None

    @model_validator(mode="after")
    def _momentum_is_of_sgd(self) -> Self:
        if self.name != "sgd" and (self.momentum or self.nesterov):
            raise ValueError(
                f"momentum and nesterov belong to sgd; set them to 0 and false for {self.name}"
            )
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class Constant(Section):
    """Keep the learning rate."""

    name: Literal["constant"]
    warmup_epochs: NonNegative


class Cosine(Section):
    """Let the learning rate fall to zero along a half cosine."""

    name: Literal["cosine"]
    warmup_epochs: NonNegative


class OneCycle(Section):
    """Let the learning rate rise in a straight line to its peak and fall to zero."""

    name: Literal["one_cycle"]
    peak: Annotated[float, Field(gt=0, lt=1)]


class Step(Section):
    """Multiply the learning rate by gamma every so many epochs."""

    name: Literal["step"]
    warmup_epochs: NonNegative
    epochs: Count
    gamma: Annotated[float, Field(gt=0, le=1)]


Schedule = Annotated[Constant | Cosine | OneCycle | Step, Field(discriminator="name")]


class NoCrop(Section):
    """Train on the evaluation crop."""

    crop: Literal["center"]
    flip: bool


class PadCrop(Section):
    """Shift by up to `padding` pixels: pad with the mean, crop at random (ResNet paper, 4.2)."""

    crop: Literal["pad"]
    padding: Count
    flip: bool


class RandomResizedCrop(Section):
    """Crop a random box of this share of the area and aspect ratio, resized to the crop size."""

    crop: Literal["random_resized"]
    scale: tuple[Positive, Positive] = Field(strict=False)
    ratio: tuple[Positive, Positive] = Field(strict=False)
    flip: bool

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for key, (low, high) in {"scale": self.scale, "ratio": self.ratio}.items():
            if low > high:
                raise ValueError(f"{key} is [{low}, {high}]; write the smaller number first")
        if self.scale[1] > 1:
            raise ValueError(f"scale ends at {self.scale[1]}, above the whole image (1)")
        return self


Augment = Annotated[NoCrop | PadCrop | RandomResizedCrop, Field(discriminator="crop")]


class Loss(Section):
    """Describe the cross-entropy."""

    label_smoothing: Fraction
    class_weights: Literal["none", "balanced"]


class Training(Section):
    """Hold what the backbone and the variants have in common."""

    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]  # batch normalisation cannot train on one image
    optimizer: Optimizer
    schedule: Schedule
    augment: Augment
    loss: Loss

    @model_validator(mode="after")
    def _warm_up_ends(self) -> Self:
        warmup = getattr(self.schedule, "warmup_epochs", 0)
        if warmup >= self.epochs:
            raise ValueError(
                f"schedule.warmup_epochs is {warmup}, but there are only {self.epochs} epochs"
            )
        return self


NO_BACKBONE = "artifacts/random"  # as backbone.input: every variant starts from random weights


class Backbone(Training):
    """Say what the backbone comes from and how it is trained."""

    # a task folder: train on it, where its images count by their bytes; a weights file: import it;
    # NO_BACKBONE
    input: Annotated[str, CHANGES_NO_RESULT]


class GivenBackbone(Section):
    """Name a weights file, or NO_BACKBONE: nothing is trained, so there is nothing else to say."""

    input: str


def _kind_of_backbone(value: object) -> str:
    """Tell a backbone that is given from one that is trained; a task folder must be."""
    if not isinstance(value, dict) or value.keys() != {"input"}:
        return "trained"
    is_given = value["input"] == NO_BACKBONE or Path(str(value["input"])).suffix
    return "given" if is_given else "trained"


class Gradual(Section):
    """Train the head first, then one group more every so many epochs."""

    gradual: Count


class Variant(Training):
    """Describe one way to train on the target task."""

    init: Name  # random, backbone, or another variant (its best checkpoint)
    train: Literal["all", "head"] | Gradual | list[str]
    frozen_batchnorm: Literal["freeze", "update"]
    views: Count  # augmented views per image whose features are cached when only the head trains
    model: Annotated[ModelChange, CHANGES_NO_RESULT]  # what `model_of` makes of it counts
    # draw train and val anew, as a tutorial does that splits at random in every run: the
    # validation number then counts images that `init` was trained on, and is marked as leaked
    redraw_split: Annotated[int, Field(ge=0)] | None


class Export(Section):
    """Say which variant to ship and how exact the export must be."""

    variant: Name  # best, or the name of a variant
    tolerance: Positive
    preprocess_inside: bool
    quantize: Literal["none", "int8"]
    max_drop: Fraction


class Params(Section):
    """Hold all of params.yaml."""

    # a training counts its own seed, which is `seed` plus an entry of `repeat`
    seed: Annotated[int, Field(ge=0, lt=2**31), CHANGES_NO_RESULT]
    repeat: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), CHANGES_NO_RESULT]
    runtime: Runtime
    tasks: Annotated[dict[Name, Task], CHANGES_NO_RESULT]  # count by the images of train and val
    data: Data
    preprocess: Preprocess
    split: Annotated[dict[Name, Split], CHANGES_NO_RESULT]  # as the tasks
    model: Model
    # a training counts its own section, and what it starts from by the hash of the weights
    backbone: Annotated[
        Annotated[Backbone, Tag("trained")] | Annotated[GivenBackbone, Tag("given")],
        Discriminator(_kind_of_backbone),
        CHANGES_NO_RESULT,
    ]
    transfer: Annotated[dict[Name, Variant], Field(min_length=1), CHANGES_NO_RESULT]
    export: Annotated[Export, CHANGES_NO_RESULT]  # comes after training

    @field_validator("repeat")
    @classmethod
    def _once_each(cls, repeat: list[int]) -> list[int]:
        if len(set(repeat)) != len(repeat):
            raise ValueError("a repeat is listed twice")
        return repeat

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if "target" not in self.tasks:
            raise ValueError("tasks has no 'target', the task that the variants train on")
        if set(self.tasks) != set(self.split):
            raise ValueError(f"tasks are {sorted(self.tasks)}, but split has {sorted(self.split)}")
        for key in ("mean", "std"):
            if len(getattr(self.preprocess, key)) != self.model.in_channels:
                raise ValueError(
                    f"preprocess.{key} has {len(getattr(self.preprocess, key))} values, but "
                    f"model.in_channels is {self.model.in_channels}"
                )
        if self.preprocess.crop > self.data.resize:
            raise ValueError(
                f"preprocess.crop is {self.preprocess.crop}, larger than data.resize "
                f"({self.data.resize})"
            )
        folded = [name.lower() for name in self.transfer]
        for name in self.transfer:
            if RESERVED.fullmatch(name) or folded.count(name.lower()) > 1:
                raise ParamsError(
                    f"transfer has a variant called {name!r}: its files would replace others",
                    "take a name unlike the other variants', data_…, split_…, backbone, best, "
                    "curves, export, leaderboard and random",
                )
        if self.export.variant not in {"best", *self.transfer}:
            raise ValueError(
                f"export.variant is {self.export.variant!r}; allowed are best and "
                f"{', '.join(sorted(self.transfer))}"
            )
        return self

    @model_validator(mode="after")
    def _start_somewhere(self) -> Self:
        """Check where each variant starts, and that a leaked validation number chooses nothing."""
        leaked = {name for name, one in self.transfer.items() if one.redraw_split is not None}
        for name, variant in self.transfer.items():
            self.model_of(name)
            start = f"transfer.{name}.init is {variant.init!r}"
            if variant.init == "backbone" and self.backbone.input == NO_BACKBONE:
                raise ValueError(f"{start}, but backbone.input is {NO_BACKBONE}: none")
            if variant.init not in {"random", "backbone", *self.transfer} - {name}:
                raise ValueError(
                    f"{start}; allowed are random, backbone and the other variants "
                    f"({', '.join(sorted(set(self.transfer) - {name}))})"
                )
            if name in leaked and variant.init not in self.transfer:
                raise ValueError(f"{start}, but redraw_split is for variants that start from one")
            if variant.init in leaked:
                raise ValueError(f"{start}, whose redraw_split leaks validation images")
        if self.export.variant in leaked:
            raise ValueError(f"export.variant is {self.export.variant!r}, whose split is redrawn")
        return self

    def model_of(self, variant: str) -> Model:
        """Return the network of a variant: `model` with the variant's changes."""
        change = self.transfer[variant].model.model_dump(exclude_none=True)
        return Model(**{**self.model.model_dump(), **change})
