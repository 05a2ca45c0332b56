"""Say which groups of a network train in which epoch, and freeze the others completely."""

from torch import nn

from resnets.params.schema import Gradual


def train_plan(
    train: str | Gradual | list[str], groups: list[str], epochs: int
) -> list[frozenset[str]]:
    """Return, for each epoch, the names of the groups that train.

    `groups` are ordered from the stem to the head.
    """
    match train:
        case "all":
            train = groups
        case "head":
            train = ["head"]
        case Gradual(gradual=step):
            # the head first, then one group more, because the features near the head fit least
            return [frozenset(groups[-1 - epoch // step :]) for epoch in range(epochs)]
    return [frozenset(train)] * epochs


def set_trainable(
    groups: dict[str, list[nn.Module]], training: frozenset[str], *, freeze_batchnorm: bool = True
) -> None:
    """Let these groups train and freeze the others; call it after `model.train()`.

    A frozen group is also put into eval mode: `requires_grad=False` alone lets its BatchNorm
    statistics drift, the best-known bug of transfer-learning tutorials. `freeze_batchnorm=False`
    keeps that bug, to reproduce what those tutorials publish.
    """
    for name, modules in groups.items():
        is_training = name in training
        for module in modules:
            module.train(is_training or not freeze_batchnorm).requires_grad_(is_training)
