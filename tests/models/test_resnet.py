"""Check the networks against torchvision, against the papers' numbers and by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from resnets.models import build_model
from resnets.models.resnet import BasicBlock, Bottleneck, PadShortcut, ResNet, layer_groups
from resnets.params.architecture import USUAL, Init, Shortcut, Stem, StrideOn
from resnets.system.errors import ParamsError
from tests.models.test_every_variant import marked

IMAGENET_FORM = [name for name, row in USUAL.items() if len(row.blocks) == 4]
EXACT = ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"]  # one of each kind
CIFAR_FORM = [name for name, row in USUAL.items() if len(row.blocks) == 3]


def reference(name: str, **options: object) -> torchvision.models.ResNet:
    return getattr(torchvision.models, name)(weights=None, **options)


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def output_shapes(model: ResNet, size: int, *names: str) -> list[tuple[int, ...]]:
    found = []
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda _module, _input, out: found.append(tuple(out.shape[1:]))
        )
        for name in names
    ]
    model.eval()(torch.zeros(0, model.architecture.in_channels, size, size))
    for hook in hooks:
        hook.remove()
    return found


# Torchvision as the reference


def test_the_table_has_every_resnet_of_torchvision():
    theirs = [name for name in torchvision.models.resnet.__all__ if name.islower()]
    assert sorted(IMAGENET_FORM) == sorted(theirs)


@pytest.mark.parametrize("name", IMAGENET_FORM)
def test_keys_shapes_and_counts_are_torchvisions(name):
    with torch.device("meta"):
        ours, theirs = build_model(name), reference(name)
    assert list(shapes(ours).items()) == list(shapes(theirs).items())
    published = torchvision.models.get_model_weights(name).IMAGENET1K_V1.meta["num_params"]
    assert sum(parameter.numel() for parameter in ours.parameters()) == published


def step(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return logits and gradients in train mode and then in eval mode, and the buffers."""
    found = {}
    for mode in ("train", "eval"):  # eval uses the statistics that the training step has moved
        model.train(mode == "train")
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        found[f"{mode} logits"] = logits.detach()
        for (key, _), gradient in zip(model.named_parameters(), gradients, strict=True):
            found[f"{mode} gradient of {key}"] = gradient
    return found | {key: buffer.clone() for key, buffer in model.named_buffers()}


def assert_same_function(ours: ResNet, theirs: nn.Module, size: int) -> None:
    """Compare two networks in float64, with the weights of the second."""
    ours.load_state_dict(theirs.state_dict())
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, size, size, generator=generator, dtype=torch.float64)
    labels = torch.tensor([3, 7])
    expected = step(theirs, images, labels)
    found = step(ours, images, labels)
    assert list(found) == list(expected)
    for key, value in expected.items():
        if not torch.equal(found[key], value):  # they mostly are equal, and this is quicker
            error = float((found[key] - value).abs().max())
            assert error <= 1e-9 * max(1.0, float(value.abs().max())), key


def empty(name: str) -> ResNet:
    """Build a network that waits for weights: drawing them takes longer than using them."""
    with torch.device("meta"):
        ours = build_model(name)
    return ours.to_empty(device="cpu")


@pytest.mark.parametrize("name", marked(EXACT))
def test_logits_gradients_and_statistics_are_torchvisions(name):
    torch.manual_seed(0)
    assert_same_function(empty(name).double(), reference(name).double(), 48)


@pytest.mark.parametrize("name", marked(name for name in IMAGENET_FORM if name not in EXACT))
@torch.inference_mode()
def test_logits_of_the_deeper_and_wider_networks_are_torchvisions(name):
    torch.manual_seed(0)
    ours, theirs = empty(name), reference(name)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 48, 48)
    for is_training in (True, False):  # eval uses the statistics that training has moved
        expected = theirs.train(is_training)(images)
        torch.testing.assert_close(ours.train(is_training)(images), expected, rtol=1e-4, atol=1e-4)


