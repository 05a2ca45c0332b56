"""Run the whole pipeline with DVC in a copy of the project, on a zip of generated photos.

As with users' photos, Git does not have them: one task's zip is in data/raw, the other's lies
outside of the project.
"""

import csv
import json
import re
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dvc.api import artifacts_show
from dvc.repo import Repo
from dvc.utils.flatten import flatten
from ruamel.yaml import YAML

from tests.copies import CLASSES, edit_params, make_copy, run

LR = "transfer.finetune.optimizer.lr"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """Return a copy of the project in which the pipeline ran once."""
    folder = tmp_path_factory.mktemp("own photos") / "project"
    make_copy(folder)
    (folder / ".gitignore").write_text("/data/raw/\n/.state/\n__pycache__/\n")
    (folder / "data/raw").mkdir(parents=True)
    shutil.copy(folder / "photos.zip", folder / "data/raw")
    (folder / "photos.zip").rename(folder.parent / "photos.zip")
    paths = {"tasks.source.path": "data/raw/photos.zip", "tasks.target.path": "../photos.zip"}
    edit_params(folder / "params.yaml", paths)
    run("dvc", "repro", cwd=folder)
    run("git", "add", "-A", cwd=folder)
    run("git", "commit", "-qm", "base", cwd=folder)
    return folder


def rerun(project: Path, *command: str) -> list[str]:
    """Run `dvc repro` or another command of DVC; return the stages whose commands ran."""
    lines = run(*(command or ("dvc", "repro")), cwd=project).splitlines()
    return [line.split("'")[1] for line in lines if line.startswith("Running stage")]


def read_metrics(project: Path, name: str) -> dict:
    return json.loads((project / f"metrics/{name}.json").read_text())


def test_every_stage_leaves_what_it_promises(project):
    for variant in ("scratch", "frozen", "finetune"):
        assert 0 <= read_metrics(project, variant)["test"]["accuracy"] <= 1
        details = json.loads((project / f"plots/{variant}/details.json").read_text())
        assert [run["repeat"] for run in details["runs"]] == [0, 1]
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
    assert "$(touch x) are told apart" in (project / "reports/index.html").read_text()


def test_dvc_shows_four_numbers_of_each_model_and_nothing_else(project):
    shown, *_ = json.loads(run("dvc", "metrics", "show", "--json", cwd=project)).values()
    files = shown["data"]
    assert set(files) == {f"metrics/{name}.json" for name in (*VARIANTS, "backbone")}
    for file in files.values():
        numbers = {"test.accuracy", "test.macro_f1", "test.nll", "val.accuracy"}
        assert set(flatten(file["data"])) == numbers


def test_dvc_draws_all_plots_and_warns_of_none(project):
    for command in ("show", "diff"):
        said = run("dvc", "plots", command, "-o", f"../{command}", cwd=project)
        assert re.fullmatch(r"file://.*/index\.html\n", said), said
    page = (project.parent / "show/index.html").read_text()
    assert "Validation and test accuracy of each seed, finetune" in page


def test_classifier_reaches_another_clone_and_predicts_the_same(project, tmp_path):
    store = str(tmp_path / "store")
    run("dvc", "remote", "add", "--local", "-d", "store", store, cwd=project)
    run("dvc", "push", "-q", cwd=project)
    run("dvc", "remote", "remove", "--local", "store", cwd=project)
    clone = tmp_path / "clone"
    run("git", "clone", "-q", str(project), str(clone), cwd=tmp_path)
    run("dvc", "remote", "add", "-d", "store", store, cwd=clone)
    run("git", "commit", "-qam", "a store", cwd=clone)  # DVC reads a commit's own remotes
    run("git", "tag", "-am", "shipped", "classifier@v1.0.0", cwd=clone)
    assert not (clone / "artifacts/export").exists()
    get = ("dvc", "artifacts", "get", ".", "classifier")
    run(*get, "--rev", "v1.0.0", "-o", "shipped", cwd=clone)
    answers = []
    for folder, model in ((project, "artifacts/export"), (clone, "shipped")):
        out = tmp_path / f"{folder.name}.csv"
        photos = str(project.parent / "photos.zip")
        model = f"{model}/model.onnx"
        run("resnets", "predict", photos, "--model", model, "-o", str(out), cwd=folder)
        answers.append(out.read_bytes())
    assert answers[0] == answers[1]
    assert answers[0].count(b"\n") > 50
    commit = run("git", "rev-parse", "HEAD", cwd=clone).strip()
    found = artifacts_show("classifier", version="v1.0.0", repo=str(clone))
    assert found == {"rev": commit, "path": "artifacts/export"}


