"""Define the schema of params.yaml.

What people turn has no default and stands in params.yaml, once; what hardly anyone turns has its
default here, and `resnets params` prints it. Unknown keys, wrong types and contradictions stop a
stage before any work, with the key, the value and what is allowed.
"""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from resnets.params.architecture import Architecture, Init, Shortcut, Stem, StrideOn, find_network
from resnets.params.section import (
    CHANGES_NO_RESULT,
    Count,
    Fraction,
    Name,
    Natural,
    Positive,
    Preprocess,
    Section,
    SideLength,
    Size,
)
from resnets.params.training import Optimizer, Training
from resnets.system.errors import ParamsError

NO_BACKBONE = "artifacts/random"  # as backbone.input: every variant starts from random weights
# a variant's name becomes that of files and folders, beside these; some systems ignore the case
RESERVED = (
    *("data_*", "split_*", "backbone", "best", "candidates", "curves", "export", "labels"),
    *("leaderboard", "random", "yardsticks"),
)


def merged(shared: object, own: dict[str, Any]) -> dict[str, Any]:
    """Return a section's own values over the shared ones, key by key; another kind replaces all.

    The kind is what `name` or `crop` says: a cosine inherits nothing from a one-cycle schedule.
    """
    if not isinstance(shared, dict):
        return own
    kind = {"name": Optimizer.model_fields["name"].default, **shared}  # only it has a default
    if any(own.get(key, kind.get(key)) != kind.get(key) for key in ("name", "crop")):
        return own
    inner = {key: own[key] for key in own if isinstance(own[key], dict)}
    return {**shared, **own, **{key: merged(shared.get(key), inner[key]) for key in inner}}


def _with_network(variant: dict[str, Any], network: object) -> dict[str, Any]:
    """Return a variant with its whole network: `model` with the variant's changes."""
    change = variant.get("model", {})
    if isinstance(network, dict) and isinstance(change, dict):
        change = {**network, **change}
    return {**variant, "model": change}


