"""Check the counts against torchvision's published ones, torch's counter and the tutorials."""

import math
import subprocess
import sys

import pytest
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

from resnets.models import build_model
from resnets.models.summary import by_stage, print_summary, summarize
from resnets.params.architecture import USUAL
from resnets.system.errors import ParamsError


@pytest.mark.parametrize("name", [name for name, row in USUAL.items() if len(row.blocks) == 4])
def test_totals_are_the_ones_that_torchvision_publishes(name):
    published = torchvision.models.get_model_weights(name).IMAGENET1K_V1.meta
    rows = summarize(name, 224)
    assert sum(row.parameters for row in rows) == published["num_params"]
    assert round(sum(row.multiply_adds for row in rows) / 1e9, 3) == published["_ops"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet20", {"num_classes": 10, "in_channels": 1, "conv_bias": True}),
        ("resnet18", {"stem": "floor_pool", "shortcut": "none", "include_top": False}),
        ("resnext50_32x4d", {"stem": "small", "shortcut": "pad", "stride_on": "conv1x1"}),
    ],
)
def test_multiply_adds_are_half_the_flops_that_torch_counts(name, options):
    model = build_model(name, **options).eval()
    rows = summarize(name, 37, **options)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, options.get("in_channels", 3), 37, 37))
    assert sum(row.multiply_adds for row in rows) == counter.get_total_flops() / 2
    assert sum(row.parameters for row in rows) == sum(p.numel() for p in model.parameters())


def test_the_fashion_mnist_tutorials_table_of_shapes():
    rows = by_stage(
        summarize("resnet18", 224, num_classes=10, in_channels=1, stem="pad2", conv_bias=True)
    )
    assert [(row.name, row.shape) for row in rows] == [
        ("stem", (64, 56, 56)),
        ("layer1", (64, 56, 56)),
        ("layer2", (128, 28, 28)),
        ("layer3", (256, 14, 14)),
        ("layer4", (512, 7, 7)),
        ("avgpool", (512, 1, 1)),
        ("flatten", (512,)),
        ("fc", (10,)),
    ]


def test_the_classic_comparison_of_two_blocks_on_256_channels():
    weights = {
        (name, row.name): row.weights
        for name in ("resnet18", "resnet34", "resnet50", "resnet101")
        for row in by_stage(summarize(name, 32))
    }
    assert weights["resnet18", "layer3"] == weights["resnet34", "layer3"] == 1_179_648
    assert weights["resnet50", "layer1"] == weights["resnet101", "layer1"] == 69_632


def test_layers_sum_to_their_stages():
    layers = summarize("resnet50", 96, num_classes=7)
    stages = by_stage(layers)
    for count in ("parameters", "multiply_adds"):
        assert sum(getattr(r, count) for r in layers) == sum(getattr(r, count) for r in stages)


def test_a_grouped_convolution_counts_its_own_weights_only():
    rows = {row.name: row for row in summarize("resnext50_32x4d", 64)}
    conv = rows["layer1.0.conv2"]  # 128 channels in 32 groups of 4, 16 × 16 pixels
    assert (conv.shape, conv.weights) == ((128, 16, 16), 128 * 4 * 9)
    assert conv.multiply_adds == conv.weights * 16 * 16


def test_an_image_too_small_for_the_stem_is_refused():
    with pytest.raises(ParamsError, match="size 2: nothing of the image is left"):
        summarize("resnet18", 2, stem="floor_pool")


def test_the_printed_table_has_every_stage_and_the_totals(capsys):
    print_summary("resnet18", 224, layers=False)
    lines = capsys.readouterr().out.splitlines()
    total = next(line for line in lines if "total" in line)
    assert "11,689,512" in total
    assert "1,814,073,344" in total
    assert any("layer3" in line and "1,179,648" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_the_printed_layers_are_as_many_as_the_network_has(capsys):
    print_summary("resnet20", 32, layers=True, num_classes=10)
    lines = capsys.readouterr().out.splitlines()
    assert sum("conv" in line for line in lines) == 19
    assert sum("bn" in line for line in lines) == 19
    assert not any("…" in line for line in lines)


def test_the_command_answers_help_without_torch_and_refuses_with_exit_code_2():
    code = "import sys; from resnets import cli; cli.summary; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    command = [sys.executable, "-m", "resnets.cli", "summary"]
    done = subprocess.run([*command, "resnet19"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: model.name is 'resnet19'")
    assert len(done.stderr.splitlines()) == 2


def test_the_largest_image_costs_no_memory():
    total = sum(row.multiply_adds for row in summarize("resnet18", 65536))
    assert math.log10(total) > 14
