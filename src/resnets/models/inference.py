"""Compute logits or features of images: the only forward loop outside training."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from resnets.params.section import Preprocess
from resnets.system.errors import NumericalError
from resnets.system.runtime import forbid_tf32
from resnets.tasks.decode import Crops, Images, crop_batch

if TYPE_CHECKING:
    import torch

    from resnets.models.resnet import ResNet

Float32s = NDArray[np.float32]
Output = Literal["logits", "features", "feature_map"]  # (N, K), (N, F) and (N, F, h, w)
Forward = Callable[[Crops], Float32s]  # what runs a model, torch's or ONNX Runtime's


def normalise(
    batch: "torch.Tensor",
    mean: "Sequence[float] | torch.Tensor",
    std: "Sequence[float] | torch.Tensor",
) -> "torch.Tensor":
    """Scale uint8 (N, C, H, W) to 0…1 and standardise each channel, as torchvision does."""
    import torch

    center, scale = (
        torch.as_tensor(values, dtype=torch.float32, device=batch.device).view(-1, 1, 1)
        for values in (mean, std)
    )
    return batch.float().div_(255).sub_(center).div_(scale)


def torch_forward(
    model: "ResNet",
    *,
    preprocess: Preprocess,
    device: str = "cpu",
    precision: str = "fp32",
    output: Output = "logits",
) -> Forward:
    """Return the function that runs a model on crops; the model moves to the device, in eval mode.

    `precision` is fp32 or bf16; fp32 is exact on a GPU too.
    """
    import torch

    forbid_tf32()
    model.to(device).to(memory_format=torch.channels_last).eval()
    compute: dict[Output, Callable[[torch.Tensor], torch.Tensor]] = {
        "logits": model,
        "features": model.features,
        "feature_map": model.feature_map,
    }
    autocast = torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16")

    @torch.inference_mode()
    def forward(crops: Crops) -> Float32s:
        batch = torch.from_numpy(crops).to(device).permute(0, 3, 1, 2)  # (N, C, H, W), no copy
        with autocast:
            values = compute[output](normalise(batch, preprocess.mean, preprocess.std))
        results: Float32s = values.float().cpu().numpy()
        return results

    return forward


def run_batches(forward: Forward, images: Images, *, crop: int, batch_size: int) -> Float32s:
    """Run a model over all images in order; raise NumericalError where an output is not finite."""
    starts = range(0, len(images), batch_size)
    rows = [range(start, min(start + batch_size, len(images))) for start in starts]
    results = [forward(crop_batch(images, batch, crop)) for batch in rows]
    values = np.concatenate(results) if results else np.empty((0, 0), np.float32)
    check_finite(values)
    return values


def check_finite(values: Float32s) -> None:
    """Raise NumericalError that names the first image whose values have a NaN or Inf."""
    finite = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    if not finite.all():
        what = f"the model's output for image {finite.argmin()} is not finite"
        raise NumericalError(what, "train again with a lower lr")


def infer(
    model: "ResNet",
    images: Images,
    *,
    preprocess: Preprocess,
    batch_size: int = 64,
    device: str = "cpu",
    precision: str = "fp32",
    output: Output = "logits",
) -> Float32s:
    """Return the model's output for all images in order, float32, whatever the batch size."""
    forward = torch_forward(
        model, preprocess=preprocess, device=device, precision=precision, output=output
    )
    return run_batches(forward, images, crop=preprocess.crop, batch_size=batch_size)
