"""Test `resnets sweep`: what it draws, how it ranks, and that it goes on where it was."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dvc.api import read
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from resnets.params.load import load_params, load_section
from resnets.sweep.ranges import Range, Sweep
from resnets.sweep.trials import _num_images, rank
from resnets.system.errors import ParamsError
from tests.copies import ROOT, make_copy, refusal, run

LR = "transfer.finetune.optimizer.lr"
KINDS = {
    "log": {"log": [0.001, 0.1]},
    "uniform": {"uniform": [-1.0, 3.0]},
    "integers": {"integers": [3, 9]},
    "choices": {"choices": [None, 0.98, "adam", True]},
}


def make_sweep(trials: int = 8, seed: int = 0, **ranges: dict) -> Sweep:
    values = {f"training.{name}": kind for name, kind in (ranges or KINDS).items()}
    plan = {"training": "transfer.finetune", "trials": trials, "seed": seed, "ranges": values}
    return Sweep.model_validate(plan)


# ---- what is drawn ------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 2**31))
def test_more_trials_keep_those_before_and_a_seed_repeats_them(trials, more, seed):
    first = make_sweep(trials, seed).draw()
    assert len(first) == trials
    assert make_sweep(trials + more, seed).draw()[:trials] == first


def test_another_seed_draws_others():
    assert make_sweep(seed=0).draw() != make_sweep(seed=1).draw()


positions = st.floats(0, 1, exclude_max=True)


@settings(deadline=None)
@given(positions, st.floats(1e-8, 1e8), st.floats(1.0001, 1e8))
def test_a_value_is_between_its_bounds_and_has_three_digits(position, low, factor):
    high = low * factor
    for kind in ("log", "uniform"):
        value = Range.model_validate({kind: [low, high]}).at(position)
        assert low <= value <= high
        assert value in (low, high, float(f"{value:.2e}"))


@settings(deadline=None)
@given(positions, st.integers(-50, 50), st.integers(1, 50))
def test_an_integer_is_between_its_bounds(position, low, span):
    value = Range.model_validate({"integers": [low, low + span]}).at(position)
    assert isinstance(value, int)
    assert low <= value <= low + span


def test_draws_fill_their_ranges_evenly():
    drawn = pd.DataFrame(make_sweep(1024).draw())
    decades = (np.log10(drawn["training.log"].astype(float)) + 3) / 2
    for shares in (decades, (drawn["training.uniform"].astype(float) + 1) / 4):
        assert kstest(shares, "uniform").pvalue > 0.05
    integers = drawn["training.integers"].value_counts()
    assert sorted(integers.index) == list(range(3, 10))
    assert integers.between(1024 / 7 - 2, 1024 / 7 + 2).all()
    assert drawn["training.choices"].map(repr).value_counts().tolist() == [256] * 4


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ({"log": [0.0, 1.0]}, "greater than 0"),
        ({"log": [0.1, 0.01]}, "smaller number first"),
        ({"integers": [2, 2]}, "smaller number first"),
        ({"uniform": [0.1, 0.2], "choices": [1]}, "one of log, uniform, integers, choices"),
        ({}, "one of log, uniform, integers, choices"),
        ("{log: }", "one of log, uniform, integers, choices"),
        ({"lgo": [0.1, 0.2]}, "did you mean 'log'"),
        ({"choices": []}, "at least one entry"),
    ],
)
def test_a_range_that_is_none_is_refused_by_its_key(tmp_path, kind, words):
    path = tmp_path / "sweep.yaml"
    path.write_text(f"{{training: backbone, trials: 2, ranges: {{backbone.epochs: {kind}}}}}")
    with pytest.raises(ParamsError) as caught:
        load_section(path, Sweep)
    text = f"{caught.value.what} {caught.value.fix}"
    assert words in text
    assert "ranges.backbone.epochs" in text


@pytest.mark.parametrize("key", ["split.target.val", "tasks.target.exclude", "seed", "repeat"])
def test_what_changes_the_validation_images_or_the_seeds_is_no_setting(tmp_path, key):
    path = tmp_path / "sweep.yaml"
    path.write_text(f"training: backbone\ntrials: 2\nranges: {{{key}: {{choices: [1, 2]}}}}")
    with pytest.raises(ParamsError, match=rf"sweep.yaml: ranges.*{key}"):
        load_section(path, Sweep)


def test_the_committed_example_can_be_drawn_and_each_setting_is_a_parameter():
    for drawn in load_section(ROOT / "sweep.yaml", Sweep).draw():
        values = load_params(ROOT / "params.yaml", drawn)
        assert values.transfer["finetune"].optimizer.lr == drawn[LR]
    with pytest.raises(ParamsError, match=f"unknown key {re.escape(LR)}r"):
        load_params(ROOT / "params.yaml", {f"{LR}r": 0.1})


# ---- how it ranks -------------------------------------------------------------------------------


def make_runs(**accuracies: list[float]) -> pd.DataFrame:
    """Return histories of three epochs, of which the second is shipped.

    As in a training's own history, an epoch before it was the one to ship until then.
    """
    rows = [
        {"name": name, "repeat": repeat, "val_accuracy": accuracy, "is_chosen": is_chosen}
        for name, values in accuracies.items()
        for repeat, value in enumerate(values)
        for accuracy, is_chosen in ((0.1, True), (value, True), (0.99, False))
    ]
    return pd.DataFrame(rows)


def test_rank_by_hand():
    found = rank(make_runs(low=[0.6, 0.62], high=[0.9, 0.94], near=[0.89, 0.91]), images=100)
    assert list(found.index) == ["high", "near", "low"]
    assert found["mean"].tolist() == pytest.approx([0.92, 0.90, 0.61])
    assert found["std"].tolist() == pytest.approx([0.02 * 2**0.5, 0.01 * 2**0.5, 0.01 * 2**0.5])
    assert found["is_like_best"].tolist() == [True, True, False]


def test_a_repeat_counts_by_the_mean_of_its_folds():
    folds = [
        make_runs(a=[0.9 - x, 0.8], b=[0.7 + x, 0.5]).assign(fold=k) for k, x in ((0, 0), (1, 0.2))
    ]
    found = rank(pd.concat(folds), images=100)
    assert found["mean"].tolist() == pytest.approx([0.8, 0.65])
    assert found["count"].tolist() == [2, 2]


@pytest.mark.parametrize(("record", "number"), [({}, 50), ({"folds": 4}, 200)])
def test_the_validation_images_of_all_folds_count(tmp_path, monkeypatch, record, number):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metrics").mkdir()
    counts = {"images": {"train": 150, "val": 50}}
    (tmp_path / "metrics/split_target.json").write_text(json.dumps(counts | record))
    assert _num_images(make_sweep()) == number


def test_more_images_tell_apart_what_few_cannot():
    runs = make_runs(a=[0.90, 0.90, 0.91], b=[0.88, 0.87, 0.88])
    assert rank(runs, images=200)["is_like_best"].tolist() == [True, True]
    assert rank(runs, images=20_000)["is_like_best"].tolist() == [True, False]


def test_one_seed_has_an_assumed_spread_and_a_perfect_score_no_certainty():
    found = rank(make_runs(a=[1.0], b=[0.999]), images=1_000_000)
    assert found["is_like_best"].tolist() == [True, True]  # seeds spread by 0.005
    assert rank(make_runs(a=[1.0, 1.0], b=[0.9, 0.9]), images=10)["is_like_best"].all()
    assert rank(make_runs(a=[0.5]), images=10)["is_like_best"].tolist() == [True]


def test_equal_settings_are_rarely_told_apart():
    """Simulate sweeps over nothing: seeds and images alone make the differences."""
    rng, false_alarms = np.random.default_rng(0), 0
    for _ in range(300):
        chance = rng.normal(0.85, 0.01, (8, 5))
        right = rng.binomial(400, chance) / 400
        runs = make_runs(**{str(k): list(row) for k, row in enumerate(right)})
        false_alarms += not rank(runs, images=400)["is_like_best"].all()
    assert false_alarms <= 300 * 0.05


# ---- in a project -------------------------------------------------------------------------------


def test_without_a_project_nothing_is_filed(tmp_path):
    what, fix = refusal("sweep", str(ROOT / "sweep.yaml"), cwd=tmp_path, code=5)
    assert what.startswith("error: DVC: you are not inside of a DVC repository")
    assert fix.startswith("fix: run it in a clone of the project")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """Return a copy of the project, prepared and committed, whose photos Git does not have."""
    folder = tmp_path_factory.mktemp("sweep") / "project"
    make_copy(folder)
    (folder / ".gitignore").write_text("/.state/\n__pycache__/\n/photos.zip\n")
    run("dvc", "repro", "transfer@finetune", cwd=folder)
    run("git", "add", "-A", cwd=folder)
    run("git", "commit", "-qm", "base", cwd=folder)
    shutil.rmtree(folder / ".state", ignore_errors=True)
    return folder


def queued(project: Path) -> list[str]:
    lines = run("dvc", "queue", "status", cwd=project).splitlines()
    return [line.split()[1] for line in lines if " Queued" in line]


@pytest.mark.slow
def test_a_sweep_is_filed_once_run_halved_and_ranked(project):
    (project / "sweep.yaml").write_text(
        "training: transfer.finetune\ntrials: 1\nhalvings: 1\nranges:\n"
        f"  {LR}: {{log: [0.001, 0.1]}}\n  transfer.finetune.views: {{choices: [1]}}\n"
    )
    assert "1 to do: `dvc queue start`" in run("resnets", "sweep", cwd=project)
    (first,) = queued(project)
    text = (project / "sweep.yaml").read_text()
    (project / "sweep.yaml").write_text(text.replace("trials: 1", "trials: 2"))
    for _ in range(2):  # what was filed is found by its name, as after an interruption
        assert "2 to do" in run("resnets", "sweep", cwd=project)
        names = queued(project)
        assert len(names) == 2
        assert first in names
    run("dvc", "exp", "run", "--run-all", cwd=project)
    said = run("resnets", "sweep", cwd=project)
    assert "1 to do" in said
    assert all(f"| {name} |" in said for name in names)
    (last,) = queued(project)
    run("dvc", "exp", "run", "--run-all", cwd=project)
    said = run("resnets", "sweep", cwd=project)
    header, *rows = ([cell.strip() for cell in line.split("|")[1:-1]]
                     for line in said.splitlines() if line.startswith("|"))  # fmt: skip
    assert header == ["rank", "trial", "optimizer.lr", "views", "epochs", "validation"]
    assert {row[1]: row[4] for row in rows[1:3]} == dict.fromkeys(names, "1")
    assert rows[-1][1:2] + rows[-1][3:5] == [last, "1", "2"]
    assert rows[1][2] == rows[-1][2]  # the better half of two
    assert f"all done: `dvc exp apply {last}`" in said
    assert "test.accuracy" not in run("dvc", "exp", "show", "--csv", cwd=project)
    (project / "params.yaml").write_text(read("params.yaml", repo=str(project), rev=last))
    lr = load_params(project / "params.yaml").transfer["finetune"].optimizer.lr
    assert str(lr) == rows[-1][2]
    assert "params.yaml: changed" in run("resnets", "sweep", cwd=project, code=2)
    run("git", "checkout", "-q", ".", cwd=project)


@pytest.mark.slow
def test_a_wrong_setting_is_refused_before_any_is_filed_and_a_failed_trial_is_named(project):
    plan = "training: transfer.finetune\ntrials: 2\nranges:\n  "
    (project / "sweep.yaml").write_text(f"{plan}{LR}r: {{log: [0.001, 0.1]}}\n")
    assert f"unknown key {LR}r" in run("resnets", "sweep", cwd=project, code=2)
    (project / "sweep.yaml").write_text(
        plan.replace("finetune", "other") + f"{LR}: {{choices: [1]}}"
    )
    assert "it has backbone, transfer.finetune" in run("resnets", "sweep", cwd=project, code=2)
    assert queued(project) == []
    # the numbers of this training do not stay finite
    (project / "sweep.yaml").write_text(f"{plan}{LR}: {{choices: [1.0e+30]}}\n")
    assert "1 to do" in run("resnets", "sweep", cwd=project)  # equal trials are one
    (name,) = queued(project)
    run("dvc", "exp", "run", "--run-all", cwd=project)
    said = run("resnets", "sweep", cwd=project)
    assert f"failed: `dvc queue logs {name}` says why" in said
    assert "fix: " in run("dvc", "queue", "logs", name, cwd=project)
    assert queued(project) == []
