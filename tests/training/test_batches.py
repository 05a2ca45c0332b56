import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resnets.params.section import Preprocess
from resnets.params.training import CenterCrop, PadCrop, RandomResizedCrop
from resnets.tasks.task import Side
from resnets.training.augment import View
from resnets.training.batches import Batches, batch_bounds, epoch_table

CROP = RandomResizedCrop(crop="random_resized", scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=True)
PAD = PadCrop(crop="pad", padding=2, flip=True)
FULL = PadCrop(crop="pad", padding=2, trivial=True, erasing=0.5, mixup=0.4)


def side(num_images: int = 21, size: int = 12) -> Side:
    """Return noise images; image i starts with the pixel i, so that it can be recognised."""
    images = np.random.default_rng(0).integers(0, 256, (num_images, size, size, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(num_images)
    return Side(
        [str(i) for i in range(num_images)], np.arange(num_images) % 3, ["a", "b", "c"], images
    )


def view_of(augment=PAD, *, seed=0, epoch=0) -> View:
    preprocess = Preprocess(crop=12, mean=[0.3], std=[1.0])
    return View(side().images, augment, preprocess, seed=seed, epoch=epoch, epochs=4)


def batches(augment=PAD, *, batch_size=4, seed=0) -> Batches:
    labels = torch.from_numpy(side().labels)
    return Batches(
        labels,
        lambda epoch: view_of(augment, seed=seed, epoch=epoch).take,
        batch_size,
        seed,
        augment.mixup,
    )


def test_the_views_grow_in_equal_parts_of_the_epochs_to_what_the_schema_lists():
    growing = RandomResizedCrop(crop="random_resized", scale=(0.5, 1.0), sides=[6, 9])
    shapes = [view_of(growing, epoch=epoch).take(np.arange(2)).shape for epoch in range(4)]
    assert shapes == [(2, 1, 6, 6)] * 2 + [(2, 1, 9, 9)] * 2
    assert view_of(CROP).take(np.arange(2)).shape == (2, 1, 12, 12)


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


@given(st.integers(8, 500), st.integers(8, 64), st.integers(1, 4))
def test_batches_cover_every_image_once_and_no_process_gets_one_image(num_images, size, processes):
    bounds = batch_bounds(num_images, size, processes)
    assert [low for low, _ in bounds[1:]] == [high for _, high in bounds[:-1]]
    assert (bounds[0][0], bounds[-1][1]) == (0, num_images)
    assert all(2 * processes <= high - low < size + 2 * processes for low, high in bounds)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_every_batch_without_loss_or_repetition(monkeypatch, processes):
    whole_batches, parts = list(batches(CROP).epoch(1)), []
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    for number in range(processes):
        monkeypatch.setenv("RANK", str(number))
        parts.append(list(batches(CROP).epoch(1)))
    for whole, *shares in zip(whole_batches, *parts, strict=False):
        for number, part in enumerate(shares):
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


@pytest.mark.parametrize("augment", [CenterCrop(crop="center", flip=True), PAD, CROP, FULL])
@pytest.mark.parametrize("start", [1, 3, 4])
def test_an_epoch_entered_in_the_middle_goes_on_with_the_same_bits(augment, start):
    whole = list(batches(augment).epoch(3))
    rest = list(batches(augment).epoch(3, start))
    assert len(rest) == len(whole) - start
    for a, b in zip(whole[start:], rest, strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.labels, b.labels)


@pytest.mark.parametrize("processes", [1, 2])
def test_an_image_is_mixed_with_the_same_other_whatever_the_batch_size(monkeypatch, processes):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setenv("RANK", "0")
    mixtures = {}
    for size in (4, 6, 21):
        for batch in batches(FULL, batch_size=size).epoch(2):
            own = batch.rows[::processes], batch.shares[::processes], batch.others.rows[::processes]
            images = batch.inputs, batch.others.inputs, batch.others.labels
            for row, share, other, image, mixed, label in zip(*own, *images, strict=True):
                known = mixtures.setdefault(row, (share, other, image, mixed))
                assert known[:2] == (share, other)
                assert torch.equal(known[2], image)
                assert torch.equal(known[3], mixed)
                assert side().labels[other] == label
                assert 0.5 <= share <= 1
    assert len(mixtures) >= 21 // processes


def test_seed_and_epoch_change_order_and_views():
    first, other_epoch = (next(iter(batches().epoch(epoch))) for epoch in (0, 1))
    other_seed = next(iter(batches(seed=1).epoch(0)))
    assert not torch.equal(first.inputs, other_epoch.inputs)
    assert not torch.equal(first.inputs, other_seed.inputs)
