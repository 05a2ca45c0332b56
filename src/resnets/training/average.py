"""Average the weights over the steps, and give the average the BatchNorm statistics that fit it."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def average_of(module: nn.Module, decay: float | None) -> AveragedModel | None:
    """Return an exponential moving average of a module's weights, updated after every step."""
    if decay is None:
        return None
    return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]


def estimate_statistics(
    average: AveragedModel, module: nn.Module, inputs: Iterable[Tensor]
) -> None:
    """Estimate the statistics of each BatchNorm that trains as their mean over these batches.

    Those of the steps belong to other weights, and lag behind where an epoch has few steps
    (arXiv 2105.07576, section 3: "precise BN"). Leaves the average in evaluation mode.
    """
    average.eval()
    pairs = zip(average.module.modules(), module.modules(), strict=True)
    norms = [norm for norm, own in pairs if isinstance(norm, _BatchNorm) and own.training]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    with torch.no_grad():
        for batch in inputs if norms else ():
            average(batch)
    average.eval()
