"""Give a training run its first weights: random ones, a bundle's, or an imported file's."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from resnets.models.bundle import BundleMeta, FullPreprocess, load_bundle
from resnets.models.resnet import ResNet, build_model
from resnets.models.weights import Report, import_weights, load_weights
from resnets.params.architecture import ALIKE, IMAGENET, PUBLISHED
from resnets.params.schema import Model
from resnets.system.errors import ArtefactError

ONLY_AT_THE_START = ("init", "zero_init_residual")  # options that change first weights alone


def initial_model(
    network: Model, init: str, file: Path, classes: list[str], seed: int
) -> tuple[ResNet, str]:
    """Build a network and fill it; return it and the hash of the weights that it starts from.

    `init` "random" draws them, else the bundle `file` gives them, but for the head where that
    tells other classes apart. Raises ArtefactError where the bundle's network is another one.
    """
    torch.manual_seed(seed)
    model = build_model(**network.model_dump(), num_classes=len(classes))
    if init == "random":
        return model, "random"
    bundle = load_bundle(file)
    _check_network(bundle.meta.architecture, network.model_dump(), file)
    weights = bundle.model.state_dict()
    if bundle.meta.classes != classes:
        weights |= {k: v for k, v in model.state_dict().items() if k.startswith("fc.")}
    model.load_state_dict(weights)
    return model, bundle.sha256


def _check_network(given: dict[str, Any], wanted: dict[str, Any], file: Path) -> None:
    """Raise ArtefactError where a bundle records another network than is wanted of it."""
    differing = [
        f"{key} is {given[key]}, not {value}"
        for key, value in wanted.items()
        if key not in ONLY_AT_THE_START and given.get(key, value) != value
    ]
    if differing:
        raise ArtefactError(
            f"{file} is another network: {', '.join(differing)}",
            "let model in params.yaml describe the network that the weights are of",
        )


def recorded(file: Path) -> BundleMeta | None:
    """Return what a bundle of an own run says of itself; None for weights alone."""
    with suppress(ArtefactError):
        return load_bundle(file).meta
    return None


def look_alikes(network: Model) -> dict[str, Model]:
    """Return the networks whose weights have the same names and shapes, by what differs."""
    networks, options = {}, network.model_dump()
    for key, values in ALIKE.items():
        for value in values if options[key] in values else ():
            with suppress(ValueError):  # options that contradict each other are no network
                networks[f"model.{key}: {value}"] = Model(**{**options, key: value})
    return {change: other for change, other in networks.items() if other != network}


def import_backbone(
    source: Path, network: Model, preprocess: FullPreprocess
) -> tuple[ResNet, BundleMeta, Report]:
    """Fill the network with the weights of a file: published ones, an own run's, or others.

    A stem for RGB serves grey images too, summed over its channels. The bundle notes the
    preprocessing that a published file or a bundle was trained with, else that of params.yaml.
    Raises ArtefactError for a file of another network or one that fits in part.
    """
    head = load_weights(source).get("fc.weight")
    if head is None or head.ndim != 2 or len(head) < 2:
        what = f"{source}: has no head (fc.weight) of two classes or more"
        raise ArtefactError(what, "give the weights of a classifier")
    own = recorded(source)
    if own:
        _check_network(own.architecture, network.model_dump(exclude={"in_channels"}), source)
    torch.manual_seed(0)
    model = build_model(**network.model_dump(), num_classes=len(head))
    report = import_weights(model, source)
    if report.published:
        channels, (_, resize, crop) = network.in_channels, PUBLISHED[report.published]
        size = {"resize": resize, "fit": "shorter_side", "crop": crop, "channels": channels}
        mean, std = IMAGENET[channels]
        preprocess = FullPreprocess.model_validate({**size, "mean": mean, "std": std})
    elif own and own.preprocess.channels == network.in_channels:
        preprocess = own.preprocess
    meta = BundleMeta(
        architecture={**network.model_dump(), "num_classes": len(head)},
        classes=[f"class {index}" for index in range(len(head))],
        preprocess=preprocess,
        training={"variant": "backbone", "imported": report.published or source.name},
        hashes={"initial_weights": report.sha256},
    )
    return model, meta, report
