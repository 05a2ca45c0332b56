"""Time training steps: ours, the plain fp32 loop, and ours on input that is in memory already.

    python benchmarks/training_step.py           ResNet-18 on photos, resnet20 on 28-px images
    python benchmarks/training_step.py --quick

A side takes a few steps in its turn, the loaders at work; its first steps after the other side's
turn are not counted. Then follows where the time of one of our steps goes.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torchvision
from _timing import PARAMS, ROOT, compare, describe_machine, options, pack, photos, rate, unpack
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.transforms import v2

from resnets.models import build_model
from resnets.params.schema import Preprocess
from resnets.tasks.task import Side
from resnets.training.loop import train_one_epoch
from resnets.training.optim import build_optimizer
from resnets.training.trainer import Trainer

WARM_STEPS = 2  # until the threads that assemble batches are as far ahead as they get


class Ours:
    """Take our training steps, on packed images or on one batch that is in memory already."""

    def __init__(self, name: str, side: Side, crop: int, batch: int, device: str = "cpu") -> None:
        augment = {"crop": "random_resized", "scale": (0.08, 1), "ratio": (3 / 4, 4 / 3)}
        section = PARAMS.backbone.model_dump() | {"batch_size": batch}
        if crop > 100:
            section["augment"] = augment | {"flip": True}
        channels = side.images[0].shape[2]
        preprocess = Preprocess(crop=crop, mean=[0.5] * channels, std=[0.25] * channels)
        runtime = PARAMS.runtime.model_copy(update={"device": device, "precision": "bf16"})
        trainer = Trainer(side, side, type(PARAMS.backbone)(**section), preprocess, runtime, Path())
        model = build_model(name, num_classes=len(side.classes), in_channels=channels)
        self.course = trainer.course(model, 0)
        self.model = model.train()
        self.optimizer = build_optimizer(self.course.groups, trainer.section.optimizer)
        self.batch, self.epochs = batch, 0

    def forever(self) -> Iterator:
        """Yield the batches of one epoch after the other."""
        while True:
            self.epochs += 1
            yield from self.course.batches.epoch(self.epochs)

    def rate(self, steps: int, *, in_memory: bool = False) -> float:
        """Return images per second of so many steps."""
        source = self.forever()
        first = next(source)
        first = replace(first, inputs=first.inputs.to(self.course.device))
        batches = (first for _ in range(steps + WARM_STEPS)) if in_memory else source
        taken = train_one_epoch(self.model, self.optimizer, batches, self.course, 0)
        list(islice(taken, WARM_STEPS))
        value = rate(steps * self.batch, lambda: list(islice(taken, steps)))
        source.close()
        return value


class Plain:
    """Take the steps of a plain fp32 loop: a loader with processes, one format, no autocast."""

    def __init__(
        self, model: nn.Module, data: Dataset, batch: int, device: str = "cpu", workers: int = 2
    ) -> None:
        self.model, self.data, self.batch = model.to(device).train(), data, batch
        self.device, self.workers = device, workers
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def rate(self, steps: int) -> float:
        """Return images per second of so many steps."""
        loader = iter(DataLoader(self.data, self.batch, shuffle=True, num_workers=self.workers))
        self.step(loader, WARM_STEPS)
        return rate(steps * self.batch, lambda: self.step(loader, steps))

    def step(self, loader: Iterator, steps: int) -> None:
        """Take so many steps."""
        for images, labels in islice(loader, steps):
            images, labels = images.to(self.device), labels.to(self.device)
            loss = nn.functional.cross_entropy(self.model(images), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss.item()


class Augmented(TensorDataset):
    """Give small images from memory, augmented one by one as torchvision's recipes do."""

    recipe = v2.Compose(
        [v2.RandomCrop(28, padding=2), v2.RandomHorizontalFlip(),
         v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.25])]
    )  # fmt: skip

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return one image and its label."""
        image, label = super().__getitem__(row)
        return self.recipe(image), label


def photo_recipe() -> v2.Compose:
    """Return what most scripts do to a photo in training."""
    return v2.Compose(
        [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.ToImage(),
         v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)]
    )  # fmt: skip


def measure(title: str, ours: Ours, plain: Plain, *, steps: int, rounds: int, target: str) -> None:
    """Compare the three sides, and say where our time goes."""
    compare(
        title,
        {"plain fp32 loop": lambda: plain.rate(steps), "ours": lambda: ours.rate(steps)},
        unit="images/s", rounds=rounds, target=target,
    )  # fmt: skip
    compare(
        title,
        {
            "ours, batch in memory": lambda: ours.rate(steps, in_memory=True),
            "ours": lambda: ours.rate(steps),
        },
        unit="images/s", rounds=rounds, target="at least 0.95",
    )  # fmt: skip
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        ours.rate(4)
    events = sorted(profiled.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    print("\nwhere the time of our steps goes:")
    for event in events[:9]:
        print(f"  {event.self_cpu_time_total / total:6.1%}  {event.count:5}  {event.key}")


def main() -> None:
    """Measure both sizes."""
    quick = options(__doc__).quick
    describe_machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        side = pack(ROOT / "data/sample", folder / "small", channels=1, resize=28).side("train")
        images = torch.from_numpy(np.stack([side.images[row] for row in range(len(side.ids))]))
        data = Augmented(images.permute(0, 3, 1, 2), torch.from_numpy(side.labels))
        measure(
            "resnet20, 28 px, batches of 128",
            Ours("resnet20", side, 28, 128),
            Plain(build_model("resnet20", num_classes=10, in_channels=1), data, 128),
            steps=3 if quick else 20, rounds=1 if quick else 7, target="-",
        )  # fmt: skip
        archive = photos()
        task = pack(archive, folder / "large", channels=3, resize=256)
        unpack(archive, folder)
        data = torchvision.datasets.ImageFolder(folder / "hymenoptera_data/train", photo_recipe())
        measure(
            "ResNet-18, 224 px, batches of 16",
            Ours("resnet18", task.side("train"), 224, 16),
            Plain(torchvision.models.resnet18(num_classes=2), data, 16),
            steps=1 if quick else 6, rounds=1 if quick else 7, target="at least 2.2",
        )  # fmt: skip


if __name__ == "__main__":
    main()
