import copy

import pytest
import torch

from resnets.models import build_model
from resnets.models.resnet import layer_groups
from resnets.params.schema import Gradual
from resnets.training.plan import set_trainable, train_plan

GROUPS = ["stem", "layer1", "layer2", "layer3", "head"]


def test_all_and_head_name_the_same_groups_in_every_epoch():
    assert train_plan("all", GROUPS, 2) == [frozenset(GROUPS)] * 2
    assert train_plan("head", GROUPS, 3) == [frozenset({"head"})] * 3


def test_gradual_plan_goes_from_the_head_down():
    plan = train_plan(Gradual(gradual=2), GROUPS, 12)
    assert [len(groups) for groups in plan] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5, 5]
    assert plan[0] == {"head"}
    assert plan[2] == {"head", "layer3"}


def test_a_list_names_the_groups_of_every_epoch():
    assert train_plan(["layer3", "head"], GROUPS, 2) == [frozenset({"layer3", "head"})] * 2


def run_steps(model, groups, training, **options) -> None:
    """Take three steps on noise as the loop does."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        model.train()
        set_trainable(groups, frozenset(training), **options)
        images = torch.randn(4, 1, 16, 16, generator=generator)
        loss = torch.nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2, 0]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def state_of(modules) -> dict[str, torch.Tensor]:
    return {
        f"{number}.{key}": value.clone()
        for number, module in enumerate(modules)
        for key, value in module.state_dict().items()
    }


@pytest.mark.parametrize("training", [["head"], ["layer3", "head"], ["layer1"], ["stem"], GROUPS])
def test_frozen_groups_keep_weights_and_batchnorm_statistics_bit_for_bit(training):
    torch.manual_seed(0)
    model = build_model("resnet8", num_classes=3, in_channels=1)
    groups = layer_groups(model)
    before = {name: state_of(modules) for name, modules in copy.deepcopy(groups).items()}
    run_steps(model, groups, training)
    for name, modules in groups.items():
        same = all(torch.equal(v, before[name][k]) for k, v in state_of(modules).items())
        assert same == (name not in training), name


def test_negative_control_requires_grad_alone_lets_statistics_drift():
    torch.manual_seed(0)
    model = build_model("resnet8", num_classes=3, in_channels=1)
    before = model.bn1.running_mean.clone()
    weights = model.bn1.weight.clone()
    run_steps(model, layer_groups(model), ["head"], freeze_batchnorm=False)
    assert torch.equal(model.bn1.weight, weights)
    assert not torch.equal(model.bn1.running_mean, before)
