import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from resnets.system.errors import StoppedBySignal
from resnets.system.files import locked
from resnets.training import state as state_module
from resnets.training.state import Progress, StateFolder, held
from tests.training.runs import SECTION, bits, train

ROOT = Path(__file__).parents[2]
FAILPOINTS = [
    "engine.step@1", "engine.step@7", "engine.epoch@1", "engine.epoch@3", "write.half@3",
    "write.half@5", "write.before_rename@3", "write.after_rename@4",
]  # fmt: skip


AGAIN = ["engine.step@3", "engine.step@3", "write.half@3", "engine.step@3"]


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """Return the states of runs killed at each failpoint, and of one killed again and again."""
    folder = tmp_path_factory.mktemp("killed")
    names = [(fault, fault) for fault in FAILPOINTS] + [(fault, "again") for fault in AGAIN]
    jobs = [f"{fault}:{folder / name}:{folder / name}.out" for fault, name in names]
    command = [sys.executable, "-m", "tests.training.runs", *jobs]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.count(f"exit code {-signal.SIGKILL}\n") == len(jobs), done.stdout
    assert not list(folder.glob("*.out"))
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> bytes:
    return bits(train(tmp_path_factory.mktemp("undisturbed")))


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAILPOINTS)
def test_killed_run_continues_to_the_same_bits(killed, undisturbed, fault):
    assert list((killed / fault).rglob("*.state")) or fault == "engine.step@1"
    assert bits(train(killed / fault)) == undisturbed


@pytest.mark.slow
def test_run_killed_again_and_again_comes_to_the_same_bits(killed, undisturbed):
    assert bits(train(killed / "again")) == undisturbed


def test_finished_run_is_found_finished(tmp_path, undisturbed, capsys):
    history = pd.DataFrame(train(tmp_path).history).to_csv()
    again = train(tmp_path)
    assert bits(again) == undisturbed
    assert pd.DataFrame(again.history).to_csv() == history  # columns in their order, too
    assert "continuing at its end" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]
)
def test_a_signal_saves_the_state_and_says_how_to_go_on(tmp_path, undisturbed, number, code):
    section = SECTION.model_copy(update={"epochs": 3})
    with pytest.raises(StoppedBySignal) as caught:
        interrupt_after_steps(3, number, lambda: train(tmp_path, section=section))
    assert caught.value.exit_code == code
    assert "state saved at epoch 1, batch 3" in caught.value.what
    assert "same command" in caught.value.fix
    assert bits(train(tmp_path)) == undisturbed


def test_a_signal_at_the_end_of_the_last_epoch_is_heard(tmp_path, undisturbed):
    with pytest.raises(StoppedBySignal, match="saved at its end, all epochs are done"):
        interrupt_after_steps(3, signal.SIGTERM, lambda: train(tmp_path), place="engine.epoch")
    assert bits(train(tmp_path)) == undisturbed


def interrupt_after_steps(steps: int, number: int, action, *, place: str = "engine.step") -> None:
    """Run an action and send this process a signal once it has come so often to this place."""
    from resnets.training import loop

    passages = []

    def send(name: str) -> None:
        if name == place:
            passages.append(name)
            if len(passages) == steps:
                os.kill(os.getpid(), number)

    original, loop.failpoint = loop.failpoint, send
    try:
        action()
    finally:
        loop.failpoint = original


def make_progress(value: float = 1.0) -> Progress:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.full((4, 3), value)).sum().backward()
    optimizer.step()
    best = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    return Progress(model, optimizer, 2, 3, {"loss": 0.1 + 0.2}, [{"epoch": 1}], best)


def test_progress_comes_back_bit_for_bit(tmp_path):
    saved = make_progress()
    folder = StateFolder(tmp_path, {"a": 1})
    folder.save(saved, 5)
    loaded = make_progress(9.0)
    assert StateFolder(tmp_path, {"a": 1}).load(loaded) == ""
    assert loaded.place() == "epoch 3, batch 3"
    assert (loaded.epoch, loaded.batch, loaded.sums, loaded.history) == (
        2,
        3,
        saved.sums,
        saved.history,
    )
    for ours, theirs in (
        (loaded.model.state_dict(), saved.model.state_dict()),
        (loaded.chosen, saved.chosen),
    ):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    ours, theirs = loaded.optimizer.state_dict()["state"], saved.optimizer.state_dict()["state"]
    for index, values in theirs.items():
        for key, value in values.items():
            assert torch.equal(ours[index][key], value), key


