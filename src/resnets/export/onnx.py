"""Export a bundle as ONNX, and prove that the file computes what the bundle computes."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from resnets.evaluation.evaluate import evaluate
from resnets.export.card import model_card
from resnets.export.classifier import INPUT, open_classifier
from resnets.export.int8 import compare_int8, quantize_int8
from resnets.models.bundle import KEY, Bundle, BundleMeta, FullPreprocess, check_origin, load_bundle
from resnets.models.calibration import log_softmax
from resnets.models.inference import Floats, infer, normalise, run_batches
from resnets.params.schema import Export
from resnets.system.errors import ArtefactError
from resnets.system.files import write_bytes, write_json, write_text
from resnets.tasks.decode import Images
from resnets.tasks.task import Task

OPSET = 20
BATCH_SIZES = (1, 2, 7)  # parity is checked at each of them
REFERENCE_BATCH = 64


class Exported(nn.Module):
    """Wrap a model so that its graph names what it computes on the way to its result."""

    def __init__(self, bundle: Bundle, *, preprocess_inside: bool) -> None:
        super().__init__()
        self.model = bundle.model
        self.meta = bundle.meta
        self.inside = preprocess_inside

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map images to logits, or uint8 (N, H, W, C) to probabilities; inner values come after."""
        if self.inside:
            planes = images.permute(0, 3, 1, 2).contiguous()  # (N, C, H, W)
            images = normalise(planes, self.meta.preprocess.mean, self.meta.preprocess.std)
        feature_map = self.model.feature_map(images)  # (N, F, h, w)
        features = feature_map.mean((2, 3))  # (N, F)
        logits = self.model.fc(features)  # type: ignore[misc]  # (N, K); a bundle has a head
        if self.inside:
            probabilities = torch.softmax(logits / self.meta.temperature, 1)
            return probabilities, logits, features, feature_map
        return logits, features, feature_map


def export_bundle(
    path: Path, out: Path, *, task: Task, options: Export, row: Mapping[str, Any]
) -> dict[str, Any]:
    """Write model.onnx, class_indices.json, model_card.md and, if asked for, model_int8.onnx.

    `row` is the model's in the leaderboard; the card quotes it. Returns the numbers for
    metrics/export.json. Raises ArtefactError, with nothing written, where the ONNX file does not
    compute what the bundle computes.
    """
    bundle = load_bundle(path)
    check_origin(bundle.meta, task.hashes(), path)
    test = task.side("test")
    logits = _logits(bundle, test.images)
    with TemporaryDirectory() as folder:
        exact, small = Path(folder) / "model.onnx", Path(folder) / "model_int8.onnx"
        model = to_onnx(bundle, preprocess_inside=options.preprocess_inside)
        exact.write_bytes(model.SerializeToString(deterministic=True))
        report = check_parity(exact, bundle, test.images, logits, tolerance=options.tolerance)
        report |= {"bytes": exact.stat().st_size, "bundle_bytes": path.stat().st_size}
        if options.quantize == "int8":
            quantize_int8(exact, small, task.side("val").images)
            report["int8"] = compare_int8(exact, small, task, max_drop=options.max_drop)
            if not report["int8"]["is_default"]:
                small.unlink()
        for file in (exact, small):
            if file.exists():
                write_bytes(out / file.name, file.read_bytes())
            else:  # an earlier export's would be of another model
                (out / file.name).unlink(missing_ok=True)
    scores = evaluate(logits, test.labels, task.classes, temperature=bundle.meta.temperature)
    write_json(out / "class_indices.json", {str(k): v for k, v in enumerate(task.classes)})
    write_text(out / "model_card.md", model_card(bundle, task, scores, row, report))
    return report


def _logits(bundle: Bundle, images: Images) -> Floats:
    """Return the bundle's own logits, on the CPU in fp32."""
    return infer(
        bundle.model, images, preprocess=bundle.meta.preprocess, batch_size=REFERENCE_BATCH,
        device="cpu", precision="fp32",
    )  # fmt: skip


