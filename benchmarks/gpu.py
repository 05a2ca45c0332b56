"""Time training steps on a GPU: ours, ours on a batch that is on the card already, the plain loop.

    python benchmarks/gpu.py [--quick]

Needs CUDA and the photos of ../shared/data. The plain loop is torchvision's network in fp32 behind
a loader with a process per core.
"""

import os
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
import torchvision
from _timing import compare, describe_machine, options, pack, photos, unpack
from training_step import Ours, Plain, photo_recipe

NETWORKS = {"resnet18": 256, "resnet50": 128, "resnext50_32x4d": 128}  # images in a batch


def main() -> None:
    """Measure the networks one after the other."""
    quick = options(__doc__).quick
    if not torch.cuda.is_available():
        print("not measured: torch finds no CUDA device")
        sys.exit(0)
    archive = photos()
    describe_machine()
    steps, rounds = (5, 1) if quick else (20, 5)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        unpack(archive, folder)
        side = pack(archive, folder / "task", channels=3, resize=256).side("train")
        files = torchvision.datasets.ImageFolder(folder / "hymenoptera_data/train", photo_recipe())
        # one epoch of these photos has few steps: each is repeated until a turn is long enough
        data = torch.utils.data.ConcatDataset([files] * (1 + 40 * 256 // len(files)))
        for network, batch in NETWORKS.items():
            ours = Ours(network, side, 224, batch, device="cuda")
            model = torchvision.models.get_model(network, num_classes=2)
            plain = Plain(model, data, batch, device="cuda", workers=os.cpu_count() or 1)
            compare(
                f"{network}, 224 px, batches of {batch}",
                {
                    "batch on the card": partial(ours.rate, steps, in_memory=True),
                    "ours": partial(ours.rate, steps),
                    "plain fp32 loop": partial(plain.rate, steps),
                },
                unit="images/s", rounds=rounds,
            )  # fmt: skip


if __name__ == "__main__":
    main()