@pytest.mark.parametrize("steps", [(9, 10), (99, 100), (5, 1000)])
def test_newest_state_is_found_by_number_and_two_are_kept(tmp_path, steps):
    folder = StateFolder(tmp_path, {})
    for epoch, step in enumerate((1, *steps)):
        progress = make_progress()
        progress.epoch = epoch
        folder.save(progress, step)
    assert len(list(tmp_path.glob("*.state"))) == state_module.KEEP
    loaded = make_progress()
    folder.load(loaded)
    assert loaded.epoch == 2


def damaged(content: bytes) -> list[bytes]:
    """Return cuts at every 64th of the length and 500 copies with one bit flipped."""
    generator = random.Random(0)
    cuts = [content[: len(content) * k // 64] for k in range(64)]
    flips = []
    for _ in range(500):
        place = generator.randrange(len(content))
        flip = bytearray(content)
        flip[place] ^= 1 << generator.randrange(8)
        flips.append(bytes(flip))
    return cuts + flips


def test_every_cut_and_flipped_state_is_noticed_and_the_one_before_is_used(tmp_path):
    folder = StateFolder(tmp_path, {})
    for epoch, step in ((1, 10), (2, 20)):
        progress = make_progress()
        progress.epoch = epoch
        folder.save(progress, step)
    newest = tmp_path / "checkpoint-000000020.state"
    content = newest.read_bytes()
    loaded = make_progress()
    for case in damaged(content):
        newest.write_bytes(case)
        loaded.epoch = 0
        folder.load(loaded)
        assert loaded.epoch == 1
    newest.write_bytes(content)
    folder.load(loaded)
    assert loaded.epoch == 2


def test_states_follow_damaged_ones_of_later_steps(tmp_path):
    for step in (100, 200):
        (tmp_path / f"checkpoint-{step:09d}.state").write_bytes(b"damaged")
    folder = StateFolder(tmp_path, {})
    assert folder.load(make_progress()) == ""
    saved, loaded = make_progress(), make_progress()
    saved.epoch = 7
    folder.save(saved, 10)
    folder.load(loaded)
    assert loaded.epoch == 7


@pytest.mark.parametrize("change", ["parameters", "data", "seed", "code"])
def test_state_of_another_run_is_not_continued_and_the_reason_is_said(tmp_path, change):
    identity = {"parameters": 1, "data": 2, "seed": 3, "code": 4}
    StateFolder(tmp_path, identity).save(make_progress(), 5)
    fresh = make_progress()
    fresh.epoch = fresh.batch = 0
    reason = StateFolder(tmp_path, {**identity, change: "other"}).load(fresh)
    assert reason == f"{change}: {identity[change]} -> other"
    assert (fresh.epoch, fresh.batch) == (0, 0)
    assert not list(tmp_path.glob("*.state"))


def test_other_parameters_start_fresh_and_say_so(tmp_path, capsys):
    train(tmp_path)
    capsys.readouterr()
    section = SECTION.model_copy(update={"epochs": 1})
    assert len(train(tmp_path, section=section).history) == 1
    assert "starting fresh (transfer.test.epochs: 3 -> 1)" in capsys.readouterr().out


def test_what_no_run_of_the_parameters_can_use_is_removed(tmp_path):
    kept = [
        "transfer-a/seed-1/x",
        "transfer-a-b/seed-9/x",
        "transfer-a-b/seed-9-view-0.features",
        "transfer-a/seed-1-view-0.features",
        "transfer-a/seed-1-fold-0-plain.features",
        "transfer-a/plain.features",
        "backbone/seed-7/x",
        "transfer-busy/seed-0/x",
        "prepare-source/x",
    ]
    gone = ["transfer-a/seed-10/x", "transfer-a/seed-10-view-0.features", "transfer-old/seed-1/x"]
    gone.append("transfer-a/seed-10-fold-0-plain.features")
    for name in kept + gone:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    history = tmp_path / "history.csv"
    history.write_text("epoch\n")
    kept.append("history.csv")
    with (
        locked(tmp_path / "transfer-busy", "training of busy"),
        held(tmp_path / "transfer-a", "training of a", history, [0, 1], ["a", "a-b"]),
    ):
        found = {str(f.relative_to(tmp_path)) for f in tmp_path.rglob("*") if f.is_file()}
    assert {name for name in found if not name.endswith("lock")} == set(kept)
    assert not (tmp_path / "transfer-old").exists()
    with held(tmp_path / "backbone", "training of the backbone", history, seeds=[0]):
        assert not (tmp_path / "backbone/seed-7").exists()
        assert (tmp_path / "transfer-a-b/seed-9/x").exists()