def to_onnx(bundle: Bundle, *, preprocess_inside: bool) -> onnx.ModelProto:
    """Translate a bundle's model; the batch is dynamic, the image size is the evaluation crop.

    The graph takes normalised float32 (N, C, crop, crop) and gives logits, or, with
    `preprocess_inside`, takes uint8 (N, crop, crop, C) and gives probabilities. The description of
    the bundle, with the bundle's SHA-256 as `hashes.weights`, stands in one metadata key.
    """
    preprocess = bundle.meta.preprocess
    channels, crop = preprocess.channels, preprocess.crop
    example = torch.zeros(2, channels, crop, crop)
    names = ["logits", "features", "feature_map"]
    if preprocess_inside:
        example, names = example.permute(0, 2, 3, 1).byte(), ["probabilities", *names]
    program = torch.onnx.export(
        Exported(bundle, preprocess_inside=preprocess_inside).eval(),
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=names,
        dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
        verbose=False,
    )
    if program is None:  # never with dynamo=True; its type says so
        raise ArtefactError("torch.onnx.export returned nothing", "check the version of torch")
    model: onnx.ModelProto = program.model_proto
    graph = model.graph
    del graph.output[1:]  # the inner values keep their names; `open_classifier` can ask for them
    del graph.value_info[:]
    for part in (graph, *graph.node, *graph.input, *graph.output):
        part.ClearField("metadata_props")  # stack traces: they hold paths of this machine
    model.metadata_props.add(key=KEY, value=describe(bundle).to_json())
    onnx.checker.check_model(model, full_check=True)
    return model


def describe(bundle: Bundle) -> BundleMeta:
    """Return what an ONNX file says about itself: the bundle's description and its hash."""
    hashes = {**bundle.meta.hashes, "weights": bundle.sha256}
    return bundle.meta.model_copy(update={"hashes": hashes})


def extremes(preprocess: FullPreprocess) -> list[NDArray[np.uint8]]:
    """Return what no photo shows: all black, all white, and noise; a whole batch of them."""
    shape = (preprocess.crop, preprocess.crop, preprocess.channels)
    noise = np.random.default_rng(0).integers(0, 256, (max(BATCH_SIZES) - 2, *shape), np.uint8)
    return [np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8), *noise]


def check_parity(
    path: Path, bundle: Bundle, images: Images, logits: Floats, *, tolerance: float
) -> dict[str, Any]:
    """Compare an ONNX file with the bundle on images and on extremes, at several batch sizes.

    `logits` (N, K) are the bundle's for the images. A value may differ by `tolerance`, times the
    largest value of its image where that is above 1. The class may differ where the first and the
    second are so close that this can turn them. Returns the largest differences. Raises
    ArtefactError beyond the tolerance.
    """
    classifier = open_classifier(path)
    if classifier.meta != describe(bundle):
        raise ArtefactError(f"{path.name}: describes another model", "export again")
    report: dict[str, Any] = {
        "images": len(images), "batch_sizes": " ".join(map(str, BATCH_SIZES)),
        "output": classifier.output, "tolerance": tolerance, "max_abs_diff": 0.0,
        "max_rel_diff": 0.0, "top1_mismatches": 0, "ties": 0,
    }  # fmt: skip
    preprocess = bundle.meta.preprocess
    rare = extremes(preprocess)
    for inputs, wanted in ((images, logits), (rare, _logits(bundle, rare))):
        if classifier.output == "probabilities":
            wanted = np.exp(log_softmax(wanted / bundle.meta.temperature)).astype(np.float32)
        for size in BATCH_SIZES:
            crop = preprocess.crop
            found = run_batches(classifier.forward, inputs, crop=crop, batch_size=size)
            _compare(report, wanted, found)
    if report["max_rel_diff"] > tolerance or report["top1_mismatches"]:
        raise ArtefactError(
            f"{path.name}: differs from the bundle by {report['max_abs_diff']:.2g} "
            f"(relative {report['max_rel_diff']:.2g}, tolerance {tolerance:g}), with "
            f"{report['top1_mismatches']} other classes",
            "export again; if it stays, the ONNX Runtime or the exporter is at fault, so try "
            "other versions before raising export.tolerance",
        )
    for key in ("max_abs_diff", "max_rel_diff"):
        report[key] = float(f"{report[key]:.2g}")  # the last digits differ between machines
    return report


def _compare(report: dict[str, Any], wanted: Floats, found: Floats) -> None:
    """Add the differences of some outputs (N, K) to a report."""
    scale = np.maximum(np.abs(wanted).max(axis=1), 1)
    difference = np.abs(found - wanted).max(axis=1)
    second, first = np.sort(wanted, axis=1)[:, -2:].T
    is_close = first - second <= 2 * report["tolerance"] * scale
    is_other = found.argmax(axis=1) != wanted.argmax(axis=1)
    report["max_abs_diff"] = max(report["max_abs_diff"], float(difference.max()))
    report["max_rel_diff"] = max(report["max_rel_diff"], float((difference / scale).max()))
    report["top1_mismatches"] += int((is_other & ~is_close).sum())
    report["ties"] += int((is_other & is_close).sum())
