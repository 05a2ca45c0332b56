"""Define the model bundle: one safetensors file that holds all that rebuilds a classifier.

The tensors are the weights; one metadata key holds, as sorted JSON, the architecture, the classes
in order, the preprocessing, the temperature and where the model comes from. One key, because two
keys come out in any order and DVC decides by bytes.
"""

import hashlib
import json
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from resnets.models.calibration import TEMPERATURES
from resnets.params.section import Preprocess, Section, SideLength
from resnets.system.errors import ArtefactError
from resnets.system.files import write_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from resnets.models.inference import Float32s
    from resnets.models.resnet import ResNet

KEY = "resnets"  # the metadata key, in safetensors and in ONNX files
SHIPPED = "model.safetensors"  # in a model's folder: the one that is exported
UNSCORED = "unscored.json"  # in a model's folder: it cannot be scored, and what is known of it
FORMAT_VERSION = 1  # raise it when a reader must know; a new field with a default needs no raise
REMAKE = "make it again with `dvc repro`, or restore it with `dvc checkout`"


def bundle_names(repeats: Sequence[int], num_folds: int = 0) -> dict[int, list[str]]:
    """Return the files, in a model's folder, that predict each test image once, of every repeat.

    Without folds that is one file, of the first repeat the shipped one. With folds it is one for
    each, and the shipped one, which is trained on all images, is not among them.
    """
    names: dict[int, list[str]] = {}
    for repeat in repeats:
        names[repeat] = [f"repeat-{repeat}.safetensors" if names else SHIPPED]
        if num_folds:
            files = (f"repeat-{repeat}-fold-{fold}.safetensors" for fold in range(num_folds))
            names[repeat] = list(files)
    return names


class FullPreprocess(Preprocess):
    """Say how an image file becomes the model's input: decode, resize, centre crop, normalise."""

    resize: SideLength
    fit: Literal["shorter_side", "stretch"]
    channels: Literal[1, 3]
    # recorded where it applies; see `decode`
    scaled_decoding: Annotated[bool, Field(exclude_if=operator.not_)] = False

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"mean and std do not have {self.channels} values")
        if self.crop > self.resize:
            raise ValueError(f"crop {self.crop} is larger than resize {self.resize}")
        return self


class BundleMeta(Section):
    """Describe a model; `architecture` holds the keyword arguments of `build_model`."""

    format_version: Annotated[int, Field(le=FORMAT_VERSION)] = FORMAT_VERSION
    architecture: dict[str, Any]
    classes: Annotated[list[str], Field(min_length=2)]
    preprocess: FullPreprocess
    # logits are divided by it before the softmax
    temperature: Annotated[float, Field(ge=TEMPERATURES[0], le=TEMPERATURES[1])] = 1.0
    training: dict[str, Any]
    hashes: dict[str, str]
    measured: dict[str, Any] = Field(default_factory=dict)
    history: list[dict[str, Any]] = Field(default_factory=list)  # of its training, by epoch

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("a class is listed twice")
        network = {"include_top": True, **self.architecture}
        wanted = {"num_classes": len(self.classes), "in_channels": self.preprocess.channels}
        for key, value in {**wanted, "include_top": True}.items():
            if network.get(key) != value:
                raise ValueError(f"architecture.{key} is {network.get(key)}, not {value}")
        return self

    def to_json(self) -> str:
        """Return the same text for the same values: sorted, one line, ASCII."""
        return json.dumps(self.model_dump(), sort_keys=True, allow_nan=False)


@dataclass(frozen=True)
class Bundle:
    """Hold a loaded model (eval, fp32, CPU), its description and the SHA-256 of its file."""

    model: "ResNet"
    meta: BundleMeta
    sha256: str

    def head(self) -> "tuple[Float32s, Float32s]":
        """Return copies of the head's weights (K, F) and biases (K,)."""
        assert self.model.fc is not None  # BundleMeta sees to it
        weight, bias = (value.detach().cpu().numpy().copy() for value in self.model.fc.parameters())
        return weight, bias


def parse_meta(text: str, where: Path) -> BundleMeta:
    """Read the metadata key of a bundle or an ONNX file.

    Raises ArtefactError for a newer format and for anything that does not fit together.
    """
    try:
        return BundleMeta.model_validate_json(text)
    except ValidationError as error:
        fault = error.errors()[0]
    written = re.search(r'"format_version":\s*(\d+)', text)
    if written and int(written[1]) > FORMAT_VERSION:  # whose keys may be unknown here
        what = f"format {written[1]} of a newer resnets (this one reads {FORMAT_VERSION})"
        raise ArtefactError(f"{where}: {what}", "upgrade resnets, or export with this version")
    key = ".".join(str(part) for part in fault["loc"]) or "metadata"
    raise ArtefactError(f"{where}: {key}: {fault['msg']}", REMAKE)


def read_meta(raw: bytes, where: Path) -> BundleMeta:
    """Read the description in the bytes of a bundle, as `parse_meta`."""
    try:
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        text = header.get("__metadata__", {}).get(KEY)
    except (AttributeError, ValueError, RecursionError) as error:
        raise ArtefactError(f"{where}: not a whole safetensors file ({error})", REMAKE) from None
    if text is None:
        fix = "give a model.safetensors of the pipeline; backbone.input imports foreign weights"
        raise ArtefactError(f"{where}: has no {KEY!r} metadata, so it is no bundle", fix)
    return parse_meta(text, where)


def check_origin(meta: BundleMeta, hashes: dict[str, str], path: Path) -> None:
    """Raise ArtefactError where a model was trained on another task than the one of the hashes."""
    for key, value in hashes.items():
        if meta.hashes.get(key) != value:
            raise ArtefactError(
                f"{path}: was trained on other {key} ({meta.hashes.get(key)}, not {value})",
                "run `dvc repro`, which trains on what is there now",
            )


def save_bundle(path: Path, model: "ResNet", meta: BundleMeta) -> None:
    """Write a model and its description, byte for byte the same for the same values.

    Raises ArtefactError where the weights do not fit the described architecture and NumericalError
    where one is not finite; nothing is written then.
    """
    from safetensors.torch import save

    tensors = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
    _rebuild(meta, tensors, path)
    write_bytes(path, save(tensors, metadata={KEY: meta.to_json()}))


def load_bundle(path: Path) -> Bundle:
    """Read a bundle and rebuild its model.

    Raises ArtefactError for a file that is no bundle, is damaged, is newer than this program or
    whose weights do not fit, and NumericalError for weights that are not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    raw = path.read_bytes()
    try:
        tensors = load(raw)
    except (SafetensorError, KeyError, ValueError, RuntimeError, RecursionError) as error:
        raise ArtefactError(f"{path}: not a whole safetensors file ({error})", REMAKE) from None
    meta = read_meta(raw, path)
    return Bundle(_rebuild(meta, tensors, path), meta, hashlib.sha256(raw).hexdigest())


def _rebuild(meta: BundleMeta, tensors: "dict[str, Tensor]", path: Path) -> "ResNet":
    """Build the described model around its weights; no others are drawn."""
    import torch

    from resnets.models.resnet import build_model
    from resnets.models.weights import load_all

    try:
        with torch.device("meta"):
            model = build_model(**meta.architecture)
    except (TypeError, ValueError) as error:
        raise ArtefactError(f"{path}: cannot build its architecture ({error})", REMAKE) from None
    state = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    load_all(model, state, f"{path} into {model.architecture.name}", REMAKE, assign=True)
    return model.eval()
