"""Take training steps as others do: with timm's parts, or in a loop as most scripts have it."""

from collections.abc import Iterator
from contextlib import nullcontext
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import torch
from _timing import rate
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from resnets.system.runtime import resolve_precision

WARM_STEPS = 2  # until the threads that assemble batches are as far ahead as they get
MEAN, STD = (0.5,) * 3, (0.25,) * 3


class Peer:
    """Train as a loop does that takes a batch, a step, and the next batch."""

    name, workers = "torchvision-style loop", 2

    def __init__(self, model: nn.Module, folder: Path, crop: int, batch: int, device: str) -> None:
        self.device, self.crop, self.batch = device, crop, batch
        self.loader = self.make_loader(folder, is_training=True)
        self.model, self.autocast = model.to(device), nullcontext()
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def make_loader(self, folder: Path, *, is_training: bool) -> torch.utils.data.DataLoader:
        """Return what gives batches from class folders, as torchvision's reference does it."""
        crops = (
            [v2.RandomResizedCrop(self.crop), v2.RandomHorizontalFlip()]
            if is_training
            else [v2.Resize(self.crop * 8 // 7), v2.CenterCrop(self.crop)]
        )
        to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        return torch.utils.data.DataLoader(
            ImageFolder(folder, v2.Compose(crops + to_tensor)),
            self.batch,
            shuffle=is_training,
            num_workers=self.workers,
            drop_last=is_training,
            persistent_workers=True,
        )

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Take one step."""
        images, labels = images.to(self.device), labels.to(self.device)
        with self.autocast:
            loss = nn.functional.cross_entropy(self.model(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        loss.item()

    def forever(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the batches of one epoch after the other."""
        while True:
            yield from self.loader

    def rate(self, steps: int) -> float:
        """Return images per second of so many steps."""
        self.model.train()
        batches = self.forever()
        for images, labels in islice(batches, WARM_STEPS):
            self.step(images, labels)

        def take() -> None:
            for images, labels in islice(batches, steps):
                self.step(images, labels)

        return rate(steps * self.batch, take)

    def accuracy(self, loader: torch.utils.data.DataLoader) -> float:
        """Return the share of images that are classified right."""
        self.model.eval()
        right = total = 0
        with torch.inference_mode(), self.autocast:
            for images, labels in loader:
                answers = self.model(self.layout(images.to(self.device))).argmax(1)
                right += int((answers == labels.to(self.device)).sum())
                total += len(labels)
        return right / total

    def layout(self, images: torch.Tensor) -> torch.Tensor:
        """Return the images as the network takes them."""
        return images


class Timm(Peer):
    """Take the steps of timm's train.py with --channels-last and --amp where bf16 is faster.

    The wheel has no such script, so these are its steps with its loader, its transforms and its
    optimiser. Colours are not jittered, since ours are not.
    """

    name = f"timm {version('timm')}"

    def __init__(self, model: nn.Module, folder: Path, crop: int, batch: int, device: str) -> None:
        from timm.optim import create_optimizer_v2

        super().__init__(model, folder, crop, batch, device)
        self.model = self.model.to(memory_format=torch.channels_last)
        is_bf16 = resolve_precision("auto", device) == "bf16"
        self.autocast = torch.autocast(device, torch.bfloat16, enabled=is_bf16)
        self.optimizer = create_optimizer_v2(model, "sgd", lr=0.05, weight_decay=5e-4)

    def make_loader(self, folder: Path, *, is_training: bool) -> torch.utils.data.DataLoader:
        """Return timm's own loader, which normalises on the device."""
        from timm.data import create_dataset, create_loader

        data = create_dataset("", root=str(folder), is_training=is_training)
        return create_loader(
            data,
            (3, self.crop, self.crop),
            self.batch,
            is_training=is_training,
            color_jitter=0.0,
            interpolation="bilinear",
            mean=MEAN,
            std=STD,
            num_workers=self.workers,
            device=torch.device(self.device),
        )

    def layout(self, images: torch.Tensor) -> torch.Tensor:
        """Return the images with their channels last."""
        return images.contiguous(memory_format=torch.channels_last)

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Take one step in train.py's order; it reads no loss but for its log."""
        with self.autocast:
            loss = nn.functional.cross_entropy(self.model(self.layout(images)), labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
