"""Show experiments of a small project, which DVC saved, as a table."""

import json

import pytest
from dvc.repo import Repo

from resnets.review.experiments import WIDTH, experiment_table
from tests.copies import refusal
from tests.projects import Project

MODELS = ("finetune", "frozen", "scratch", "backbone")
PIPELINE = "stages:\n  evaluate:\n    cmd: python evaluate.py\n    params: [seed]\n    metrics:\n"
PIPELINE += "".join(f"    - metrics/{name}.json: {{cache: false}}\n" for name in MODELS)


def write(project, lr=0.1, lr_backbone=0.1, **accuracies):
    """Write parameters and what was measured with them."""
    scratch = "scratch: {optimizer: {lr: 0.2}, schedule: {lr: 0.1}}"
    finetune = f"finetune: {{optimizer: {{lr: {lr}}}, epochs: 40}}"
    backbone = f"backbone: {{optimizer: {{lr: {lr_backbone}}}}}"
    params = f"seed: 0\ntransfer: {{{finetune}, {scratch}}}\n{backbone}\n"
    project.write("params.yaml", params)
    for name in MODELS:
        accuracy = accuracies.get(name, 0.75)
        test = {"accuracy": accuracy, "macro_f1": accuracy, "nll": 1 - accuracy}
        record = {"test": test, "val": {"accuracy": accuracy}}
        project.write(f"metrics/{name}.json", json.dumps(record))


@pytest.fixture
def project(tmp_path, monkeypatch):
    project = Project(tmp_path / "project")
    project.git("config", "user.name", "t")
    project.git("config", "user.email", "t@example.org")
    project.write("dvc.yaml", PIPELINE)
    write(project)
    project.commit("base")
    monkeypatch.chdir(project.root)
    return project


def save(project, name, **changes):
    """Save an experiment, as `dvc exp run` does when its stages have run."""
    write(project, **changes)
    with Repo(str(project.root)) as repo:
        repo.experiments.save(name=name, force=True)


def test_commit_without_experiments_has_its_scores(project):
    models, header, row = experiment_table(project.root, "HEAD").splitlines()
    assert models.split() == list(MODELS)
    assert header.split() == ["acc", "F1", "nll", "val"] * 4
    assert row.split() == ["main", *["75.00", "75.00", "0.250", "75.00"] * 4]


def test_commit_without_metrics_is_said_in_a_sentence(project):
    project.git("rm", "-qr", "metrics")
    project.commit("nothing measured")
    assert experiment_table(project.root, "HEAD") == "nothing was measured yet, or nothing differs"


def test_without_a_project_there_is_no_table(tmp_path):
    what, fix = refusal("table", cwd=tmp_path, code=5)
    assert what.startswith("error: DVC: ")
    assert fix.startswith("fix: run it in a clone of the project")


def test_an_unknown_commit_is_refused_as_compare_does(project):
    table = refusal("table", "nowhere", cwd=project.root, code=2)
    assert table == refusal("compare", "nowhere", cwd=project.root, code=2)
    assert table[0] == "error: nowhere: Git knows no such revision here"


def test_scores_that_are_not_committed_have_a_row_of_their_own(project):
    write(project, lr=0.4)  # without a run of it
    assert "workspace" not in experiment_table(project.root, "HEAD")
    write(project, lr=0.4, finetune=0.8125)
    models, header, *rows = experiment_table(project.root, "HEAD").splitlines()
    assert models.split() == ["finetune"]
    assert header.split() == ["lr", "acc", "F1", "nll", "val"]
    assert [row.split() for row in rows] == [
        ["workspace", "0.4", "81.25", "81.25", "0.188", "81.25"],
        ["main", "0.1", "75.00", "75.00", "0.250", "75.00"],
    ]
    (project.root / "metrics/finetune.json").unlink()  # of a variant that is not there any more
    assert "workspace" not in experiment_table(project.root, "HEAD")
    project.write("params.yaml", "a: [")
    assert "workspace" not in experiment_table(project.root, "HEAD")


@pytest.mark.slow
def test_experiments_show_what_differs_and_nothing_else(project):
    save(project, "fast-lr", lr=0.4, finetune=0.8125)
    save(project, "slow-lr", lr=0.05, finetune=0.5)
    models, header, *rows = experiment_table(project.root, "main").splitlines()
    assert models.split() == ["finetune"]
    assert header.split() == ["lr", "acc", "F1", "nll", "val"]
    assert sorted(row.split() for row in rows) == [
        ["fast-lr", "0.4", "81.25", "81.25", "0.188", "81.25"],
        ["main", "0.1", "75.00", "75.00", "0.250", "75.00"],
        ["slow-lr", "0.05", "50.00", "50.00", "0.500", "50.00"],
    ]


@pytest.mark.slow
def test_table_of_all_sixteen_scores_fits_a_screen(project):
    save(project, "all-models-differ", lr=0.4, lr_backbone=0.2, **dict.fromkeys(MODELS, 1.0))
    lines = experiment_table(project.root, "main").splitlines()
    assert len(lines) == 4
    assert lines[1].split().count("acc") == lines[3].split().count("0.000") == 4
    assert max(map(len, lines)) <= WIDTH
