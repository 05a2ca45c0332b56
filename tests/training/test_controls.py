"""Prove that the tests of exact resuming can fail: each thing that is forgotten changes bits."""

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from resnets.params.training import Constant
from resnets.system.errors import NumericalError, StoppedBySignal
from resnets.training import batches, loop
from resnets.training import state as state_module
from tests.training.runs import RUNTIME, SECTION, bits, train
from tests.training.test_state import ROOT, interrupt_after_steps


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> bytes:
    return bits(train(tmp_path_factory.mktemp("undisturbed")))


@pytest.fixture
def stopped(tmp_path) -> Path:
    """Return the state of a run that was stopped at the third of its first four batches."""
    with pytest.raises(StoppedBySignal):
        interrupt_after_steps(3, signal.SIGTERM, lambda: train(tmp_path))
    return tmp_path


def forget_average(progress) -> None:
    progress.average.load_state_dict(progress.model.state_dict())


def forget_momentum(progress) -> None:
    progress.optimizer.state.clear()


def forget_place(progress) -> None:
    progress.batch = 0


def forget_nothing(progress) -> None:
    pass


@pytest.mark.parametrize("forget", [forget_average, forget_momentum, forget_place])
def test_negative_control_a_resumed_run_that_forgets_has_other_bits(
    stopped, undisturbed, monkeypatch, forget
):
    restore = state_module._restore

    def restore_and_forget(progress, *content) -> None:
        restore(progress, *content)
        forget(progress)

    monkeypatch.setattr(state_module, "_restore", restore_and_forget)
    assert bits(train(stopped)) != undisturbed


def test_negative_control_a_resumed_run_that_draws_anew_has_other_bits(
    stopped, undisturbed, monkeypatch
):
    draw = batches.epoch_table
    monkeypatch.setattr(batches, "epoch_table", lambda seed, *rest: draw(seed + 1, *rest))
    assert bits(train(stopped)) != undisturbed


def test_negative_control_other_views_train_another_head(tmp_path):
    one, more = (train(tmp_path / str(n), train="head", views=n) for n in (1, SECTION.epochs))
    assert bits(one) != bits(more)


def test_a_resumed_run_repeats_at_most_one_checkpoint_interval(stopped, undisturbed, monkeypatch):
    for file in sorted(stopped.rglob("*.state"))[1:]:
        file.unlink()  # as if it had been killed at step 3, with the state of step 2
    steps = []
    monkeypatch.setattr(loop, "failpoint", lambda name: steps.append(name))
    assert bits(train(stopped)) == undisturbed
    total = SECTION.epochs * 4
    assert steps.count("engine.step") == total - RUNTIME.checkpoint_steps


@pytest.mark.slow
def test_a_bar_on_a_terminal_changes_no_bit(tmp_path, undisturbed):
    terminal, other = pty.openpty()
    job = f":{tmp_path / 'state'}:{tmp_path / 'out'}"
    command = [sys.executable, "-m", "tests.training.runs", job]
    process = subprocess.Popen(command, cwd=ROOT, stdout=other, stderr=other)
    os.close(other)
    shown = b""
    try:
        while block := os.read(terminal, 4096):
            shown += block
    except OSError:  # so a terminal says that nobody holds its other side any more
        pass
    os.close(terminal)
    assert process.wait() == 0
    assert b"\x1b[" in shown  # a bar was drawn
    assert (tmp_path / "out").read_bytes() == undisturbed


def test_a_hang_up_that_nohup_ignores_stops_nothing(tmp_path, undisturbed):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        trained = []
        interrupt_after_steps(3, signal.SIGHUP, lambda: trained.append(train(tmp_path)))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert bits(trained[0]) == undisturbed


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stage_that_keeps_no_state_ends_politely_too(number, code):
    program = (
        "import os\nfrom resnets.system.errors import run_app\n"
        f"run_app(lambda: os.kill(os.getpid(), {int(number)}))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert f"error: stopped by {signal.Signals(number).name}" in done.stderr
    assert "fix: run the same command again" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_last_state_before_the_numbers_break_is_kept_and_finite(tmp_path):
    """A rate that rises through 30 epochs breaks the run after some good ones."""
    wild = SECTION.optimizer.model_copy(update={"lr": 100.0})
    warm_up = Constant(name="constant", warmup_epochs=29)
    update = {"optimizer": wild, "schedule": warm_up, "epochs": 30}
    runtime = RUNTIME.model_copy(update={"checkpoint_steps": 1})
    section = SECTION.model_copy(update=update)
    with pytest.raises(NumericalError, match=r"not finite after step \d+, lr \d") as caught:
        train(tmp_path, section=section, runtime=runtime)
    broken = int(re.search(r"step (\d+)", caught.value.what)[1])
    *_, newest = sorted(tmp_path.rglob("*.state"))
    assert newest.name == f"checkpoint-{broken - 1:09}.state"
    values = state_module.read_sealed(newest)
    assert values["chosen"]
    for key in ("chosen", "model"):
        assert all(value.isfinite().all() for value in values[key].values())
