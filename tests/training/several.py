"""Train in several processes, as a command that the tests start, disturb and start again."""

import dataclasses
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from resnets.system.errors import DataError, run_app
from resnets.system.runtime import process_number
from resnets.training.processes import launch
from tests.training.runs import SECTION, fit_as, make_side, make_trainer, start_model, train


def train_in_float64(state: Path) -> dict[str, torch.Tensor]:
    """Return what training in float64 leaves, gradients clipped: weights and statistics.

    The classes are skewed and their weights balanced, so that parts of a batch weigh unequally. The
    losses that were reported come back as `losses`.
    """
    optimizer = SECTION.optimizer.model_copy(update={"clip_norm": 0.5})
    loss = SECTION.loss.model_copy(update={"class_weights": "balanced"})
    section = SECTION.model_copy(update={"optimizer": optimizer, "loss": loss})
    trainer = dataclasses.replace(
        make_trainer(state, section=section), train=make_side(33, 0, skewed=True)
    )
    model = start_model().double()
    course = trainer.course(model, 0)
    exact = dataclasses.replace(
        course,
        prepare=lambda inputs: course.prepare(inputs).double(),
        loss=course.loss.double(),
        val_logits=lambda _: torch.zeros(15, 3),
        checkpoint_steps=100,
    )
    progress = fit_as(exact, state)
    losses = [row["train_loss"] for row in progress.history]
    return {**model.state_dict(), "losses": torch.tensor(losses)}


def main(way: str, state: Path, out: Path) -> None:
    launch(3)
    second = process_number() == 1
    if way == "kill" and second:
        os.environ["RESNETS_FAULT"] = "engine.step@6"
    if way == "raise" and second:
        raise DataError("photo 7 is damaged", "fetch it again")
    if way == "float64":
        weights = train_in_float64(state)
    else:
        weights = train_disturbed(way, state, seed=int(way == "differ" and second))
    if process_number() == 0:  # it alone has evaluated, and holds what is shipped
        save_file({key: value.contiguous() for key, value in weights.items()}, out)


def train_disturbed(way: str, state: Path, *, seed: int) -> dict[str, torch.Tensor]:
    section = SECTION
    if way == "wild":
        wild = SECTION.optimizer.model_copy(update={"lr": 1e30})
        section = SECTION.model_copy(update={"optimizer": wild})
    options = {"train": "head", "views": 2, "frozen_batchnorm": "adapt"} if way == "head" else {}
    return train(state, section=section, seed=seed, **options).model.state_dict()


if __name__ == "__main__":
    sys.argv[0] = "several"
    run_app(main)
