"""Test the model bundle: the same bytes, the same model, and a refusal of everything else."""

import hashlib
import json
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from resnets.models.bundle import (
    FORMAT_VERSION,
    KEY,
    check_origin,
    load_bundle,
    parse_meta,
    save_bundle,
)
from resnets.models.resnet import build_model
from resnets.system.errors import ArtefactError, NumericalError
from tests.bundles import make_meta, make_model

GREY = make_model()[1].preprocess.model_dump()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "model.safetensors"
    save_bundle(path, *make_model())
    return path


def rewrite(source: Path, target: Path, **changes: Any) -> Path:
    """Write a copy of a bundle with other metadata values (or `text` as the whole metadata)."""
    with safe_open(source, "pt") as file:
        values = json.loads(file.metadata()[KEY])
    text = changes.pop("text", None) or json.dumps(values | changes)
    save_file(load_file(source), target, metadata={KEY: text})
    return target


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet8", {}),
        ("resnet8", {"shortcut": "none"}),
        ("resnet18", {"in_channels": 3, "stem": "pad2", "conv_bias": True, "init": "xavier"}),
        ("resnext50_32x4d", {"in_channels": 3, "zero_init_residual": True}),
    ],
)
def test_loaded_model_computes_the_same_logits(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    model, meta = make_model(name, **options)
    save_bundle(tmp_path / "m.safetensors", model, meta)
    bundle = load_bundle(tmp_path / "m.safetensors")
    images = torch.rand(2, meta.preprocess.channels, 33, 33)
    with torch.inference_mode():
        assert torch.equal(bundle.model(images), model(images))
    assert bundle.meta == meta
    assert bundle.sha256 == hashlib.sha256((tmp_path / "m.safetensors").read_bytes()).hexdigest()
    assert not bundle.model.training


def test_bytes_are_the_same_in_another_process_and_for_any_memory_format(tmp_path: Path) -> None:
    model, meta = make_model(in_channels=3)
    here, there = tmp_path / "here.safetensors", tmp_path / "there.safetensors"
    save_bundle(here, model.to(memory_format=torch.channels_last), meta)
    program = (
        "from tests.models.test_bundle import *; "
        f"save_bundle(Path({str(there)!r}), *make_model(in_channels=3))"
    )
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=True)
    assert here.read_bytes() == there.read_bytes()


def test_saving_draws_no_random_numbers_and_leaves_the_model_as_it_is(tmp_path: Path) -> None:
    model, meta = make_model()
    model.train()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    save_bundle(tmp_path / "m.safetensors", model, meta)
    load_bundle(tmp_path / "m.safetensors")
    assert torch.equal(torch.rand(3), expected)
    assert model.training


def test_file_has_one_metadata_key(saved: Path) -> None:
    with safe_open(saved, "pt") as file:
        assert list(file.metadata()) == [KEY]


def test_newer_format_is_refused_with_words(saved: Path, tmp_path: Path) -> None:
    newer = rewrite(saved, tmp_path / "m.safetensors", format_version=FORMAT_VERSION + 1, new=1)
    with pytest.raises(ArtefactError, match=f"format {FORMAT_VERSION + 1} of a newer") as caught:
        load_bundle(newer)
    assert "upgrade" in caught.value.fix


