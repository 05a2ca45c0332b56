"""Turn a trained model into what the next stages read: a bundle and a history."""

import json
import sys
from pathlib import Path
from statistics import geometric_mean
from typing import Any, Literal

from resnets.models.bundle import (
    SHIPPED,
    UNSCORED,
    BundleMeta,
    FullPreprocess,
    load_bundle,
    save_bundle,
)
from resnets.models.calibration import fit_temperature
from resnets.params.schema import NO_BACKBONE, Data, Model
from resnets.params.section import Preprocess
from resnets.system.files import write_json
from resnets.system.runtime import process_number
from resnets.tasks.manifest import digest
from resnets.tasks.task import Task
from resnets.training.features import run_over
from resnets.training.parts import Part
from resnets.training.start import import_backbone, look_alikes, recorded
from resnets.training.trainer import Trained

TORCHVISION = {"stem": "imagenet", "stride_on": "conv3x3"}  # of all networks that it published


def full_preprocess(data: Data, preprocess: Preprocess, channels: Literal[1, 3]) -> FullPreprocess:
    """Join what `prepare` and evaluation do to an image: all that `predict` must repeat."""
    decoding = {key: getattr(data, key) for key in ("resize", "fit", "scaled_decoding")}
    return FullPreprocess(channels=channels, **decoding, **preprocess.model_dump())


def origin(task: Task, identity: dict[str, Any]) -> dict[str, str]:
    """Return the hashes of all that a trained bundle comes from; equal ones, equal bundles."""
    named = {key: identity[key] for key in ("initial_weights", "code")}
    return task.hashes() | named | {"training": digest(json.dumps(identity).encode())}


def publish_bundle(
    out: Path,
    trained: Trained,
    part: Part,
    network: Model,
    preprocess: FullPreprocess,
    about: dict[str, Any],
) -> None:
    """Write the bundle of a trained model, with the temperature that fits its validation logits.

    `about` is what it shall tell of its training beside the summary. The logits are computed in
    fp32 on the CPU or GPU that trained, as `evaluate` does. A model of all images has no validation
    side, and takes the geometric mean of the temperatures of its folds' bundles. Only process 0
    does anything.
    """
    if process_number():
        return
    if part.folds:
        bundles = [load_bundle(out / fold) for fold in part.folds]
        temperature = geometric_mean(bundle.meta.temperature for bundle in bundles)
    else:
        val, machine = part.task.side("val"), {**trained.machine, "runtime.precision": "fp32"}
        logits = run_over(val.images, trained.model, preprocess, machine).numpy()
        temperature = fit_temperature(logits, val.labels)
    meta = BundleMeta(
        architecture={**network.model_dump(), "num_classes": len(part.task.classes)},
        classes=part.task.classes,
        preprocess=preprocess,
        temperature=round(temperature, 4),
        training=about | {"seed": part.seed} | part.place | trained.summary,
        hashes=origin(part.task, trained.identity),
        history=trained.history,
    )
    save_bundle(out / part.file, trained.model, meta)


def publish_given(source: Path, out: Path, network: Model, preprocess: FullPreprocess) -> None:
    """Write the bundle of a weights file, and how many keys fitted; or that there is none."""
    if str(source) == NO_BACKBONE:
        write_json(out / UNSCORED, {"backbone": "none"})
        return
    model, meta, report = import_backbone(source, network, preprocess)
    save_bundle(out / SHIPPED, model, meta)
    counts = {kind: len(keys) for kind, keys in report.keys.items()}
    imported = {"weights": report.sha256, "published_as": report.published or "unknown"}
    write_json(out / UNSCORED, {"imported": counts, "measured_on": imported})
    print(f"{source.name}: {report}")
    if report.published:
        given = _settings(network, preprocess)
        usual = _settings(network.model_copy(update=TORCHVISION), meta.preprocess)
        words = [f"{k} is {v}, not {usual[k]}" for k, v in given.items() if v != usual[k]]
        doubt = f"was trained with other values than params.yaml has: {'; '.join(words)}"
    else:
        words = [] if recorded(source) else list(look_alikes(network))  # a bundle names its own
        check = f"score it on labelled images: resnets import-check {source} --data FOLDER"
        doubt = f"would fit a network with {', '.join(words)} as well; {check}"
    if words:
        print(f"warning: {source.name} {doubt}", file=sys.stderr)


def _settings(network: Model, preprocess: FullPreprocess) -> dict[str, Any]:
    """Return what a weights file does not tell, by its key in params.yaml."""
    return {
        **{f"model.{key}": getattr(network, key) for key in TORCHVISION},
        **{f"data.{key}": getattr(preprocess, key) for key in ("resize", "fit")},
        **{f"preprocess.{key}": getattr(preprocess, key) for key in ("crop", "mean", "std")},
    }
