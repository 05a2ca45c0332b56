"""Compare int8 with fp32 in ONNX Runtime: ResNet-18 at 224 px, images per second.

    python benchmarks/int8.py

The two alternate, so that a machine whose speed varies is fair to both; the ratio is that of
neighbours. The weights are random: speed does not depend on them.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from resnets.export.classifier import open_classifier
from resnets.export.int8 import quantize_int8
from resnets.export.onnx import to_onnx
from resnets.models import build_model
from resnets.models.bundle import BundleMeta, FullPreprocess, load_bundle, save_bundle

BATCH, ROUNDS = 8, 15
PREPROCESS = FullPreprocess(
    crop=224, resize=256, fit="shorter_side", channels=3,
    mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225],
)  # fmt: skip


def main():
    """Print images per second of both, and their ratio with its spread."""
    torch.manual_seed(0)
    crops = np.random.default_rng(0).integers(0, 256, (4 * BATCH, 224, 224, 3), np.uint8)
    architecture = {"name": "resnet18", "num_classes": 10, "in_channels": 3}
    meta = BundleMeta(
        architecture=architecture, classes=[str(k) for k in range(10)], preprocess=PREPROCESS,
        training={}, hashes={},
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        bundle, exact, small = (
            Path(folder, name) for name in ("m.safetensors", "a.onnx", "b.onnx")
        )
        save_bundle(bundle, build_model(**architecture), meta)
        model = to_onnx(load_bundle(bundle), preprocess_inside=False)
        exact.write_bytes(model.SerializeToString())
        quantize_int8(exact, small, list(crops))
        sizes = exact.stat().st_size / small.stat().st_size
        models = [open_classifier(path) for path in (exact, small)]
    for model in models:
        model.score(crops[:BATCH])
    seconds = np.empty((ROUNDS, 2))
    for number in range(ROUNDS):
        for k, model in enumerate(models):
            start = time.perf_counter()
            model.score(crops[:BATCH])
            seconds[number, k] = time.perf_counter() - start
    fp32, int8 = BATCH / np.median(seconds, axis=0)
    low, middle, high = np.quantile(seconds[:, 0] / seconds[:, 1], [0.1, 0.5, 0.9])
    print(f"fp32 {fp32:.0f} images/s, int8 {int8:.0f} images/s, file {sizes:.1f} times smaller")
    print(f"int8 is {middle:.1f} times as fast ({low:.1f} to {high:.1f} in 80% of {ROUNDS} pairs)")


if __name__ == "__main__":
    main()
