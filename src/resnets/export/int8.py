"""Quantise an exported model to int8, calibrated on validation images, and measure the loss.

With folds there are none, as the shipped model is trained on all images, which then take their
place: report and card say so.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from resnets.export.classifier import INPUT, Classifier, open_classifier
from resnets.models.bundle import FullPreprocess
from resnets.models.inference import Float32s, run_batches
from resnets.tasks.decode import Crops, Images, crop_batch
from resnets.tasks.manifest import SideName
from resnets.tasks.task import Task

CALIBRATION_IMAGES = 256  # more change the ranges little and cost minutes
BATCH = 8
QUANTISED = ["Conv", "Add", "MaxPool"]  # not the head: it costs nothing and decides the class


class Calibration(CalibrationDataReader):  # type: ignore[misc]  # has no types
    """Feed evenly spaced images to the calibration, in batches."""

    def __init__(self, images: Images, model: Classifier) -> None:
        preprocess = model.meta.preprocess
        rows = range(0, len(images), max(-(-len(images) // CALIBRATION_IMAGES), 1))
        batches = (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))
        crops = (crop_batch(images, batch, preprocess.crop) for batch in batches)
        inside = model.output == "probabilities"
        self.inputs = ({INPUT: c if inside else normalise_on_host(c, preprocess)} for c in crops)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch, None after the last."""
        return next(self.inputs, None)


def quantize_int8(exact: Path, small: Path, images: Images) -> None:
    """Write a statically quantised copy: int8 weights per channel, uint8 activations."""
    model = onnx.load_model(exact)
    props = list(model.metadata_props)
    calibration = Calibration(images, open_classifier(exact, engine="onnxruntime"))
    # what this flag promises (batch norms folded) the exporter has done; without it, a warning
    model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    quantize_static(
        model,
        str(small),
        calibration,
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


def normalise_on_host(crops: Crops, preprocess: FullPreprocess) -> Float32s:
    """Do with numpy what `normalise` does with torch, to the bit; returns (N, C, crop, crop)."""
    batch = np.ascontiguousarray(crops.transpose(0, 3, 1, 2)).astype(np.float32)
    center, scale = np.array([preprocess.mean, preprocess.std], np.float32)[..., None, None]
    batch /= np.float32(255)
    batch -= center
    batch /= scale
    return batch
