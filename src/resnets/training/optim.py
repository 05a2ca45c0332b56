"""Build the optimiser, and set its learning rate."""

import torch
from torch import nn

from resnets.params.training import Optimizer


def build_optimizer(
    groups: dict[str, list[nn.Module]], section: Optimizer
) -> torch.optim.Optimizer:
    """Build the optimiser over the groups of a network, ordered from the stem to the head.

    Weights of convolutions and of the head decay; biases and BatchNorm do not, because shrinking a
    scale that the next layer undoes only changes the effective learning rate (arXiv 1812.01187,
    section 3.1). Each group has `scale`: lr_decay to the power of its distance from the head.
    """
    chosen = []
    for distance, modules in enumerate(reversed(groups.values())):
        parameters = [p for module in modules for p in module.parameters()]
        for decays in (True, False):
            part = [p for p in parameters if (p.ndim >= 2) == decays]
            if part:
                chosen.append(
                    {
                        "params": part,
                        "weight_decay": section.weight_decay if decays else 0.0,
                        "scale": section.lr_decay**distance,
                    }
                )
    match section.name:
        case "sgd":
            return torch.optim.SGD(
                chosen, lr=section.lr, momentum=section.momentum, nesterov=section.nesterov
            )
        case "adam":
            return torch.optim.Adam(chosen, lr=section.lr)
        case "adamw":
            return torch.optim.AdamW(chosen, lr=section.lr)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group, each by its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]
