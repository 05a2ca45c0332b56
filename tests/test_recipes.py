"""Run every recipe in a reduced form: all its networks, a few generated photos, one epoch."""

import io
import json
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from dvc.repo import Repo
from PIL import Image
from ruamel.yaml import YAML

from resnets.models import build_model
from resnets.models.bundle import load_bundle
from resnets.models.inference import infer
from resnets.params import load_params
from resnets.stages import (
    backbone,
    evaluate,
    export,
    labels,
    leaderboard,
    prepare,
    split,
    transfer,
    yardsticks,
)
from resnets.tasks.task import Task

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path for path in (ROOT / "recipes").glob("*.yaml") if path.stem != "published")
PER_CLASS = 8


def write_photos(path: Path, classes: list[str], *, is_split: bool) -> None:
    """Write a zip of class folders of noise; below train/ and val/ where the original has them."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(PER_CLASS):
            side = "" if not is_split else ("val/" if number % 4 == 0 else "train/")
            for name in classes:
                content = io.BytesIO()
                pixels = rng.integers(0, 256, (32, 36, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(content, "PNG")
                archive.writestr(f"{side}{name}/{number}.png", content.getvalue())
        if is_split:  # the placeholder of the original, which the recipes leave out
            archive.writestr("train/ants/imageNotFound.gif", content.getvalue())


def write_cifar(path: Path) -> None:
    """Write an archive in CIFAR-10's binary format: records of a label and planes R, G, B."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w:gz") as archive:
        for batch in ("data_batch_1", "test_batch"):
            records = rng.integers(0, 256, (10 * PER_CLASS, 1 + 3 * 32 * 32), dtype=np.uint8)
            records[:, 0] = np.arange(len(records)) % 10
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{batch}.bin")
            entry.size = records.nbytes
            archive.addfile(entry, io.BytesIO(records.tobytes()))


def reduce(values: dict) -> dict:
    """Shrink a recipe: generated photos, 32 pixels, one epoch (two groups if gradual), fp32."""
    for task in values["tasks"].values():
        if "cifar" in task["path"]:
            task["path"] = "cifar.tar.gz"
            write_cifar(Path(task["path"]))
            continue
        names = task.get("classes") or [f"class {k}" for k in range(4)]
        classes = [name.replace("/", " or ") for name in names]  # they name folders
        task |= {"classes": classes} if "classes" in task else {}
        is_split = "hymenoptera" in task["path"]
        task["path"] = f"{len(classes)} classes{' split' * is_split}.zip"
        write_photos(Path(task["path"]), classes, is_split=is_split)
    values["repeat"] = values["repeat"][:1]
    values["runtime"].update(device="cpu", precision="fp32", threads=1)
    has_margin = values["data"]["resize"] > values["preprocess"]["crop"]
    values["data"]["resize"] = 36 if has_margin else 32
    values["preprocess"]["crop"] = 32
    for section in values["split"].values():
        section.update(train="rest", val=2, test=2)
    given = Path(values["backbone"]["input"])
    if given.suffix:  # the published weights, but for their numbers
        network = build_model(values["model"]["name"])
        torch.save(network.state_dict(), "weights.pth")
        values["backbone"]["input"] = "weights.pth"
    for section in [values["training"], values["backbone"], *values["transfer"].values()]:
        if "epochs" in section:
            section["epochs"] = 1
        if "batch_size" in section:
            section["batch_size"] = min(section["batch_size"], 16)
        if "warmup_epochs" in section.get("schedule", ()):
            section["schedule"]["warmup_epochs"] = 0
        if isinstance(section.get("train"), dict):
            section.update(train={"gradual": 1}, epochs=2)
    return values


def read(path: Path) -> dict:
    return YAML(typ="safe", pure=True).load(path.read_text())


