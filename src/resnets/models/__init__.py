"""Build the networks of the ResNet family."""

from resnets.models.resnet import ResNet, build_model, layer_groups
from resnets.models.variants import VARIANTS

__all__ = ["VARIANTS", "ResNet", "build_model", "layer_groups"]