class Runtime(Section):
    """Say where and how precisely to compute."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto: a GPU if there is one
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 where it is faster
    # auto: this process's share of the physical cores; a number gives the same last bits of every
    # sum on machines with other numbers of cores
    threads: Literal["auto"] | Count = "auto"
    # between two saved states
    checkpoint_steps: Annotated[Count, CHANGES_NO_RESULT] = 200
    processes: Count = 1  # that train together on this machine; each has `threads`


class TaskSection(Section):
    """Name a dataset and the classes to take from it."""

    path: str
    classes: list[str] | None = None  # null: all
    num_classes: Count | None = None  # refuses data with another number; null: any
    exclude: list[str] = Field(
        default_factory=list
    )  # images to leave out on purpose, by their names below the root

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
    """Say how images of every task are packed."""

    resize: SideLength
    fit: Literal["shorter_side", "stretch"] = "shorter_side"  # stretch makes a square
    # JPEGs of four times the size or more: in a quarter of the time, not quite torchvision's pixels
    scaled_decoding: bool = False


class Checks(Section):
    """Say which images are packed; only `prepare` asks, so that a change trains nothing again."""

    on_bad: Literal["stop", "quarantine"] = "stop"
    max_bad_fraction: Fraction = 0.01
    max_megapixels: Positive = 64.0  # larger images are never decoded


class Split(Section):
    """Say how large the sides are that the dataset does not bring along."""

    seed: Natural = 0  # of its own: another training seed must not draw another split
    train: Literal["rest"] | Count = "rest"  # rest, or images per class (few-shot)
    val: Size
    test: Size
    # cross-validation: each image is tested in one of so many folds, and `test` counts for nothing
    folds: Annotated[int, Field(ge=2)] | None = None
    group_regex: str | None = None  # images whose paths match alike stay on one side
    group_near: bool = True  # near-duplicates (resized, re-encoded, cropped) stay on one side

    @model_validator(mode="after")
    def _leave_some(self) -> Self:
        val, test = (x if isinstance(x, float) else 0.0 for x in (self.val, self.test))
        if val + test >= 1:
            raise ValueError(f"val {val} and test {test} leave nothing to train on")
        return self


class Model(Section):
    """Describe the network; `resnets.models.build_model` explains the options."""

    name: str
    in_channels: Literal[1, 3]  # grey or RGB
    stem: Stem
    shortcut: Shortcut
    stride_on: StrideOn = "conv3x3"
    conv_bias: bool = False
    zero_init_residual: bool = False
    init: Init = "kaiming"

    @model_validator(mode="before")
    @classmethod
    def _default_of_the_network(cls, values: object) -> object:
        if not isinstance(values, dict) or not isinstance(values.get("name"), str):
            return values
        row = find_network(values["name"])
        return {"stem": row.stem, "shortcut": row.shortcut, **values}

    @field_validator("in_channels", mode="before")
    @classmethod
    def _refuse_bool(cls, value: object) -> object:
        """Refuse true where 1 is allowed; Python takes them for equal."""
        if isinstance(value, bool):
            raise ValueError(f"{value} is no number")
        return value

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        Architecture(**self.model_dump(), num_classes=2, include_top=True)
        return self


class Backbone(Training):
    """Say what the backbone comes from and how it is trained."""

    # a task folder: train on it, where its images count by their bytes; a weights file: import it,
    # and nothing is trained; NO_BACKBONE
    input: Annotated[str, CHANGES_NO_RESULT]


class Gradual(Section):
    """Train the head first, then one group more every so many epochs."""

    gradual: Count


class Variant(Training):
    """Describe one way to train on the target task."""

    init: Name  # random, backbone, or another variant
    train: Literal["all", "head"] | Gradual | list[str]
    # adapt: estimate its statistics on the training images first, where the photos differ from the
    # backbone's in size or kind (arXiv 1603.04779); update: what is frozen drifts, as in tutorials
    frozen_batchnorm: Literal["freeze", "adapt", "update"] = "freeze"
    views: Count = 1  # augmented views per image whose features are cached when the head trains
    # where it differs from `model`; a training counts it under that name
    model: Annotated[Model, CHANGES_NO_RESULT]
    # draw train and val anew, as a tutorial does that splits at random in every run: the
    # validation number then counts images that `init` was trained on, and is marked as leaked
    redraw_split: Natural | None = None


class Export(Section):
    """Say which variant to ship and how exact the export must be."""

    variant: Name  # best (by validation), or the name of a variant
    tolerance: Positive = 0.0001  # largest difference of a logit between ONNX and torch
    quantize: Literal["none", "int8"] = "none"  # int8: beside the exact model
    max_drop: Fraction = 0.01  # int8 is not shipped where it loses more accuracy than this


class Params(Section):
    """Hold all of params.yaml."""

    # a training counts its own seed, which is `seed` plus an entry of `repeat`
    seed: Annotated[int, Field(ge=0, lt=2**31), CHANGES_NO_RESULT]
    repeat: Annotated[list[Natural], Field(min_length=1), CHANGES_NO_RESULT]
    runtime: Runtime
    tasks: Annotated[
        dict[Name, TaskSection], CHANGES_NO_RESULT
    ]  # count by the images of train and val
    data: Data
    checks: Annotated[Checks, CHANGES_NO_RESULT] = Checks()  # the images count by their bytes
    preprocess: Preprocess
    split: Annotated[dict[Name, Split], CHANGES_NO_RESULT]  # as the tasks
    model: Model
    # a training counts its own section, which has all values, and its initial weights by a hash
    training: Annotated[Training, CHANGES_NO_RESULT]
    backbone: Annotated[Backbone, CHANGES_NO_RESULT]
    transfer: Annotated[dict[Name, Variant], Field(min_length=1), CHANGES_NO_RESULT]
    export: Annotated[Export, CHANGES_NO_RESULT]  # comes after training

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, values: object) -> object:
        """Give the backbone and each variant what they do not name, from `training` and `model`."""
        if not isinstance(values, dict):
            return values
        shared, network, variants = (values.get(key) for key in ("training", "model", "transfer"))
        resolved = dict(values)
        if isinstance(values.get("backbone"), dict):
            resolved["backbone"] = merged(shared, values["backbone"])
        if isinstance(variants, dict):
            resolved["transfer"] = {
                name: _with_network(merged(shared, own), network) if isinstance(own, dict) else own
                for name, own in variants.items()
            }
        return resolved

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
        for name in set(self.split) - {"target"}:
            if self.split[name].folds:
                raise ValueError(f"split.{name}.folds is set, but only split.target can have folds")
        if self.split["target"].folds and Path(self.backbone.input) == Path("data/tasks/target"):
            raise ValueError(
                f"backbone.input is {self.backbone.input}, but with split.target.folds all of its "
                "images are tested, and none are left to train on"
            )
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
            is_reserved = any(fnmatchcase(name.lower(), pattern) for pattern in RESERVED)
            if is_reserved or folded.count(name.lower()) > 1:
                raise ParamsError(
                    f"transfer has a variant called {name!r}: its files would replace others",
                    f"take a name unlike the other variants' and {', '.join(RESERVED)}",
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
        leaked = {name for name, entry in self.transfer.items() if entry.redraw_split is not None}
        for name, entry in self.transfer.items():
            if entry.model.in_channels != self.model.in_channels:
                raise ValueError(f"transfer.{name}.model.in_channels is not that of model")
            start = f"transfer.{name}.init is {entry.init!r}"
            if entry.init == "backbone" and self.backbone.input == NO_BACKBONE:
                raise ValueError(f"{start}, but backbone.input is {NO_BACKBONE}: none")
            if entry.init not in {"random", "backbone", *self.transfer} - {name}:
                raise ValueError(
                    f"{start}; allowed are random, backbone and the other variants "
                    f"({', '.join(sorted(set(self.transfer) - {name}))})"
                )
            groups = find_network(entry.model.name).layer_groups()
            if isinstance(entry.train, list) and not {*groups} >= {*entry.train} > set():
                raise ParamsError(
                    f"transfer.{name}.train is {entry.train}",
                    f"allowed are all, head, and a list of some of {', '.join(groups)}",
                )
            if name in leaked and entry.init not in self.transfer:
                raise ValueError(f"{start}, but redraw_split is for variants that start from one")
            if entry.init in leaked:
                raise ValueError(f"{start}, whose redraw_split leaks validation images")
        for name, entry in self.transfer.items() if self.split["target"].folds else ():
            if name in leaked:
                raise ValueError(f"transfer.{name}.redraw_split contradicts split.target.folds")
            if entry.select == "best":  # the shipped model of all images has no validation
                raise ValueError(
                    f"transfer.{name}.select is 'best', but with split.target.folds the shipped "
                    "model is trained on all images, and none are left to choose by: select last"
                )
        if self.export.variant in leaked:
            raise ValueError(f"export.variant is {self.export.variant!r}, whose split is redrawn")
        return self