def write(values: dict) -> None:
    with Path("params.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(values, file)


def run_stages() -> dict:
    """Run the stages up to the leaderboard, and return it."""
    values = load_params("params.yaml")
    shutil.copytree(
        ROOT / "artifacts", "artifacts", ignore=lambda _, names: set(names) - {"random"}
    )
    params, tasks, metrics, plots = (
        Path(x) for x in ("params.yaml", "data/tasks", "metrics", "plots")
    )
    for name in values.tasks:
        samples, odd = Path("samples.png"), Path("findings.png")
        prepare.main(name, tasks / name, metrics / f"data_{name}.json", samples, odd, params)
        split.main(name, tasks / name, metrics / f"split_{name}.json", params)
    target, candidates, done = tasks / "target", Path("artifacts/candidates"), {"random"}
    for name in ["backbone", *values.transfer] * len(values.transfer):  # in any order of inits
        init = values.transfer[name].init if name in values.transfer else "random"
        if name in done or init not in done:
            continue
        out, history, task = Path("artifacts", name), plots / name / "history.csv", target
        if name == "backbone":
            task = Path(values.backbone.input)
            backbone.main(out, history, params)
        else:
            transfer.main(name, target, Path("artifacts", init), out, history, params)
        record, candidate = metrics / f"{name}.json", candidates / name
        evaluate.main(out, task, history, record, plots / name, candidate, params)
        done.add(name)
    ranking, measured = metrics / "leaderboard.json", Path("artifacts/yardsticks.csv")
    yardsticks.main(target, Path("artifacts/backbone"), measured, params)
    origin = Path(values.backbone.input), Path("artifacts/backbone")
    labels.main(target, *origin, metrics / "labels.json", plots / "labels", params)
    leaderboard.main(candidates, measured, ranking, Path("l.md"), Path("curves.png"), params)
    return json.loads(ranking.read_text())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_pipeline_resolves_with_a_recipe(tmp_path, recipe):
    (tmp_path / "artifacts").mkdir()
    for name in ("dvc.yaml", "artifacts/random"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copy(recipe, tmp_path / "params.yaml")
    values = load_params(recipe)
    Repo.init(str(tmp_path), no_scm=True)
    stages = {stage.name for stage in Repo(str(tmp_path)).index.stages}
    expected = {"backbone", "evaluate_backbone", "yardsticks", "labels", "leaderboard", "export"}
    expected.add("report")
    expected |= {f"{stage}@{name}" for name in values.tasks for stage in ("prepare", "split")}
    expected |= {
        f"{stage}@{name}" for name in values.transfer for stage in ("transfer", "evaluate")
    }
    assert stages == expected


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_runs_from_photos_to_leaderboard(tmp_path, monkeypatch, recipe):
    monkeypatch.chdir(tmp_path)
    reduced = reduce(read(recipe))
    if recipe.stem.endswith("_offline"):  # all others are those of the recipe with the weights
        reduced["transfer"] = dict([reduced["transfer"].popitem()])
    write(reduced)
    values = load_params("params.yaml")
    ranked = run_stages()
    assert set(ranked["variants"]) == set(values.transfer)
    classes = Task(Path("data/tasks/target")).classes
    for name, row in ranked["variants"].items():
        network = build_model(**values.transfer[name].model.model_dump(), num_classes=len(classes))
        record = json.loads(Path(f"metrics/{name}.json").read_text())
        details = json.loads(Path(f"plots/{name}/details.json").read_text())
        assert details["runs"][0]["parameters"] == sum(p.numel() for p in network.parameters())
        assert 0 <= record["test"]["accuracy"] <= 1
        trains_all = values.transfer[name].train == "all"
        assert (row["parameters_trained"] == details["runs"][0]["parameters"]) == trains_all
        assert (row["val_leaked"] > 0) == (values.transfer[name].redraw_split is not None)
    trained = values.backbone.input.startswith("data/tasks")
    assert ("test" in json.loads(Path("metrics/backbone.json").read_text())) == trained
    if recipe.with_suffix(".py").exists():
        check_study(recipe.with_suffix(".py"))


def check_study(script: Path) -> None:
    """Check the tables of the degradation study against the histories and the networks."""
    runpy.run_path(str(script))["main"](Path("study"))  # here, for torch is imported
    assert "20 layers: training error" in Path("study/degradation.txt").read_text()
    errors = {tuple(row[:2]): row for row in read_rows("study/errors.csv")}
    last = read_rows("plots/plain32/history.csv")[-1]
    assert float(errors["plain", "32"][3]) == pytest.approx(1 - float(last[4]), abs=1e-4)
    gradients = read_rows("study/gradients.csv")
    layers = [row for row in gradients if row[:3] == ["residual", "20", "start"]]
    assert len(layers) == 20  # 19 convolutions and the head: its shortcuts have no weights
    assert Image.open("study/degradation.png").size == (1100, 750)


def run_script(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, check=False
    )


def read_rows(path: str) -> list[list[str]]:
    return [line.split(",") for line in Path(path).read_text().splitlines()[1:]]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("antsbees_resnet18", ["hymenoptera_data.zip is missing", "resnets fetch hymenoptera"]),
        ("fashion_resnet18", ["fashion_mnist is missing", "resnets fetch fashion_mnist --from"]),
        ("birds_resnet50", ["data/raw/birds is missing", "put it there"]),
        ("bird_resnet50", ["no recipe is called 'bird_resnet50'", "birds_resnet50"]),
    ],
)
def test_missing_data_is_named_with_the_command_that_fetches_it(tmp_path, name, words):
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    done = run_script(tmp_path / "recipes/run.py", name)
    assert done.returncode in (2, 5)
    assert len(done.stderr.splitlines()) == 2
    assert all(word in done.stderr for word in words)


