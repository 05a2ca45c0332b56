"""Check the check of foreign weights: only the network they were made in scores well."""

import hashlib
import shutil
import sys
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from resnets.cli import app
from resnets.models.bundle import FullPreprocess, load_bundle
from resnets.models.weights import PUBLISHED
from resnets.params import load_params
from resnets.predict.import_check import class_places, read_lines
from resnets.system.errors import DataError, run_app
from resnets.training.publish import full_preprocess, publish_given
from tests.bundles import CLASSES, PREPROCESS, make_trained
from tests.copies import ROOT


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> Path:
    """Return a project with photos, and with the weights that classify them: padded centered."""
    folder = tmp_path_factory.mktemp("foreign")
    trained = make_trained(folder, num=40, shortcut="pad_centered")
    torch.save(load_bundle(trained.bundle).model.state_dict(), folder / "w.pth")
    return folder


def write_params(folder: Path, shortcut: str) -> None:
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load(ROOT / "params.yaml")
    values["model"] |= {"name": "resnet8", "in_channels": 3, "shortcut": shortcut}
    values["data"]["resize"] = PREPROCESS.resize
    values["preprocess"] = PREPROCESS.model_dump(include={"crop", "mean", "std"})
    with (folder / "params.yaml").open("w") as file:
        yaml.dump(values, file)


@pytest.fixture
def project(foreign, tmp_path, monkeypatch) -> Path:
    shutil.copytree(foreign / "photos", tmp_path / "photos")
    shutil.copy(foreign / "w.pth", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    """Run the check; return its exit code and what it prints."""
    monkeypatch.setattr(sys, "argv", ["resnets", "import-check", "w.pth", *arguments])
    with pytest.raises(SystemExit) as ended:
        run_app(app)
    return ended.value.code, *capsys.readouterr()


def shares(out: str) -> dict[str, float]:
    rows = [line.split("%  ") for line in out.splitlines() if "%  " in line]
    return {words: float(share) for share, words in rows}


def test_the_network_that_the_weights_were_made_in_is_right_and_the_other_padding_is_named(
    project, monkeypatch, capsys
):
    write_params(project, "pad")
    code, out, err = run(monkeypatch, capsys, "--data", "photos")
    scores = shares(out)
    assert code == 4
    assert scores["model.shortcut: pad_centered"] == 100
    assert scores["as params.yaml has it"] < 80
    assert scores["model.shortcut: none"] < 80
    assert "fix: set model.shortcut: pad_centered" in err

    write_params(project, "pad_centered")
    code, out, err = run(monkeypatch, capsys, "--data", "photos")
    assert code == 0, err
    scores = shares(out)
    assert scores["as params.yaml has it"] == 100
    largest = max(len(list((project / "photos" / name).iterdir())) for name in CLASSES)
    assert scores["chance (always the most frequent class)"] == 100 * largest / 40


def test_classes_by_number_and_by_a_given_order_find_their_places(project, monkeypatch, capsys):
    write_params(project, "pad_centered")
    for place, name in enumerate(CLASSES):
        (project / "photos" / name).rename(project / "photos" / str(place))
    assert run(monkeypatch, capsys, "--data", "photos")[0] == 0
    (project / "order.txt").write_text("1\n2\n0\n")
    code, out, err = run(monkeypatch, capsys, "--data", "photos", "--order", "order.txt")
    assert code == 4
    assert shares(out)["as params.yaml has it"] == 0
    assert "no better than chance on photos" in err


@pytest.mark.parametrize(
    ("classes", "order", "message"),
    [
        (["a", "b"], None, "2 classes, but the head has 3"),
        (["a", "b", "c"], ["a", "b"], "2 classes, but the head has 3"),
        (["a", "d"], ["a", "b", "c"], "class 'd' has no place in a head of 3"),
        (["0", "3"], None, "class '3' has no place in a head of 3"),
        (["a", "x"], ["x", "a", "x"], "class 'x' has no place in a head of 3, or two"),
    ],
)
def test_classes_without_a_place_are_refused(classes, order, message):
    with pytest.raises(DataError, match=message):
        class_places(classes, 3, order, Path("photos"))


def test_places_are_the_numbers_or_the_order_given_or_that_of_the_names():
    assert class_places(["0", "2"], 3, None, Path()) == {"0": 0, "2": 2}
    assert class_places(["0", "2"], 3, ["2", "1", "0"], Path()) == {"2": 0, "1": 1, "0": 2}
    assert class_places(["a", "b"], 2, None, Path()) == {"a": 0, "b": 1}
    assert class_places(["a"], 3, ["x", "a", "x"], Path())["a"] == 1  # ImageNet has two cranes


def test_blank_lines_and_the_mark_of_an_encoding_are_no_names(tmp_path):
    (tmp_path / "order.txt").write_text("\ufeffants\r\n\nred bees\n \n", encoding="utf-8")
    assert read_lines(tmp_path / "order.txt") == ["ants", "red bees"]


# What the backbone stage says when it imports


def import_into(project: Path, capsys) -> str:
    """Import w.pth as the stage does; return its warnings."""
    write_params(project, "pad")
    values = load_params("params.yaml")
    preprocess = full_preprocess(values.data, values.preprocess, 3)
    publish_given(Path("w.pth"), Path("out"), values.model, preprocess)
    return capsys.readouterr().err


def test_an_import_names_what_the_file_cannot_tell_and_how_to_check(project, capsys):
    assert import_into(project, capsys).strip() == (
        "warning: w.pth would fit a network with model.shortcut: pad_centered, "
        "model.shortcut: none as well; score it on labelled images: "
        "resnets import-check w.pth --data FOLDER"
    )


def test_an_import_of_published_weights_names_each_value_that_differs(project, capsys, monkeypatch):
    digest = hashlib.sha256(Path("w.pth").read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(PUBLISHED, f"resnet8-{digest}.pth", ("x", 256, 224))
    words = import_into(project, capsys)
    assert words.startswith("warning: w.pth was trained with other values than params.yaml has: ")
    for part in (
        "model.stem is small, not imagenet", "data.resize is 32, not 256",
        "preprocess.crop is 28, not 224",
    ):  # fmt: skip
        assert part in words
    for same in ("mean", "std", "fit", "stride_on"):
        assert same not in words
    bundle = load_bundle(Path("out/model.safetensors"))
    assert bundle.meta.preprocess == FullPreprocess(
        resize=256, fit="shorter_side", crop=224, channels=3, mean=PREPROCESS.mean,
        std=PREPROCESS.std,
    )  # fmt: skip
