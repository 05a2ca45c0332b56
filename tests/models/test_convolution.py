"""Check the convolution's own gradient of the weights against numbers, and against torch's."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from resnets.models import build_model
from resnets.models.convolution import Conv2d, Convolution

GEOMETRIES = st.sampled_from([(1, 1, 0), (1, 2, 0), (3, 1, 1), (3, 2, 1), (7, 2, 2), (7, 2, 3)])


@settings(deadline=None, max_examples=50)
@given(
    GEOMETRIES,
    st.integers(1, 3),
    st.tuples(st.integers(3, 6), st.integers(3, 6)),
    st.booleans(),
    st.integers(0, 99),
)
def test_the_gradients_are_those_of_small_changes(geometry, channels, size, has_bias, seed):
    kernel, stride, padding = geometry
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    x, weight = draw(2, channels, *size), draw(2, channels, kernel, kernel)
    bias = draw(2) if has_bias else None
    tensors = (x, weight, bias, stride, padding)
    assert torch.equal(Convolution.apply(*tensors), F.conv2d(*tensors))
    assert torch.autograd.gradcheck(Convolution.apply, tensors, fast_mode=True)


def gradients(conv: nn.Conv2d, x: Tensor, *, bf16: bool) -> list[Tensor]:
    x = x.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = conv(x)
    out.float().square().sum().backward()
    found = [x.grad, conv.weight.grad, conv.bias.grad]
    conv.zero_grad()
    return [tensor.clone() for tensor in found]


@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 1, 3), (3, 2, 14), (1, 1, 7)])
def test_in_bf16_it_is_as_near_to_fp32_as_torch(kernel, stride, size):
    torch.manual_seed(0)
    conv = Conv2d(256, 256, kernel, stride, kernel // 2).to(memory_format=torch.channels_last)
    torchs = nn.Conv2d(256, 256, kernel, stride, kernel // 2)
    torchs.load_state_dict(conv.state_dict())
    x = torch.randn(8, 256, size, size).to(memory_format=torch.channels_last)
    for own, its, exact in zip(
        gradients(conv, x, bf16=True),
        gradients(torchs, x, bf16=True),
        gradients(torchs, x, bf16=False),
        strict=True,
    ):
        assert own.dtype == torch.float32
        assert (own - exact).norm() <= 1.05 * (its - exact).norm() + 1e-6


def test_it_is_used_where_it_is_faster_and_nowhere_else():
    def is_own(conv: Conv2d, size: int, dtype: torch.dtype = torch.bfloat16) -> bool:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            out = conv(torch.zeros(1, conv.in_channels, size, size))
        return type(out.grad_fn).__name__ == "ConvolutionBackward"  # torch's own ends in 0

    wide = Conv2d(256, 256, 3, padding=1)
    assert is_own(wide, 7)
    assert not is_own(wide, 8)
    assert not is_own(wide, 7, torch.float32)
    assert not is_own(wide, 7, torch.float16)
    assert not is_own(Conv2d(64, 64, 3, padding=1), 7)
    assert not is_own(Conv2d(1024, 1024, 3, padding=1, groups=32), 7)
    assert not is_own(wide.requires_grad_(False), 7)


def test_a_network_gets_the_same_gradient(monkeypatch):
    torch.manual_seed(0)
    model = build_model("resnet18", num_classes=3)
    images, labels = torch.randn(4, 3, 96, 96), torch.tensor([0, 1, 2, 0])

    def gradient(*, bf16: bool) -> Tensor:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    exact, own = gradient(bf16=False), gradient(bf16=True)
    monkeypatch.setattr("resnets.models.convolution.MAX_WIDTH", 0)
    torchs = gradient(bf16=True)
    assert not torch.equal(own, torchs)
    assert torch.cosine_similarity(own, torchs, dim=0) > 0.99
    assert (own - exact).norm() < 1.05 * (torchs - exact).norm()