def test_class_names_stay_words_and_reach_no_shell(project):
    indices = json.loads((project / "artifacts/export/class_indices.json").read_text())
    assert sorted(indices.values()) == sorted(CLASSES)
    assert not (project / "x").exists()


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
        ["leaderboard", "--candidates", "artifacts/candidates", "--yardsticks",
         "artifacts/yardsticks.csv", "--metrics", "l.json", "--report", "l.md", "--curves",
         "l.png"],
    ):  # fmt: skip
        text = run(
            sys.executable, "-X", "importtime", "-m", f"resnets.stages.{command[0]}", *command[1:],
            cwd=project,
        )  # fmt: skip
        assert "resnets.params.schema" in text
        assert " torch\n" not in text
    for name in ("l.json", "l.md", "l.png", "l.csv"):
        (project / name).unlink(missing_ok=True)


# ---- this change → these stages ---------------------------------------------------------------


@pytest.fixture
def kept(project, monkeypatch) -> Iterator[Path]:
    """Return the project, and put back afterwards what a test changes."""
    monkeypatch.chdir(project)
    photos = project.parent / "photos.zip"
    before = photos.read_bytes()
    yield project
    photos.write_bytes(before)
    is_rerun = run("git", "status", "--porcelain", "dvc.lock", cwd=project)
    run("git", "checkout", "-q", ".", cwd=project)
    if is_rerun:
        run("dvc", "checkout", "-q", cwd=project)


def value(key: str, new: object) -> Callable[[Path], None]:
    return lambda project: edit_params(project / "params.yaml", {key: new})


def text(name: str, old: str, new: str) -> Callable[[Path], None]:
    """Return what replaces a piece of a source file."""

    def change(project: Path) -> None:
        file = project / "src/resnets" / name
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new, 1))

    return change


def edit_an_image(project: Path) -> None:
    """Replace the pixels of one image in the target's zip by those of another."""
    path = project.parent / "photos.zip"
    with zipfile.ZipFile(path) as archive:
        images = {name: archive.read(name) for name in archive.namelist()}
    first, second, *_ = images
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (images | {first: images[second]}).items():
            archive.writestr(name, content)


def rename(project: Path, new: str | None) -> None:
    """Give the variant `scratch` another name, or remove it."""
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load(project / "params.yaml")
    variant = values["transfer"].pop("scratch")
    values["transfer"] |= {new: variant} if new else {}
    yaml.dump(values, project / "params.yaml")


VARIANTS = ("scratch", "frozen", "finetune")
SPLIT = {"split@source", "split@target"}
PREPARE = {"prepare@source", "prepare@target"}
TRANSFER = {f"transfer@{variant}" for variant in VARIANTS}
SCORES = {"evaluate_backbone", "yardsticks", "labels"}
EVALUATE = {f"evaluate@{variant}" for variant in VARIANTS} | SCORES
TRAINING = {"backbone"} | TRANSFER

