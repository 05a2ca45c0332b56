"""Export a bundle as ONNX, and prove that the file computes what the bundle computes."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from resnets.evaluation.evaluate import Evaluation
from resnets.export.card import model_card
from resnets.export.classifier import INPUT, open_classifier
from resnets.export.int8 import compare_int8, deciding_side, quantize_int8
from resnets.export.web import write_page
from resnets.models.bundle import KEY, Bundle, BundleMeta, FullPreprocess, check_origin, load_bundle
from resnets.models.inference import Float32s, Output, infer, run_batches
from resnets.models.resnet import ResNet
from resnets.params.schema import Export
from resnets.system.errors import ArtefactError
from resnets.system.files import write_bytes, write_json, write_text
from resnets.tasks.decode import Images
from resnets.tasks.task import Task

OPSET = 20
BATCH_SIZES = (1, 2, 7)  # parity is checked at each of them


class Exported(nn.Module):
    """Wrap a model so that its graph names what it computes on the way to its result."""

    def __init__(self, model: ResNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return what `Output` names, in its order."""
        feature_map = self.model.feature_map(images)  # (N, F, h, w)
        features = feature_map.mean((2, 3))  # (N, F)
        logits = self.model.fc(features)  # type: ignore[misc]  # (N, K); a bundle has a head
        return logits, features, feature_map


def export_bundle(
    path: Path,
    out: Path,
    *,
    task: Task,
    options: Export,
    row: Mapping[str, Any],
    scores: Evaluation,
) -> dict[str, Any]:
    """Write model.onnx, what describes it, a page that runs it and, if asked for, model_int8.onnx.

    The card quotes `row`, the model's in the leaderboard, and `scores`, those of the test. Returns
    the numbers for metrics/export.json. Raises ArtefactError, with nothing written, where the ONNX
    file does not compute what the bundle computes.
    """
    bundle = load_bundle(path)
    check_origin(bundle.meta, task.pooled().hashes(), path)
    test = task.side("test")
    logits = infer(bundle.model, test.images, preprocess=bundle.meta.preprocess)
    with TemporaryDirectory() as folder:
        exact, small = Path(folder, "model.onnx"), Path(folder, "model_int8.onnx")
        model = to_onnx(bundle)
        exact.write_bytes(model.SerializeToString(deterministic=True))
        report = check_parity(exact, bundle, test.images, logits, tolerance=options.tolerance)
        report["checked_on"] = "training images" if task.num_folds else "test images"
        report |= {"bytes": exact.stat().st_size, "bundle_bytes": path.stat().st_size}
        (out / small.name).unlink(missing_ok=True)  # an earlier export's, of another model
        if options.quantize == "int8":
            quantize_int8(exact, small, task.side(deciding_side(task)).images)
            report["int8"] = compare_int8(exact, small, task, max_drop=options.max_drop)
            if report["int8"]["is_default"]:
                write_bytes(out / small.name, small.read_bytes())
        write_bytes(out / exact.name, exact.read_bytes())
    write_page(out / "demo", model, describe(bundle))
    write_json(out / "class_indices.json", {str(k): v for k, v in enumerate(task.classes)})
    write_text(out / "model_card.md", model_card(bundle, task, scores, row, report))
    return report


def to_onnx(bundle: Bundle) -> onnx.ModelProto:
    """Translate a bundle's model; the batch is dynamic, the image size is the evaluation crop.

    The graph takes normalised float32 (N, C, crop, crop) and gives logits. The description of the
    bundle, with the bundle's SHA-256 as `hashes.weights`, stands in one metadata key.
    """
    form = bundle.meta.preprocess
    example = torch.zeros(2, form.channels, form.crop, form.crop)
    program = torch.onnx.export(
        Exported(bundle.model).eval(),
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=list(get_args(Output)),
        dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
        verbose=False,
    )
    assert program is not None  # with dynamo=True
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
    return bundle.meta.model_copy(update={"hashes": hashes, "history": []})


def extremes(preprocess: FullPreprocess) -> list[NDArray[np.uint8]]:
    """Return what no photo shows: all black, all white, and noise; a whole batch of them."""
    shape = (preprocess.crop, preprocess.crop, preprocess.channels)
    noise = np.random.default_rng(0).integers(0, 256, (max(BATCH_SIZES) - 2, *shape), np.uint8)
    return [np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8), *noise]


def check_parity(
    path: Path, bundle: Bundle, images: Images, logits: Float32s, *, tolerance: float
) -> dict[str, Any]:
    """Compare an ONNX file with the bundle on images and on extremes, at several batch sizes.

    `logits` (N, K) are the bundle's for the images. A value may differ by `tolerance`, times the
    largest value of its image where that is above 1; that can turn the class of a near tie, and
    of no other image. Returns the largest differences. Raises ArtefactError beyond the tolerance.
    """
    classifier = open_classifier(path, engine="onnxruntime")
    preprocess = bundle.meta.preprocess
    if classifier.meta != describe(bundle):
        raise ArtefactError(f"{path.name}: describes another model", "export again")
    rare = extremes(preprocess)
    inputs = [*(images[row] for row in range(len(images))), *rare]
    wanted = np.concatenate([logits, infer(bundle.model, rare, preprocess=preprocess)])
    run = partial(run_batches, classifier.forward, inputs, crop=preprocess.crop)
    exported = np.stack([run(batch_size=size) for size in BATCH_SIZES])  # (sizes, N, K)
    difference = np.abs(exported - wanted).max(axis=2)
    absolute = float(difference.max())
    relative = float((difference / np.maximum(np.abs(wanted).max(axis=1), 1)).max())
    num_turned = int((exported.argmax(axis=2) != wanted.argmax(axis=1)).any(axis=0).sum())
    if relative > tolerance:
        raise ArtefactError(
            f"{path.name}: differs from the bundle by {absolute:.2g} (relative {relative:.2g}, "
            f"tolerance {tolerance:g}), with {num_turned} other classes",
            "export again; if it stays, the ONNX Runtime or the exporter is at fault, so try "
            "other versions before raising export.tolerance",
        )
    return {
        "images": len(images),
        "batch_sizes": " ".join(map(str, BATCH_SIZES)),
        "output": classifier.output,
        "tolerance": tolerance,
        "max_abs_diff": float(f"{absolute:.2g}"),  # the last digits differ between machines
        "max_rel_diff": float(f"{relative:.2g}"),
        "top1_mismatches": num_turned,
    }
