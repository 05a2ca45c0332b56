"""Build the networks of the ResNet family: two blocks, one class, one function.

The names of parameters are torchvision's, so that weights move freely between the two, and the
same seed draws the same weights.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnets.params.architecture import Architecture, Stem, find_network

# (kernel, stride, padding) of the convolution, and of the max-pool or None
STEMS: dict[Stem, tuple[tuple[int, int, int], tuple[int, int, int] | None]] = {
    "imagenet": ((7, 2, 3), (3, 2, 1)),
    "small": ((3, 1, 1), None),  # 28 or 32 pixels: the other stems leave too few of them
    "pad2": ((7, 2, 2), (3, 2, 1)),  # the Fashion-MNIST tutorial's
    "floor_pool": ((7, 2, 3), (3, 2, 0)),  # the bird tutorial's: 55×55 from 224×224, not 56×56
}


class PadShortcut(nn.Module):
    """Give the input the output's shape without weights (option A of the paper, section 3.3)."""

    def __init__(self, before: int, behind: int, stride: int) -> None:
        super().__init__()
        self.padding = (0, 0, 0, 0, before, behind)  # as F.pad counts: from the last axis
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Take every stride-th pixel and put channels of zeros before and behind the others."""
        x = x[:, :, :: self.stride, :: self.stride]  # (N, C, H / stride, W / stride)
        return F.pad(x, self.padding)  # (N, before + C + behind, …)


def _shortcut(net: Architecture, channels: int, out_channels: int, stride: int) -> nn.Module | None:
    """Build the way around a block; None in a plain network."""
    if net.shortcut == "none":
        return None
    if stride == 1 and channels == out_channels:
        return nn.Identity()
    if net.shortcut in ("pad", "pad_centered"):
        new = out_channels - channels
        before = new // 2 if net.shortcut == "pad_centered" else 0
        return PadShortcut(before, new - before, stride)
    return nn.Sequential(
        nn.Conv2d(channels, out_channels, 1, stride, bias=net.conv_bias),
        nn.BatchNorm2d(out_channels),
    )


class BasicBlock(nn.Module):
    """Add two 3×3 convolutions to the shortcut."""

    expansion = 1

    def __init__(self, net: Architecture, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        shortcut = _shortcut(net, channels, planes, stride)  # drawn first, as torchvision does
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, padding=1, bias=net.conv_bias)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=net.conv_bias)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, planes, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            out += self.downsample(x)
        return F.relu(out, inplace=True)


class Bottleneck(nn.Module):
    """Add a narrowing 1×1, a grouped 3×3 and a widening 1×1 convolution to the shortcut."""

    expansion = 4

    def __init__(self, net: Architecture, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        row, bias = find_network(net.name), net.conv_bias
        width = row.width(planes)
        out_channels = planes * self.expansion
        stride1, stride2 = (stride, 1) if net.stride_on == "conv1x1" else (1, stride)
        shortcut = _shortcut(net, channels, out_channels, stride)
        self.conv1 = nn.Conv2d(channels, width, 1, stride1, bias=bias)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride2, padding=1, groups=row.groups, bias=bias)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=bias)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, 4 × planes, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            out += self.downsample(x)
        return F.relu(out, inplace=True)


class ResNet(nn.Module):
    """Map images (N, C, H, W) to logits (N, num_classes), or to a feature map without a head."""

    def __init__(self, net: Architecture) -> None:
        super().__init__()
        row = find_network(net.name)
        block = Bottleneck if row.block == "bottleneck" else BasicBlock
        conv, pool = STEMS[net.stem]
        channels = row.planes[0]
        self.architecture = net
        self.num_features = row.planes[-1] * block.expansion
        self.conv1 = nn.Conv2d(net.in_channels, channels, *conv, bias=net.conv_bias)
        self.bn1 = nn.BatchNorm2d(channels)
        self.maxpool = nn.MaxPool2d(*pool) if pool else nn.Identity()
        stages = [nn.Sequential() for _ in range(4)]  # an empty one is the identity
        for stage, planes, num_blocks in zip(stages, row.planes, row.blocks, strict=False):
            for index in range(num_blocks):
                stride = 2 if index == 0 and stage is not stages[0] else 1
                stage.append(block(net, channels, planes, stride))
                channels = planes * block.expansion
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(self.num_features, net.num_classes) if net.include_top else None
        self._initialise(net)

    def _initialise(self, net: Architecture) -> None:
        """Draw the weights from torch's global generator."""
        if self.conv1.weight.is_meta:  # only shapes are wanted, and drawing on meta takes seconds
            return
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and net.init == "kaiming":
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, nn.Conv2d | nn.Linear) and net.init == "xavier":
                nn.init.xavier_uniform_(module.weight)
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
            if isinstance(module, BasicBlock | Bottleneck) and net.zero_init_residual:
                last = module.bn2 if isinstance(module, BasicBlock) else module.bn3
                nn.init.zeros_(last.weight)

    def feature_map(self, x: Tensor) -> Tensor:
        """Return the last stage's output (N, num_features, h, w) for images (N, C, H, W)."""
        # shapes with the stem `imagenet`, whose convolution and pool halve the image twice
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)  # (N, 64, H/2, W/2)
        x = self.maxpool(x)  # (N, 64, H/4, W/4)
        x = self.layer1(x)  # (N, 64 × expansion, H/4, W/4)
        x = self.layer2(x)  # (N, 128 × expansion, H/8, W/8)
        x = self.layer3(x)  # (N, 256 × expansion, H/16, W/16)
        out: Tensor = self.layer4(x)  # (N, 512 × expansion, H/32, W/32); CIFAR form: as layer3
        return out

    def features(self, x: Tensor) -> Tensor:
        """Return the pooled features (N, num_features) of images (N, C, H, W)."""
        return torch.flatten(self.avgpool(self.feature_map(x)), 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes), or the feature map where there is no head."""
        if self.fc is None:
            return self.feature_map(x)
        logits: Tensor = self.fc(self.features(x))
        return logits


def build_model(name: str, **options: Any) -> ResNet:  # noqa: ANN401
    """Build a network by its name, with weights drawn from torch's global generator.

    The options are the fields of `Architecture`, where each is explained: num_classes (1000),
    in_channels (3), stem, shortcut, stride_on, conv_bias, zero_init_residual, init, include_top.
    None is the default: of stem and shortcut `imagenet` and `projection`, but `small` and `pad` for
    the CIFAR form. Raises ParamsError (a ValueError) for an unknown name or value, and for options
    that contradict each other.
    """
    row = find_network(name)
    form = {"stem": row.stem, "shortcut": row.shortcut}
    given = {key: value for key, value in options.items() if value is not None}
    return ResNet(Architecture(name=name, **(form | given)))


def layer_groups(model: ResNet) -> dict[str, list[nn.Module]]:
    """Return the modules with weights, from the images to the logits, in groups that train apart.

    The groups are `stem`, `layer1` to `layer4` (to `layer3` in the CIFAR form) and `head`.
    """
    names = {"conv1": "stem", "bn1": "stem", "fc": "head"}
    groups: dict[str, list[nn.Module]] = {}
    for name, module in model.named_children():
        if list(module.parameters()):
            groups.setdefault(names.get(name, name), []).append(module)
    return groups
