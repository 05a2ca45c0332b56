"""Test inference: right order, right preprocessing, and no influence of the batch size."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torchvision import transforms
from torchvision.transforms import functional

from resnets.models.inference import infer, normalise
from resnets.models.resnet import ResNet, build_model
from resnets.params.section import Preprocess
from resnets.system.errors import NumericalError

PREPROCESS = Preprocess(crop=28, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
CPU = {"preprocess": PREPROCESS, "device": "cpu", "precision": "fp32"}


class Uniform:
    """Images of one size, as a task gives them: one array that cannot be written to."""

    def __init__(self, array: NDArray[np.uint8]) -> None:
        self.uniform = array
        self.uniform.flags.writeable = False

    def __len__(self) -> int:
        return len(self.uniform)

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        return self.uniform[row]


@pytest.fixture(scope="module")
def model() -> ResNet:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build_model("resnet14", num_classes=4)
    with torch.no_grad():  # statistics as after training, so that eval mode tells
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture(scope="module")
def images() -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    sizes = [(32, 32), (32, 45), (51, 32), (33, 33), (32, 32), (32, 47), (29, 28), (28, 28)]
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def reference(model: ResNet, images: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Compute logits one by one with torchvision's transforms on Pillow images."""
    transform = transforms.Compose(
        [
            transforms.CenterCrop(28),
            transforms.ToTensor(),
            transforms.Normalize(PREPROCESS.mean, PREPROCESS.std),
        ]
    )
    with torch.inference_mode():
        return torch.cat([model(transform(Image.fromarray(i))[None]) for i in images]).numpy()


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_logits_are_those_of_single_images_in_order(
    model: ResNet, images: list[NDArray[np.uint8]], batch_size: int
) -> None:
    logits = infer(model, images, batch_size=batch_size, **CPU)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, reference(model, images), atol=1e-5)


def test_normalise_equals_torchvision_bit_for_bit() -> None:
    every_value = torch.arange(256, dtype=torch.uint8).repeat(1, 3, 1, 1)
    picture = Image.fromarray(every_value[0].permute(1, 2, 0).numpy())
    expected = functional.normalize(functional.to_tensor(picture), PREPROCESS.mean, PREPROCESS.std)
    assert torch.equal(normalise(every_value, PREPROCESS.mean, PREPROCESS.std)[0], expected)


@pytest.mark.parametrize("size", [28, 32])
def test_images_of_one_size_give_the_same_logits(model: ResNet, size: int) -> None:
    array = np.random.default_rng(1).integers(0, 256, (5, size, size, 3), np.uint8)
    fast = infer(model, Uniform(array), batch_size=2, **CPU)
    np.testing.assert_array_equal(fast, infer(model, list(array), batch_size=2, **CPU))


def test_outputs_agree_with_one_another(model: ResNet, images: list[NDArray[np.uint8]]) -> None:
    maps, features, logits = (
        infer(model, images, batch_size=3, output=output, **CPU)
        for output in ("feature_map", "features", "logits")
    )
    assert maps.shape == (8, 64, 7, 7)
    np.testing.assert_allclose(maps.mean(axis=(2, 3)), features, atol=1e-6)
    weight, bias = (p.detach().numpy() for p in (model.fc.weight, model.fc.bias))
    np.testing.assert_allclose(features @ weight.T + bias, logits, atol=1e-5)


def test_a_model_left_in_train_mode_is_scored_in_eval_mode(
    model: ResNet, images: list[NDArray[np.uint8]]
) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    expected = infer(model, images, batch_size=8, **CPU)
    model.train()
    np.testing.assert_array_equal(infer(model, images, batch_size=8, **CPU), expected)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_bf16_gives_nearly_the_same_logits_in_fp32(
    model: ResNet, images: list[NDArray[np.uint8]]
) -> None:
    logits = infer(model, images, batch_size=8, **(CPU | {"precision": "bf16"}))
    exact = infer(model, images, batch_size=8, **CPU)
    assert logits.dtype == np.float32
    assert 0 < np.abs(logits - exact).max() < 0.05 * np.abs(exact).max()


def test_nothing_gives_nothing(model: ResNet) -> None:
    assert len(infer(model, [], batch_size=3, **CPU)) == 0


def test_a_model_that_gives_nan_is_an_error_that_names_the_image(
    images: list[NDArray[np.uint8]],
) -> None:
    broken = build_model("resnet8", num_classes=2)
    broken.fc.bias.data[1] = float("nan")
    with pytest.raises(NumericalError, match="image 0 is not finite"):
        infer(broken, images, batch_size=3, **CPU)
