"""Read weights made elsewhere and load them into a network, all of them or with words why not.

Pickled files go through `torch.load(weights_only=True)` and nothing else: it builds tensors and
runs no code. A refused file leaves the network as it was.
"""

import hashlib
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

import safetensors.torch
import torch
from torch import Tensor

from resnets.models.resnet import ResNet
from resnets.params.architecture import PUBLISHED, network_of
from resnets.system.errors import ArtefactError, EnvironmentFault, NumericalError

HEAD = "fc."
COUNTER = "num_batches_tracked"  # BatchNorm has it since PyTorch 0.4.1; it changes no output


@dataclass(frozen=True)
class Report:
    """Say what became of every key of the file and of the network, and what the file is."""

    loaded: list[str]
    skipped: list[str]  # the file's head, where a new one was asked for
    missing: list[str]  # not in the file, or skipped: these keep the values they were drawn with
    unexpected: list[str]  # in the file only
    mismatched: list[str]  # in both, with another shape or kind of number
    sha256: str
    published: str | None  # the published name of this content, whatever the file is called now

    def __str__(self) -> str:
        keys = ("loaded", "skipped", "missing", "unexpected", "mismatched")
        return "; ".join(_count(key, getattr(self, key)) for key in keys)


def _count(what: str, keys: Sequence[str]) -> str:
    """Write how many keys there are, and the first five of them."""
    names = f" ({', '.join(keys[:5])}{', …' if len(keys) > 5 else ''})" if keys else ""
    return f"{len(keys)} {what}{names}"


def published_preprocess(name: str, channels: Literal[1, 3] = 3) -> dict[str, Any]:
    """Return the evaluation preprocessing of a published file, for three channels or for one.

    One channel, for a stem summed over RGB, has the means of the three channels' numbers.
    """
    shape = {"resize": PUBLISHED[name], "fit": "shorter_side", "crop": 224, "channels": channels}
    if channels == 1:
        return {**shape, "mean": [0.449], "std": [0.226]}
    return {**shape, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a .pth, .pt, .th or .safetensors file onto the CPU: tensors by torchvision's names.

    A checkpoint that holds exactly one dict of tensors beside other things is unwrapped; the
    marks of DataParallel (`module.`) and `torch.compile` (`_orig_mod.`) are taken off.
    Raises ArtefactError for any other content, EnvironmentFault where there is no file.
    """
    if not path.is_file():
        raise EnvironmentFault(f"{path}: no such file", "fetch it with `resnets fetch`")
    found = _weights_in(_read(path), path)
    weights: dict[str, Tensor] = {}
    for key, tensor in found.items():
        name = ".".join(part for part in key.split(".") if part not in ("module", "_orig_mod"))
        name = re.sub("^linear[.]", HEAD, name)  # as the best-known CIFAR weights call the head
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


def _is_weights(value: object) -> TypeGuard[Mapping[str, Tensor]]:
    """Say whether a value is a dict of named tensors."""
    pairs = value.items() if isinstance(value, Mapping) else []
    return bool(pairs) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in pairs)


def _weights_in(content: object, path: Path) -> Mapping[str, Tensor]:
    """Return the one dict of tensors in a file's content."""
    if _is_weights(content):
        return content
    pairs = content.items() if isinstance(content, Mapping) else []
    found = {str(key): value for key, value in pairs if _is_weights(value)}
    if len(found) != 1:
        raise ArtefactError(
            f"{path}: holds {len(found)} dicts of tensors ({', '.join(found)}) instead of one",
            "save the state_dict of the network alone",
        )
    return found.popitem()[1]


def import_weights(
    model: ResNet, path: Path, *, new_head: bool = False, adapt_stem: bool = False
) -> Report:
    """Load a weights file into a network, and report what became of every key.

    new_head: keep the network's own, newly drawn head and skip the file's.
    adapt_stem: sum a stem for RGB into one for grey images: the same function of a grey image as
    of three equal channels that are normalised alike.
    Raises ArtefactError, and leaves the network as it was, where the content does not match a
    published name, was made for another network or would load in part; NumericalError where a
    number is not finite.
    """
    digest, published = _identify(path)
    weights, net = load_weights(path), model.architecture
    _refuse_other_network(weights, path, net.name)
    skipped = {key for key in weights if new_head and key.startswith(HEAD)}
    given = {key: tensor for key, tensor in weights.items() if key not in skipped}
    stem = given.get("conv1.weight")
    if adapt_stem and net.in_channels == 1 and stem is not None and stem.shape[1:2] == (3,):
        given["conv1.weight"] = stem.float().sum(1, keepdim=True)  # (64, 3, k, k) to (64, 1, k, k)
    own = model.state_dict()
    shared = own.keys() & given.keys()
    fitting = {key for key in shared if _kind(given[key]) == _kind(own[key])}
    report = Report(
        loaded=sorted(fitting),
        skipped=sorted(skipped),
        missing=sorted(own.keys() - given.keys()),
        unexpected=sorted(given.keys() - own.keys()),
        mismatched=sorted(shared - fitting),
        sha256=digest,
        published=published,
    )
    _refuse_partial(report, given, f"{path} into {net.name}", new_head=new_head)
    model.load_state_dict(given, strict=False)  # _refuse_partial was stricter
    return report


def _kind(tensor: Tensor) -> tuple[torch.Size, bool]:
    """Return what must agree for one tensor to take the place of another."""
    return tensor.shape, tensor.is_floating_point()


def _identify(path: Path) -> tuple[str, str | None]:
    """Return a file's SHA-256 and its published name; refuse a published name's other content."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    by_prefix = {name.rpartition("-")[2][:8]: name for name in PUBLISHED}
    if path.name in PUBLISHED and by_prefix.get(digest[:8]) != path.name:
        raise ArtefactError(
            f"{path}: its name promises the SHA-256 {path.stem[-8:]}…, but it is {digest[:8]}…",
            "fetch it again with `resnets fetch`",
        )
    return digest, by_prefix.get(digest[:8])


def _refuse_other_network(weights: Mapping[str, Tensor], path: Path, name: str) -> None:
    """Raise where weights are of another network of the family than the one of this name."""
    made_for = network_of({key: tuple(tensor.shape) for key, tensor in weights.items()})
    if made_for not in (None, name):
        raise ArtefactError(
            f"{path}: weights of {made_for}, but the network is {name}",
            f"set model.name to {made_for}, or take weights of {name}",
        )


def _refuse_partial(
    report: Report, given: Mapping[str, Tensor], what: str, *, new_head: bool
) -> None:
    """Raise unless every key has its place, but for a new head and an old file's counters."""
    is_old = not any(key.endswith(COUNTER) for key in given)
    missing = [
        key
        for key in report.missing
        if not (new_head and key.startswith(HEAD)) and not (is_old and key.endswith(COUNTER))
    ]
    faults = {"missing": missing, "unexpected": report.unexpected, "mismatched": report.mismatched}
    keys = [key for found in faults.values() for key in found]
    if keys:
        fix = "build the network with the options that the weights were made with"
        if all(key.startswith(HEAD) for key in keys):
            fix = "ask for a new head, or set num_classes to the number that the weights have"
        elif keys == ["conv1.weight"]:
            fix = "set model.in_channels and model.stem as the weights have them, or adapt the stem"
        words = ", ".join(_count(kind, found) for kind, found in faults.items())
        raise ArtefactError(f"{what}: nothing was loaded: {words}", fix)
    infinite = [key for key, tensor in given.items() if not tensor.float().isfinite().all()]
    if infinite:
        raise NumericalError(f"{what}: {_count('not finite', infinite)}", "take another checkpoint")
