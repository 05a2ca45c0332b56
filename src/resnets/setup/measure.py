"""Estimate how long `dvc repro` takes, from steps of the very training on generated pixels."""

import contextlib
import io
import tempfile
import time
from collections import deque
from pathlib import Path

import numpy as np
from PIL import Image

from resnets.data.prepare import prepare_task
from resnets.data.split import split_task
from resnets.models.resnet import build_model
from resnets.params.schema import Params, Split, TaskSection
from resnets.tasks.task import Side, Task
from resnets.training.features import run_over
from resnets.training.loop import train_one_epoch
from resnets.training.optim import build_optimizer
from resnets.training.publish import full_preprocess
from resnets.training.trainer import STATISTICS_IMAGES, Trainer

STEPS = 6
STAGE_SECONDS = 6.0  # of a stage beside its images: Python, torch, DVC and pictures
HEAD_SECONDS = 0.001  # of a step of a head on features


def estimate_seconds(values: Params, num_images: dict[str, int], look_seconds: float) -> float:
    """Return the seconds that `dvc repro` will need for so many images per side."""
    step, forward = _measure(values)  # seconds per image
    train, val, test = (num_images[side] for side in ("train", "val", "test"))
    num_runs, folds = len(values.repeat), values.split["target"].folds
    trainings = [(num_runs * (folds or 1), train, val, test)]
    if folds:  # and the shipped model, which is trained and validated on all images
        trainings.append((1, train + val + test, train + val + test, 0))
    seconds = look_seconds + STAGE_SECONDS * (7 + 2 * len(values.transfer))
    for section in values.transfer.values():
        for number, train, val, test in trainings:
            run = (val + val + test) * forward  # temperature, and what `evaluate` does
            if section.train == "head":
                steps = section.epochs * -(-train // section.batch_size)
                run += (section.views * train + val) * forward + steps * HEAD_SECONDS
            else:  # every epoch ends with a validation, and the statistics of averaged weights
                others = val + min(train, STATISTICS_IMAGES)
                run += section.epochs * (train * step + others * forward)
            seconds += number * run
    return seconds


def _measure(values: Params) -> tuple[float, float]:
    """Return the seconds per image of training a whole network, and of running it."""
    section = next(iter(values.transfer.values())).model_copy(update={"train": "all"})
    preprocess = full_preprocess(values.data, values.preprocess, values.model.in_channels)
    with tempfile.TemporaryDirectory() as folder:
        side = _generated_side(Path(folder), values, STEPS * section.batch_size)
        model = build_model(**values.model.options(), num_classes=len(side.classes)).train()
        trainer = Trainer(side, side, section, preprocess, values.runtime, Path(folder))
        course = trainer.course(model, 0)
        optimizer = build_optimizer(course.groups, section.optimizer)
        times = []
        for batches in (course.batches.epoch(0, STEPS - 2), course.batches.epoch(1)):
            times.append(time.perf_counter())  # the first two steps warm up
            deque(train_one_epoch(model, optimizer, batches, course, 0), maxlen=0)
        times.append(time.perf_counter())
        run_over(side.images, model, preprocess, trainer.machine)
        times.append(time.perf_counter())
    _, step, forward = np.diff(times) / len(side.ids)
    return step, forward


def _generated_side(folder: Path, values: Params, num_images: int) -> Side:
    """Prepare so many pictures of noise as photos are prepared; they are tiny until then."""
    rng = np.random.default_rng(0)
    for number in range(num_images + 4):
        path = folder / "photos" / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(path)
    with contextlib.redirect_stderr(io.StringIO()):
        source = TaskSection(path=str(folder / "photos"))
        prepare_task(source, values.data, values.checks, values.model.in_channels, folder / "task")
    split_task(folder / "task", Split(val=1, test=1))
    return Task(folder / "task").side("train")
