import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from resnets.models import build_model
from resnets.models.resnet import layer_groups
from resnets.params.training import PadCrop
from resnets.training.augment import View
from resnets.training.average import average_of, estimate_statistics, update_average
from resnets.training.batches import SHARE, Batches, epoch_table, uniform
from resnets.training.plan import set_trainable
from tests.training.runs import PREPROCESS, SECTION, make_side, start_model, train


def test_average_is_the_sum_of_all_weights_that_fade_by_the_decay():
    module = nn.Linear(1, 1, bias=False)
    average, theirs = average_of(module, 0.75), AveragedModel(module, avg_fn=get_ema_avg_fn(0.75))
    for step, value in enumerate((1.0, 2.0, 3.0)):
        nn.init.constant_(module.weight, value)
        update_average(average, module, 0.75, step)
        theirs.update_parameters(module)
    assert (
        average.weight.item() == 0.75**2 * 1 + 0.25 * (0.75 * 2 + 3) == theirs.module.weight.item()
    )


def test_statistics_are_those_of_the_images_under_the_averaged_weights():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)).train()
    average = average_of(module, 0.5)
    update_average(average, module, 0.5, 0)
    batches = [torch.rand(4, 1, 8, 8) for _ in range(3)]
    estimate_statistics(average, batches, trained_in=module)
    outputs = [average[0](batch) for batch in batches]
    norm, own = average[1], module[1]
    mean = torch.stack([output.mean((0, 2, 3)) for output in outputs]).mean(0)
    variance = torch.stack([output.var((0, 2, 3)) for output in outputs]).mean(0)
    assert torch.allclose(norm.running_mean, mean, atol=1e-6)
    assert torch.allclose(norm.running_var, variance, atol=1e-6)
    assert not norm.training
    assert torch.equal(own.running_mean, torch.zeros(3))  # those of the steps are untouched


def test_statistics_of_frozen_groups_stay():
    model = build_model("resnet8", num_classes=3, in_channels=1)
    set_trainable(layer_groups(model.train()), frozenset(["layer3", "head"]))
    average = average_of(model, 0.5)
    update_average(average, model, 0.5, 0)
    before = copy.deepcopy(average.state_dict())
    estimate_statistics(average, [torch.rand(4, 1, 16, 16)], trained_in=model)
    changed = [k for k, v in average.state_dict().items() if not torch.equal(v, before[k])]
    assert changed
    assert all(key.startswith("layer3") for key in changed)


def test_statistics_are_averaged_as_the_weights_until_they_are_estimated():
    module = nn.BatchNorm1d(1)
    average = average_of(module, 0.75)
    theirs = AveragedModel(module, avg_fn=get_ema_avg_fn(0.75), use_buffers=True)
    for step, value in enumerate((1.0, 2.0, 3.0)):
        nn.init.constant_(module.running_mean, value)
        nn.init.constant_(module.running_var, value**2)
        update_average(average, module, 0.75, step)
        theirs.update_parameters(module)
    assert torch.equal(average.running_mean, theirs.module.running_mean)
    assert torch.equal(average.running_var, theirs.module.running_var)


@pytest.mark.parametrize("select", ["last", "best"])
def test_what_is_shipped_has_the_statistics_of_the_images_as_its_epoch_showed_them(
    tmp_path, select
):
    """Erased, and mixed with the next of the epoch's order: so the weights have learned them."""
    augment = PadCrop(crop="pad", padding=2, erasing=0.9, mixup=1.0)
    result = train(tmp_path, select=select, ema_decay=0.8, augment=augment)
    side, epoch = make_side(33, 0), result.summary["chosen_epoch"] - 1
    view = View(side.images, augment, PREPROCESS, seed=0, epoch=epoch, epochs=SECTION.epochs)
    order = Batches(torch.from_numpy(side.labels), lambda _: None, 8, 0).order(epoch)
    pixels = view.take(order) / 255
    drawn = uniform(epoch_table(0, epoch, 33, 1)[:, SHARE])[order]  # Beta(1, 1) is uniform
    share = torch.from_numpy(np.maximum(drawn, 1 - drawn)).float().view(-1, 1, 1, 1)
    outputs = result.model.conv1((share * pixels + (1 - share) * pixels.roll(-1, 0) - 0.4) / 0.3)
    norm = result.model.bn1
    assert torch.allclose(norm.running_mean, outputs.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(norm.running_var, outputs.var((0, 2, 3)), atol=1e-4)


@pytest.mark.parametrize("trained", ["head", ["head", "layer3"]])
def test_a_frozen_backbone_takes_the_statistics_of_the_training_images_if_it_is_to(
    tmp_path, trained
):
    """Its weights stay those it began with, and a group that trains forgets as fast as ever."""
    result = train(tmp_path, train=trained, frozen_batchnorm="adapt").model
    start, images = start_model(), make_side(33, 0).images.images
    assert torch.equal(result.conv1.weight, start.conv1.weight)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    outputs = start.conv1((pixels - 0.4) / 0.3)
    assert torch.allclose(result.bn1.running_mean, outputs.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(result.bn1.running_var, outputs.var((0, 2, 3)), atol=1e-4)
    assert all(m.momentum == 0.1 for m in result.modules() if isinstance(m, nn.BatchNorm2d))


def test_what_is_shipped_is_the_average_of_the_last_epoch(tmp_path):
    """The average moves no step: with it and without it the weights train alike."""
    options = {"epochs": 2, "select": "last"}
    averaged = train(tmp_path / "a", **options, ema_decay=0.5)
    plain = train(tmp_path / "b", **options, ema_decay=None)
    assert averaged.summary["chosen_epoch"] == plain.summary["chosen_epoch"] == 2
    for one, other in zip(averaged.history, plain.history, strict=True):
        assert one["train_loss"] == other["train_loss"]
        assert one["val_loss"] != other["val_loss"]
    assert not torch.equal(averaged.model.fc.weight, plain.model.fc.weight)


def test_nearly_no_memory_gives_the_weights_themselves(tmp_path):
    frozen = {"train": "head", "select": "last"}  # no BatchNorm is estimated anew
    averaged = train(tmp_path / "a", **frozen, ema_decay=1e-12)
    plain = train(tmp_path / "b", **frozen, ema_decay=None)
    assert SECTION.ema_decay
    assert torch.allclose(averaged.model.fc.weight, plain.model.fc.weight, atol=1e-7)
    assert not torch.equal(averaged.model.fc.weight, start_model().fc.weight)