# the stages that the change itself makes stale; what reads their files follows if these differ
CHANGES = {
    "lr of one variant": (value(LR, 0.01), {"transfer@finetune", "leaderboard"}),
    "lr of the backbone": (value("backbone.optimizer.lr", 0.01), {"backbone"}),
    "steps between states": (value("runtime.checkpoint_steps", 7), set()),
    "bad images": (value("checks.on_bad", "quarantine"), PREPARE),
    "largest image": (value("checks.max_megapixels", 9.0), PREPARE),
    "device": (value("runtime.device", "cpu"), TRAINING | EVALUATE),
    "precision": (value("runtime.precision", "fp32"), TRAINING),
    "processes": (value("runtime.processes", 2), TRAINING),
    "resize": (value("data.resize", 15), PREPARE | TRAINING),
    "mean": (value("preprocess.mean", [0.4] * 3), TRAINING | {"yardsticks", "labels"}),
    "init": (value("model.init", "xavier"), TRAINING),
    "channels": (value("model.in_channels", 1), PREPARE | TRAINING),
    "repeat": (value("repeat", [0, 1, 2]), SPLIT | TRANSFER | {"yardsticks"}),
    "seed": (value("seed", 1), TRAINING | {"yardsticks"}),
    "excluded images": (value("tasks.target.exclude", ["a.png"]), {"prepare@target"}),
    "seed of a split": (value("split.target.seed", 1), {"split@target"}),
    "tolerance": (value("export.tolerance", 0.001), {"export"}),
    "variant to export": (value("export.variant", "frozen"), {"export"}),
    "an image": (edit_an_image, {"prepare@target"}),
    "a variant less": (lambda project: rename(project, None), {"leaderboard"}),
    "another name": (
        lambda project: rename(project, "plain"),
        {"transfer@plain", "evaluate@plain", "leaderboard"},
    ),
    "a comment in the review": (text("review/compare.py", "import", "# why\nimport"), set()),
    "a colour": (text("evaluation/plots.py", "COLOURS", "# brighter\nCOLOURS"),
                 EVALUATE | {"leaderboard", "export", "report"}),
    "a comment in the page": (text("evaluation/leaderboard.py", "import", "# why\nimport"),
                              EVALUATE | {"leaderboard", "export", "report"}),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_makes_exactly_these_stages_stale(kept, change):
    do, stages = CHANGES[change]
    do(kept)
    assert set(Repo(str(kept)).status()) == stages


def test_changed_parameter_reruns_what_depends_on_it_and_the_way_back_nothing(kept):
    first = {path: path.read_bytes() for path in (kept / "metrics").iterdir()}
    ran = rerun(kept, "dvc", "exp", "run", "-S", f"{LR}=0.01")
    assert ran[:2] == ["transfer@finetune", "evaluate@finetune"]
    assert set(ran[2:]) <= {"leaderboard", "export", "report"}
    shown = run("dvc", "params", "diff", cwd=kept)
    assert LR in shown
    assert "test.accuracy" in run("dvc", "metrics", "diff", "--all", cwd=kept)
    compared = run("resnets", "compare", "HEAD", cwd=kept)
    assert "finetune" in compared
    value(LR, 0.02)(kept)
    # DVC keeps no run of the leaderboard, for reports/leaderboard.md is neither metric nor plot
    assert rerun(kept) == ["leaderboard"]
    assert first == {path: path.read_bytes() for path in first}


@pytest.mark.parametrize("torn", [b"schema: '2.0'\nstages:\n  a:\n    cmd: b\n    deps:", None])
def test_lock_that_is_torn_or_lost_costs_no_training(kept, torn):
    lock, committed = kept / "dvc.lock", (kept / "dvc.lock").read_bytes()
    lock.unlink() if torn is None else lock.write_bytes(torn)
    if torn is not None:
        run("dvc", "repro", cwd=kept, code=255)
        said = run(sys.executable, "-m", "resnets.mend", cwd=kept)
        assert "mended: dvc.lock was half written" in said
        assert lock.read_bytes() == committed
    assert rerun(kept) == (["leaderboard"] if torn is None else [])
    assert lock.read_bytes() == committed


def test_what_changes_no_result_runs_once_and_makes_nothing_follow(kept):
    value("checks.on_bad", "quarantine")(kept)
    assert set(rerun(kept)) == PREPARE


def test_removed_variant_is_neither_ranked_nor_kept_for_the_export(kept):
    rename(kept, None)
    assert rerun(kept) == ["leaderboard", "export", "report"]
    assert "scratch" not in read_metrics(kept, "leaderboard")["variants"]
    assert {path.name for path in (kept / "artifacts/candidates").iterdir()} == {
        ".gitignore", "finetune", "frozen"
    }  # fmt: skip
    assert not Repo(str(kept)).status()
    run(sys.executable, "-m", "resnets.mend", cwd=kept)
    folders = ("metrics", "plots", "artifacts", "reports", ".state")
    assert not [path for folder in folders for path in (kept / folder).rglob("*scratch*")]
    assert "scratch" not in (kept / "dvc.lock").read_text()
    assert not Repo(str(kept)).status()
    run("git", "checkout", "-q", ".", cwd=kept)
    assert rerun(kept) == []


@pytest.mark.parametrize("given", ["artifacts/random", "weights.safetensors"])
def test_backbone_without_a_test_is_scored_as_nothing_and_drawn_as_nothing(kept, given):
    shutil.copy(kept / "artifacts/scratch/model.safetensors", kept / "weights.safetensors")
    edits = {f"transfer.{variant}.init": "random" for variant in VARIANTS}
    edit_params(kept / "params.yaml", edits | {"backbone": {"input": given}})
    assert rerun(kept, "dvc", "repro", "evaluate_backbone") == ["backbone", "evaluate_backbone"]
    assert read_metrics(kept, "backbone") == {}
    details = json.loads((kept / "plots/backbone/details.json").read_text())
    is_none = given == "artifacts/random"
    assert details["backbone"] == "none" if is_none else details["imported"]["loaded"] > 40
    assert run("dvc", "plots", "show", cwd=kept).startswith("file://")  # and warns of nothing
    (kept / "weights.safetensors").unlink()


def test_queued_experiments_find_photos_that_git_does_not_have(kept):
    """A queue works in copies of the commit: raw data are not needed there, or are copied too."""
    queue = ("dvc", "exp", "run", "--queue")
    run(*queue, "--allow-missing", "-S", "export.variant=frozen", cwd=kept)
    copied = ("-C", "data/raw", "-C", "../photos.zip")
    run(*queue, *copied, "-S", "+checks.max_megapixels=63", cwd=kept)
    said = run("dvc", "exp", "run", "--run-all", cwd=kept)
    ran = {line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")}
    assert ran == PREPARE | {"export"}
    assert said.count("Ran experiment") == 1
    assert "Failed" not in said


def test_two_workers_run_a_grid_and_say_why_an_experiment_failed(kept):
    """A photo archive with an absolute path needs no copy, even where it is read anew."""
    queue = ("dvc", "exp", "run", "--queue", "--allow-missing")
    photos = json.dumps(str(kept.parent / "photos.zip"))
    changed = ("-S", f"tasks.target.path={photos}", "-S", "+checks.max_megapixels=63")
    run(*queue, "-n", "grid", "-S", f"{LR}=0.011,0.012", "transfer@finetune", cwd=kept)
    run(*queue, "-n", "bad", "-S", f"{LR}=-1", "transfer@finetune", cwd=kept)
    run(*queue, "-n", "anew", *changed, "prepare@target", cwd=kept)
    run("dvc", "exp", "run", "--run-all", "-j", "2", cwd=kept)
    lines = run("dvc", "queue", "status", cwd=kept).splitlines()
    states = {words[1]: words[-1] for line in lines if len(words := line.split()) > 4}
    wanted = {"grid-1": "Success", "grid-2": "Success", "anew": "Success", "bad": "Failed"}
    assert states | wanted == states
    assert f"error: params.yaml: {LR} is -1" in run("dvc", "queue", "logs", "bad", cwd=kept)
    run("dvc", "queue", "remove", "--failed", cwd=kept)
    assert "Failed" not in run("dvc", "queue", "status", cwd=kept)
