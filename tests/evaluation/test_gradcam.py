"""Test the explanations: they are Grad-CAM, whatever runs the model, and can be looked at."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnets.evaluation.gradcam import SMALLEST, explain, grad_cam, overlay
from resnets.models.bundle import load_bundle
from resnets.models.inference import infer, normalise
from resnets.tasks.decode import crop_batch
from resnets.tasks.sheet import draw_prediction
from tests.bundles import PREPROCESS, Trained, make_trained


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return make_trained(tmp_path_factory.mktemp("trained"), num=40)


def test_heat_is_that_of_the_gradients(trained: Trained) -> None:
    bundle = load_bundle(trained.bundle)
    images = trained.task.side("train").images
    labels = trained.task.side("train").labels
    found = grad_cam(
        infer(
            bundle.model, images, preprocess=PREPROCESS, batch_size=64, device="cpu",
            precision="fp32", output="feature_map",
        ),
        bundle.head()[0],
        labels,
    )  # fmt: skip
    crops = torch.from_numpy(crop_batch(images, range(len(images)), 28)).permute(0, 3, 1, 2)
    feature_map = bundle.model.feature_map(normalise(crops, PREPROCESS.mean, PREPROCESS.std))
    logits = bundle.model.fc(bundle.model.avgpool(feature_map).flatten(1))
    chosen = logits[torch.arange(len(labels)), torch.from_numpy(labels)].sum()
    [gradient] = torch.autograd.grad(chosen, feature_map)
    weights = gradient.mean((2, 3), keepdim=True)  # equation 1 of the paper
    heat = torch.relu((weights * feature_map).sum(1))  # equation 2
    heat = heat / heat.amax((1, 2), keepdim=True).clamp_min(1e-12)
    np.testing.assert_allclose(found, heat.detach().numpy(), atol=1e-5)
    assert found.max(axis=(1, 2)) == pytest.approx(1)


def test_no_evidence_is_no_heat() -> None:
    maps = np.ones((2, 4, 3, 3), np.float32)
    weight = np.array([[1, 1, 1, 1], [-1, -1, -1, -1]], np.float32)
    heat = grad_cam(maps, weight, np.array([0, 1]))
    assert (heat[0] == 1).all()
    assert (heat[1] == 0).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_overlay_colours_where_the_heat_is_and_nothing_else(channels: int) -> None:
    image = np.full((28, 28, channels), 100, np.uint8)
    heat = np.zeros((4, 4), np.float32)
    assert (overlay(image, heat) == 100).all()
    heat[0, 0] = 1
    picture = overlay(image, heat).astype(int)
    assert picture.shape == (SMALLEST, SMALLEST, 3)
    assert picture[0, 0, 0] > 150 > picture[0, 0, 2]  # red in its corner
    assert (picture[112:, 112:] == 100).all()


def test_pictures_for_a_sheet_are_those_of_the_crops(trained: Trained) -> None:
    bundle = load_bundle(trained.bundle)
    side = trained.task.side("test")
    pictures = explain(bundle, side.images, side.labels, device="cpu")
    assert len(pictures) == len(side.ids)
    assert all(p.shape == (SMALLEST, SMALLEST, 3) for p in pictures)


def test_pictures_take_any_class_name_and_have_the_same_bytes_again(tmp_path: Path) -> None:
    image = np.zeros((28, 28, 1), np.uint8)
    classes = ["$x_", "日本", "a\nb", *map(str, range(20))]
    probabilities = np.full(23, 1 / 23)
    for explained in (None, overlay(image, np.ones((7, 7), np.float32))):
        for name in ("a.png", "b.png"):
            draw_prediction(tmp_path / name, image, classes, probabilities, explained)
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
        Image.open(tmp_path / "a.png").verify()
