"""Learning curves are there while a training runs, and are the same however often it stopped."""

import signal
from pathlib import Path

import pandas as pd
import pytest

from resnets.system.errors import StoppedBySignal
from resnets.training.show import Curves
from tests.training.runs import RUNTIME, make_trainer, start_model
from tests.training.test_state import interrupt_after_steps

SELDOM = RUNTIME.model_copy(update={"checkpoint_steps": 100})


def train_seeds(folder: Path) -> bytes:
    """Train two seeds as a stage does, 3 epochs of 4 steps each; return the file of the curves."""
    curves, trainer = Curves(folder / "history.csv"), make_trainer(folder, runtime=SELDOM)
    for repeat in (1, 0):
        words = {"title": "test", "write_curve": curves.of(repeat)}
        trainer.run(start_model(repeat), identity=trainer.identity(repeat, {}), **words)
    return (folder / "history.csv").read_bytes()


def test_curves_of_ended_seeds_and_the_epochs_so_far_can_be_read_while_a_seed_trains(tmp_path):
    undisturbed = train_seeds(tmp_path / "undisturbed")
    file = tmp_path / "stopped/history.csv"
    for steps, ended in ((5, []), (12, [3])):  # from the start, and then from where it stopped
        with pytest.raises(StoppedBySignal):
            interrupt_after_steps(steps, signal.SIGTERM, lambda: train_seeds(tmp_path / "stopped"))
        table = pd.read_csv(file)
        assert table["repeat"].tolist() == [1] * sum(ended or [1]) + [0] * bool(ended)
        assert table["epoch"].tolist() == ([1, 2, 3, 1] if ended else [1])
        assert undisturbed.startswith(file.read_bytes())
        file.unlink()  # as DVC does before it runs the stage again
    assert train_seeds(tmp_path / "stopped") == undisturbed
