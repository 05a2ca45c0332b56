"""Check every variant by the same list, in the manner of the field's "check every estimator"."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnets.models import build_model
from resnets.models.resnet import BasicBlock, Bottleneck, ResNet
from resnets.params.architecture import NETWORKS, USUAL

CLASSES = 10
# bounds on errors of logits, as shares of the largest logit; the worst over all variants and
# two seeds were measured as 9e-6 and 0.17, both of resnet152
FP32_BOUND = 3e-5
BF16_BOUND = 0.3


def photos(number: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(number, 3, size, size, generator=generator)


def marked(names: Iterable[str]) -> list:
    """Return the names as parameters of which the largest networks are slow."""
    return [
        pytest.param(n, marks=[pytest.mark.slow] if "101" in n or "152" in n or "wide" in n else [])
        for n in names
    ]


@pytest.fixture(scope="module", params=marked(USUAL))
def model(request) -> ResNet:
    """Return a network as training leaves it, not the chaotic one that it starts as.

    The statistics are those of a batch, and blocks change their input by a fraction only; else
    a deep network multiplies any rounding error a thousand times.
    """
    torch.manual_seed(0)
    model = build_model(request.param, num_classes=CLASSES)
    for block in model.modules():
        if isinstance(block, BasicBlock | Bottleneck):
            last = block.bn2 if isinstance(block, BasicBlock) else block.bn3
            nn.init.constant_(last.weight, 0.2)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(photos(8, 48))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def close(found: Tensor, expected: Tensor, bound: float) -> bool:
    return float((found - expected).abs().max()) <= bound * float(expected.abs().max())


@pytest.mark.parametrize("size", [48, 61])
@torch.inference_mode()
def test_one_finite_logit_per_class_at_two_image_sizes(model, size):
    logits = model(photos(2, size))
    assert logits.shape == (2, CLASSES)
    assert logits.isfinite().all()


def test_every_parameter_receives_a_gradient(model):
    before = {key: buffer.clone() for key, buffer in model.named_buffers()}
    model.train()
    loss = F.cross_entropy(model(photos(2, 48)), torch.arange(2))
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    model.eval().load_state_dict(before, strict=False)
    for (key, _), gradient in zip(model.named_parameters(), gradients, strict=True):
        assert gradient.isfinite().all(), key
        assert gradient.any(), key


@torch.inference_mode()
def test_eval_does_not_depend_on_the_batch(model):
    images = photos(3, 48)
    together = model(images)
    alone = torch.cat([model(image[None]) for image in images])
    assert alone.shape == (3, CLASSES)  # and a batch of one works
    assert close(alone, together, FP32_BOUND)
    assert close(model(images.flip(0)).flip(0), together, FP32_BOUND)


@torch.inference_mode()
def test_channels_last_agrees_with_contiguous(model):
    images = photos(2, 48)
    expected = model(images)
    model.to(memory_format=torch.channels_last)
    found = model(images.to(memory_format=torch.channels_last))
    model.to(memory_format=torch.contiguous_format)
    assert close(found, expected, FP32_BOUND)


@torch.inference_mode()
def test_bfloat16_stays_within_its_bound(model):
    images = photos(2, 48)
    expected = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(images).float()
    assert found.isfinite().all()
    assert close(found, expected, BF16_BOUND)


def test_saving_what_was_loaded_gives_the_same_bytes(model):
    saved = safetensors.torch.save(model.state_dict())
    with torch.device("meta"):
        again = build_model(model.architecture.name, num_classes=CLASSES)
    again.load_state_dict(safetensors.torch.load(saved), assign=True)
    assert safetensors.torch.save(again.state_dict()) == saved


# Exports take a second per block, and rows of one kind give the same graph with other numbers: so
# each kind is exported with the three blocks that differ (first, with an identity, with a stride).
KINDS = {(row.block, row.planes, row.groups > 1): name for name, row in reversed(USUAL.items())}


@pytest.mark.parametrize("name", sorted(KINDS.values()))
def test_onnx_runtime_computes_the_same_logits(name, monkeypatch, tmp_path):
    row = USUAL[name]
    monkeypatch.setitem(NETWORKS, name, replace(row, blocks=(2, 1), planes=row.planes[:2]))
    assert_exports(build_model(name, num_classes=CLASSES).eval(), tmp_path)


def test_onnx_runtime_computes_the_same_feature_map_of_a_plain_network(tmp_path):
    model = build_model("resnet8", shortcut="none", include_top=False, conv_bias=True)
    assert_exports(model.eval(), tmp_path)


def assert_exports(model: ResNet, folder: Path) -> None:
    file = folder / "model.onnx"
    any_number = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(
        model, (photos(2, 48),), file, dynamo=True, dynamic_shapes=any_number, verbose=False
    )
    session = onnxruntime.InferenceSession(file)
    images = photos(3, 48)
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.inference_mode():
        expected = model(images).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
