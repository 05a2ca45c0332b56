"""Describe the networks of the family: a table of variants, their options and what contradicts.

Sources: He et al. 2015 (arXiv:1512.03385) for ResNet, Xie et al. 2016 (arXiv:1611.05431) for
ResNeXt, Zagoruyko and Komodakis 2016 (arXiv:1605.07146) for wide ResNet.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from resnets.system.errors import ParamsError

Stem = Literal["imagenet", "small", "pad2", "floor_pool"]
Shortcut = Literal["projection", "pad", "pad_centered", "none"]
StrideOn = Literal["conv3x3", "conv1x1"]
Init = Literal["kaiming", "xavier"]

# Options that change what is computed and no weight's name or shape: a file cannot tell them apart.
ALIKE: dict[str, tuple[str, ...]] = {
    "stem": ("imagenet", "pad2", "floor_pool"),
    "shortcut": ("pad", "pad_centered", "none"),
    "stride_on": ("conv3x3", "conv1x1"),
}

DEEPEST = 1202  # of the CIFAR form: the paper's deepest (section 4.2); a larger one is a typo


@dataclass(frozen=True)
class Variant:
    """Hold one row of the table: what tells one network of the family from another."""

    block: Literal["basic", "bottleneck"]
    blocks: tuple[int, ...]  # per stage
    planes: tuple[int, ...] = (64, 128, 256, 512)  # channels per stage, before expansion
    groups: int = 1  # of the 3×3 convolution (ResNeXt's cardinality)
    width_per_group: int = 64  # channels of one group where planes is 64
    stem: Stem = "imagenet"
    shortcut: Shortcut = "projection"


def _cifar(depth: int) -> Variant:
    """Return the network of 6n + 2 layers for 32×32 images (section 4.2 of the paper)."""
    num_blocks = (depth - 2) // 6
    return Variant("basic", (num_blocks,) * 3, (16, 32, 64), stem="small", shortcut="pad")


VARIANTS: dict[str, Variant] = {
    "resnet18": Variant("basic", (2, 2, 2, 2)),
    "resnet34": Variant("basic", (3, 4, 6, 3)),
    "resnet50": Variant("bottleneck", (3, 4, 6, 3)),
    "resnet101": Variant("bottleneck", (3, 4, 23, 3)),
    "resnet152": Variant("bottleneck", (3, 8, 36, 3)),
    "resnext50_32x4d": Variant("bottleneck", (3, 4, 6, 3), groups=32, width_per_group=4),
    "resnext101_32x8d": Variant("bottleneck", (3, 4, 23, 3), groups=32, width_per_group=8),
    "resnext101_64x4d": Variant("bottleneck", (3, 4, 23, 3), groups=64, width_per_group=4),
    "wide_resnet50_2": Variant("bottleneck", (3, 4, 6, 3), width_per_group=128),
    "wide_resnet101_2": Variant("bottleneck", (3, 4, 23, 3), width_per_group=128),
    **{f"resnet{depth}": _cifar(depth) for depth in (20, 32, 44, 56, 110)},
}

# torchvision's published files, and the size to which their preprocessing resizes the shorter
# side. The name holds the network and the first digits of the file's SHA-256.
PUBLISHED: dict[str, int] = {
    # the first ones: the weights of V1 in PyTorch's old format, without num_batches_tracked
    "resnet18-5c106cde.pth": 256,
    "resnet34-333f7ec4.pth": 256,
    "resnet50-19c8e357.pth": 256,
    "resnet101-5d3b4d8f.pth": 256,
    "resnet152-b121ed2d.pth": 256,
    # IMAGENET1K_V1
    "resnet18-f37072fd.pth": 256,
    "resnet34-b627a593.pth": 256,
    "resnet50-0676ba61.pth": 256,
    "resnet101-63fe2227.pth": 256,
    "resnet152-394f9c45.pth": 256,
    "resnext50_32x4d-7cdf4587.pth": 256,
    "resnext101_32x8d-8ba56ff5.pth": 256,
    "resnext101_64x4d-173b62eb.pth": 232,  # made with the recipe of V2
    "wide_resnet50_2-95faca4d.pth": 256,
    "wide_resnet101_2-32ee1156.pth": 256,
    # IMAGENET1K_V2
    "resnet50-11ad3fa6.pth": 232,
    "resnet101-cd907fc2.pth": 232,
    "resnet152-f82ba261.pth": 232,
    "resnext50_32x4d-1a0047aa.pth": 232,
    "resnext101_32x8d-110c445d.pth": 232,
    "wide_resnet50_2-9ba9bcbe.pth": 232,
    "wide_resnet101_2-d733dc28.pth": 232,
}


def variant(name: str) -> Variant:
    """Return the row of a name: one of VARIANTS, or `resnetN` with N = 6n + 2 (CIFAR form).

    Raises ParamsError for any other name, with the nearest ones.
    """
    if name in VARIANTS:
        return VARIANTS[name]
    depth = int(name[6:]) if re.fullmatch(r"resnet[1-9][0-9]{0,3}", name) else 0
    if 8 <= depth <= DEEPEST and depth % 6 == 2:
        return _cifar(depth)
    longer = [known for known in VARIANTS if known.startswith(name)]
    near = longer or difflib.get_close_matches(name, VARIANTS, 3)
    raise ParamsError(
        f"model.name is {name!r}, an unknown network",
        f"did you mean one of {', '.join(near or VARIANTS)}? "
        f"Depths of the CIFAR form are 6n + 2 (8, 14, 20, … up to {DEEPEST})",
    )


def network_of(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return the name of the network whose weights have these shapes, None where there is none."""
    stages = [{k.split(".")[1] for k in shapes if k.startswith(f"layer{i}.")} for i in range(1, 5)]
    blocks = tuple(len(stage) for stage in stages if stage)
    if not blocks or "layer1.0.conv2.weight" not in shapes:
        return None
    block = "bottleneck" if "layer1.0.conv3.weight" in shapes else "basic"
    shape = shapes["layer1.0.conv2.weight"]
    depth = 6 * blocks[0] + 2  # of the CIFAR form, which has more rows than the table
    for name in [*VARIANTS, f"resnet{min(depth, DEEPEST)}"]:
        row = variant(name)
        width = row.planes[0] * row.width_per_group // 64 * row.groups
        if (row.block, row.blocks, (width, width // row.groups, 3, 3)) == (block, blocks, shape):
            return name
    return None


@dataclass(frozen=True)
class Architecture:
    """Hold all that `build_model` needs to build one network again.

    Raises ParamsError for a value that does not exist and for options that contradict each other.
    """

    name: str
    num_classes: int
    in_channels: int
    stem: Stem  # what comes before the first stage: a row of STEMS in resnet.py
    # where shapes change: 1×1 convolution (the paper's option B), zeros for the new channels
    # (option A) behind the others as fb.resnet.torch has it, or half of them before the others as
    # the best-known CIFAR weights have it; or no shortcut at all (a plain network)
    shortcut: Shortcut
    # which convolution of a bottleneck halves the image: the 3×3 ("v1.5", about 0.5 points
    # better) or the first 1×1 (the original, which never looks at three quarters of its input)
    stride_on: StrideOn
    conv_bias: bool  # BatchNorm cancels these biases, but the weights of tutorials have them
    zero_init_residual: bool  # each block starts as the identity (arXiv:1706.02677, section 5.1)
    init: Init  # kaiming: normal, fan-out, as torchvision; xavier: uniform, head included
    include_top: bool  # off: no head, the network returns the feature map

    def __post_init__(self) -> None:
        row = variant(self.name)
        choices = {"stem": Stem, "shortcut": Shortcut, "stride_on": StrideOn, "init": Init}
        for key, choice in choices.items():
            if getattr(self, key) not in get_args(choice):
                fix = f"allowed are {', '.join(get_args(choice))}"
                raise ParamsError(f"model.{key} is {getattr(self, key)!r}", fix)
        for key in ("num_classes", "in_channels"):
            if type(getattr(self, key)) is not int or getattr(self, key) < 1:
                raise ParamsError(f"{key} is {getattr(self, key)!r}", "give a whole number from 1")
        if self.shortcut == "none" and self.zero_init_residual:
            raise ParamsError(
                "model.zero_init_residual is true, but model.shortcut is none: all would be zero",
                "set zero_init_residual to false for a plain network",
            )
        if self.stride_on == "conv1x1" and row.block == "basic":
            raise ParamsError(
                f"model.stride_on is conv1x1, but {self.name} has no 1×1 convolution in its blocks",
                "set stride_on to conv3x3, or take a network of bottlenecks (resnet50 or deeper)",
            )
