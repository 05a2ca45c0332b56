"""Read weights made elsewhere and load them into a network, all of them or with words why not.

Pickled files go through `torch.load(weights_only=True)` and nothing else: it builds tensors and
runs no code.
"""

import hashlib
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TypeGuard

import safetensors.torch
import torch
from torch import Tensor

from resnets.models.resnet import ResNet
from resnets.params.architecture import PUBLISHED, network_of
from resnets.system.errors import ArtefactError, EnvironmentFault, NumericalError, list_kinds

OPTIONS_FIX = "let model in params.yaml have the options that the weights were made with"

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Report:
    """Say what became of every key of the file and of the network, and what the file is."""

    keys: dict[str, list[str]]  # missing are at most the counters of BatchNorm
    sha256: str
    published: str | None  # the published name of this content, whatever the file is called now

    def __str__(self) -> str:
        return list_kinds(self.keys)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a .pth, .pt, .th or .safetensors file onto the CPU: tensors by torchvision's names.

    A checkpoint that holds exactly one dict of tensors beside other things is unwrapped; the
    marks of DataParallel (`module.`) and `torch.compile` (`_orig_mod.`) are taken off.
    Raises ArtefactError for any other content, EnvironmentFault where there is no file.
    """
    if path.is_dir():
        raise EnvironmentFault(f"{path}: a folder", "name the .pth or .safetensors file in it")
    if not path.is_file():
        raise EnvironmentFault(f"{path}: no such file", "fetch it with `resnets fetch`")
    weights: dict[str, Tensor] = {}
    for key, tensor in _weights_in(_read(path), path).items():
        name = ".".join(part for part in key.split(".") if part not in ("module", "_orig_mod"))
        name = re.sub("^linear[.]", "fc.", name)  # as the best-known CIFAR weights call the head
        if name in weights:
            raise ArtefactError(f"{path}: holds {name} twice", "save the weights of one network")
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise ArtefactError(f"{path}: {name} is no plain tensor", "save plain float weights")
        weights[name] = tensor.detach()
    return weights


def _read(path: Path) -> object:
    """Read what a weights file holds, running none of it."""
    if path.suffix not in (".pth", ".pt", ".th", ".safetensors"):
        fix = "give a .pth, .pt, .th or .safetensors file"
        raise ArtefactError(f"{path}: not a weights file", fix)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings(action="ignore"):  # long words on what is refused just after
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged file makes the readers raise nearly anything
        code = re.search(r"GLOBAL (\S+)", str(error))
        what = f"holds {code[1]}, not only tensors" if code else "damaged, or no weights file"
        fix = "get it again from its publisher, or save its state_dict alone as .safetensors"
        raise ArtefactError(f"{path}: {what}; nothing of it was run", fix) from error


def _is_weights(value: object) -> TypeGuard[Weights]:
    pairs = value.items() if isinstance(value, Mapping) else []
    return bool(pairs) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in pairs)


def _weights_in(content: object, path: Path) -> Weights:
    """Return the one dict of tensors that a file's content is, or has in it."""
    parts = {"": content, **content} if isinstance(content, Mapping) else {}
    sets = {str(name): part for name, part in parts.items() if _is_weights(part)}
    if len(sets) != 1:
        raise ArtefactError(
            f"{path}: holds {len(sets)} dicts of tensors ({', '.join(sets)}) instead of one",
            "save the state_dict of the network alone",
        )
    return sets.popitem()[1]


def import_weights(model: ResNet, path: Path) -> Report:
    """Load a weights file into a network, and report what became of every key.

    A stem for RGB is summed into one for grey images where the network has that: the same function
    of a grey image as of three equal channels that are normalised alike.
    Raises ArtefactError where the content does not match a published name, was made for another
    network or would load in part, and NumericalError where a number is not finite.
    """
    digest, published = _identify(path)
    given, net = load_weights(path), model.architecture
    made_for = network_of({key: tuple(tensor.shape) for key, tensor in given.items()})
    if made_for not in (None, net.name):
        raise ArtefactError(
            f"{path}: weights of {made_for}, but the network is {net.name}",
            f"set model.name to {made_for}, or take weights of {net.name}",
        )
    stem = given.get("conv1.weight")
    if net.in_channels == 1 and stem is not None and stem.shape[1:2] == (3,):
        given["conv1.weight"] = stem.float().sum(1, keepdim=True)  # (64, 3, k, k) to (64, 1, k, k)
    load_all(model, given, f"{path} into {net.name}", OPTIONS_FIX)
    missing = sorted(model.state_dict().keys() - given.keys())
    keys = {"loaded": sorted(given), "missing": missing, "unexpected": []}
    return Report(keys, digest, published)


def load_all(model: ResNet, given: Weights, what: str, fix: str, *, assign: bool = False) -> None:
    """Load weights into a network; with `assign` they take the place of its own ones.

    Raises ArtefactError unless each key has its place, NumericalError unless all are finite. Files
    from before PyTorch 0.4.1 lack BatchNorm's counters; torch keeps the network's own then.
    """
    infinite = [key for key, tensor in given.items() if not tensor.float().isfinite().all()]
    if infinite:
        words = list_kinds({"not finite": infinite})
        raise NumericalError(f"{what}: {words}", "train again with a lower lr, or take others")
    try:
        missing, unexpected = model.load_state_dict(given, strict=False, assign=assign)
    except RuntimeError as error:  # shapes that differ, in torch's words
        raise ArtefactError(f"{what}: {shorten(str(error), 300)}", fix) from None
    if missing or unexpected:
        words = list_kinds({"missing": missing, "unexpected": unexpected})
        raise ArtefactError(f"{what}: {words}", fix)


def _identify(path: Path) -> tuple[str, str | None]:
    """Return a file's SHA-256 and its published name; refuse a published name's other content."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    published = next((name for name in PUBLISHED if name.endswith(f"-{digest[:8]}.pth")), None)
    if path.name in PUBLISHED and path.name != published:
        raise ArtefactError(
            f"{path}: its name promises the SHA-256 {path.stem[-8:]}…, but it is {digest[:8]}…",
            "fetch it again with `resnets fetch`",
        )
    return digest, published
