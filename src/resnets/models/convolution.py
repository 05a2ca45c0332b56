"""Convolve like torch, with a faster gradient of the weights on small images in bf16 on a CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Where one product of matrices was measured to beat oneDNN 3.13's gradient of the weights, up to
# sixfold: on images up to 7 pixels wide, with as many weights as from 64 to 128 channels by 3×3.
# Wider images repeat too many pixels (benchmarks/training_step.py).
MAX_WIDTH = 7
MIN_WEIGHTS = 2**16


def patches(x: Tensor, kernel: int, stride: int, padding: int, height: int, width: int) -> Tensor:
    """Return what each of height × width positions sees: (N · height · width, kernel² · C)."""
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, *2 * (padding, padding)))  # channels last: whole rows
    rows, columns = stride * (height - 1) + 1, stride * (width - 1) + 1
    seen = [
        x[:, top : top + rows : stride, left : left + columns : stride]
        for top in range(kernel)
        for left in range(kernel)
    ]
    return torch.cat(seen, dim=-1).flatten(0, 2)


class Convolution(torch.autograd.Function):
    """Convolve; the gradient of the weights is one product of matrices."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: int,
        padding: int,
    ) -> Tensor:
        """Map (N, C, H, W) and (K, C, k, k) to (N, K, height, width)."""
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients of x, weight and bias."""
        x, weight = ctx.saved_tensors
        of_x, _, of_bias, *_ = ctx.needs_input_grad
        stride, padding, kernel = ctx.stride, ctx.padding, weight.shape[2]
        d_x, _, _ = torch.ops.aten.convolution_backward(
            gradient, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1,
            [of_x, False, False],
        )  # fmt: skip
        seen = patches(x, kernel, stride, padding, *gradient.shape[2:])
        rows = gradient.permute(0, 2, 3, 1).flatten(0, 2)  # (N · height · width, K)
        d_weight = (rows.T @ seen).view(-1, kernel, kernel, x.shape[1]).permute(0, 3, 1, 2)
        return d_x, d_weight, gradient.sum((0, 2, 3)) if of_bias else None, None, None


class Conv2d(nn.Conv2d):
    """Convolve as torch's module of this name; training on small images in bf16 takes less time."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, height, width)."""
        kernel, stride, padding = self.kernel_size[0], self.stride[0], int(self.padding[0])
        width = (x.shape[3] + 2 * padding - kernel) // stride + 1
        is_faster = (
            torch.is_autocast_enabled("cpu")
            and torch.get_autocast_dtype("cpu") == torch.bfloat16
            and torch.is_grad_enabled()
            and self.weight.requires_grad
            and self.weight.numel() >= MIN_WEIGHTS
            and self.groups == 1
            and width <= MAX_WIDTH
        )
        if not is_faster:
            return super().forward(x)
        tensors = (None if y is None else y.bfloat16() for y in (x, self.weight, self.bias))
        out: Tensor = Convolution.apply(*tensors, stride, padding)
        return out
