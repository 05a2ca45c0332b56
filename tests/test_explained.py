"""Draw the pictures of docs/explained again, some reduced; hold the page to the numbers."""

import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from ruamel.yaml import YAML

from resnets.data.split import split_task
from resnets.models.bundle import save_bundle
from resnets.models.summary import by_stage, summarize
from resnets.tasks.task import Task
from tests.bundles import make_model
from tests.copies import ROOT
from tests.data.photos import prepare, split_options

EXPLAINED = ROOT / "docs/explained"
PAGE = (EXPLAINED / "README.md").read_text()
WORDS = " ".join(PAGE.split())


def script(name: str) -> dict:
    return runpy.run_path(str(EXPLAINED / f"{name}.py"))


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_every_picture_is_small_and_shown_on_the_page():
    for path in EXPLAINED.glob("*.png"):
        assert path.stat().st_size < 102_400, path
        assert f"]({path.name})" in PAGE


def test_the_degradation_picture_is_drawn_from_the_kept_run(tmp_path):
    module = script("degradation")
    module["main"](tmp_path)
    assert (pixels(tmp_path / "degradation.png") == pixels(EXPLAINED / "degradation.png")).all()
    kept = pd.read_csv(ROOT / "recipes/results/degradation/errors.csv").set_index(["kind", "depth"])
    for kind, depth in kept.index:
        last = module["read_errors"](module["RUN"], kind, depth)["mean"].iloc[-1]
        assert last == pytest.approx(100 * kept.loc[(kind, depth), "error"], abs=1e-3)


def test_numbers_of_the_page_are_those_of_the_networks():
    stages = {
        (name, row.name): row
        for name in ("resnet18", "resnet34", "resnet50", "resnext50_32x4d")
        for row in by_stage(summarize(name, 224))
    }
    blocks = (("resnet34", "layer3"), ("resnet50", "layer1"), ("resnext50_32x4d", "layer1"))
    module = script("networks")
    for (name, stage), (drawn, (block, _)) in zip(blocks, module["BLOCKS"].items(), strict=True):
        weights = module["num_weights"](module["convolutions"](drawn, block))
        assert (name, weights) == (drawn, stages[name, stage].weights)
        assert f"{weights:,}" in PAGE
    for name in ("resnet18", "resnet50"):
        total = sum(row.parameters for (network, _), row in stages.items() if network == name)
        share = stages[name, "layer4"].parameters / total
        assert f"{share:.0%} of ResNet-{name.removeprefix('resnet')}'s" in WORDS


def test_groups_connect_what_the_convolution_says():
    module = script("networks")
    dense, grouped = (module["connections"](*item) for item in module["GROUPED"].items())
    assert dense.shape == grouped.shape == (128, 128)
    assert dense.all()
    block = np.arange(128) // 4
    assert (grouped == (block[:, None] == block)).all()
    for connected in (dense, grouped):
        assert f"{9 * connected.sum():,}" in PAGE


@pytest.mark.slow
def test_the_pictures_of_networks_are_drawn_again(tmp_path):
    script("networks")["main"](tmp_path)
    for name in ("blocks", "groups", "stages"):
        assert (pixels(tmp_path / f"{name}.png") == pixels(EXPLAINED / f"{name}.png")).all()


def test_numbers_of_the_page_are_those_of_the_kept_runs_with_a_new_split():
    ends = pd.read_csv(EXPLAINED / "redrawn_split.csv")
    means = ends.groupby("variant").mean()
    val, test = means["val_accuracy"], means["test_accuracy"]
    names = ("first", "redrawn_split", "same_split")
    before, new, same = (f"{100 * val[name]:.1f}%" for name in names)
    assert f"rises from {before} to {new}; with the old one it stays at {same}" in WORDS
    before, new, same = (f"{100 * test[name]:.1f}%" for name in names)
    assert f"{before}, then {new} with the new split and {same} with the old one" in WORDS
    leaked = means["val_leaked"]
    assert f"{leaked['redrawn_split']:.0%} had been trained on" in WORDS
    assert leaked["first"] == leaked["same_split"] == 0


@pytest.mark.slow
def test_a_new_split_is_run_and_drawn(tmp_path):
    values = YAML(typ="safe").load(EXPLAINED / "redrawn_split.yaml")
    values["split"]["target"].update(train=4, val=1)
    values["training"]["epochs"] = values["transfer"]["same_split"]["epochs"] = 2
    values["transfer"]["redrawn_split"]["epochs"] = 2
    YAML(typ="safe").dump(values, tmp_path / "reduced.yaml")
    script("redrawn_split")["main"](tmp_path, tmp_path / "reduced.yaml", 2)
    ends = pd.read_csv(tmp_path / "redrawn_split.csv")
    assert list(ends["variant"]) == 2 * ["first", "same_split", "redrawn_split"]
    assert list(ends["seed"]) == [0] * 3 + [1] * 3
    leaked = ends.set_index("variant")["val_leaked"] * 10  # of ten validation images
    assert (leaked[["first", "same_split"]] == 0).all()
    assert leaked["redrawn_split"].between(1, 10).all()
    assert leaked.tolist() == pytest.approx(leaked.round().tolist())
    assert ends["test_accuracy"].nunique() > 1
    assert Image.open(tmp_path / "redrawn_split.png").size == (920, 380)


@pytest.mark.slow
def test_features_are_projected_and_their_neighbours_counted(tmp_path):
    task, models = tmp_path / "task", tmp_path / "models"
    prepare(ROOT / "data/sample", task, channels=1, classes=["Coat", "Pullover"], resize=28)
    split_task(task, split_options(train=5, val=5))
    for name in ("backbone", "finetune"):
        (models / name).mkdir(parents=True)
        save_bundle(models / name / "model.safetensors", *make_model(stem="small"))
    module = script("features")
    module["main"](task, models, tmp_path)
    assert Image.open(tmp_path / "features.png").size == (930, 440)
    side = Task(task).side("test")
    features = module["features_of"](models / "backbone", side)
    assert features.shape == (400, 64)
    distances = ((features[:, None] - features) ** 2).sum(2)
    np.fill_diagonal(distances, np.inf)
    votes = side.labels[np.argsort(distances, axis=1)[:, : module["NEIGHBOURS"]]]
    right = np.mean((votes.mean(1) > 0.5) == side.labels)
    assert module["share_right"](features, side.labels) == pytest.approx(right, abs=0.006)
    shown = module["choose_images"](features, side.labels)
    assert sorted(side.labels[shown]) == [0] * module["SHOWN"] + [1] * module["SHOWN"]
