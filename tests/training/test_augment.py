import math

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop as Theirs
from torchvision.transforms.v2 import functional as F
from torchvision.transforms.v2.functional import resized_crop

from resnets.params.training import CenterCrop
from resnets.training.augment import erase, random_box, resized_view, shifted_views, trivial
from resnets.training.batches import epoch_table, uniform
from tests.training.test_batches import CROP, PAD, batches, side, view_of

FILL = np.array([7], np.uint8)


def test_numbers_are_uniform():
    numbers = uniform(epoch_table(0, 0, 2000))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert numbers.mean() == pytest.approx(0.5, abs=0.01)


def test_views_of_an_image_do_not_depend_on_the_batch_size():
    by_row = []
    for size in (4, 9):
        views = {}
        for batch in batches(CROP, batch_size=size).epoch(1):
            views |= dict(zip(batch.rows.tolist(), batch.inputs, strict=True))
        by_row.append(views)
    assert all(torch.equal(by_row[0][row], by_row[1][row]) for row in range(21))


@pytest.mark.parametrize("augment", [PAD, CROP])
def test_a_view_gives_one_image_as_a_batch_has_it(augment):
    images = view_of(augment, epoch=2)
    batch = images.take(np.array([5, 3]))
    assert len(images) == 21
    assert np.array_equal(images[3], batch[1].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("flip", [True, False])
def test_shifted_views_are_the_windows_that_the_words_name(flip):
    images = side().images
    table = epoch_table(0, 0, len(images))
    numbers = table[:, 1:4] / 2.0**64  # flip, y, x
    augment = PAD.model_copy(update={"flip": flip})
    views = shifted_views(images, uniform(table), augment, FILL)
    for image, (mirror, y, x), view in zip(images, numbers, views, strict=True):
        padded = np.pad(image[:, :, 0], 2, constant_values=7)
        window = padded[math.floor(5 * y) :, math.floor(5 * x) :][:12, :12]
        expected = window[:, ::-1] if flip and mirror < 0.5 else window
        assert np.array_equal(view[0].numpy(), expected)


def test_every_shift_occurs():
    draws = uniform(epoch_table(0, 0, 300))
    views = shifted_views(np.stack([side().images[5]] * 300), draws, PAD, FILL)
    assert len({view[0].numpy().tobytes() for view in views}) == 5 * 5 * 2


def test_flip_happens_in_half_of_the_cases_and_mirrors():
    image = side().images[5]
    plain = torch.from_numpy(image).permute(2, 0, 1)
    draws = uniform(epoch_table(0, 0, 1000))
    flips = 0
    for view in shifted_views(
        np.stack([image] * 1000), draws, CenterCrop(crop="center", flip=True), FILL
    ):
        is_flipped = torch.equal(view, plain.flip(2))
        assert is_flipped or torch.equal(view, plain)
        flips += is_flipped
    assert 440 < flips < 560


@pytest.mark.parametrize("channels", [1, 3])
def test_random_resized_view_is_torchvisions_crop_of_the_same_box_bit_for_bit(channels):
    image = np.random.default_rng(1).integers(0, 256, (50, 70, channels), np.uint8)
    theirs = torch.from_numpy(image).permute(2, 0, 1)
    for draws in uniform(epoch_table(2, 0, 50)):
        ours = resized_view(image, draws, CROP, crop=24)
        box = random_box(50, 70, draws, CROP)
        view = resized_crop(theirs, *box, [24, 24], antialias=True)
        assert torch.equal(ours, view.flip(2) if draws[1] < 0.5 else view)


@pytest.mark.parametrize(("height", "width"), [(40, 60), (30, 30), (20, 200)])
def test_random_boxes_are_distributed_as_torchvisions(height, width):
    ours = np.array([random_box(height, width, d, CROP) for d in uniform(epoch_table(1, 0, 4000))])
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([Theirs.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    spread = theirs.std(0) / np.sqrt(2000)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 5 * spread + 1e-9).all()
    assert ours.std(0) == pytest.approx(theirs.std(0), rel=0.08, abs=1e-9)


def test_erased_boxes_are_of_the_papers_shares_and_shapes():
    images = torch.zeros(4000, 1, 64, 48, dtype=torch.uint8)
    erase(images, uniform(epoch_table(0, 0, 4000, 1)), 0.5, np.array([255], np.uint8))
    shares = (images == 255).float().mean((1, 2, 3))
    erased = shares[shares > 0]
    assert len(erased) / 4000 == pytest.approx(0.5, abs=0.03)
    assert erased.max() <= 0.41
    assert erased.mean() == pytest.approx(0.2, abs=0.03)
    rows = (images == 255).any(3).sum(2).squeeze(1)
    columns = (images == 255).any(2).sum(2).squeeze(1)
    assert torch.equal(rows * columns, (images == 255).sum((1, 2, 3)))  # one box each


def test_all_operations_of_trivial_augment_are_drawn_and_none_changes_the_shape():
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    draws = uniform(epoch_table(0, 0, 300, 1))
    views = [trivial(image, drawn, [0, 0, 0]) for drawn in draws]
    assert {tuple(view.shape) for view in views} == {(3, 20, 30)}
    assert {view.dtype for view in views} == {torch.uint8}
    same = sum(torch.equal(view, image) for view in views) / 300
    assert 1 / 14 < same < 4 / 14  # identity, and others at a magnitude near zero


def test_operations_are_those_of_torchvision():
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    draws = np.full(9, 0.999)
    draws[:2] = 6.5 / 14, 0.999  # brightness, at its least
    assert torch.equal(trivial(image, draws, [0, 0, 0]), F.adjust_brightness(image, 0.01))
    draws[:2] = 13.5 / 14, 0.2
    assert torch.equal(trivial(image, draws, [0, 0, 0]), F.equalize(image))
