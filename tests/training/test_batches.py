import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop as Theirs
from torchvision.transforms.v2.functional import resized_crop

from resnets.params.training import CenterCrop, PadCrop, RandomResizedCrop
from resnets.tasks.task import Side
from resnets.training.batches import (
    FeatureBatches,
    ImageBatches,
    batch_bounds,
    epoch_table,
    random_box,
    resized_view,
    shifted_views,
    uniform,
)

CROP = RandomResizedCrop(crop="random_resized", scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=True)
PAD = PadCrop(crop="pad", padding=2, flip=True)
FILL = np.array([7], np.uint8)


def side(num_images: int = 21, size: int = 12) -> Side:
    """Return noise images; image i starts with the pixel i, so that it can be recognised."""
    images = np.random.default_rng(0).integers(0, 256, (num_images, size, size, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(num_images)
    return Side(
        [str(i) for i in range(num_images)], np.arange(num_images) % 3, ["a", "b", "c"], images
    )


def batches(augment=PAD, *, batch_size=4, seed=0, views=None, part=(0, 1)) -> ImageBatches:
    return ImageBatches(
        side(), augment, batch_size=batch_size, crop=12, mean=[0.3], seed=seed, views=views,
        part=part,
    )  # fmt: skip


def test_words_of_an_image_depend_on_seed_epoch_and_index_only():
    table = epoch_table(3, 5, 100)
    assert np.array_equal(table[:40], epoch_table(3, 5, 40))
    assert len(np.unique(table)) == table.size
    for other in (epoch_table(4, 5, 100), epoch_table(3, 6, 100)):
        assert not np.intersect1d(table, other).size


def test_words_are_pinned_so_that_no_release_may_change_them():
    # Philox4x64-10 is specified; these are its words for key (3, 0), counter (1, 0, 5, 0)
    expected = np.random.Philox(key=3, counter=[0, 0, 5, 0]).random_raw(3).tolist()
    assert epoch_table(3, 5, 1)[0, :3].tolist() == expected


def test_numbers_are_uniform():
    numbers = uniform(epoch_table(0, 0, 2000))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert numbers.mean() == pytest.approx(0.5, abs=0.01)


@given(st.integers(8, 500), st.integers(8, 64), st.integers(1, 4))
def test_batches_cover_every_image_once_and_no_process_gets_one_image(num_images, size, processes):
    bounds = batch_bounds(num_images, size, processes)
    assert [low for low, _ in bounds[1:]] == [high for _, high in bounds[:-1]]
    assert (bounds[0][0], bounds[-1][1]) == (0, num_images)
    assert all(2 * processes <= high - low < size + 2 * processes for low, high in bounds)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_every_batch_without_loss_or_repetition(processes):
    parts = [batches(CROP, part=(number, processes)).epoch(1) for number in range(processes)]
    for whole, *mine in zip(batches(CROP, part=(0, 1)).epoch(1), *parts, strict=False):
        for number, part in enumerate(mine):
            if len(whole.rows) == len(part.rows):  # a last batch joins another at other sizes
                assert torch.equal(part.inputs, whole.inputs[number::processes])
                assert torch.equal(part.labels, whole.labels[number::processes])


def test_an_epoch_shows_every_image_once_with_its_own_label():
    seen = []
    for batch in batches(CenterCrop(crop="center", flip=False)).epoch(2):
        assert batch.inputs.is_contiguous(memory_format=torch.channels_last)
        assert batch.inputs[:, 0, 0, 0].tolist() == batch.rows.tolist()
        assert batch.labels.tolist() == [row % 3 for row in batch.rows]
        seen += batch.rows.tolist()
    assert sorted(seen) == list(range(21))


@pytest.mark.parametrize("augment", [CenterCrop(crop="center", flip=True), PAD, CROP])
@pytest.mark.parametrize("start", [1, 3, 4])
def test_an_epoch_entered_in_the_middle_goes_on_with_the_same_bits(augment, start):
    whole = list(batches(augment).epoch(3))
    rest = list(batches(augment).epoch(3, start))
    assert len(rest) == len(whole) - start
    for a, b in zip(whole[start:], rest, strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.labels, b.labels)


def test_views_of_an_image_do_not_depend_on_the_batch_size():
    by_row = []
    for size in (4, 9):
        views = {}
        for batch in batches(CROP, batch_size=size).epoch(1):
            views |= dict(zip(batch.rows.tolist(), batch.inputs, strict=True))
        by_row.append(views)
    assert all(torch.equal(by_row[0][row], by_row[1][row]) for row in range(21))


def test_seed_and_epoch_change_order_and_views():
    first, other_epoch = (next(iter(batches().epoch(epoch))) for epoch in (0, 1))
    other_seed = next(iter(batches(seed=1).epoch(0)))
    assert not torch.equal(first.inputs, other_epoch.inputs)
    assert not torch.equal(first.inputs, other_seed.inputs)


def test_views_repeat_where_features_are_cached_but_the_order_does_not():
    repeating = batches(PAD, views=2)
    assert np.array_equal(repeating.draws(0), repeating.draws(2))
    assert not np.array_equal(repeating.draws(0), repeating.draws(1))
    assert not np.array_equal(repeating.order(0), repeating.order(2))


def test_cached_features_come_in_the_order_of_the_images():
    features = [torch.full((21, 2), float(view)) + torch.arange(21)[:, None] for view in range(2)]
    cached = FeatureBatches(features, torch.arange(21) % 3, batch_size=4, seed=0)
    for epoch in range(3):
        pairs = zip(cached.epoch(epoch), batches().epoch(epoch), strict=True)
        for ours, images in pairs:
            assert np.array_equal(ours.rows, images.rows)
            expected = torch.from_numpy(images.rows).float() + epoch % 2
            assert torch.equal(ours.inputs[:, 0], expected)


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
