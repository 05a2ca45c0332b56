"""Build optimiser and loss."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from resnets.params.training import Loss, Optimizer


def build_optimizer(
    groups: dict[str, list[nn.Module]], section: Optimizer
) -> torch.optim.Optimizer:
    """Build the optimiser over the groups of a network, ordered from the stem to the head.

    Weights of convolutions and of the head decay; biases and BatchNorm do not, because shrinking a
    scale that the next layer undoes only changes the effective learning rate (arXiv 1812.01187,
    section 3.1). Each group has `scale`: lr_decay to the power of its distance from the head.
    Fused, a step goes over the memory once instead of five times. On CPUs it takes for granted that
    an optimiser's state lies in memory as its weights do.
    """
    chosen = []
    for distance, modules in enumerate(reversed(groups.values())):
        parameters = [p for module in modules for p in module.parameters()]
        weights = [p for p in parameters if p.ndim >= 2]
        others = [p for p in parameters if p.ndim < 2]
        for part, decay in ((weights, section.weight_decay), (others, 0.0)):
            if part:
                scale = section.lr_decay**distance
                chosen.append({"params": part, "weight_decay": decay, "scale": scale})
    match section.name:
        case "sgd":
            return torch.optim.SGD(
                chosen,
                lr=section.lr,
                momentum=section.momentum,
                nesterov=section.nesterov,
                fused=True,
            )
        case "adam":
            return torch.optim.Adam(chosen, lr=section.lr, fused=True)
        case "adamw":
            return torch.optim.AdamW(chosen, lr=section.lr, fused=True)


def build_loss(
    section: Loss, labels: NDArray[np.int64], num_classes: int
) -> tuple[nn.Module, NDArray[np.float64]]:
    """Return the loss, (logits, labels) to a sum over images, and each image's weight in it.

    "balanced" weights of classes are scikit-learn's: n / (number of classes × count); a class that
    a redrawn split leaves without images counts as one.
    """
    weights = torch.ones(num_classes)
    if section.class_weights == "balanced":
        counts = np.maximum(np.bincount(labels, minlength=num_classes), 1)
        weights = torch.from_numpy(len(labels) / (num_classes * counts)).float()
    loss = nn.CrossEntropyLoss(
        weight=None if section.class_weights == "none" else weights,
        label_smoothing=section.label_smoothing,
        reduction="sum",
    )
    return loss, weights.double().numpy()[labels]
