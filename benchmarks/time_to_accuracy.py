"""Measure the seconds to an accuracy: ours, timm's parts, and a loop as torchvision's reference.

    python benchmarks/time_to_accuracy.py [--quick] [--flowers flowers.zip]

Flowers at 128 px (ResNet-18 on crops of 112 px, 15 epochs) and Fashion-MNIST (resnet20 at 28 px, 8
epochs, the sample in the repository), from random weights. All see the same files, epochs, batches
of 32 and classes, each with its own project's augmentation and schedule: ours as params.yaml trains
from scratch, the others with SGD at 0.05 and a cosine with one epoch of warm-up. The clock starts
before the first file is read, so ours holds `prepare` with all its checks, and runs through the
validation after each epoch. The accuracy to reach is the lowest that any of them ends with.
"""

import tempfile
import time
from pathlib import Path

from _timing import (
    PARAMS,
    ROOT,
    SHARED,
    class_folders,
    describe_machine,
    options,
    prepare,
    record,
)
from peers import MEAN, STD, Peer, Timm
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from training_step import AUGMENT, Case, network

from resnets.data.split import split_task
from resnets.evaluation.markdown import table
from resnets.models import build_model
from resnets.params.section import Preprocess
from resnets.system.runtime import resolve_device
from resnets.tasks.task import Task
from resnets.training.identity import flatten
from resnets.training.trainer import Trainer

Curve = list[tuple[float, float]]  # seconds since the start, validation accuracy; after each epoch
BATCH = 32


def ours(case: Case, epochs: int, files: Path, place: Path) -> Curve:
    """Prepare, split and train as the stages do."""
    start, curve = time.perf_counter(), []
    prepare(files, place / "task", channels=3, resize=case.crop * 8 // 7)
    split_task(place / "task", PARAMS.split["source"].model_copy(update={"test": 2}))
    task = Task(place / "task")
    section = PARAMS.transfer["scratch"].model_copy(update={"epochs": epochs, "batch_size": BATCH})
    if case.crop > 32:
        section = section.model_copy(update={"augment": AUGMENT})
    preprocess = Preprocess(crop=case.crop, mean=list(MEAN), std=list(STD))
    model = build_model(case.network, num_classes=len(task.classes))
    trainer = Trainer(
        task.side("train"), task.side("val"), section, preprocess, PARAMS.runtime, place / "state"
    )
    trainer.run(
        model,
        title=f"ours, {case.network}",
        identity=trainer.identity(0, flatten(section)),
        write_curve=lambda history: curve.append(
            (time.perf_counter() - start, history[-1]["val_accuracy"])
        ),
    )
    return curve


def theirs(kind: type[Peer], case: Case, epochs: int, files: Path) -> Curve:
    """Train as others do."""
    start, curve = time.perf_counter(), []
    num_classes = len([*(files / "train").iterdir()])
    model = network(case, num_classes, "timm" if kind is Timm else "torchvision")
    peer = kind(model, files / "train", case.crop, BATCH, resolve_device("auto"))
    val = peer.make_loader(files / "val", is_training=False)
    warm, total = len(peer.loader), epochs * len(peer.loader)
    rise = LinearLR(peer.optimizer, 0.01, total_iters=warm)
    fall = CosineAnnealingLR(peer.optimizer, total - warm)
    schedule = SequentialLR(peer.optimizer, [rise, fall], [warm])
    for _ in range(epochs):
        peer.model.train()
        for images, labels in peer.loader:
            peer.step(images, labels)
            schedule.step()
        accuracy = peer.accuracy(val)
        curve.append((time.perf_counter() - start, accuracy))
        print(f"{peer.name}: {curve[-1][0]:.0f} s, {accuracy:.1%}")
    return curve


def report(title: str, curves: dict[str, Curve]) -> None:
    """Print when each is as good as the worst is in the end."""
    goal = min(curve[-1][1] for curve in curves.values())
    reached = {
        name: next(seconds for seconds, accuracy in curve if accuracy >= goal)
        for name, curve in curves.items()
    }
    rows = [
        [name, f"{reached[name]:.0f}", f"{curve[-1][0]:.0f}", f"{curve[-1][1]:.1%}"]
        for name, curve in curves.items()
    ]
    print(f"\n{title}: {goal:.1%} is what the worst ends with")
    print(table(["", "seconds to it", "seconds in all", "accuracy at the end"], rows))
    for name, seconds in reached.items():
        if name != "ours":
            ratio = seconds / reached["ours"]
            record(
                f"{title} to {goal:.1%}", f"{reached['ours']:.0f} s", name, [ratio], "at least 2"
            )


def main() -> None:
    """Measure both."""
    given = options(__doc__, "--flowers")
    describe_machine()
    flowers = Path(given.flowers or SHARED / "flowers_128px.zip")
    cases = {
        "Fashion-MNIST": (ROOT / "data/sample", Case("resnet20", 28, BATCH, BATCH, 0, ""), 8),
        "flowers": (flowers, Case("resnet18", 112, BATCH, BATCH, 0, ""), 15),
    }
    for title, (source, case, epochs) in cases.items():
        if not source.exists():
            print(f"skipped: {source} is not there")
            continue
        with tempfile.TemporaryDirectory() as name:
            files, epochs = Path(name, "files"), 2 if given.quick else epochs
            class_folders(source, files, limit=300 if given.quick else None, val=0.2)
            report(
                f"{title}, {case.network} at {case.crop} px, {epochs} epochs",
                {
                    "ours": ours(case, epochs, files, Path(name)),
                    Timm.name: theirs(Timm, case, epochs, files),
                    Peer.name: theirs(Peer, case, epochs, files),
                },
            )


if __name__ == "__main__":
    main()
