"""Build a small training run on generated images, for the tests of the engine and its state."""

import multiprocessing
import os
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from resnets.models import build_model
from resnets.models.resnet import ResNet
from resnets.params.architecture import Shortcut
from resnets.params.schema import Model, Runtime, Variant
from resnets.params.section import Preprocess
from resnets.params.training import Loss, Optimizer, PadCrop, Step
from resnets.tasks.task import Side
from resnets.training.augment import View
from resnets.training.batches import Batches
from resnets.training.identity import flatten
from resnets.training.loop import Course, fit
from resnets.training.optim import build_optimizer
from resnets.training.show import EpochLog
from resnets.training.state import Progress, StateFolder
from resnets.training.trainer import Trained, Trainer

CLASSES = ["dark", "bright", "striped"]


class Arrays:
    """Give generated images as a task's images do."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.images[row]


class GeneratedSide(Side):
    """Hold generated images; its digest is of the pixels, as a task's is."""

    def digest(self) -> str:
        import hashlib

        pixels = b"".join(self.images[i].tobytes() for i in range(len(self.images)))
        return hashlib.sha256(pixels + self.labels.tobytes()).hexdigest()[:16]

    packed_digest = digest


def make_side(num_images: int, seed: int, *, size: int = 12, skewed: bool = False) -> Side:
    """Return images of three classes that differ in brightness and texture.

    Skewed ones are of the last class three times as often.
    """
    rng = np.random.default_rng(seed)
    labels = np.minimum(np.arange(num_images) % 5, 2) if skewed else np.arange(num_images) % 3
    images = rng.integers(0, 80, (num_images, size, size, 1))
    images[labels == 1] += 120
    images[labels == 2, :, ::2] += 120
    ids = [f"{CLASSES[label]}/{row}.png" for row, label in enumerate(labels)]
    return GeneratedSide(ids, labels.astype(np.int64), CLASSES, Arrays(images.astype(np.uint8)))


SECTION = Variant(
    init="random",
    train="all",
    model=Model(name="resnet8", in_channels=1),
    epochs=3,
    batch_size=8,
    optimizer=Optimizer(
        name="sgd", lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3, lr_decay=1.0,
        clip_norm=None,
    ),
    schedule=Step(name="step", warmup_epochs=0.0, epochs=2, gamma=0.1),
    augment=PadCrop(crop="pad", padding=2, flip=True),
    loss=Loss(label_smoothing=0.1, class_weights="none"),
    ema_decay=0.8,
    select="best",
)  # fmt: skip
RUNTIME = Runtime(device="cpu", precision="fp32", threads=1, checkpoint_steps=2, processes=1)
PREPROCESS = Preprocess(crop=12, mean=[0.4], std=[0.3])


def make_trainer(state: Path, *, section: Variant = SECTION, runtime: Runtime = RUNTIME) -> Trainer:
    """Return a trainer on 33 generated images: the last batch would have one."""
    return Trainer(make_side(33, 0), make_side(15, 1), section, PREPROCESS, runtime, state)


def start_model(seed: int = 0, shortcut: Shortcut = "pad") -> ResNet:
    """Return the network that `train` starts with."""
    torch.manual_seed(seed)
    return build_model("resnet8", num_classes=3, in_channels=1, shortcut=shortcut)


def plain_optimizer(
    model: torch.nn.Module,
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return what SECTION says in torch's own words: the optimiser and its schedule."""
    decaying = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.SGD(
        [{"params": decaying, "weight_decay": 1e-3}, {"params": others, "weight_decay": 0}],
        lr=0.05, momentum=0.9, nesterov=True,
    )  # fmt: skip
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.1)


def plain_batches(side: Side, epoch: int) -> tuple[list[np.ndarray], View]:
    """Return the rows of each batch of an epoch of `train`, and the augmented images."""
    order = Batches(torch.from_numpy(side.labels), lambda _: None, 8, 0).order(epoch)
    view = View(
        side.images, SECTION.augment, PREPROCESS, seed=0, epoch=epoch, epochs=SECTION.epochs
    )
    return [order[:8], order[8:16], order[16:24], order[24:]], view


def train(
    state: Path,
    *,
    section: Variant = SECTION,
    runtime: Runtime = RUNTIME,
    seed: int = 0,
    model: ResNet | None = None,
    **options: object,
) -> Trained:
    """Train an 8-layer network to the end, or continue; `options` change the section."""
    section = section.model_copy(update=options)
    trainer = make_trainer(state, section=section, runtime=runtime)
    model = model or start_model(seed)
    inputs = flatten({"transfer.test": section, "model": asdict(model.architecture)})
    return trainer.run(model, title="test", identity=trainer.identity(seed, inputs))


def fit_as(course: Course, state: Path) -> Progress:
    """Train a course to its end, without a state to continue."""
    progress = Progress(course.module, build_optimizer(course.groups, SECTION.optimizer))
    log = EpochLog("course", epochs=3, images_per_epoch=33)
    fit(progress, course, StateFolder(state, {}), log)
    return progress


def bits(trained: Trained) -> bytes:
    """Return all weights and buffers as bytes."""
    state = trained.model.state_dict()
    return b"".join(state[key].numpy().tobytes() for key in sorted(state))


def train_until(fault: str, state: str, out: str) -> None:
    """Train until the failpoint kills this process, or to the end; then write the bits."""
    os.environ["RESNETS_FAULT"] = fault
    Path(out).write_bytes(bits(train(Path(state))))


if __name__ == "__main__":  # starts processes that the tests can kill; torch is imported once
    context = multiprocessing.get_context("fork")
    for job in sys.argv[1:]:
        process = context.Process(target=train_until, args=job.split(":"))
        process.start()
        process.join()
        print("exit code", process.exitcode, flush=True)
