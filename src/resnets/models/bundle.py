"""Define the model bundle: one safetensors file that holds all that rebuilds a classifier.

The tensors are the weights; one metadata key holds, as sorted JSON, the architecture, the classes
in order, the preprocessing, the temperature and where the model comes from. One key, because two
keys come out in any order and DVC decides by bytes.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from resnets.models.calibration import TEMPERATURES
from resnets.params.schema import Preprocess
from resnets.params.section import Section, Side
from resnets.system.errors import ArtefactError, NumericalError
from resnets.system.files import write_bytes

if TYPE_CHECKING:
    import torch

    from resnets.models.resnet import ResNet

KEY = "resnets"  # the metadata key, in safetensors and in ONNX files
UNSCORED = "unscored.json"  # in a model's folder: it cannot be scored, and what is known of it
FORMAT_VERSION = 1  # raise it when a reader must know; a new field with a default needs no raise
REMAKE = "make it again with `dvc repro`, or restore it with `dvc checkout`"

Temperature = Annotated[float, Field(ge=TEMPERATURES[0], le=TEMPERATURES[1])]


class FullPreprocess(Preprocess):
    """Say how an image file becomes the model's input: decode, resize, centre crop, normalise."""

    resize: Side
    fit: Literal["shorter_side", "stretch"]
    channels: Literal[1, 3]

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"mean and std do not have {self.channels} values")
        if self.crop > self.resize:
            raise ValueError(f"crop {self.crop} is larger than resize {self.resize}")
        return self


class BundleMeta(Section):
    """Describe a model; `architecture` holds the keyword arguments of `build_model`."""

    format_version: Annotated[int, Field(ge=0, le=FORMAT_VERSION)] = FORMAT_VERSION
    architecture: dict[str, Any]
    classes: Annotated[list[str], Field(min_length=2)]
    preprocess: FullPreprocess
    temperature: Temperature = 1.0  # logits are divided by it before the softmax
    training: dict[str, Any]
    hashes: dict[str, str]
    measured: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("a class is listed twice")
        wanted = {"num_classes": len(self.classes), "in_channels": self.preprocess.channels}
        for key, value in wanted.items():
            if self.architecture.get(key) != value:
                raise ValueError(f"architecture.{key} is {self.architecture.get(key)}, not {value}")
        if self.architecture.get("include_top") is False:
            raise ValueError("architecture.include_top is false: there is no head for the classes")
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

    def head(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return copies of the head's weights (K, F) and biases (K,)."""
        layer = self.model.fc
        assert layer is not None  # BundleMeta sees to it
        weight, bias = (value.detach().cpu().numpy().copy() for value in (layer.weight, layer.bias))
        return weight, bias


def parse_meta(text: str, where: Path) -> BundleMeta:
    """Read the metadata key of a bundle or an ONNX file.

    Raises ArtefactError for a newer format and for anything that does not fit together.
    """
    try:
        values = json.loads(text)
        version = values.get("format_version", 0)
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise ArtefactError(
                f"{where}: format {version} of a newer resnets (this one reads {FORMAT_VERSION})",
                "upgrade resnets, or export the model again with this version",
            )
        return BundleMeta.model_validate({**values, "format_version": version})
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(str(part) for part in fault["loc"]) or "metadata"
        raise ArtefactError(f"{where}: {key}: {fault['msg']}", REMAKE) from None
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, ArtefactError):
            raise
        raise ArtefactError(f"{where}: its metadata is damaged ({error})", REMAKE) from None


def check_origin(meta: BundleMeta, hashes: dict[str, str], path: Path) -> None:
    """Raise ArtefactError where a model was trained on another task than the one of the hashes."""
    for key, value in hashes.items():
        if meta.hashes.get(key) != value:
            raise ArtefactError(
                f"{path}: was trained on other {key} ({meta.hashes.get(key)}, not {value})",
                "run `dvc repro`, which trains on what is there now",
            )


def save_bundle(path: Path, model: "torch.nn.Module", meta: BundleMeta) -> str:
    """Write a model and its description, byte for byte the same for the same values.

    Returns the SHA-256 of the file. Raises ArtefactError where the weights do not fit the described
    architecture and NumericalError where one is not finite; nothing is written then.
    """
    import torch
    from safetensors.torch import save

    tensors = {
        key: (value.float() if value.is_floating_point() else value)
        .detach()
        .to("cpu", memory_format=torch.contiguous_format, copy=True)
        for key, value in model.state_dict().items()
    }
    raw = save(tensors, metadata={KEY: meta.to_json()})
    bundle = _read(raw, path)
    write_bytes(path, raw)
    return bundle.sha256


def load_bundle(path: Path) -> Bundle:
    """Read a bundle and rebuild its model.

    Raises ArtefactError for a file that is no bundle, is damaged, is newer than this program or
    whose weights do not fit, and NumericalError for weights that are not finite.
    """
    return _read(path.read_bytes(), path)


def _read(raw: bytes, path: Path) -> Bundle:
    """Rebuild the model from the bytes of a bundle."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(raw)
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    except (SafetensorError, KeyError, ValueError, RuntimeError, RecursionError) as error:
        raise ArtefactError(f"{path}: not a whole safetensors file ({error})", REMAKE) from None
    text = header.get("__metadata__", {}).get(KEY)
    if text is None:
        fix = "give a model.safetensors of the pipeline; backbone.input imports foreign weights"
        raise ArtefactError(f"{path}: has no {KEY!r} metadata, so it is no bundle", fix)
    meta = parse_meta(text, path)
    floats = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    state = {k: v.float() if v.dtype in floats else v for k, v in tensors.items()}
    model = _empty_model(meta, path)
    _check_fit(model.state_dict(), state, path)
    for key, value in state.items():
        if not torch.isfinite(value).all():
            raise NumericalError(f"{path}: {key} is not finite", "train again with a lower lr")
    model.load_state_dict(state, assign=True)
    return Bundle(model.eval(), meta, hashlib.sha256(raw).hexdigest())


def _empty_model(meta: BundleMeta, path: Path) -> "ResNet":
    """Build the described model without memory for its weights; they come from the file."""
    import torch

    from resnets.models.resnet import build_model

    try:
        with torch.device("meta"):
            return build_model(**meta.architecture)
    except (TypeError, ValueError) as error:
        raise ArtefactError(f"{path}: cannot build its architecture ({error})", REMAKE) from None


def _check_fit(
    wanted: "dict[str, torch.Tensor]", found: "dict[str, torch.Tensor]", path: Path
) -> None:
    """Refuse weights whose names, shapes or types are not exactly the architecture's."""
    both = wanted.keys() & found.keys()
    faults = {
        "missing": wanted.keys() - found.keys(),
        "unexpected": found.keys() - wanted.keys(),
        "of another shape": {key for key in both if wanted[key].shape != found[key].shape},
        "of another type": {key for key in both if wanted[key].dtype != found[key].dtype},
    }
    words = [
        f"{len(keys)} {fault} ({', '.join(sorted(keys)[:5])})"
        for fault, keys in faults.items()
        if keys
    ]
    if words:
        what = f"{path}: the weights do not fit the architecture: {'; '.join(words)}"
        raise ArtefactError(what, REMAKE)