def test_table_sets_published_beside_measured_and_marks_what_is_leaked(tmp_path):
    shutil.copytree(
        ROOT / "recipes", tmp_path / "recipes", ignore=shutil.ignore_patterns("results")
    )
    shutil.copy(ROOT / "README.md", tmp_path)
    metrics = tmp_path / "recipes/results/birds_resnet50/metrics"
    metrics.mkdir(parents=True)
    row = {"test_low": 0.7, "test_high": 0.9, "images": 113, "val_accuracy": 0.96}
    row |= {"seeds": 1, "seeds_mean": 0.81, "seeds_std": None}
    leaked = {"published": 0.0, "published_redrawn_split": 0.8}
    variants = {name: {**row, "val_leaked": share} for name, share in leaked.items()}
    (metrics / "leaderboard.json").write_text(json.dumps({"variants": variants}))
    run = {"machine": "m", "interrupted": ["published"], "training_seconds": {"published": 65}}
    (metrics.parent / "run.json").write_text(json.dumps(run))
    assert run_script(tmp_path / "recipes/run.py").returncode == 0
    lines = (tmp_path / "recipes/README.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "`pub" in line]
    assert rows[0][2:8] == [
        "85 (validation, best of 50 epochs)",
        "81.00",
        "70.00 to 90.00",
        "113",
        "96.00",
        "≥ 0:01:05",
    ]
    assert rows[1][6] == "96.00 leaked"


def test_tables_are_those_of_the_kept_results(tmp_path):
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    shutil.copy(ROOT / "README.md", tmp_path)
    assert run_script(tmp_path / "recipes/run.py").returncode == 0
    for name in ("README.md", "recipes/README.md"):
        assert (tmp_path / name).read_text() == (ROOT / name).read_text()


def test_published_numbers_belong_to_variants_that_exist():
    for name, one in read(ROOT / "recipes/published.yaml").items():
        assert set(one["published"]) <= set(load_params(ROOT / f"recipes/{name}.yaml").transfer)


def test_leaked_validation_accuracy_counts_images_that_were_trained_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = reduce(read(ROOT / "recipes/birds_resnet50.yaml"))
    del values["transfer"]["modern"], values["transfer"]["published_same_split"]
    values["model"] |= {"name": "resnet8", "stem": "small", "stride_on": "conv3x3"}
    write(values)
    ranked = run_stages()
    name, task = "published_redrawn_split", Task(Path("data/tasks/target"))
    val = task.redrawn(values["transfer"][name]["redraw_split"]).side("val")
    seen = np.isin(val.ids, task.side("train").ids)
    assert 0 < seen.sum() < len(seen)
    bundle = load_bundle(Path(f"artifacts/{name}/model.safetensors"))
    logits = infer(
        bundle.model, val.images, preprocess=bundle.meta.preprocess, batch_size=8, device="cpu",
        precision="fp32",
    )  # fmt: skip
    row = ranked["variants"][name]
    assert row["val_accuracy"] == pytest.approx((logits.argmax(1) == val.labels).mean(), abs=1e-6)
    assert row["val_leaked"] == pytest.approx(seen.mean(), abs=1e-6)
    assert ranked["variants"]["published"]["val_leaked"] == 0
    assert ranked["best"] == "published"
    files = (Path("metrics/leaderboard.json"), Path("artifacts/candidates"))
    export.main(*files, Path("data/tasks/target"), Path("out"), Path("e"))
    card = Path("out/model_card.md").read_text()
    assert load_bundle(Path("artifacts/published/model.safetensors")).sha256 in card
