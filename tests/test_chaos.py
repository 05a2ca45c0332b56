"""Kill all stages at all failpoints and at some instants; `make chaos` does it 200 times."""

import pytest

from tests.chaos import FAILPOINTS, Chaos, Kill

pytestmark = pytest.mark.slow

# instants come first: what is resumed after a failpoint may be over before its instant
PLAN = [
    ("prepare@target", "0.1 0.3 prepare.flushed@1 write.half@1 write.before_rename@2"),
    ("split@target", "0.1 write.half@1 write.half@2 write.before_rename@1 "
     "write.after_rename@1"),
    ("backbone", "0.1 engine.step@3 engine.epoch@2 publish.done@1"),
    ("transfer@finetune", "0.1 engine.step@9 write.after_rename@2"),
    ("evaluate@finetune", "write.before_rename@2"),
    ("evaluate_backbone", "write.half@1"),
    ("yardsticks", "write.half@1"),
    ("labels", "write.half@2"),
    ("leaderboard", "0.1 write.half@3 write.before_rename@1 "
     "write.after_rename@2"),
    ("export", "write.half@2"),
    ("report", "write.half@1"),
]  # fmt: skip


@pytest.fixture(scope="module")
def chaos(tmp_path_factory) -> Chaos:
    changes = [("transfer@finetune", {"transfer.finetune.optimizer.lr": 0.01})]
    return Chaos(tmp_path_factory.mktemp("chaos"), 0, changes)


def kills_of(words: str) -> list[Kill]:
    return [
        Kill(failpoint=word) if "@" in word else Kill(fraction=float(word))
        for word in words.split()
    ]


def test_killed_stages_end_with_the_bytes_of_an_undisturbed_run(chaos):
    stages = {stage.name: stage for stage in chaos.stages}
    assert list(stages) == [name for name, _ in PLAN]
    for name, words in PLAN:
        chaos.trial(stages[name], kills_of(words), under_dvc=False)
    assert not chaos.faults
    assert chaos.counts["kills"] >= 20
    assert all(chaos.counts[f"at {place}"] for place in FAILPOINTS)
    assert all(chaos.counts[f"of {stage}"] for stage in stages)


def test_stages_killed_under_dvc_end_with_the_same_bytes(chaos):
    """DVC deletes the outs first; its death alone leaves the stage an orphan, which must end."""
    (stage,) = (stage for stage in chaos.stages if stage.name == "prepare@target")
    kills = [Kill("prepare.flushed@1"), Kill(fraction=0.1, only_dvc=True), Kill("write.half@2")]
    chaos.trial(stage, kills, under_dvc=True)
    assert not chaos.faults
    assert chaos.counts["under DVC"] >= 2


def test_stage_whose_parameters_change_between_kills_ends_as_if_they_had_always_been(chaos):
    (stage,) = (stage for stage in chaos.stages if stage.name == "transfer@finetune")
    kills = [Kill("engine.step@5", world=1), Kill("engine.epoch@1"), Kill("engine.step@5")]
    chaos.trial(stage, kills, under_dvc=False, ends_in=1)
    assert chaos.counts["changes"] == 3
    assert not chaos.faults


@pytest.mark.parametrize("at", ["publish.done@1", "dvc.lock 1 20", "rwlock 7 0"])
def test_training_that_ended_before_dvc_recorded_it_is_not_done_again(chaos, at):
    (stage,) = (stage for stage in chaos.stages if stage.name == "backbone")
    (chaos.project / "dvc.lock").unlink(missing_ok=True)
    command = ["dvc", "repro", "-s", "-f", "backbone"]

    def shown(kill: Kill) -> str:
        chaos.kill(stage, command, kill)
        return (chaos.project / "log").read_text()

    fault = Kill(dvc_file=at) if " " in at else Kill(failpoint=at)
    assert "epoch   2/2" in shown(fault)  # its outs are in place, and DVC dies
    again = shown(Kill(fraction=1e9))
    assert "backbone: continuing at its end" in again
    assert "epoch   2/2" not in again
    chaos.compare(stage, "differing", "after a kill before DVC's record", chaos.worlds)
    assert not chaos.faults
    assert chaos.counts["mended"] == (" " in at)
    if "publish" in at:
        again = shown(Kill(fraction=1e9))  # what DVC has recorded is forgotten: -f trains anew
        assert "continuing" not in again
    chaos.forget(stage)
    chaos.counts["mended"] = 0


def test_negative_control_without_the_rename_files_are_torn(chaos):
    files = chaos.project / "src/resnets/system/files.py"
    right = files.read_text()
    beside = 'part = path.with_name(path.name + ".part")'
    assert beside in right
    files.write_text(right.replace(beside, "part = path"))
    before = chaos.counts["torn"]
    (stage,) = (stage for stage in chaos.stages if stage.name == "split@target")
    chaos.trial(stage, [Kill("write.half@1")], under_dvc=False)
    files.write_text(right)
    assert chaos.counts["torn"] == before + 1
    assert "split.csv" in chaos.faults.pop()  # the other tests share the list, in any order
