"""Show where in a picture the evidence for a class is: Grad-CAM (Selvaraju et al. 2017).

In a network that ends in average pooling and one linear layer, the gradient of a logit with
respect to the last feature map is the row of the layer's weights, up to a factor that scaling
removes. So it needs no backward pass, and an ONNX file will do.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnets.models.bundle import Bundle
from resnets.models.inference import Float32s, torch_forward
from resnets.tasks.decode import Images, crop_batch, to_picture

OPACITY = 0.6  # of the hottest place
SMALLEST = 224  # pixels; smaller pictures are enlarged
STOPS = np.array([[0, 0, 96], [0, 128, 255], [255, 224, 0], [208, 0, 0]])  # cold to hot, RGB


def grad_cam(feature_map: Float32s, weight: Float32s, classes: NDArray[np.int64]) -> Float32s:
    """Return the heat (N, h, w), 0 to 1, of one class per image.

    `feature_map` (N, F, h, w) is what is pooled, `weight` (K, F) is the head's.
    """
    heat: Float32s = np.maximum(np.einsum("nfhw,nf->nhw", feature_map, weight[classes]), 0)
    peak = heat.max(axis=(1, 2), keepdims=True)
    heat /= np.where(peak > 0, peak, 1)
    return heat


def overlay(image: NDArray[np.uint8], heat: Float32s) -> NDArray[np.uint8]:
    """Lay heat (h, w) over the crop (S, S, C) of an image; returns RGB, at least SMALLEST wide."""
    side = max(len(image), SMALLEST)
    picture = to_picture(image).convert("RGB").resize((side, side))
    smooth = Image.fromarray(heat.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    level = np.clip(np.asarray(smooth), 0, 1)
    colour = [np.interp(level, np.linspace(0, 1, len(STOPS)), STOPS[:, c]) for c in range(3)]
    share = OPACITY * level[..., None]
    mixed = (1 - share) * np.asarray(picture, np.float32) + share * np.stack(colour, -1)
    return np.asarray(mixed.round(), np.uint8)


def explain(
    bundle: Bundle, images: Images, classes: NDArray[np.int64], *, device: str
) -> list[NDArray[np.uint8]]:
    """Return an overlay for each of a few images and a class for each, for a sheet of pictures."""
    preprocess = bundle.meta.preprocess
    crops = crop_batch(images, range(len(images)), preprocess.crop)
    forward = torch_forward(
        bundle.model, preprocess=preprocess, device=device, precision="fp32", output="feature_map"
    )
    heats = grad_cam(forward(crops), bundle.head()[0], classes)
    return [overlay(crop, heat) for crop, heat in zip(crops, heats, strict=True)]
