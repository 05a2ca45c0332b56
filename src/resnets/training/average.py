"""Average the weights over the steps, and give the average the BatchNorm statistics that fit it."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def average_of(module: nn.Module, decay: float | None) -> nn.Module | None:
    """Return a copy of a module that is to hold the moving average of its weights."""
    return None if decay is None else copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def update_average(average: nn.Module, module: nn.Module, decay: float, step: int) -> None:
    """Move an average towards the weights after step `step`, counted from 0: onto them in that.

    So do the statistics of BatchNorm, which are near enough to draw a curve of. torch's
    AveragedModel does the same one tensor at a time and asks the device how often it did, which
    waits for it: three times as slow, 2% of a step of a small network.
    """
    averaged, weights = (
        [tensor for tensor in part.state_dict().values() if tensor.is_floating_point()]
        for part in (average, module)
    )
    torch._foreach_lerp_(averaged, weights, 1 - decay if step else 1.0)


def estimate_statistics(
    module: nn.Module, inputs: Iterable[Tensor], *, trained_in: nn.Module | None = None
) -> None:
    """Estimate the statistics of each BatchNorm as their mean over these batches.

    For averaged weights, of those alone that train in the module `trained_in` of the same form: the
    statistics of the steps belong to other weights, and lag behind where an epoch has few steps
    (arXiv 2105.07576, section 3: "precise BN"). For a frozen backbone, of all: its own are those of
    other images ("AdaBN", arXiv 1603.04779). Leaves the module in evaluation mode.
    """
    pairs = zip(module.modules(), (trained_in or module).modules(), strict=True)
    norms = {
        norm: norm.momentum
        for norm, own in pairs
        if isinstance(norm, _BatchNorm) and (own.training or not trained_in)
    }
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    with torch.no_grad():
        for batch in inputs if norms else ():
            module(batch)
    for norm, momentum in norms.items():
        norm.momentum = momentum
    module.eval()
