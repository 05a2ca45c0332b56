"""Build the networks of the ResNet family."""

from resnets.architecture import VARIANTS
from resnets.models.resnet import ResNet, build_model, layer_groups

__all__ = ["VARIANTS", "ResNet", "build_model", "layer_groups"]
