"""Run the training loop: epochs of steps, validation after each, checkpoints in between."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from resnets.errors import NumericalError
from resnets.files import failpoint
from resnets.runtime import StopRequest, process_number
from resnets.training.batches import Batch
from resnets.training.optim import set_lr
from resnets.training.plan import set_trainable
from resnets.training.processes import agreed, any_of, combine, num_processes, share
from resnets.training.show import EpochLog
from resnets.training.state import Progress, StateFolder


class Batches(Protocol):
    """Give the batches of any epoch, from any batch on."""

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""

    def epoch(self, epoch: int, start: int = 0, /) -> Iterator[Batch]:
        """Yield the batches of an epoch from batch `start` on."""


@dataclass(frozen=True)
class Run:
    """Hold what stays the same throughout one training run."""

    batches: Batches
    groups: dict[str, list[nn.Module]]
    plan: list[frozenset[str]]  # the groups that train, for each epoch
    freeze_batchnorm: bool
    lr_at: Callable[[int], float]  # step, counted from 0 over the whole run -> learning rate
    loss: nn.Module  # logits, labels -> the sum over the images, each by its weight
    weights: NDArray[np.float64]  # of each training image in the loss
    prepare: Callable[[Tensor], Tensor]  # a batch's inputs -> what the model takes, on the device
    validate: Callable[[nn.Module], tuple[float, float]]  # model -> loss, accuracy
    name_rows: Callable[[NDArray[np.int64]], list[str]]  # rows -> image names, for error messages
    device: str
    bf16: bool
    clip_norm: float | None


@dataclass(frozen=True)
class StepRecord:
    """Hold what one step adds to the sums of its epoch."""

    loss: float  # mean over the batch
    num_correct: int
    num_images: int


def train_one_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    run: Run,
    step: int,
) -> Iterator[StepRecord]:
    """Take one step per batch and yield its record; `step` is the number of the first one.

    Raises NumericalError, before the step is taken, when the loss is not finite.
    """
    for batch in batches:
        set_lr(optimizer, run.lr_at(step))
        labels = batch.labels.to(run.device)
        with torch.autocast(run.device, torch.bfloat16, enabled=run.bf16):
            logits = model(run.prepare(batch.inputs))
        # bf16 becomes fp32, and float64, in which the tests compare, stays
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        # of several processes each has its part of the sum; what divides it is the whole batch's
        loss = run.loss(logits, labels) / float(run.weights[batch.rows].sum())
        optimizer.zero_grad()
        loss.backward()
        value, correct = loss.item(), int((logits.argmax(1) == labels).sum())
        if num_processes() > 1:
            value, correct = combine(model, value, correct, len(labels) / len(batch.rows))
        if not math.isfinite(value):
            raise agreed(_not_finite(run, batch, value, step))
        if run.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), run.clip_norm)
        optimizer.step()
        yield StepRecord(value, correct, len(batch.rows))
        step += 1


def _not_finite(run: Run, batch: Batch, loss: float, step: int) -> NumericalError:
    names = run.name_rows(batch.rows)
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return NumericalError(
        f"the loss is {loss} at step {step} (epoch {step // len(run.batches) + 1}), "
        f"lr {run.lr_at(step):.6g}, images: {shown}",
        "lower optimizer.lr, set optimizer.clip_norm, or look at these images",
    )


def fit(
    progress: Progress, run: Run, state: StateFolder, log: EpochLog, *, checkpoint_steps: int
) -> None:
    """Train to the end of the plan, from wherever `progress` stands.

    Leaves the weights of the best epoch in `progress.best`: the one with the highest validation
    accuracy; among equals the lowest validation loss, then the earliest.

    Raises StoppedBySignal, with the state saved, after SIGINT, SIGTERM, SIGHUP or the end of DVC.
    """
    steps_per_epoch = len(run.batches)
    with StopRequest() as stop:
        for epoch in range(progress.epoch, len(run.plan)):
            progress.model.train()
            set_trainable(run.groups, run.plan[epoch], freeze_batchnorm=run.freeze_batchnorm)
            first = epoch * steps_per_epoch + progress.batch
            batches = run.batches.epoch(epoch, progress.batch)
            sums = progress.sums or {"loss": 0.0, "correct": 0, "images": 0}
            for record in train_one_epoch(progress.model, progress.optimizer, batches, run, first):
                sums = {  # weighted by images: a short last batch must not count as a full one
                    "loss": sums["loss"] + record.loss * record.num_images,
                    "correct": sums["correct"] + record.num_correct,
                    "images": sums["images"] + record.num_images,
                }
                progress.sums, progress.batch = sums, progress.batch + 1
                step = epoch * steps_per_epoch + progress.batch
                log.step(record.num_images)
                failpoint("engine.step")
                is_stopping = any_of(stop.is_set())
                if is_stopping or step % checkpoint_steps == 0:
                    _check_finite(progress.model, step, run.lr_at(step - 1))
                    state.save(progress, step)
                if is_stopping:
                    raise agreed(stop.error(f"epoch {epoch + 1}, batch {progress.batch}"))
            _end_epoch(progress, run, epoch)
            log.epoch(progress.history[-1])
            failpoint("engine.epoch")
    # a killed stage finds its finished runs here, since DVC deletes what they had published
    state.save(progress, len(run.plan) * steps_per_epoch)


def _check_finite(model: nn.Module, step: int, lr: float) -> None:
    """Raise NumericalError rather than save weights that no step can mend."""
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise agreed(
                NumericalError(
                    f"{name} is not finite after step {step}, lr {lr:.6g}",
                    "lower optimizer.lr or set optimizer.clip_norm; the last checkpoint is kept",
                )
            )


def _end_epoch(progress: Progress, run: Run, epoch: int) -> None:
    """Validate, note the epoch, keep the weights if they are the best, open the next epoch."""
    # process 0 alone, so that every image counts once
    val_loss, val_accuracy = share((0.0, 0.0) if process_number() else run.validate(progress.model))
    if not math.isfinite(val_loss):
        what = f"the validation loss is {val_loss} after epoch {epoch + 1}"
        fix = "lower optimizer.lr or set optimizer.clip_norm; the last checkpoint is kept"
        raise agreed(NumericalError(what, fix))
    last_step = (epoch + 1) * len(run.batches) - 1
    record: dict[str, Any] = {
        "epoch": epoch + 1,
        "lr": round(run.lr_at(last_step), 8),
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
        weights = progress.model.state_dict()
        progress.best = {key: value.detach().cpu().clone() for key, value in weights.items()}
    progress.epoch, progress.batch, progress.sums = epoch + 1, 0, {}
