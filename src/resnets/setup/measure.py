"""Estimate how long `dvc repro` takes, from steps of the very training on generated pixels."""

import time
from pathlib import Path

import numpy as np

from resnets.evaluation.yardsticks import MOST_IMAGES
from resnets.models.resnet import build_model
from resnets.params.schema import NO_BACKBONE, Params
from resnets.tasks.task import Side
from resnets.training.features import run_over
from resnets.training.loop import STATISTICS_IMAGES, train_one_epoch
from resnets.training.optim import build_optimizer
from resnets.training.publish import full_preprocess
from resnets.training.trainer import Trainer

STEPS = 6
STAGE_SECONDS = 5.0  # of a stage beside its images: Python, torch, DVC and pictures
STAGES = 9  # beside the two of each variant
HEAD_SECONDS = 0.001  # of a step of a head on features
FIT_SECONDS = 0.004  # that the yardsticks take for a training image and a class
CHECKED = 4  # times that the export computes each test image: by torch, and in three batch sizes


def estimate_seconds(values: Params, num_images: dict[str, int], look_seconds: float) -> float:
    """Return the seconds that `dvc repro` will need for so many images per side."""
    step, forward, exact = _measure(values)  # seconds per image
    train, val, test = (num_images[side] for side in ("train", "val", "test"))
    num_runs, folds, total = len(values.repeat), values.split["target"].folds, train + val + test
    trainings = [(num_runs * (folds or 1), train, val, test)]
    if folds:  # and the shipped model, which is trained and validated on all images
        trainings.append((1, total, total, 0))
    seconds = look_seconds + STAGE_SECONDS * (STAGES + 2 * len(values.transfer))
    is_drawn = folds or train > MOST_IMAGES  # or else all runs of the yardsticks are one
    fits = min(train, MOST_IMAGES) * (folds or 1) * (num_runs if is_drawn else 1)
    seconds += fits * (values.tasks["target"].num_classes or 1) * FIT_SECONDS
    if values.backbone.input != NO_BACKBONE:
        seconds += 2 * total * exact  # its features, for the yardsticks and the labels
    seconds += CHECKED * (total if folds else test) * exact
    for section in values.transfer.values():
        for number, train, val, test in trainings:
            run = (val + val + test) * exact  # temperature, and what `evaluate` does
            if section.train == "head":
                steps = section.epochs * -(-train // section.batch_size)
                run += (section.views * train + val) * forward + steps * HEAD_SECONDS
            else:  # every epoch ends with a validation, the last with statistics of the average
                others = section.epochs * val + min(train, STATISTICS_IMAGES)
                run += section.epochs * train * step + others * forward
            seconds += number * run
    return seconds


def _measure(values: Params) -> tuple[float, float, float]:
    """Return the seconds per image of training a network, of running it, and of that in fp32."""
    section = next(section for section in values.transfer.values() if section.train != "head")
    sides = section.augment.view_sides(values.preprocess.crop)
    section = section.model_copy(update={"epochs": len(sides)})  # one of each side
    preprocess = full_preprocess(values.data, values.preprocess, values.model.in_channels)
    side = _generated_side(values, STEPS * section.batch_size)
    model = build_model(**values.model.model_dump(), num_classes=len(side.classes)).train()
    trainer = Trainer(side, side, section, preprocess, values.runtime, Path())
    course = trainer.course(model, 0)
    optimizer = build_optimizer(course.groups, section.optimizer)
    times = []
    epochs = map(course.batches.epoch, range(len(sides)))
    for batches in (course.batches.epoch(0, STEPS - 2), *epochs):
        times.append(time.perf_counter())  # the first two steps warm up
        *_, last = train_one_epoch(model, optimizer, batches, course, 0)
        last.found.tolist()  # waits for a GPU
    for precision in (trainer.machine["runtime.precision"], "fp32"):
        times.append(time.perf_counter())
        machine = {**trainer.machine, "runtime.precision": precision}
        run_over(side.images, model, preprocess, machine)
    times.append(time.perf_counter())
    _, *steps, forward, exact = np.diff(times) / len(side.ids)
    return float(np.mean(steps)), forward, exact


def _generated_side(values: Params, num_images: int) -> Side:
    """Return so many pictures of noise, as large as photos of 4 by 3 are packed."""
    size, rng = values.data.resize, np.random.default_rng(0)
    long = size if values.data.fit == "stretch" else size * 4 // 3
    shape = (num_images, size, long, values.model.in_channels)
    images = list(rng.integers(0, 256, shape, np.uint8))
    ids, labels = [str(number) for number in range(num_images)], np.arange(num_images) % 2
    return Side(ids, labels, ["0", "1"], images)  # type: ignore[arg-type]  # nobody asks for a digest
