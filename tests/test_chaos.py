"""Kill all stages at all failpoints and at some instants; `make chaos` does it 200 times."""

import pytest

from tests.chaos import FAILPOINTS, Chaos, Kill

# instants come first: what is resumed after a failpoint may be over before its instant
PLAN = [
    ("prepare@target", "0.1 0.3 prepare.flushed@1 write.half@1 write.before_sync@1 "
     "write.before_rename@2"),
    ("split@target", "0.1 write.half@1 write.half@2 write.before_sync@2 write.before_rename@1 "
     "write.after_rename@1"),
    ("backbone", "0.1 engine.step@3 engine.epoch@2 publish.done@1"),
    ("transfer@finetune", "0.1 engine.step@9 write.after_rename@2"),
    ("evaluate@finetune", "write.before_rename@2"),
    ("leaderboard", "0.1 write.half@3 write.before_sync@1 write.before_rename@1 "
     "write.after_rename@2"),
    ("export", "write.half@2"),
]  # fmt: skip


@pytest.fixture(scope="module")
def chaos(tmp_path_factory) -> Chaos:
    return Chaos(tmp_path_factory.mktemp("chaos"), 0)


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
    assert not chaos.counts.faults
    assert chaos.counts.kills >= 20
    assert FAILPOINTS.keys() <= chaos.counts.by_failpoint.keys()
    assert set(chaos.counts.by_stage) == set(stages)


def test_stages_killed_under_dvc_end_with_the_same_bytes(chaos):
    """DVC deletes the outs first; its death alone leaves the stage an orphan, which must end."""
    (stage,) = (stage for stage in chaos.stages if stage.name == "prepare@target")
    kills = [Kill("prepare.flushed@1"), Kill(fraction=0.1, only_dvc=True), Kill("write.half@2")]
    chaos.trial(stage, kills, under_dvc=True)
    assert not chaos.counts.faults
    assert chaos.counts.under_dvc >= 2


def test_a_stage_killed_before_dvc_records_it_trains_nothing_again(chaos):
    (stage,) = (stage for stage in chaos.stages if stage.name == "backbone")
    chaos.forget(stage)
    command = ["dvc", "repro", "-s", "-f", "backbone"]

    def shown(fault: str = "") -> str:
        chaos.start(command, fault).wait()
        return (chaos.project / "log").read_text()

    assert "epoch   2/2" in shown("publish.done@1")  # its outs are in place, and DVC fails
    again = shown()
    assert "backbone: continuing at its end" in again
    assert "epoch   2/2" not in again
    assert not chaos.compare(stage, "differing", "after a kill before DVC's record")
    assert "continuing" not in shown()  # what DVC has recorded is forgotten: -f trains anew


def test_negative_control_without_the_rename_files_are_torn(chaos):
    files = chaos.project / "src/resnets/files.py"
    right = files.read_text()
    beside = 'part = path.with_name(path.name + ".part")'
    assert beside in right
    files.write_text(right.replace(beside, "part = path"))
    before = chaos.counts.torn
    (stage,) = (stage for stage in chaos.stages if stage.name == "split@target")
    chaos.trial(stage, [Kill("write.half@1")], under_dvc=False)
    files.write_text(right)
    assert chaos.counts.torn == before + 1
    assert "split.csv" in chaos.counts.faults[-1]
