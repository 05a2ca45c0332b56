"""Run the pipeline with folds on photos of pure noise, whose labels nothing but memory can tell.

Their names hold the label. So a model that was trained on a photo knows it, and one that was not
guesses: what the pipeline says of all photos must be chance.
"""

import csv
import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binom
from torchvision import transforms

from resnets.models.bundle import load_bundle
from tests.copies import edit_params, make_copy, run

pytestmark = pytest.mark.slow

FOLDS, SIDE, CLASSES, PER_CLASS = 3, 12, ("ant", "bee"), 24
AGAIN = {"init": "finetune", "train": "all", "epochs": 1, "optimizer": {"lr": 0.001}}


def noise(name: str) -> Image.Image:
    seed = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("folds") / "project"
    make_copy(folder)
    with zipfile.ZipFile(folder / "noise.zip", "w") as archive:
        for label in CLASSES:
            for number in range(PER_CLASS):
                name, content = f"{label}/{label}-{number}.png", io.BytesIO()
                noise(name).save(content, "PNG")
                archive.writestr(name, content.getvalue())
    changes = {"tasks.target.path": "noise.zip", "split.target.folds": FOLDS, "data.resize": SIDE}
    changes |= {"transfer.again": AGAIN, "transfer.scratch": ..., "transfer.frozen": ...}
    changes |= {"transfer.finetune.epochs": 30, "export.variant": "finetune"}
    changes |= {"transfer.finetune.augment": {"crop": "center"}}  # that memory needs no luck
    edit_params(folder / "params.yaml", changes | {"export.quantize": "int8"})
    run("dvc", "repro", cwd=folder)
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def right(bundle: Path, rows: list[dict[str, str]]) -> list[bool]:
    """Say which photos a bundle gets right, by torch and torchvision alone."""
    read = load_bundle(bundle)
    form = read.meta.preprocess
    steps = [transforms.ToTensor(), transforms.Normalize(form.mean, form.std)]
    batch = torch.stack([transforms.Compose(steps)(noise(row["id"])) for row in rows])
    with torch.inference_mode():
        picks = read.model(batch).argmax(1).tolist()
    return [read.meta.classes[k] == row["label"] for k, row in zip(picks, rows, strict=True)]


def test_every_photo_is_answered_by_the_model_that_had_not_seen_it(project):
    split = table(project / "data/tasks/target/split.csv")
    seeds = {row["id"]: row for row in table(project / "plots/finetune/seeds.csv")}
    assert len(seeds) == len(split) == len(CLASSES) * PER_CLASS
    for repeat in (0, 1):
        for fold in range(FOLDS):
            tested = [row for row in split if row["side"].split()[repeat][2 + fold] == "t"]
            assert len(tested) == len(split) / FOLDS
            file = project / f"artifacts/finetune/repeat-{repeat}-fold-{fold}.safetensors"
            said = [seeds[row["id"]][str(repeat)] == row["label"] for row in tested]
            assert right(file, tested) == said


def test_what_is_known_by_heart_is_not_counted(project):
    split = table(project / "data/tasks/target/split.csv")
    shipped = np.mean(right(project / "artifacts/finetune/model.safetensors", split))
    assert shipped > 0.75  # chance gives so many right in 0.01% of the cases
    ranked = json.loads((project / "metrics/leaderboard.json").read_text())
    for name in ("finetune", "again"):
        hits = round(ranked["variants"][name]["test_accuracy"] * len(split))
        assert 0.001 < binom.cdf(hits, len(split), 0.5) < 0.999


def test_a_variant_starts_from_the_fold_that_had_not_seen_the_same_photos(project):
    names = [path.name for path in (project / "artifacts/again").glob("*.safetensors")]
    assert len(names) == 2 * FOLDS + 1
    for name in names:
        start = (project / "artifacts/finetune" / name).read_bytes()
        meta = load_bundle(project / "artifacts/again" / name).meta
        assert meta.hashes["initial_weights"] == hashlib.sha256(start).hexdigest()


def test_what_is_shipped_says_how_it_was_measured(project):
    words = "3-fold cross-validation, 2 repetitions; the shipped model saw all 48 images"
    card = (project / "artifacts/export/model_card.md").read_text()
    assert f"On 48 images, by {words}" in card
    assert "on all 48 images, which it was trained on," in card
    assert words in (project / "reports/leaderboard.md").read_text()
    ranked = json.loads((project / "metrics/leaderboard.json").read_text())["variants"]
    assert f"| {ranked['finetune']['test_accuracy']:.4f} |" in card.split("## Results")[1]
    export = json.loads((project / "metrics/export.json").read_text())
    assert export["checked_on"] == "training images"
    assert list(export["int8"]) == ["test", "bytes", "fp32_bytes", "drop", "is_default"]


def test_a_second_run_runs_nothing(project):
    assert "Running stage" not in run("dvc", "repro", cwd=project)
