"""Build the optimiser, and compute the learning rate as a function of the step."""

import math
from collections.abc import Callable

import torch
from torch import nn

from resnets.params.schema import Constant, Cosine, OneCycle, Optimizer, Schedule, Step


def lr_schedule(
    schedule: Schedule, *, lr: float, steps_per_epoch: int, epochs: int
) -> Callable[[int], float]:
    """Return the learning rate as a function of the step, counted from 0 over the whole run.

    A function of the step needs no state: a resumed run cannot be off by one. The warm-up rises in
    a straight line and reaches `lr` at its end; the cosine is that of SGDR (arXiv 1608.03983, eq.
    5) without restarts.
    """

    def lr_at(step: int) -> float:
        return lr * _factor(schedule, step, steps_per_epoch, epochs * steps_per_epoch)

    return lr_at


def _factor(schedule: Schedule, step: int, steps_per_epoch: int, total: int) -> float:
    """Return what the base learning rate is multiplied with at a step."""
    match schedule:
        case OneCycle(peak=peak):
            top = peak * total
            return (step + 1) / (top + 1) if step < top else (total - step) / (total - top)
        case Constant() | Cosine() | Step():
            warmup = schedule.warmup_epochs * steps_per_epoch
            if step < warmup:
                return (step + 1) / (warmup + 1)
            if isinstance(schedule, Cosine):
                return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))
            if isinstance(schedule, Step):
                return schedule.gamma ** (step // steps_per_epoch // schedule.epochs)
            return 1.0


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
