"""Time training steps: ours, timm's, a plain loop's, and ours on input that is in memory already.

    python benchmarks/training_step.py           photos at 224 px, resnet20 at 32 px
    python benchmarks/training_step.py --quick
    python benchmarks/training_step.py --only resnet18

On a GPU where there is one, in the precision that is fastest there. A side takes a few steps in its
turn, the loaders at work; its first steps after another side's turn are not counted. All cut random
boxes out of the same JPEG or PNG files (ours out of its packed images) and flip them. Then follows
where the time of one of our steps goes.
"""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torchvision
from _timing import (
    PARAMS,
    ROOT,
    class_folders,
    compare,
    describe_machine,
    options,
    pack,
    photos,
    rate,
    unpack,
)
from peers import MEAN, STD, WARM_STEPS, Peer, Timm
from torch import nn
from torch.profiler import ProfilerActivity, profile

from resnets.models import build_model
from resnets.params.section import Preprocess
from resnets.params.training import RandomResizedCrop
from resnets.system.runtime import resolve_device
from resnets.tasks.task import Side
from resnets.training.loop import train_one_epoch
from resnets.training.optim import build_optimizer
from resnets.training.trainer import Trainer

AUGMENT = RandomResizedCrop(crop="random_resized", scale=(0.08, 1), ratio=(3 / 4, 4 / 3))


@dataclass(frozen=True)
class Case:
    """Describe what is trained; `gpu_batch` is the batch on a GPU."""

    network: str
    crop: int
    batch: int
    gpu_batch: int
    steps: int  # of a turn, on a CPU
    limit: str  # times timm


CASES = [
    Case("resnet20", 32, 128, 1024, 20, "at least 2"),
    Case("resnet18", 224, 16, 256, 6, "at least 1.25"),
    Case("resnet50", 224, 16, 128, 3, "at least 1.25"),
    Case("resnext50_32x4d", 224, 16, 128, 3, "at least 1.25"),
]


class Ours:
    """Take our training steps, on packed images or on one batch that is in memory already."""

    def __init__(self, name: str, side: Side, crop: int, batch: int, device: str) -> None:
        section = PARAMS.backbone.model_copy(update={"batch_size": batch, "augment": AUGMENT})
        preprocess = Preprocess(crop=crop, mean=list(MEAN), std=list(STD))
        runtime = PARAMS.runtime.model_copy(update={"device": device, "precision": "auto"})
        trainer = Trainer(side, side, section, preprocess, runtime, Path())
        self.model = build_model(name, num_classes=len(side.classes)).train()
        self.course = trainer.course(self.model, 0)
        self.optimizer = build_optimizer(self.course.groups, section.optimizer)
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
        list(islice(taken, WARM_STEPS))[-1].found.tolist()  # waits for a GPU, as below
        value = rate(steps * self.batch, lambda: list(islice(taken, steps))[-1].found.tolist())
        source.close()
        return value


def network(case: Case, num_classes: int, maker: str) -> nn.Module:
    """Return the network as timm or torchvision build it; of the CIFAR form they have none."""
    if case.network == "resnet20":
        return build_model("resnet20", num_classes=num_classes)
    if maker == "timm":
        import timm

        return timm.create_model(case.network, num_classes=num_classes)
    return torchvision.models.get_model(case.network, num_classes=num_classes)


def measure(case: Case, side: Side, folder: Path, device: str, *, quick: bool) -> None:
    """Compare our step with the others, and say where our time goes."""
    batch = case.batch if device == "cpu" else case.gpu_batch
    steps, rounds = (1, 1) if quick else (case.steps if device == "cpu" else 20, 5)
    num_classes = len(side.classes)
    Peer.workers = 2 if device == "cpu" else os.cpu_count() or 2
    ours = Ours(case.network, side, case.crop, batch, device)
    timm = Timm(network(case, num_classes, "timm"), folder, case.crop, batch, device)
    plain = Peer(network(case, num_classes, "torchvision"), folder, case.crop, batch, device)
    compare(
        f"training {case.network}, {case.crop} px, batches of {batch}",
        {
            timm.name: lambda: timm.rate(steps),
            "plain fp32 loop": lambda: plain.rate(steps),
            "our batch in memory": lambda: ours.rate(steps, in_memory=True),
            "ours": lambda: ours.rate(steps),
        },
        unit="images/s",
        rounds=rounds,
        limits={timm.name: case.limit, "our batch in memory": "at least 0.95"},
    )
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        ours.rate(4)
    events = sorted(profiled.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    print("\nwhere the time of our steps goes:")
    for event in events[:9]:
        print(f"  {event.self_cpu_time_total / total:6.1%}  {event.count:5}  {event.key}")


def main() -> None:
    """Measure every network."""
    given, device = options(__doc__, "--only"), resolve_device("auto")
    describe_machine()
    with tempfile.TemporaryDirectory() as name:
        small, large = Path(name, "small"), Path(name, "large")
        for case in CASES:
            if given.only not in (None, case.network):
                continue
            if case.crop == 32:
                folder = small
                class_folders(ROOT / "data/sample", folder, limit=5000, side=32)
            elif not (folder := large / "hymenoptera_data/train").exists():
                for file in unpack(photos(), large):  # more than a GPU takes as one batch
                    for number in range(0 if device == "cpu" else 20):
                        os.link(file, file.with_name(f"{number} {file.name}"))
            task = pack(folder, Path(name, case.network), channels=3, resize=case.crop * 8 // 7)
            measure(case, task.side("train"), folder, device, quick=given.quick)


if __name__ == "__main__":
    main()
