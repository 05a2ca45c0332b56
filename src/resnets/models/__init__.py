"""Build, describe, save and run the networks of the ResNet family."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resnets.models.resnet import build_model

__all__ = ["build_model"]


def __getattr__(name: str) -> object:
    """Import torch only for who builds a network: model files are read without it."""
    if name == "build_model":
        from resnets.models.resnet import build_model

        return build_model
    raise AttributeError(f"module {__name__} has no attribute {name}")