def test_older_format_without_the_optional_keys_is_read(saved: Path, tmp_path: Path) -> None:
    with safe_open(saved, "pt") as file:
        values = json.loads(file.metadata()[KEY])
    for key in ("format_version", "temperature", "measured"):
        del values[key]
    older = rewrite(saved, tmp_path / "m.safetensors", text=json.dumps(values))
    assert load_bundle(older).meta.temperature == 1.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": ["a", "b"]}, "num_classes is 3, not 2"),
        ({"classes": ["a", "b", "a"]}, "listed twice"),
        ({"architecture": {"name": "resnet8", "num_classes": 3, "in_channels": 3}}, "in_channels"),
        ({"architecture": {"name": "resnet9", "num_classes": 3, "in_channels": 1}}, "resnet9"),
        ({"architecture": {"name": "resnet14", "num_classes": 3, "in_channels": 1}}, "missing"),
        (
            {"architecture": {"name": "resnet8", "num_classes": 3, "in_channels": 1, "depth": 3}},
            "depth",
        ),
        (
            {
                "architecture": {
                    "name": "resnet8",
                    "num_classes": 3,
                    "in_channels": 1,
                    "include_top": False,
                }
            },
            "include_top is False, not True",
        ),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": 5e-324}, "temperature: Input should be greater than or equal to 0.02"),
        ({"temperature": 1e9}, "temperature: Input should be less than or equal to 50"),
        ({"preprocess": {**GREY, "resize": 30000}}, r"preprocess\.resize: .* equal to 4096"),
        ({"preprocess": {**GREY, "crop": 30000}}, r"preprocess\.crop: .* equal to 4096"),
        ({"preprocess": {**GREY, "mean": [128.0]}}, r"preprocess\.mean\.0: .*larger than 1"),
        ({"preprocess": {**GREY, "std": [0.0]}}, r"preprocess\.std\.0: .* greater than 0"),
        ({"surprise": 1}, "surprise"),
        ({"text": "{"}, "Invalid JSON"),
        ({"text": "[1]"}, "metadata: Input should be an object"),
        ({"text": "[" * 100_000}, "Invalid JSON"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(
    saved: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ArtefactError, match=words):
        load_bundle(rewrite(saved, tmp_path / "m.safetensors", **changes))


def test_model_of_another_task_is_refused() -> None:
    _, meta = make_model()
    check_origin(meta, {"data": "0123456789abcdef"}, Path("m.safetensors"))
    with pytest.raises(ArtefactError, match="other split"):
        check_origin(meta, {**meta.hashes, "split": "0" * 16}, Path("m.safetensors"))


def test_weights_of_another_network_are_listed_and_not_saved(tmp_path: Path) -> None:
    model, meta = make_model()
    other = meta.model_copy(update={"architecture": {**meta.architecture, "name": "resnet14"}})
    with pytest.raises(ArtefactError, match=r"missing \(layer1\.1\.conv1\.weight"):
        save_bundle(tmp_path / "m.safetensors", model, other)
    with pytest.raises(ArtefactError, match="size mismatch for fc"):
        save_bundle(tmp_path / "m.safetensors", build_model("resnet8", in_channels=1), meta)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_another_precision_become_fp32(saved: Path, tmp_path: Path, dtype: Any) -> None:
    tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in load_file(saved).items()}
    with safe_open(saved, "pt") as file:
        save_file(tensors, tmp_path / "m.safetensors", metadata=file.metadata())
    weight = load_bundle(tmp_path / "m.safetensors").model.conv1.weight
    assert torch.equal(weight, tensors["conv1.weight"].float())


def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(
    saved: Path, tmp_path: Path
) -> None:
    model, meta = make_model()
    model.bn1.running_var[3] = float("nan")
    with pytest.raises(NumericalError, match=r"bn1\.running_var"):
        save_bundle(tmp_path / "m.safetensors", model, meta)
    save_file(model.state_dict(), tmp_path / "n.safetensors", metadata={KEY: meta.to_json()})
    with pytest.raises(NumericalError, match=r"bn1\.running_var"):
        load_bundle(tmp_path / "n.safetensors")


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    model, _ = make_model()
    save_file(model.state_dict(), path)
    with pytest.raises(ArtefactError, match="no bundle"):
        load_bundle(path)
    torch.save(model.state_dict(), path)
    with pytest.raises(ArtefactError, match="not a whole safetensors file"):
        load_bundle(path)


def test_every_cut_is_refused(saved: Path, tmp_path: Path) -> None:
    raw = saved.read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in [*range(0, 64), *range(64, len(raw), len(raw) // 64), len(raw) - 1]:
        cut.write_bytes(raw[:length])
        with pytest.raises(ArtefactError):
            load_bundle(cut)


@pytest.mark.parametrize(
    "raw",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 99_999_999) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"\xff\xfe\x00{",
        struct.pack("<Q", 15) + b'{"a":{"a":"b"}}',
        struct.pack("<Q", 55) + b'{"a":{"dtype":"F4","shape":[2,1],"data_offsets":[0,1]}}x',
    ],
)
def test_malformed_headers_are_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw)
    with pytest.raises(ArtefactError):
        load_bundle(path)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(place=st.floats(0, 1, exclude_max=True), header=st.booleans(), value=st.integers(0, 255))
def test_a_changed_byte_gives_a_model_or_one_of_our_errors(
    saved: Path, tmp_path: Path, place: float, header: bool, value: int
) -> None:
    raw = bytearray(saved.read_bytes())
    size = 8 + int.from_bytes(raw[:8], "little")
    raw[int(place * (size if header else len(raw)))] = value
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw)
    with suppress(ArtefactError, NumericalError):
        load_bundle(path)


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_any_text_as_metadata_gives_our_error(text: str) -> None:
    with pytest.raises(ArtefactError):
        parse_meta(text, Path("m.onnx"))


@given(st.lists(st.text(min_size=1), min_size=2, max_size=5, unique=True))
def test_any_class_names_survive(classes: list[str]) -> None:
    architecture = {"name": "resnet8", "num_classes": len(classes), "in_channels": 1}
    meta = make_meta(architecture, classes=classes)
    assert parse_meta(meta.to_json(), Path("m.onnx")) == meta
