"""Quantise an exported model to int8, calibrated on validation images, and measure the loss.

With folds there are none, as the shipped model is trained on all images, which then take their
place: report and card say so.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_static

from resnets.export.classifier import INPUT, open_classifier, read_onnx
from resnets.models.bundle import FullPreprocess
from resnets.models.inference import normalise, run_batches
from resnets.tasks.decode import Images, crop_batch
from resnets.tasks.manifest import SideName
from resnets.tasks.task import Task

CALIBRATION_IMAGES = 256  # more change the ranges little and cost minutes
BATCH = 8
QUANTISED = ["Conv", "Add", "MaxPool"]  # not the head: it costs nothing and decides the class


def calibration_inputs(images: Images, form: FullPreprocess) -> Iterator[dict[str, Any]]:
    """Yield evenly spaced images, in batches, as the graph of a model takes them."""
    rows = range(0, len(images), max(-(-len(images) // CALIBRATION_IMAGES), 1))
    for start in range(0, len(rows), BATCH):
        batch = torch.from_numpy(crop_batch(images, rows[start : start + BATCH], form.crop))
        planes = batch.permute(0, 3, 1, 2).contiguous()
        yield {INPUT: normalise(planes, form.mean, form.std).numpy()}


def quantize_int8(exact: Path, small: Path, images: Images) -> None:
    """Write a statically quantised copy: int8 weights per channel, uint8 activations."""
    model, meta = read_onnx(exact)
    props, inputs = list(model.metadata_props), calibration_inputs(images, meta.preprocess)
    # what this flag promises (batch norms folded) the exporter has done; without it, a warning
    model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    quantize_static(
        model,
        str(small),
        SimpleNamespace(get_next=partial(next, inputs, None)),  # the next batch, None at the end
        per_channel=True,
        activation_type=QuantType.QUInt8,
        op_types_to_quantize=QUANTISED,
    )
    quantised = onnx.load_model(small)
    del quantised.metadata_props[:]
    quantised.metadata_props.extend(props)
    small.write_bytes(quantised.SerializeToString(deterministic=True))


def deciding_side(task: Task) -> SideName:
    """Return the side whose images calibrate, and decide if int8 is the default."""
    return "val" if len(task.rows("val")) else "test"


def compare_int8(exact: Path, small: Path, task: Task, *, max_drop: float) -> dict[str, Any]:
    """Compare the int8 file with the exact one; the deciding side says if it may be the default."""
    report: dict[str, Any] = {}
    models = [open_classifier(path, engine="onnxruntime") for path in (exact, small)]
    crop = models[0].meta.preprocess.crop
    for name in dict.fromkeys((deciding_side(task), "test")):
        side = task.side(name)
        exact_classes, int8_classes = (
            run_batches(model.forward, side.images, crop=crop, batch_size=BATCH).argmax(axis=1)
            for model in models
        )
        scores = {
            "accuracy": int8_classes == side.labels,
            "fp32_accuracy": exact_classes == side.labels,
            "agreement": int8_classes == exact_classes,
        }
        report[name] = {key: round(float(right.mean()), 6) for key, right in scores.items()}
    deciding = report[deciding_side(task)]
    drop = round(deciding["fp32_accuracy"] - deciding["accuracy"], 6)
    sizes = {"bytes": small.stat().st_size, "fp32_bytes": exact.stat().st_size}
    return report | sizes | {"drop": drop, "is_default": drop <= max_drop}