def test_stride_on_the_first_1x1_is_torchvisions_network_with_the_strides_moved():
    theirs = reference("resnet50").double()
    for stage in (theirs.layer2, theirs.layer3, theirs.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    assert_same_function(build_model("resnet50", stride_on="conv1x1").double(), theirs, 64)


@pytest.mark.parametrize(
    ("stem", "padding", "pool_padding"), [("pad2", 2, 1), ("floor_pool", 3, 0)]
)
def test_tutorial_stems_are_torchvisions_network_with_other_padding(stem, padding, pool_padding):
    theirs = reference("resnet18").double()
    theirs.conv1.padding = (padding, padding)
    theirs.maxpool.padding = pool_padding
    assert_same_function(build_model("resnet18", stem=stem).double(), theirs, 75)


def test_small_stem_is_torchvisions_network_with_the_stem_replaced():
    theirs = reference("resnet18")
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    assert_same_function(build_model("resnet18", stem="small").double(), theirs.double(), 19)


@pytest.mark.parametrize("zero_init_residual", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_a_seed_draws_torchvisions_weights(name, zero_init_residual):
    torch.manual_seed(5)
    ours = build_model(name, num_classes=7, zero_init_residual=zero_init_residual).state_dict()
    torch.manual_seed(5)
    theirs = reference(name, num_classes=7, zero_init_residual=zero_init_residual).state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_without_a_head_the_network_returns_torchvisions_last_feature_map():
    theirs = reference("resnet18")
    theirs.avgpool, theirs.fc = nn.Identity(), nn.Identity()
    ours = build_model("resnet18", include_top=False)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    found = ours.eval()(images)
    assert found.shape == (2, 512, 2, 2)
    torch.testing.assert_close(found.flatten(1), theirs.eval()(images))
    torch.testing.assert_close(ours.features(images), found.mean((2, 3)))


# The CIFAR form


@pytest.mark.parametrize(
    ("name", "millions"),  # table 6 of the ResNet paper
    [
        ("resnet20", 0.27),
        ("resnet32", 0.46),
        ("resnet44", 0.66),
        ("resnet56", 0.85),
        ("resnet110", 1.7),
        ("resnet1202", 19.4),
    ],
)
def test_cifar_form_has_the_papers_number_of_parameters(name, millions):
    with torch.device("meta"):
        model = build_model(name, num_classes=10)
    digits = 1 if millions > 1 else 2
    count = sum(parameter.numel() for parameter in model.parameters())
    assert round(count / 1e6, digits) == millions


def cifar_reference(weights: dict[str, Tensor], x: Tensor, *, blocks: int, shortcut: str) -> Tensor:
    """Compute the paper's section 4.2 in eval mode from nothing but the weights."""

    def conv_bn(x: Tensor, conv: str, bn: str, stride: int) -> Tensor:
        x = F.conv2d(x, weights[f"{conv}.weight"], stride=stride, padding=1)
        mean, var = weights[f"{bn}.running_mean"], weights[f"{bn}.running_var"]
        scale = weights[f"{bn}.weight"] / torch.sqrt(var + 1e-5)
        return (x - mean[:, None, None]) * scale[:, None, None] + weights[f"{bn}.bias"][
            :, None, None
        ]

    x = conv_bn(x, "conv1", "bn1", 1).relu()
    for stage in (1, 2, 3):
        for block in range(blocks):
            place = f"layer{stage}.{block}."
            stride = 2 if stage > 1 and block == 0 else 1
            out = conv_bn(x, place + "conv1", place + "bn1", stride).relu()
            out = conv_bn(out, place + "conv2", place + "bn2", 1)
            new = out.shape[1] - x.shape[1]  # 0, 16 or 32
            if shortcut == "pad":
                out[:, : x.shape[1]] += x[:, :, ::stride, ::stride]  # the other channels: plus 0
            elif shortcut == "pad_centered":
                out += F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, new // 2, new // 2))
            x = out.relu()
    return x.mean((2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]


@pytest.mark.parametrize("shortcut", ["pad", "pad_centered", "none"])
def test_cifar_form_computes_the_papers_formula(shortcut):
    torch.manual_seed(0)
    model = build_model("resnet20", num_classes=10, shortcut=shortcut).double()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    model(images)  # in train mode: gives the running statistics values
    expected = cifar_reference(model.state_dict(), images, blocks=3, shortcut=shortcut)
    torch.testing.assert_close(model.eval()(images), expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@example(1202)
@example(1208)
@given(st.integers(0, 150))
def test_a_depth_of_6n_plus_2_builds_that_many_layers_and_any_other_is_refused(depth):
    name = f"resnet{depth}"
    if name in IMAGENET_FORM:
        return
    if depth < 8 or depth % 6 != 2 or depth > 1202:
        with pytest.raises(ParamsError, match=f"'{name}', an unknown network"):
            build_model(name)
        return
    with torch.device("meta"):
        model = build_model(name)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth


def test_resnet50_is_the_imagenet_form_although_50_is_6n_plus_2():
    assert isinstance(build_model("resnet50", include_top=False).layer1[0], Bottleneck)


# Options


@pytest.mark.parametrize(("before", "behind"), [(0, 2), (1, 1), (1, 2)])
def test_pad_shortcut_takes_every_second_pixel_and_adds_zero_channels(before, behind):
    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)
    found = PadShortcut(before, behind, stride=2)(images)
    expected = torch.zeros(2, before + 3 + behind, 2, 3)
    for n in range(2):
        for c in range(3):
            for row in range(2):
                for column in range(3):
                    expected[n, before + c, row, column] = images[n, c, 2 * row, 2 * column]
    assert torch.equal(found, expected)


def test_centered_padding_is_a_quarter_of_the_new_width_on_each_side():
    model = build_model("resnet20", shortcut="pad_centered")
    for stage, planes in ((model.layer2, 32), (model.layer3, 64)):
        x = torch.rand(1, planes // 2, 6, 6)
        quarter = planes // 4
        expected = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter))
        assert torch.equal(stage[0].downsample(x), expected)


def test_only_projection_shortcuts_have_weights():
    counts = {
        shortcut: sum(
            "downsample" in key for key in build_model("resnet18", shortcut=shortcut).state_dict()
        )
        for shortcut in ("projection", "pad", "pad_centered", "none")
    }
    assert counts == {"projection": 3 * 6, "pad": 0, "pad_centered": 0, "none": 0}


def test_a_plain_network_has_no_shortcut_anywhere():
    model = build_model("resnet34", shortcut="none")
    blocks = [m for m in model.modules() if isinstance(m, BasicBlock)]
    assert len(blocks) == 16
    assert all(block.downsample is None for block in blocks)


def test_zero_init_residual_makes_each_block_the_identity():
    model = build_model("resnet20", zero_init_residual=True)
    x = torch.rand(2, 16, 8, 8)  # not negative, as what comes out of a ReLU
    assert torch.equal(model.layer1(x), x)


@pytest.mark.parametrize(
    ("stride_on", "narrow"), [("conv3x3", (128, 56, 56)), ("conv1x1", (128, 28, 28))]
)
def test_stride_sits_on_the_chosen_convolution(stride_on, narrow):
    model = build_model("resnet50", stride_on=stride_on)
    found = output_shapes(model, 224, "layer2.0.conv1", "layer2.0.conv2")
    assert found == [narrow, (128, 28, 28)]


@pytest.mark.parametrize(
    ("stem", "sizes"),
    [
        ("imagenet", [56, 56, 28, 14, 7]),
        ("pad2", [56, 56, 28, 14, 7]),
        ("floor_pool", [55, 55, 28, 14, 7]),
        ("small", [224, 224, 112, 56, 28]),
    ],
)
def test_stems_leave_these_sizes_of_224_pixels(stem, sizes):
    model = build_model("resnet18", stem=stem)
    found = output_shapes(model, 224, "maxpool", "layer1", "layer2", "layer3", "layer4")
    channels = [64, 64, 128, 256, 512]
    assert found == [(c, size, size) for c, size in zip(channels, sizes, strict=True)]


def test_conv_bias_gives_every_convolution_a_bias_of_zero():
    model = build_model("resnet18", conv_bias=True)
    biases = [m.bias for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(biases) == 20
    assert all(bias is not None and not bias.any() for bias in biases)
    plain = build_model("resnet18").state_dict().keys()
    extra = {key for key in model.state_dict() if key not in plain}
    assert extra == {key.replace("weight", "bias") for key in plain if "conv" in key} | {
        f"layer{stage}.0.downsample.0.bias" for stage in (2, 3, 4)
    }


def test_xavier_draws_all_weights_uniformly_between_its_bounds():
    model = build_model("resnet18", init="xavier")
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weight = layer.weight.detach()
            fan_out, fan_in = weight.shape[:2]
            bound = math.sqrt(6 / ((fan_in + fan_out) * weight[0, 0].numel()))
            assert float(weight.abs().max()) == pytest.approx(bound, rel=0.01)
            assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet19", {}, "model.name is 'resnet19', an unknown network"),
        ("resnext50", {}, "model.name is 'resnext50'"),
        ("", {}, "model.name is ''"),
        ("resnet18", {"stem": "cifar"}, "model.stem is 'cifar'"),
        ("resnet18", {"shortcut": "B"}, "model.shortcut is 'B'"),
        ("resnet50", {"stride_on": "conv2"}, "model.stride_on is 'conv2'"),
        ("resnet18", {"init": "zeros"}, "model.init is 'zeros'"),
        ("resnet18", {"num_classes": 0}, "num_classes is 0"),
        ("resnet18", {"num_classes": True}, "num_classes is True"),
        ("resnet18", {"in_channels": -1}, "in_channels is -1"),
        ("resnet18", {"in_channels": 2.0}, "in_channels is 2.0"),
        ("resnet18", {"stride_on": "conv1x1"}, "resnet18 has no 1×1 convolution"),
        ("resnet20", {"stride_on": "conv1x1"}, "resnet20 has no 1×1 convolution"),
        (
            "resnet50",
            {"shortcut": "none", "zero_init_residual": True},
            "zero_init_residual is true",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(name, options, message):
    with pytest.raises(ParamsError, match=message) as caught:
        build_model(name, **options)
    assert isinstance(caught.value, ValueError)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet19", "resnet18"),
        ("resnext50", "resnext50_32x4d"),
        ("wide_resnet50", "wide_resnet50_2"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(ParamsError) as caught:
        build_model(name)
    assert nearest in caught.value.fix.split("?")[0]


choices = {
    "stem": st.sampled_from(Stem.__args__),
    "shortcut": st.sampled_from(Shortcut.__args__),
    "stride_on": st.sampled_from(StrideOn.__args__),
    "init": st.sampled_from(Init.__args__),
    "conv_bias": st.booleans(),
    "zero_init_residual": st.booleans(),
    "include_top": st.booleans(),
    "num_classes": st.integers(1, 5),
    "in_channels": st.sampled_from([1, 3, 4]),
}


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["resnet8", "resnet14", "resnet50"]),
    st.fixed_dictionaries({}, optional=choices),
)
def test_any_options_but_the_contradictions_give_a_working_network(name, options):
    is_senseless = options.get("stride_on") == "conv1x1" and name != "resnet50"
    is_senseless |= options.get("shortcut") == "none" and options.get("zero_init_residual", False)
    if is_senseless:
        with pytest.raises(ParamsError, match=r"stride_on|zero_init_residual"):
            build_model(name, **options)
        return
    with torch.device("meta"):
        model = build_model(name, **options)
    net = model.to_empty(device="cpu").architecture
    logits = model.eval()(torch.zeros(0, net.in_channels, 40, 40))
    width = net.num_classes if net.include_top else model.num_features
    assert logits.shape[:2] == (0, width)
    assert logits.dim() == (2 if net.include_top else 4)
    with torch.device("meta"):
        again = build_model(**vars(net))
    assert shapes(again) == shapes(model)


# Groups that train apart


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("resnet18", ["stem", "layer1", "layer2", "layer3", "layer4", "head"]),
        ("resnet20", ["stem", "layer1", "layer2", "layer3", "head"]),
    ],
)
def test_groups_hold_every_parameter_once_from_the_stem_to_the_head(name, names):
    model = build_model(name)
    groups = layer_groups(model)
    assert list(groups) == names == USUAL[name].layer_groups()
    found = [p for group in groups.values() for module in group for p in module.parameters()]
    assert list(map(id, found)) == list(map(id, model.parameters()))


def test_a_network_without_a_head_has_no_group_for_it():
    assert "head" not in layer_groups(build_model("resnet20", include_top=False))
