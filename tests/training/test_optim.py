import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from resnets.models import build_model
from resnets.models.resnet import layer_groups
from resnets.params.training import (
    Constant,
    Cosine,
    Loss,
    OneCycle,
    Optimizer,
    Step,
    lr_schedule,
)
from resnets.training.optim import build_loss, build_optimizer

SGD = Optimizer(
    name="sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01, lr_decay=0.5,
    clip_norm=None,
)  # fmt: skip


def factors(schedule, *, epochs=6, steps=10) -> list[float]:
    lr_at = lr_schedule(schedule, lr=1.0, steps_per_epoch=steps, epochs=epochs)
    return [lr_at(step) for step in range(epochs * steps)]


@pytest.mark.parametrize(
    ("drops", "kind"),
    [(2, {"step_size": 2}), ([3, 5], {"milestones": [3, 5]})],
)
def test_step_schedule_is_torchs(drops, kind):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    of_torch = torch.optim.lr_scheduler
    of_torch = of_torch.StepLR if "step_size" in kind else of_torch.MultiStepLR
    theirs = of_torch(optimizer, gamma=0.1, **kind)
    ours = factors(Step(name="step", warmup_epochs=0.0, epochs=drops, gamma=0.1), epochs=7, steps=3)
    for epoch in range(7):
        assert ours[3 * epoch : 3 * epoch + 3] == pytest.approx([theirs.get_last_lr()[0]] * 3)
        optimizer.step()
        theirs.step()


def test_cosine_schedule_is_torchs_cosine_annealing():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=60)
    for ours in factors(Cosine(name="cosine", warmup_epochs=0.0)):
        assert ours == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_warm_up_rises_in_a_straight_line_to_the_base_rate():
    found = factors(Constant(name="constant", warmup_epochs=1.0))
    assert found[:10] == pytest.approx([(k + 1) / 11 for k in range(10)])
    assert set(found[10:]) == {1.0}


def test_one_cycle_peaks_where_it_should_and_ends_near_zero():
    found = factors(OneCycle(name="one_cycle", peak=0.25))
    assert max(found) == 1.0
    assert found.index(1.0) == 15
    assert 0 < found[-1] < 0.05
    assert all(0 < factor <= 1 for factor in found)


def test_lr_is_a_function_of_the_step_alone():
    schedule = OneCycle(name="one_cycle", peak=0.3)
    at = [lr_schedule(schedule, lr=1.0, steps_per_epoch=10, epochs=6)(37) for _ in range(3)]
    assert at == [factors(schedule)[37]] * 3


def test_every_parameter_is_optimised_once_and_only_weights_decay():
    model = build_model("resnet20", num_classes=3, in_channels=1)
    optimizer = build_optimizer(layer_groups(model), SGD)
    ours = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(ours) == sorted(id(p) for p in model.parameters())
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert (group["weight_decay"] > 0) == (parameter.ndim >= 2)


def test_layers_away_from_the_head_learn_slower():
    model = build_model("resnet20", num_classes=3, in_channels=1)
    optimizer = build_optimizer(layer_groups(model), SGD)
    lr_of = {
        id(p): 0.1 * group["scale"] for group in optimizer.param_groups for p in group["params"]
    }
    assert lr_of[id(model.fc.weight)] == 0.1
    assert lr_of[id(model.layer3[0].conv1.weight)] == 0.05
    assert math.isclose(lr_of[id(model.conv1.weight)], 0.1 * 0.5**4)


KINDS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@pytest.mark.parametrize("name", KINDS)
def test_optimizer_is_torchs(name):
    section = SGD.model_copy(update={"name": name})
    model = build_model("resnet20", num_classes=3, in_channels=1)
    assert type(build_optimizer(layer_groups(model), section)) is KINDS[name]


def test_balanced_class_weights_are_scikit_learns():
    labels = np.repeat(np.arange(3), [5, 20, 75])
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    loss, weights = build_loss(Loss(label_smoothing=0.0, class_weights="balanced"), labels, 3)
    assert loss.weight.tolist() == pytest.approx(theirs)
    assert weights == pytest.approx(theirs[labels])
    loss, weights = build_loss(Loss(label_smoothing=0.0, class_weights="none"), labels, 3)
    assert loss.weight is None
    assert weights.tolist() == [1.0] * 100


def test_a_class_that_a_redrawn_split_leaves_empty_gives_a_finite_loss():
    section = Loss(label_smoothing=0.1, class_weights="balanced")
    loss, _ = build_loss(section, np.array([0, 0, 2]), 3)
    assert loss(torch.zeros(3, 3), torch.tensor([0, 0, 2])).isfinite()
