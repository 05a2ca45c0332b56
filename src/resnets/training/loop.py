"""Run the training loop: epochs of steps, validation after each, checkpoints in between."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from resnets.system.errors import NumericalError
from resnets.system.files import failpoint
from resnets.system.runtime import StopRequest, process_number
from resnets.training.batches import Batch
from resnets.training.optim import set_lr
from resnets.training.plan import set_trainable
from resnets.training.processes import (
    average_statistics,
    in_parallel,
    num_processes,
    share,
    totals,
)
from resnets.training.show import EpochLog
from resnets.training.state import Progress, StateFolder

FIX = "lower optimizer.lr or set optimizer.clip_norm; the last checkpoint is kept"


class Batches(Protocol):
    """Give the batches of any epoch, from any batch on."""

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""

    def epoch(self, epoch: int, start: int = 0, /) -> Iterator[Batch]:
        """Yield the batches of an epoch from batch `start` on."""


@dataclass(frozen=True)
class Work:
    """Hold what training a whole network and training a head on cached features differ in."""

    module: nn.Module  # what computes and trains
    batches: Batches
    prepare: Callable[[Tensor], Tensor]  # a batch's inputs -> what the module takes, on the device
    val_logits: Callable[[], Tensor]  # of the validation side, (N, K), by the module as it is now


@dataclass(frozen=True)
class Course:
    """Hold how to train: the same for every module."""

    ids: list[str]  # names of the training images, for error messages
    val_labels: Tensor
    groups: dict[str, list[nn.Module]]
    plan: list[frozenset[str]]  # the groups that train, for each epoch
    freeze_batchnorm: bool
    lr_at: Callable[[int], float]  # step, counted from 0 over the whole run -> learning rate
    loss: nn.Module  # logits, labels -> the sum over the images, each by its weight
    weights: NDArray[np.float64]  # of each training image in the loss
    clip_norm: float | None
    device: str
    precision: str


@dataclass(frozen=True)
class StepRecord:
    """Hold what one step adds to the sums of its epoch, over all processes."""

    loss: float  # mean over the batch
    num_correct: int
    num_images: int


def train_one_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    work: Work,
    course: Course,
    step: int,
) -> Iterator[StepRecord]:
    """Take one step per batch and yield its record; `step` is the number of the first one.

    Raises NumericalError, before the step is taken, when the loss is not finite.
    """
    for batch in batches:
        set_lr(optimizer, course.lr_at(step))
        labels = batch.labels.to(course.device)
        with torch.autocast(course.device, torch.bfloat16, enabled=course.precision == "bf16"):
            logits = model(work.prepare(batch.inputs))
        # bf16 becomes fp32, and float64, in which the tests compare, stays
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        # of several processes each has its part of the sum; what divides it is the whole batch's
        loss = course.loss(logits, labels) / float(course.weights[batch.rows].sum())
        optimizer.zero_grad()
        (loss * num_processes()).backward()  # of whose gradients the mean is taken
        hits = int((logits.argmax(1) == labels).sum())
        value, correct = totals(loss.item(), hits)
        if not math.isfinite(value):
            raise _not_finite(batch, value, step, len(work.batches), course)
        if course.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), course.clip_norm)
        optimizer.step()
        yield StepRecord(value, int(correct), len(batch.rows))
        step += 1


def _not_finite(
    batch: Batch, loss: float, step: int, steps_per_epoch: int, course: Course
) -> NumericalError:
    names = [course.ids[row] for row in batch.rows]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return NumericalError(
        f"the loss is {loss} at step {step} (epoch {step // steps_per_epoch + 1}), "
        f"lr {course.lr_at(step):.6g}, images: {shown}",
        "lower optimizer.lr, set optimizer.clip_norm, or look at these images",
    )


def fit(
    progress: Progress,
    work: Work,
    course: Course,
    state: StateFolder,
    log: EpochLog,
    *,
    checkpoint_steps: int,
) -> None:
    """Train to the end of the plan, from wherever `progress` stands.

    Leaves the weights of the best epoch in `progress.best`: the one with the highest validation
    accuracy; among equals the lowest validation loss, then the earliest.

    Raises StoppedBySignal, with the state saved, after SIGINT, SIGTERM, SIGHUP or the end of DVC.
    """
    steps_per_epoch, training, model = len(work.batches), frozenset[str](), work.module
    with StopRequest() as stop:
        for epoch in range(progress.epoch, len(course.plan)):
            work.module.train()
            set_trainable(
                course.groups, course.plan[epoch], freeze_batchnorm=course.freeze_batchnorm
            )
            if course.plan[epoch] != training:
                training, model = course.plan[epoch], in_parallel(work.module)
            sums = progress.sums or {"loss": 0.0, "correct": 0, "images": 0}
            records = train_one_epoch(
                model,
                progress.optimizer,
                work.batches.epoch(epoch, progress.batch),
                work,
                course,
                epoch * steps_per_epoch + progress.batch,
            )
            for record in records:
                sums = {  # weighted by images: a short last batch must not count as a full one
                    "loss": sums["loss"] + record.loss * record.num_images,
                    "correct": sums["correct"] + record.num_correct,
                    "images": sums["images"] + record.num_images,
                }
                progress.sums, progress.batch = sums, progress.batch + 1
                step = epoch * steps_per_epoch + progress.batch
                log.step(record.num_images)
                failpoint("engine.step")
                is_stopping = sum(totals(stop.is_set())) > 0  # of any process
                if is_stopping or step % checkpoint_steps == 0:
                    _check_finite(work.module, step, course.lr_at(step - 1))
                    state.save(progress, step)
                if is_stopping:
                    raise stop.error(f"epoch {epoch + 1}, batch {progress.batch}")
            average_statistics(work.module)
            _end_epoch(progress, work, course, epoch)
            log.epoch(progress.history[-1])
            failpoint("engine.epoch")
    # a killed stage finds its finished runs here, since DVC deletes what they had published
    state.save(progress, len(course.plan) * steps_per_epoch)


def _check_finite(model: nn.Module, step: int, lr: float) -> None:
    """Raise NumericalError rather than save weights that no step can mend."""
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise NumericalError(f"{name} is not finite after step {step}, lr {lr:.6g}", FIX)


def _validate(work: Work, labels: Tensor) -> tuple[float, float]:
    """Return loss and accuracy on the validation side."""
    logits = work.val_logits()
    loss = F.cross_entropy(logits.double(), labels).item()
    return loss, int((logits.argmax(1) == labels).sum()) / len(labels)


def _end_epoch(progress: Progress, work: Work, course: Course, epoch: int) -> None:
    """Validate, note the epoch, keep the weights if they are the best, open the next epoch."""
    # process 0 alone, so that every image counts once
    scores = (0.0, 0.0) if process_number() else _validate(work, course.val_labels)
    val_loss, val_accuracy = share(scores)
    if not math.isfinite(val_loss):
        raise NumericalError(f"the validation loss is {val_loss} after epoch {epoch + 1}", FIX)
    last_step = (epoch + 1) * len(work.batches) - 1
    record: dict[str, Any] = {
        "epoch": epoch + 1,
        "lr": round(course.lr_at(last_step), 8),
        "train_loss": round(progress.sums["loss"] / progress.sums["images"], 6),
        "train_accuracy": round(progress.sums["correct"] / progress.sums["images"], 6),
        "val_loss": round(val_loss, 6),
        "val_accuracy": round(val_accuracy, 6),
    }
    rank = (record["val_accuracy"], -record["val_loss"])
    ranks = [(row["val_accuracy"], -row["val_loss"]) for row in progress.history]
    record["is_best"] = rank > max(ranks, default=(-1.0, 0.0))
    progress.history = [*progress.history, record]
    if record["is_best"]:
        weights = work.module.state_dict()
        progress.best = {key: value.detach().cpu().clone() for key, value in weights.items()}
    progress.epoch, progress.batch, progress.sums = epoch + 1, 0, {}
