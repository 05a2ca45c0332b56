"""Describe the networks of the family: a table of them, their options and what contradicts.

Sources: He et al. 2015 (arXiv:1512.03385) for ResNet, Xie et al. 2016 (arXiv:1611.05431) for
ResNeXt, Zagoruyko and Komodakis 2016 (arXiv:1605.07146) for wide ResNet.
"""

import difflib
from collections import Counter
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


@dataclass(frozen=True)
class Network:
    """Hold one row of the table: what tells one network of the family from another."""

    block: Literal["basic", "bottleneck"]
    blocks: tuple[int, ...]  # per stage
    planes: tuple[int, ...] = (64, 128, 256, 512)  # channels per stage, before expansion
    groups: int = 1  # of the 3×3 convolution (ResNeXt's cardinality)
    width_per_group: int = 64  # channels of one group where planes is 64
    stem: Stem = "imagenet"
    shortcut: Shortcut = "projection"

    def width(self, planes: int) -> int:
        """Return the channels of the 3×3 convolutions in a stage of so many planes."""
        return planes * self.width_per_group // 64 * self.groups

    def layer_groups(self) -> list[str]:
        """Return the names of the groups that train apart, from the images to the logits."""
        return ["stem", *(f"layer{stage + 1}" for stage in range(len(self.blocks))), "head"]


def _cifar(depth: int) -> Network:
    """Return the network of 6n + 2 layers for 32×32 images (section 4.2 of the paper)."""
    num_blocks = (depth - 2) // 6
    return Network("basic", (num_blocks,) * 3, (16, 32, 64), stem="small", shortcut="pad")


USUAL: dict[str, Network] = {
    "resnet18": Network("basic", (2, 2, 2, 2)),
    "resnet34": Network("basic", (3, 4, 6, 3)),
    "resnet50": Network("bottleneck", (3, 4, 6, 3)),
    "resnet101": Network("bottleneck", (3, 4, 23, 3)),
    "resnet152": Network("bottleneck", (3, 8, 36, 3)),
    "resnext50_32x4d": Network("bottleneck", (3, 4, 6, 3), groups=32, width_per_group=4),
    "resnext101_32x8d": Network("bottleneck", (3, 4, 23, 3), groups=32, width_per_group=8),
    "resnext101_64x4d": Network("bottleneck", (3, 4, 23, 3), groups=64, width_per_group=4),
    "wide_resnet50_2": Network("bottleneck", (3, 4, 6, 3), width_per_group=128),
    "wide_resnet101_2": Network("bottleneck", (3, 4, 23, 3), width_per_group=128),
    **{f"resnet{depth}": _cifar(depth) for depth in (20, 32, 44, 56, 110)},
}

# every depth of the CIFAR form up to the paper's deepest; resnet50 and resnet152 are the others
NETWORKS = {f"resnet{depth}": _cifar(depth) for depth in range(8, 1203, 6)} | USUAL

