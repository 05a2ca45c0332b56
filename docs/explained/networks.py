"""Draw what blocks cost, what groups connect and what each stage computes, from our networks.

python docs/explained/networks.py
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Polygon
from numpy.typing import NDArray
from torch import nn

from resnets.evaluation.plots import COLOURS, open_figure
from resnets.models import build_model
from resnets.models.summary import SummaryRow, by_stage, summarize
from resnets.system.errors import run_app

HERE = Path(__file__).resolve().parent
SIZE = 224  # pixels, as ImageNet's
# blocks that map 256 channels to 256, and so have a shortcut without weights
BLOCKS = {
    "resnet34": ("layer3.1", "basic block"),
    "resnet50": ("layer1.1", "bottleneck"),
    "resnext50_32x4d": ("layer1.1", "bottleneck with 32 groups"),
}
# 3×3 convolutions of 128 channels, which differ in their groups only
GROUPED = {"wide_resnet50_2": "layer1.1.conv2", "resnext50_32x4d": "layer1.1.conv2"}
COLOUR = {(1, 1): COLOURS[5], (3, 3): COLOURS[0]}  # of kernels
DEPTHS = ("resnet18", "resnet50")


def empty_module(name: str, place: str) -> nn.Module:
    """Return a part of a network, without weights."""
    with torch.device("meta"):
        return build_model(name).get_submodule(place)


def convolutions(name: str, block: str) -> list[nn.Conv2d]:
    """Return the convolutions of a block in order."""
    return [m for m in empty_module(name, block).modules() if isinstance(m, nn.Conv2d)]


def num_weights(convs: Sequence[nn.Conv2d]) -> int:
    """Return how many weights convolutions have together."""
    return sum(conv.weight.numel() for conv in convs)


def connections(name: str, place: str) -> NDArray[np.bool_]:
    """Tell which output (column) of a convolution moves with which input (row): (in, out)."""
    conv = empty_module(name, place).to_empty(device="cpu")
    assert isinstance(conv, nn.Conv2d)
    nn.init.ones_(conv.weight)
    one_at_a_time = torch.eye(conv.in_channels)[:, :, None, None]  # (N = in, C = in, 1, 1)
    with torch.inference_mode():
        out: torch.Tensor = conv(one_at_a_time)  # (N = in, out, 1, 1)
    return out.flatten(1).numpy() != 0


def label(conv: nn.Conv2d) -> str:
    """Say what a convolution maps to what, and how many weights that takes."""
    kernel, groups = "×".join(map(str, conv.kernel_size)), f", {conv.groups} groups"
    what = f"{kernel}, {conv.in_channels} → {conv.out_channels}{groups * (conv.groups > 1)}"
    return f"{what}\n{conv.weight.numel():,} weights"


def draw_block(panel: Axes, convs: list[nn.Conv2d], title: str) -> None:
    """Draw a block from top to bottom: boxes as wide as their channels, and the shortcut."""
    step, foot, line = 3 / len(convs), -3.1, {"color": "0.3", "lw": 1.5, "zorder": 0}
    panel.plot([0, 0], [0.4, -3.6], **line)
    panel.plot([0, -330, -330, 0], [0.2, 0.2, foot, foot], **line)
    for index, conv in enumerate(convs):
        top, bottom = -index * step, -(index + 0.7) * step
        left, right = conv.in_channels, conv.out_channels
        corners = [(-left, top), (left, top), (right, bottom), (-right, bottom)]
        panel.add_patch(Polygon(corners, facecolor=COLOUR[conv.kernel_size]))
        panel.text(290, (top + bottom) / 2, label(conv), va="center", fontsize=9)
    ring = {"boxstyle": "circle,pad=0.1", "facecolor": "white", "edgecolor": "0.3"}
    panel.text(0, foot, "+", ha="center", va="center", fontsize=13, bbox=ring)
    panel.text(25, 0.25, f"{convs[0].in_channels} channels", fontsize=9)
    panel.text(-350, -1.4, "shortcut", rotation=90, ha="right", va="center", fontsize=9)
    panel.set(xlim=(-420, 950), ylim=(-3.7, 0.7))
    panel.set_title(f"{title}: {num_weights(convs):,} weights", fontsize=11)
    panel.axis("off")


def draw_blocks(path: Path) -> None:
    """Draw the three blocks side by side."""
    with open_figure(path, 11.5, 3.6) as figure:
        panels = figure.subplots(1, len(BLOCKS))
        for panel, (name, (block, title)) in zip(panels, BLOCKS.items(), strict=True):
            draw_block(panel, convolutions(name, block), title)


def draw_groups(path: Path) -> None:
    """Draw which channels a 3×3 convolution connects, with and without groups."""
    with open_figure(path, 8, 4.4) as figure:
        panels = figure.subplots(1, len(GROUPED))
        for panel, (name, place) in zip(panels, GROUPED.items(), strict=True):
            conv = empty_module(name, place)
            assert isinstance(conv, nn.Conv2d)
            panel.imshow(connections(name, place), "Blues", vmin=0, vmax=1.3, interpolation="none")
            groups = f"{conv.groups} groups" if conv.groups > 1 else "no groups"
            panel.set(xlabel="channel of the output", ylabel="channel of the input")
            panel.set_title(f"{groups} ({name}):\n{num_weights([conv]):,} weights", fontsize=11)
            ticks = range(0, conv.in_channels + 1, 32)
            panel.set(xticks=ticks, yticks=ticks)
            panel.grid(False)


def draw_map(panel: Axes, left: float, shape: tuple[int, ...], colour: str) -> None:
    """Draw a feature map (C, H, W) as a box whose sides go with the square roots."""
    channels, height, _ = shape
    width, side, slant = channels**0.5 / 3.6, height**0.5, height**0.5 / 4
    front = [(0, 0), (width, 0), (width, side), (0, side)]
    top = [(0, side), (width, side), (width + slant, side + slant), (slant, side + slant)]
    flank = [(width, 0), (width + slant, slant), (width + slant, side + slant), (width, side)]
    for corners, white in ((front, 0.0), (top, 0.5), (flank, 0.3)):
        moved = [(left - (width + slant) / 2 + x, y) for x, y in corners]
        shade = [white + (1 - white) * part for part in to_rgb(colour)]
        panel.add_patch(Polygon(moved, facecolor=shade, edgecolor="white", lw=0.5))


def draw_maps(panel: Axes, maps: dict[str, tuple[int, ...]]) -> None:
    """Draw the image and the outputs of all stages in a line, each with its shape."""
    for index, (name, shape) in enumerate(maps.items()):
        draw_map(panel, 14 * index, shape, COLOURS[0] if index else "0.6")
        channels, *sides = shape
        text = f"{name}\n{channels} of\n{'×'.join(map(str, sides))}"
        panel.text(14 * index, -0.8, text, ha="center", va="top", fontsize=8.5)
    panel.set(xlim=(-7, 14 * len(maps) - 7), ylim=(-5.5, 20))
    panel.axis("off")


def draw_shares(panel: Axes, rows: list[SummaryRow]) -> None:
    """Draw each stage's share of the network's values, multiply-adds and parameters."""
    counts = {
        "output values": [math.prod(row.shape) for row in rows],
        "multiply-adds": [row.multiply_adds for row in rows],
        "parameters": [row.parameters for row in rows],
    }
    places = np.arange(len(rows))
    for index, (name, numbers) in enumerate(counts.items()):
        shares = 100 * np.array(numbers) / sum(numbers)
        panel.bar(places + 0.27 * (index - 1), shares, 0.25, label=name, color=COLOURS[index])
    panel.set_xticks(places, [row.name for row in rows])
    panel.set_axisbelow(True)
    panel.grid(False, axis="x")


def draw_stages(path: Path) -> None:
    """Draw what each stage puts out, and its share of what the network costs."""
    with open_figure(path, 11, 6) as figure:
        panels = figure.subplots(2, len(DEPTHS), sharey="row", height_ratios=[1.1, 1])
        for (upper, lower), name in zip(panels.T, DEPTHS, strict=True):
            rows = by_stage(summarize(name, SIZE))
            maps = {row.name: row.shape for row in rows if len(row.shape) == 3}
            draw_maps(upper, {"image": (3, SIZE, SIZE), **maps})
            draw_shares(lower, [row for row in rows if row.parameters])
            total = sum(row.parameters for row in rows)
            upper.set_title(f"{name}: {total / 1e6:.1f} million parameters", fontsize=11)
        panels[1, 0].set_ylabel("share of the network, %")
        panels[1, 0].legend(loc="upper left")


def main(out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = HERE) -> None:
    """Draw blocks.png, groups.png and stages.png."""
    draw_blocks(out / "blocks.png")
    draw_groups(out / "groups.png")
    draw_stages(out / "stages.png")


if __name__ == "__main__":
    run_app(main)
