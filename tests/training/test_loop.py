import copy
import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from resnets.models import build_model
from resnets.params.training import CenterCrop, Loss, RandomResizedCrop
from resnets.system.errors import NumericalError
from resnets.training import loop
from resnets.training.optim import build_optimizer
from resnets.training.state import read_sealed
from tests.training.runs import (
    PREPROCESS,
    RUNTIME,
    SECTION,
    bits,
    fit_as,
    make_side,
    make_trainer,
    plain_batches,
    plain_optimizer,
    start_model,
    train,
)  # fmt: skip


def test_network_learns_an_easy_task(tmp_path):
    trained = train(tmp_path, section=SECTION.model_copy(update={"epochs": 8}))
    assert trained.history[-1]["val_accuracy"] > 0.9
    assert trained.history[-1]["train_loss"] < trained.history[0]["train_loss"]


def test_loop_equals_a_plain_loop_written_with_torch_alone(tmp_path):
    trained = train(tmp_path)
    model, side = start_model(), make_side(33, 0)
    optimizer, scheduler = plain_optimizer(model)
    losses = []
    for epoch in range(3):
        parts, view = plain_batches(side, epoch)
        model.train()
        total = 0.0
        for rows in parts:  # the last one has 9
            images = (view.take(rows).float() / 255 - 0.4) / 0.3
            labels = torch.from_numpy(side.labels[rows])
            loss = F.cross_entropy(model(images), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        scheduler.step()
        losses.append(total / 33)
    assert [row["train_loss"] for row in trained.history] == pytest.approx(losses, abs=2e-4)


def test_same_seed_gives_the_same_bits_and_another_seed_others(tmp_path):
    first, again = train(tmp_path / "a"), train(tmp_path / "b")
    assert bits(first) == bits(again)
    assert first.history == again.history
    assert bits(train(tmp_path / "c", seed=1)) != bits(first)


def test_checkpoint_frequency_changes_no_bit(tmp_path):
    every = {steps: RUNTIME.model_copy(update={"checkpoint_steps": steps}) for steps in (1, 5, 100)}
    found = {bits(train(tmp_path / str(k), runtime=runtime)) for k, runtime in every.items()}
    assert len(found) == 1


def test_best_epoch_is_the_first_with_the_highest_accuracy_and_lowest_loss(tmp_path):
    history = train(tmp_path, section=SECTION.model_copy(update={"epochs": 6})).history
    ranks = [(row["val_accuracy"], -row["val_loss"]) for row in history]
    best = [row["epoch"] for row in history if row["is_chosen"]][-1]
    assert best == ranks.index(max(ranks)) + 1


def test_weights_of_the_best_epoch_are_returned(tmp_path):
    section = SECTION.model_copy(update={"epochs": 6})
    trained = train(tmp_path / "a", section=section)
    best = trained.summary["chosen_epoch"]
    short = train(tmp_path / "b", section=section.model_copy(update={"epochs": best}))
    assert short.summary["chosen_epoch"] == best
    assert bits(short) == bits(trained)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_loss_that_is_not_finite_stops_at_once_and_names_the_images(tmp_path, name):
    momentum = {"momentum": 0.0, "nesterov": False} if name != "sgd" else {}
    wild = SECTION.optimizer.model_copy(update={"name": name, "lr": 1e30, **momentum})
    with pytest.raises(NumericalError) as caught:
        train(tmp_path, section=SECTION.model_copy(update={"optimizer": wild}))
    assert caught.value.exit_code == 6
    assert "lr 1e+30" in caught.value.what
    assert ".png" in caught.value.what or "validation loss" in caught.value.what


def test_blocks_of_channels_learn_as_channels_last_do(tmp_path):
    """Gradients and statistics, against float64."""
    model = start_model(shortcut="projection")
    course = make_trainer(tmp_path).course(model, 0)
    assert course.is_blocked
    ways = [
        (True, torch.float32, 1e-4),
        (False, torch.float32, 1e-4),
        (False, torch.float64, 0),
    ]
    found = []
    for is_blocked, dtype, _ in ways:
        own = copy.deepcopy(model).to(dtype).train()
        way = dataclasses.replace(
            course,
            module=own,
            prepare=lambda inputs, dtype=dtype: course.prepare(inputs).to(dtype),
            loss=copy.deepcopy(course.loss).to(dtype),
            is_blocked=is_blocked,
            average=None,
        )
        optimizer = torch.optim.SGD(own.parameters(), lr=0.0)
        optimizer.param_groups[0]["scale"] = 0.0
        next(loop.train_one_epoch(own, optimizer, course.batches.epoch(0), way, 0))
        norms = [x for x in own.buffers() if x.is_floating_point()]
        found.append([*(x.grad.double() for x in own.parameters()), *(x.double() for x in norms)])
    for (is_blocked, _, near), values in zip(ways, found, strict=True):
        for value, exact in zip(values, found[-1], strict=True):
            assert (value - exact).norm() <= near * exact.norm() + 1e-6, is_blocked


@pytest.mark.parametrize("checkpoint_steps", [3, 100])
def test_losses_that_are_looked_at_later_change_nothing(tmp_path, checkpoint_steps):
    """As on a GPU, which is not waited for: five steps are taken before their losses are read."""
    found = []
    for look_every in (1, 5):
        course = make_trainer(tmp_path).course(start_model(), 0)
        later = dataclasses.replace(
            course, look_every=look_every, checkpoint_steps=checkpoint_steps
        )
        progress = fit_as(later, tmp_path / str(look_every))
        found.append((progress.history, progress.chosen))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(value, found[1][1][key]) for key, value in found[0][1].items())


