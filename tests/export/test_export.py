"""Test the export: the file alone computes what the bundle computes, and says all about itself."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image
from torchvision import transforms

from resnets.evaluation.evaluate import Evaluation, evaluate
from resnets.export.classifier import OPERATORS, open_classifier
from resnets.export.int8 import compare_int8
from resnets.export.onnx import BATCH_SIZES, check_parity, export_bundle, to_onnx
from resnets.models.bundle import KEY, Bundle, BundleMeta, load_bundle
from resnets.models.inference import infer
from resnets.params.architecture import Shortcut, Stem
from resnets.params.schema import Export
from resnets.system.errors import ArtefactError
from tests.bundles import CLASSES, PREPROCESS, Trained, make_model, make_trained

ONE = {"seeds": 1, "folds": 0, "images": 18}
ROW = ONE | {"seeds": 3, "seeds_mean": 0.9, "seeds_std": 0.01}


def options(**changes: Any) -> Export:
    values = {"variant": "best", "tolerance": 1e-4, "max_drop": 0.5, "quantize": "none"}
    return Export(**(values | changes))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return make_trained(tmp_path_factory.mktemp("trained"))


def export(trained: Trained, out: Path, row: Any = ROW, **changes: Any) -> dict[str, Any]:
    task, scores = trained.task, scores_of(trained)
    given = {"options": options(**changes), "row": row, "scores": scores}
    return export_bundle(trained.bundle, out, task=task, **given)


def normalised(crops: NDArray[np.uint8], preprocess: Any) -> NDArray[np.float32]:
    """Do with numpy what `normalise` does with torch; returns (N, C, crop, crop)."""
    batch = np.ascontiguousarray(crops.transpose(0, 3, 1, 2)).astype(np.float32)
    center, scale = np.array([preprocess.mean, preprocess.std], np.float32)[..., None, None]
    return (batch / np.float32(255) - center) / scale


@pytest.fixture(scope="module")
def plain(trained: Trained) -> tuple[Path, dict[str, Any]]:
    """Export normalised floats to logits, with int8."""
    out = trained.bundle.parent / "plain"
    return out, export(trained, out, quantize="int8")


def scores_of(trained: Trained) -> Evaluation:
    labels, meta = trained.task.side("test").labels, load_bundle(trained.bundle).meta
    return evaluate(logits_of(trained), labels, CLASSES, temperature=meta.temperature)


def logits_of(trained: Trained) -> NDArray[np.float32]:
    model, images = load_bundle(trained.bundle).model, trained.task.side("test").images
    return infer(model, images, preprocess=PREPROCESS)


def test_onnx_runtime_computes_what_torch_computes_after_torchvisions_transforms(
    trained: Trained, plain: tuple[Path, dict[str, Any]]
) -> None:
    bundle = load_bundle(trained.bundle)
    crop = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(28)])
    normalise = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(PREPROCESS.mean, PREPROCESS.std)]
    )
    files = sorted(trained.photos.rglob("*.png"))
    batch = torch.stack([normalise(crop(Image.open(file))) for file in files])
    with torch.inference_mode():
        logits = bundle.model(batch)
    floats = onnxruntime.InferenceSession(plain[0] / "model.onnx")
    for size in (1, 2, 7, len(files)):
        [found] = floats.run(None, {"images": batch[:size].numpy()})
        np.testing.assert_allclose(found, logits[:size].numpy(), rtol=1e-4, atol=2e-5)
    assert [o.name for o in floats.get_outputs()] == ["logits"]


def test_every_operator_that_an_export_writes_may_be_opened(
    trained: Trained, plain: tuple[Path, dict[str, Any]]
) -> None:
    models = [onnx.load(file) for file in plain[0].glob("*.onnx")]
    for stem, shortcut in zip(get_args(Stem), cycle(get_args(Shortcut))):
        model, meta = make_model(stem=stem, shortcut=shortcut, conv_bias=stem == "pad2")
        models.append(to_onnx(Bundle(model, meta, "0" * 64)))
    assert {node.op_type for model in models for node in model.graph.node} == OPERATORS
    assert not {node.domain for model in models for node in model.graph.node} - {""}


def test_report_says_what_was_compared(
    trained: Trained, plain: tuple[Path, dict[str, Any]]
) -> None:
    out, report = plain
    assert report["images"] == len(trained.task.side("test").ids)
    assert report["batch_sizes"] == "1 2 7"
    assert report["output"] == "logits"
    assert 0 < report["max_abs_diff"] < 1e-4
    assert report["top1_mismatches"] == 0
    assert report["bytes"] == (out / "model.onnx").stat().st_size
    json.dumps(report, allow_nan=False)


def test_one_file_describes_itself(trained: Trained, plain: tuple[Path, dict[str, Any]]) -> None:
    model = onnx.load(plain[0] / "model.onnx")
    [entry] = model.metadata_props
    meta = BundleMeta.model_validate(json.loads(entry.value))
    bundle = load_bundle(trained.bundle)
    assert entry.key == KEY
    assert meta.classes == CLASSES
    assert meta.preprocess == PREPROCESS
    assert meta.hashes == {**bundle.meta.hashes, "weights": bundle.sha256}
    assert not any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
    assert [o.version for o in model.opset_import] == [20]
    indices = json.loads((plain[0] / "class_indices.json").read_text())
    assert indices == {"0": "daisy", "1": "rose", "2": "tulip|<b>"}


@pytest.mark.slow
def test_bytes_are_the_same_in_another_process_and_name_no_path(
    trained: Trained, plain: tuple[Path, dict[str, Any]]
) -> None:
    again = trained.bundle.parent / "again"
    program = (
        "from tests.export.test_export import *; from resnets.tasks.task import Task; "
        f"task = Task(Path({str(trained.task.folder)!r})); torch.set_num_threads(1); "
        f"again = Trained(Path(), task, Path({str(trained.bundle)!r})); "
        f"export(again, Path({str(again)!r}), quantize='int8')"
    )
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=True)
    files, others = (
        sorted(str(path.relative_to(out)) for path in out.rglob("*.*")) for out in (plain[0], again)
    )
    assert files == others
    assert {"model.onnx", "demo/model.js"} < set(files)
    for name in files:
        content = (plain[0] / name).read_bytes()
        assert content == (again / name).read_bytes(), name
        for word in (str(Path(__file__).parents[2]), sys.prefix, str(trained.photos)):
            assert word.encode() not in content, name


@pytest.mark.parametrize("name", ["model.conv1.weight", "model.fc.bias"])
def test_a_tampered_file_fails(
    trained: Trained, plain: tuple[Path, dict[str, Any]], tmp_path: Path, name: str
) -> None:
    model = onnx.load(plain[0] / "model.onnx")
    [tensor] = [t for t in model.graph.initializer if t.name == name]
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] += 0.1
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(model, tmp_path / "model.onnx")
    bundle, images = load_bundle(trained.bundle), trained.task.side("test").images
    with pytest.raises(ArtefactError, match=r"model\.onnx: differs from the bundle by"):
        check_parity(tmp_path / "model.onnx", bundle, images, logits_of(trained), tolerance=1e-4)


def test_swapped_classes_fail(
    trained: Trained, plain: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    bundle, images = load_bundle(trained.bundle), trained.task.side("test").images
    model = onnx.load(plain[0] / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.name.startswith("model.fc."):
            values = numpy_helper.to_array(tensor)[[1, 0, 2]]
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, tmp_path / "outputs.onnx")
    with pytest.raises(ArtefactError, match=r"with [1-9]\d* other classes"):
        check_parity(tmp_path / "outputs.onnx", bundle, images, logits_of(trained), tolerance=1e-4)
    model = onnx.load(plain[0] / "model.onnx")
    [entry] = model.metadata_props
    values = json.loads(entry.value)
    values["classes"][:2] = ["rose", "daisy"]
    entry.value = json.dumps(values)
    onnx.save(model, tmp_path / "names.onnx")
    with pytest.raises(ArtefactError, match="describes another model"):
        check_parity(tmp_path / "names.onnx", bundle, images, logits_of(trained), tolerance=1e-4)


def test_an_image_whose_class_turns_within_the_tolerance_is_counted_once(
    trained: Trained, plain: tuple[Path, dict[str, Any]]
) -> None:
    bundle, images = load_bundle(trained.bundle), trained.task.side("test").images
    turned = logits_of(trained)
    best, second = np.argsort(-turned[4])[:2]
    turned[4, [best, second]] = turned[4, [second, best]]
    report = check_parity(plain[0] / "model.onnx", bundle, images, turned, tolerance=100)
    assert report["top1_mismatches"] == 1  # at each of three batch sizes
    assert "ties" not in report


def test_nothing_is_written_beyond_the_tolerance(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="tolerance 1e-12"):
        export(trained, tmp_path / "out", tolerance=1e-12)
    assert not list(tmp_path.iterdir())


def test_int8_is_smaller_measured_and_self_describing(
    trained: Trained, plain: tuple[Path, dict[str, Any]]
) -> None:
    out, report = plain
    int8 = report["int8"]
    assert int8["bytes"] < 0.5 * int8["fp32_bytes"] == 0.5 * report["bytes"]
    assert int8["test"]["fp32_accuracy"] == int8["val"]["fp32_accuracy"] == 1
    assert int8["test"]["agreement"] == int8["test"]["accuracy"] > 0.7
    assert int8["is_default"]
    small, exact = (open_classifier(out / f"{n}.onnx") for n in ("model_int8", "model"))
    assert small.meta == exact.meta
    crops = np.stack([trained.task.side("test").images[0][:28, :28]])
    weights = onnx.load(out / "model_int8.onnx").graph.initializer
    assert any(t.data_type == onnx.TensorProto.INT8 and t.dims == [64, 64, 3, 3] for t in weights)
    difference = small.score(crops).probabilities - exact.score(crops).probabilities
    assert 0 < np.abs(difference).max() < 0.2


def test_an_export_without_int8_removes_that_of_an_earlier_one(
    trained: Trained, plain: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    shutil.copy(plain[0] / "model_int8.onnx", tmp_path)
    export(trained, tmp_path, ONE)
    assert {path.name for path in tmp_path.glob("*.onnx")} == {"model.onnx"}


def test_int8_that_loses_too_much_is_not_the_default(
    trained: Trained, plain: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    model = onnx.load(plain[0] / "model_int8.onnx")
    [bias] = [t for t in model.graph.initializer if t.name == "model.fc.bias"]
    bias.CopyFrom(numpy_helper.from_array(np.array([9, 0, 0], np.float32), bias.name))
    onnx.save(model, tmp_path / "worse.onnx")
    exact = plain[0] / "model.onnx"
    report = compare_int8(exact, tmp_path / "worse.onnx", trained.task, max_drop=0.4)
    assert report["drop"] > 0.4
    assert report["drop"] == pytest.approx(1 - report["val"]["accuracy"])
    assert not report["is_default"]


def test_card_says_what_a_reader_needs(
    trained: Trained, plain: tuple[Path, dict[str, Any]]
) -> None:
    card = (plain[0] / "model_card.md").read_text()
    sides = {side: trained.task.side(side) for side in ("train", "val", "test")}
    counts = r" +\| +".join(str(len(side.ids)) for side in sides.values())
    assert re.search(rf"\| all +\| +{counts} +\|", card)
    assert r"`tulip\|<b>`" in card
    assert load_bundle(trained.bundle).sha256 in card
    assert trained.task.hashes()["split"] in card
    assert re.search(r"\| accuracy +\| 1\.0000 \| 0\.\d{4} \| 1\.0000 \|", card)
    assert "0.9000 ± 0.0100" in card
    assert "`model_int8.onnx` is the default" in card
    assert "float32 (N, 3, 28, 28)" in card


def test_bundle_of_another_task_is_refused(trained: Trained, tmp_path: Path) -> None:
    other = make_trained(tmp_path / "other", num=50)
    with pytest.raises(ArtefactError, match="was trained on other data"):
        export(replace(trained, task=other.task), tmp_path / "out")


def test_batch_sizes_are_those_that_were_promised() -> None:
    assert BATCH_SIZES == (1, 2, 7)