# published files by who publishes them and by the sizes of their preprocessing, resize and crop:
# the network, the recipe, and the first digits of the file's SHA-256
_FILES = {
    ("torchvision", 256, 224): """
        resnet18-5c106cde resnet34-333f7ec4 resnet50-19c8e357 resnet101-5d3b4d8f resnet152-b121ed2d
        resnet18-f37072fd resnet34-b627a593 resnet50-0676ba61 resnet101-63fe2227 resnet152-394f9c45
        resnext50_32x4d-7cdf4587 resnext101_32x8d-8ba56ff5
        wide_resnet50_2-95faca4d wide_resnet101_2-32ee1156
    """,  # first V1 in PyTorch's old format, without num_batches_tracked; then IMAGENET1K_V1
    ("torchvision", 232, 224): """
        resnet50-11ad3fa6 resnet101-cd907fc2 resnet152-f82ba261
        resnext50_32x4d-1a0047aa resnext101_32x8d-110c445d resnext101_64x4d-173b62eb
        wide_resnet50_2-9ba9bcbe wide_resnet101_2-d733dc28
    """,  # IMAGENET1K_V2, and the V1 of resnext101_64x4d, which was made with the recipe of V2
    ("timm", 235, 224): """
        resnet18_a1_0-d63eafa0 resnet34_a1_0-46f8f793 resnet50_a1_0-14fe96d1
        resnet101_a1_0-cdcb52a9 resnet152_a1_0-2eee8a7a resnext50_32x4d_a1_0-b5a91a1d
        resnet18_a2_0-b61bd467 resnet34_a2_0-82d47d71 resnet50_a2_0-a2746f79
        resnet101_a2_0-6edb36c7 resnet152_a2_0-b4c6978f resnext50_32x4d_a2_0-efc76add
    """,  # "ResNet strikes back" (arXiv:2110.00476); resized bicubically there, bilinearly here
    ("timm", 168, 160): """
        resnet18_a3_0-40c531c8 resnet34_a3_0-a20cabb6 resnet50_a3_0-59cae1ef
        resnet101_a3_0-1db14157 resnet152_a3_0-134d4688 resnext50_32x4d_a3_0-3e450271
    """,
    ("facebook", 256, 224): """
        semi_supervised_resnet18-d92f0530 semi_supervised_resnet50-08389792
        semi_supervised_resnext50_32x4-ddb3e555 semi_supervised_resnext101_32x8-2cfe2f8b
        semi_weakly_supervised_resnet18-118f1556 semi_weakly_supervised_resnet50-16a12f1b
        semi_weakly_supervised_resnext50_32x4-72679e44
        semi_weakly_supervised_resnext101_32x8-b4712904
    """,  # SSL and SWSL (arXiv:1905.00546)
}
PUBLISHED = {f"{name}.pth": row for row, names in _FILES.items() for name in names.split()}
# mean and standard deviation of ImageNet's pixels; of one channel for a stem summed over RGB
IMAGENET = {3: ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), 1: ([0.449], [0.226])}


def find_network(name: str) -> Network:
    """Return the row of a name: one of USUAL, or `resnetN` with N = 6n + 2 (CIFAR form).

    Raises ParamsError for any other name, with the nearest ones.
    """
    if name in NETWORKS:
        return NETWORKS[name]
    longer = [known for known in USUAL if known.startswith(name)]
    near = longer or difflib.get_close_matches(name, USUAL, 3)
    raise ParamsError(
        f"model.name is {name!r}, an unknown network",
        f"did you mean one of {', '.join(near or USUAL)}? "
        "Depths of the CIFAR form are 6n + 2 (8, 14, 20, … up to 1202)",
    )


def network_of(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return the name of the network whose weights have these shapes, None where there is none."""
    places = {tuple(key.split(".")[:2]) for key in shapes if key.startswith("layer")}
    stages = Counter(stage for stage, *_ in places)
    blocks = tuple(number for _, number in sorted(stages.items()))
    block = "bottleneck" if "layer1.0.conv3.weight" in shapes else "basic"
    shape = shapes.get("layer1.0.conv2.weight")
    for name, row in NETWORKS.items():
        width = row.width(row.planes[0])
        if (row.block, row.blocks, (width, width // row.groups, 3, 3)) == (block, blocks, shape):
            return name
    return None


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Hold all that builds one network again: the options of `build_model`.

    Raises ParamsError for a value that does not exist and for options that contradict each other.
    """

    name: str
    num_classes: int = 1000
    in_channels: int = 3
    stem: Stem  # what comes before the first stage: a row of STEMS in resnet.py
    # where shapes change: 1×1 convolution (the paper's option B), zeros for the new channels
    # (option A) behind the others as fb.resnet.torch has it, or half of them before the others as
    # the best-known CIFAR weights have it; or no shortcut at all (a plain network)
    shortcut: Shortcut
    # which convolution of a bottleneck halves the image: the 3×3 ("v1.5", about 0.5 points
    # better) or the first 1×1 (the original, which never looks at three quarters of its input)
    stride_on: StrideOn = "conv3x3"
    conv_bias: bool = False  # BatchNorm cancels these, but the weights of tutorials have them
    zero_init_residual: bool = False  # each block starts as the identity (arXiv:1706.02677)
    init: Init = "kaiming"  # normal, fan-out, as torchvision; xavier: uniform, head included
    include_top: bool = True  # off: no head, the network returns the feature map

    def __post_init__(self) -> None:
        row = find_network(self.name)
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