@pytest.mark.parametrize("checkpoint_steps", [3, 100])
def test_a_loss_that_is_looked_at_later_still_names_its_step(tmp_path, checkpoint_steps):
    course = make_trainer(tmp_path).course(start_model(), 0)
    broken = dataclasses.replace(
        course,
        lr_at=lambda step: math.nan if step == 4 else 0.01,  # the loss of step 5 is not a number
        look_every=16,
        checkpoint_steps=checkpoint_steps,
    )
    with pytest.raises(NumericalError, match=r"the loss is nan at step 5 \(epoch 2\)") as caught:
        fit_as(broken, tmp_path)
    order = course.batches.order(1)
    assert course.ids[order[8]] in caught.value.what
    assert [file.name for file in tmp_path.glob("*.state")] == (
        ["checkpoint-000000003.state"] if checkpoint_steps == 3 else []
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_step_does_not_wait_for_the_gpu(tmp_path):
    runtime = RUNTIME.model_copy(update={"device": "cuda"})
    course = make_trainer(tmp_path, runtime=runtime).course(start_model().train(), 0)
    optimizer = build_optimizer(course.groups, SECTION.optimizer)
    for epoch in range(2):  # the first step of all sets things up
        torch.cuda.set_sync_debug_mode("error" if epoch else "default")
        try:
            batches = course.batches.epoch(epoch)
            taken = list(loop.train_one_epoch(course.module, optimizer, batches, course, 4 * epoch))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.cat([one.found for one in taken]).isfinite().all()


def test_clipping_bounds_the_step(tmp_path):
    start = build_weights()
    clipped = SECTION.optimizer.model_copy(
        update={"clip_norm": 1e-6, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    )
    section = SECTION.model_copy(update={"optimizer": clipped, "epochs": 1})
    model = train(tmp_path, section=section).model
    moved = [(value - start[key]).detach().norm() for key, value in model.named_parameters()]
    # four steps of at most lr × clip_norm each
    assert math.sqrt(sum(float(m) ** 2 for m in moved)) <= 4 * 0.05 * 1e-6 * 1.1


def build_weights() -> dict:
    torch.manual_seed(0)
    model = build_model("resnet8", num_classes=3, in_channels=1)
    return copy.deepcopy(dict(model.named_parameters()))


GROWING = RandomResizedCrop(crop="random_resized", scale=(0.5, 1.0), sides=[8, 16])


@pytest.mark.parametrize("augment", [SECTION.augment, GROWING])
def test_cached_features_train_the_head_of_the_long_way(tmp_path, augment):
    """The long way: the same plan, but the backbone runs in every epoch."""
    options = {"train": "head", "ema_decay": None, "augment": augment}
    cached = train(tmp_path / "a", views=SECTION.epochs, **options)
    section = SECTION.model_copy(update=options)
    long_way = start_model()
    course = make_trainer(tmp_path / "b", section=section).course(long_way, 0)
    long_way.load_state_dict(fit_as(course, tmp_path / "b").chosen)
    ours, theirs = cached.model.state_dict(), long_way.state_dict()
    for key in ours:
        if key.startswith("fc."):
            assert torch.allclose(ours[key], theirs[key], atol=1e-6), key
        else:
            assert torch.equal(ours[key], theirs[key]), key


def test_few_views_are_of_all_sides(tmp_path):
    train(tmp_path, train="head", views=2, augment=GROWING)
    sealed = [read_sealed(file) for file in sorted(tmp_path.glob("*.features"))]
    inputs = [json.loads(values["inputs"]) for values in sealed]
    assert [of["preprocess"]["crop"] for of in inputs] == [PREPROCESS.crop, 8, 16]


def features(folder: Path) -> dict[str, int]:
    """Return the number of the inode of each file, which is another one when it is written anew."""
    return {file.name: file.stat().st_ino for file in folder.glob("*.features")}


def test_features_are_found_by_a_run_with_another_head_and_by_no_other(tmp_path):
    optimizer = SECTION.optimizer.model_copy(update={"lr": 0.02})
    other = SECTION.model_copy(update={"optimizer": optimizer})
    train(tmp_path / "a", train="head", views=2)
    first = features(tmp_path / "a")
    assert len(first) == 3
    again = train(tmp_path / "a", train="head", views=2, section=other)
    assert features(tmp_path / "a") == first, "the backbone has run again"
    assert bits(again) == bits(train(tmp_path / "b", train="head", views=2, section=other))
    plain = SECTION.model_copy(update={"augment": CenterCrop(crop="center", flip=False)})
    trained = train(tmp_path / "a", train="head", views=2, section=plain)
    same = first.items() & features(tmp_path / "a").items()
    assert [name for name, _ in same] == ["plain.features"], "of the validation"
    assert bits(trained) == bits(train(tmp_path / "c", train="head", section=plain))
    train(tmp_path / "a")
    assert not features(tmp_path / "a"), "no run can take them any more"


def test_features_of_each_fold_are_found_by_the_next_run(tmp_path):
    section = SECTION.model_copy(update={"train": "head"})
    found = []
    for fold in (0, 1, 0, 1):
        trainer = dataclasses.replace(
            make_trainer(tmp_path, section=section),
            train=make_side(33, fold),
            val=make_side(15, 2 + fold),
            part=f"-fold-{fold}",
        )
        trainer.run(start_model(), "fold", identity=trainer.identity(0, {}))
        found.append(features(tmp_path))
    assert len(found[1]) == 4
    assert found[1] == found[3], "the backbone has run again"


def test_features_of_another_network_with_the_same_weights_are_not_taken(tmp_path):
    plain = start_model(shortcut="none")  # neither kind of shortcut has weights
    assert plain.state_dict().keys() == start_model().state_dict().keys()
    train(tmp_path / "a", train="head")
    trained = train(tmp_path / "a", train="head", model=plain)
    alone = train(tmp_path / "b", train="head", model=start_model(shortcut="none"))
    assert bits(trained) == bits(alone)


def test_damaged_features_are_computed_again(tmp_path):
    expected = bits(train(tmp_path / "a", train="head"))
    for file in (tmp_path / "a").glob("*.features"):
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
    shutil.rmtree(tmp_path / "a/seed-0")
    assert bits(train(tmp_path / "a", train="head")) == expected


def test_frozen_variant_keeps_its_backbone_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    before = build_model("resnet8", num_classes=3, in_channels=1).state_dict()
    after = train(tmp_path, train="head", views=2).model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"fc.weight", "fc.bias"}


def test_balanced_weights_change_the_result(tmp_path):
    loss = SECTION.loss.model_copy(update={"class_weights": "balanced"})
    section = SECTION.model_copy(update={"loss": loss})
    side = make_side(33, 0)
    assert np.bincount(side.labels).tolist() == [11, 11, 11]  # balanced already: same bits
    assert bits(train(tmp_path / "a", section=section)) == bits(train(tmp_path / "b"))


def test_precision_and_threads_are_recorded(tmp_path):
    summary = train(tmp_path).summary
    assert (summary["precision"], summary["threads"], summary["device"]) == ("fp32", 1, "cpu")
    assert summary["parameters"] == summary["parameters_trained"] > 70_000


def test_reduced_precision_stays_close(tmp_path):
    runtime = RUNTIME.model_copy(update={"precision": "bf16"})
    low, full = train(tmp_path / "a", runtime=runtime), train(tmp_path / "b")
    losses = [[row["train_loss"] for row in x.history] for x in (low, full)]
    assert losses[0] == pytest.approx(losses[1], abs=0.05)
    assert bits(low) != bits(full)


def test_preprocess_of_the_tests_fits_their_images():
    assert PREPROCESS.crop == make_side(1, 0).images[0].shape[0]


def test_a_mixed_batch_has_the_mean_of_both_losses_by_the_shares(tmp_path):
    """With balanced classes too, where each image counts by the weight of its label."""
    augment = SECTION.augment.model_copy(update={"mixup": 0.4})
    loss = Loss(label_smoothing=0.1, class_weights="balanced")
    section = SECTION.model_copy(update={"augment": augment, "loss": loss})
    model = start_model().eval()
    course = make_trainer(tmp_path, section=section).course(model, 0)
    batch = next(course.batches.epoch(0))
    logits = torch.randn(len(batch.rows), 3)
    ours = loop._loss(batch, logits, batch.labels, course)
    weight = course.loss.weight
    share = torch.from_numpy(batch.shares).float()
    one, other = (
        F.cross_entropy(logits, labels, weight, reduction="none", label_smoothing=0.1)
        for labels in (batch.labels, batch.others.labels)
    )
    total = share * weight[batch.labels] + (1 - share) * weight[batch.others.labels]
    assert ours.item() == pytest.approx(
        ((share * one + (1 - share) * other).sum() / total.sum()).item()
    )
    mixed = loop._inputs(batch, course)
    own, theirs = (course.prepare(x.inputs) for x in (batch, batch.others))
    by = share[:, None, None, None]
    assert torch.allclose(mixed, by * own + (1 - by) * theirs, atol=1e-6)
