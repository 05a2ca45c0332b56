"""Count what a network is made of: output shapes, parameters and multiply-adds."""

import re
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from resnets.models.resnet import build_model
from resnets.system.errors import ParamsError

STEM = re.compile(r"^(conv1|bn1|maxpool)$")


@dataclass(frozen=True)
class SummaryRow:
    """Hold the counts of one layer or stage, for one image."""

    name: str
    shape: tuple[int, ...]  # of the output, without the batch
    parameters: int
    multiply_adds: int  # of convolutions and linear layers, as the literature counts
    weights: int  # of a convolution; of a stage: the convolutions of its last block


def summarize(name: str, size: int, **options: Any) -> list[SummaryRow]:  # noqa: ANN401
    """Count each layer of a network of `build_model` for one image of size × size.

    The rows have the order of computation. An empty batch goes through the network, so only
    shapes are computed. Raises ParamsError for an image that is too small for the stem.
    """
    rows: list[SummaryRow] = []

    def count(place: str, layer: nn.Module, _: tuple[Tensor, ...], out: Tensor) -> None:
        weights = layer.weight.numel() if isinstance(layer, nn.Conv2d) else 0
        uses = out.shape[2:].numel()  # of each weight: once per pixel of the output
        cost = layer.weight.numel() if isinstance(layer, nn.Linear) else weights * uses
        parameters = sum(parameter.numel() for parameter in layer.parameters())
        rows.append(SummaryRow(place, tuple(out.shape[1:]), parameters, cost, weights))

    with torch.device("meta"):
        model = build_model(name, **options)
    model.to_empty(device="cpu").eval()  # drawing weights would take longer than all the rest
    for place, layer in model.named_modules():
        if not list(layer.children()) and not isinstance(layer, nn.Identity | nn.Sequential):
            layer.register_forward_hook(partial(count, place))
    try:
        model(torch.empty(0, model.architecture.in_channels, size, size))
    except RuntimeError as error:
        what = f"size {size}: nothing of the image is left after the stem"
        raise ParamsError(what, "take a larger image") from error
    return rows


def by_stage(layers: list[SummaryRow]) -> list[SummaryRow]:
    """Sum the counts of layers per stage: stem, layer1 to layer4, avgpool, flatten, fc."""
    rows = []
    for name, group in groupby(layers, lambda layer: STEM.sub("stem", layer.name).split(".")[0]):
        stage = list(group)
        block = ".".join(stage[-1].name.split(".")[:2])
        parameters = sum(layer.parameters for layer in stage)
        cost = sum(layer.multiply_adds for layer in stage)
        weights = sum(layer.weights for layer in stage if layer.name.startswith(f"{block}.conv"))
        rows.append(SummaryRow(name, stage[-1].shape, parameters, cost, weights))
        if name == "avgpool":
            rows.append(SummaryRow("flatten", stage[-1].shape[:1], 0, 0, 0))
    return rows


def print_summary(name: str, size: int, *, layers: bool, **options: Any) -> None:  # noqa: ANN401
    """Print the table of stages, or of all layers, of a network of `build_model`, with totals."""
    rows = summarize(name, size, **options)
    rows = rows if layers else by_stage(rows)
    first, last = ("layer", "weights") if layers else ("stage", "block weights")
    table = Table(title=f"{name}, {size}×{size} pixels")
    table.add_column(first, no_wrap=True)
    for column in ("output", "parameters", "multiply-adds", last):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        counts = (row.parameters, row.multiply_adds, row.weights)
        numbers = (f"{count:,}" if count else "" for count in counts)
        table.add_row(row.name, "×".join(map(str, row.shape)), *numbers)
    table.add_section()
    totals = (sum(row.parameters for row in rows), sum(row.multiply_adds for row in rows))
    table.add_row("total", "", *(f"{total:,}" for total in totals))
    if not layers:
        table.caption = "block weights: the convolutions of the stage's last block"
    Console().print(table)
