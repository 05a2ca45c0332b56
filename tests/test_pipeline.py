"""Run the whole pipeline with DVC in a copy of the project, on a zip of generated photos."""

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tests.copies import CLASSES, make_copy, run


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """Return a copy of the project in which the pipeline ran once."""
    folder = tmp_path_factory.mktemp("own photos") / "project"
    make_copy(folder)
    run("dvc", "repro", cwd=folder)
    run("git", "add", "-A", cwd=folder)
    run("git", "commit", "-qm", "base", cwd=folder)
    return folder


def read_metrics(project: Path, name: str) -> dict:
    return json.loads((project / f"metrics/{name}.json").read_text())


def test_every_stage_leaves_what_it_promises(project):
    for variant in ("scratch", "frozen", "finetune"):
        assert 0 <= read_metrics(project, variant)["test"]["accuracy"] <= 1
        assert (project / f"artifacts/{variant}/model.safetensors").is_file()
        assert (project / f"plots/{variant}/history.csv").is_file()
        rows = list(csv.reader((project / f"plots/{variant}/predictions.csv").open()))
        assert rows[0] == ["id", "label", "predicted", *sorted(CLASSES)]
        for row in rows[1:]:
            assert sum(map(float, row[3:])) == pytest.approx(1, abs=1e-5)
    for name in ("backbone", "leaderboard", "export", "data_target", "split_target"):
        assert read_metrics(project, name)
    assert read_metrics(project, "export")["top1_mismatches"] == 0
    assert "finetune" in (project / "reports/leaderboard.md").read_text()


def test_class_names_stay_words_and_reach_no_shell(project):
    indices = json.loads((project / "artifacts/export/class_indices.json").read_text())
    assert sorted(indices.values()) == sorted(CLASSES)
    assert not (project / "x").exists()


def test_onnx_file_runs_elsewhere(project):
    session = onnxruntime.InferenceSession(project / "artifacts/export/model.onnx")
    for batch in (1, 3):
        images = np.zeros((batch, 3, 12, 12), np.float32)
        assert session.run(None, {"images": images})[0].shape == (batch, 3)


def test_second_run_runs_nothing(project):
    assert "Running stage" not in run("dvc", "repro", cwd=project)
    assert "up to date" in run("dvc", "status", cwd=project)


def test_tracked_files_hold_no_path_or_name_of_this_machine(project):
    for folder in ("metrics", "plots", "reports"):
        for file in (project / folder).rglob("*.*"):
            assert str(project).encode() not in file.read_bytes(), file


def test_stages_without_torch_do_not_import_it(project):
    for command in (
        ["split", "target", "--task", "data/tasks/target", "--metrics", "l.json"],
        ["leaderboard", "--plots", "plots", "--metrics", "l.json", "--report", "l.md",
         "--curves", "l.png"],
    ):  # fmt: skip
        text = run(
            sys.executable, "-X", "importtime", "-m", f"resnets.stages.{command[0]}", *command[1:],
            cwd=project,
        )  # fmt: skip
        assert "resnets.params" in text
        assert " torch\n" not in text
    for name in ("l.json", "l.md", "l.png", "l.csv"):
        (project / name).unlink(missing_ok=True)


def test_changed_parameter_reruns_what_depends_on_it_and_nothing_else(project):
    text = run("dvc", "exp", "run", "-S", "transfer.finetune.optimizer.lr=0.01", cwd=project)
    ran = [line.split("'")[1] for line in text.splitlines() if line.startswith("Running stage")]
    assert ran[:2] == ["transfer@finetune", "evaluate@finetune"]
    assert set(ran[2:]) <= {"leaderboard", "export"}
    shown = run("dvc", "params", "diff", cwd=project)
    assert "transfer.finetune.optimizer.lr" in shown
    assert "test.accuracy" in run("dvc", "metrics", "diff", "--all", cwd=project)
    compared = run("resnets", "compare", "HEAD", cwd=project)
    assert "finetune" in compared
    run("git", "checkout", "-q", ".", cwd=project)
    run("dvc", "checkout", "-q", cwd=project)


def test_changed_split_decodes_nothing(project):
    text = run("dvc", "repro", "--dry", cwd=project)
    assert "Running stage" not in text
    params = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(params.replace("val: 0.25", "val: 0.3"))
    text = run("dvc", "repro", "--dry", cwd=project)
    (project / "params.yaml").write_text(params)
    assert "Running stage 'split@target'" in text
    assert "Running stage 'prepare" not in text


def test_second_run_at_once_is_refused_and_names_the_holder(project):
    from resnets.files import locked

    with locked(project / ".state/transfer-frozen", "transfer of frozen"):
        text = run(
            sys.executable, "-m", "resnets.stages.transfer", "frozen", "--task",
            "data/tasks/target", "--init", "artifacts/backbone", "--out", "elsewhere",
            "--history", "elsewhere.csv", cwd=project, code=5,
        )  # fmt: skip
    assert "in use by transfer of frozen" in text
    assert "Traceback" not in text
    assert not (project / "elsewhere").exists()


def test_model_of_other_data_is_refused(project):
    copy = project / "data/tasks/other"
    shutil.copytree(project / "data/tasks/target", copy)
    (copy / "split.csv").unlink()
    params = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(params.replace("val: 0.25", "val: 0.3"))
    run(sys.executable, "-m", "resnets.stages.split", "target", "--task", str(copy), "--metrics",
        str(copy / "m.json"), cwd=project)  # fmt: skip
    (project / "params.yaml").write_text(params)
    text = run(
        sys.executable, "-m", "resnets.stages.evaluate", "artifacts/frozen", "--task", str(copy),
        "--metrics", str(copy / "m.json"), "--plots", str(copy), cwd=project, code=4,
    )  # fmt: skip
    assert "was trained on other split" in text
    shutil.rmtree(copy)
