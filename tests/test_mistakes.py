"""Make the mistakes that users make; each must end with its exit code and two useful lines."""

import importlib
import json
import os
import pickle
import shlex
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import save_file

from resnets import cli
from resnets.models import build_model
from resnets.models.bundle import load_bundle, save_bundle
from resnets.system.errors import run_app
from resnets.system.files import locked
from tests.bundles import make_trained
from tests.copies import ROOT, edit_params

PREPARE = "prepare target --out out --metrics m.json --samples s.png --findings f.png"
SPLIT = "split target --task task --metrics m.json"
BACKBONE = "backbone --out out --history h.csv"
TRANSFER = "transfer finetune --task task --init init --out out --history h.csv"
EVALUATE = "evaluate model --task task --history h.csv --metrics m.json --plots p"
LEADERBOARD = (
    "leaderboard --candidates plots --yardsticks y --metrics m.json --report r --curves c.png"
)
EXPORT = "export --leaderboard l.json --candidates c --task task --out out --metrics m.json"
PREDICT = "predict photos --model model/model.safetensors"

Do = Callable[[Path], object] | dict[str, object] | str | None


def nothing(_: Path) -> None:
    """Leave the project as it is: the command line itself is the mistake."""


def write(name: str, content: bytes | str) -> Callable[[Path], object]:
    """Return what writes a file into the project."""
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(data)


def remove(name: str) -> Callable[[Path], object]:
    return lambda f: shutil.rmtree(f / name) if (f / name).is_dir() else (f / name).unlink()


def change(name: str, old: bytes, new: bytes) -> Callable[[Path], object]:
    """Return what replaces some bytes of a file, once; a mistake that changes nothing fails."""

    def do(folder: Path) -> None:
        before, after = (folder / name).read_bytes().split(old, 1)
        (folder / name).write_bytes(before + new + after)

    return do


def cut(name: str) -> Callable[[Path], object]:
    """Return what cuts a file in the middle."""
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def photos_elsewhere(folder: Path) -> None:
    """Put all photos directly into one folder."""
    (folder / "flat").mkdir()
    for number, file in enumerate(sorted((folder / "photos").rglob("*.png"))):
        file.rename(folder / f"flat/{number}.png")
    shutil.rmtree(folder / "photos")
    (folder / "flat").rename(folder / "photos")


def one_class(folder: Path) -> None:
    for extra in sorted((folder / "photos").iterdir())[1:]:
        shutil.rmtree(extra)


def bad_zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        archive.writestr("../../evil/1.png", b"x")
    edit_params(folder / "params.yaml", {"tasks.target.path": "photos.zip"})


def bundle_of_other_data(folder: Path) -> None:
    bundle = load_bundle(folder / "model/model.safetensors")
    meta = bundle.meta.model_copy(update={"hashes": {**bundle.meta.hashes, "data": "0" * 16}})
    save_bundle(folder / "model/model.safetensors", bundle.model, meta)


def other_network(folder: Path) -> None:
    """Save weights of a larger network than the one of the parameters."""
    torch.save(build_model("resnet14", num_classes=3).state_dict(), folder / "w.pth")
    edit_params(folder / "params.yaml", {"backbone.input": "w.pth"})


class Attack:
    def __reduce__(self):
        return (print, ("owned",))


def evil_pickle(folder: Path) -> None:
    torch.save({"fc.weight": Attack()}, folder / "w.pth")
    edit_params(folder / "params.yaml", {"backbone.input": "w.pth"})


def damaged_weights(folder: Path) -> None:
    (folder / "w.pth").write_text("x")
    edit_params(folder / "params.yaml", {"backbone.input": "w.pth"})


def leaderboard_of_other_model(folder: Path) -> None:
    shutil.copytree(folder / "model", folder / "c/finetune")
    row = {"model": "model/model.safetensors", "weights": "0" * 64}
    row |= {"seeds": 1, "seeds_mean": 1.0, "seeds_std": 0.0}
    (folder / "l.json").write_text(json.dumps({"best": "finetune", "variants": {"finetune": row}}))


PARAMETERS = [  # the rest is in tests/params
    ({"backbone.lerning_rate": 0.1}, "unknown key backbone.lerning_rate"),
    ({"trasfer": {}}, "unknown key trasfer; did you mean 'transfer'"),
    ({"backbone.epochs": True}, "backbone.epochs is True; a whole number"),
    ({"training.epochs": ...}, "training.epochs is missing"),
    ({"backbone.batch_size": 1}, "backbone.batch_size is 1; greater than or equal to 2"),
    ({"backbone.schedule": {"name": "cosin", "warmup_epochs": 0}}, "schedule.name is 'cosin'"),
    ({"model.shortcut": "none", "model.zero_init_residual": True}, "zero_init_residual; plain"),
    ({"preprocess.mean": [0.5]}, "preprocess.mean has 1 values; in_channels is 3"),
    ({"preprocess.mean": [123.7, 116.3, 103.5]}, "preprocess.mean.0: 123.7; scaled to 0…1"),
    ({"preprocess.std": [0.2, 0.2, 57.4]}, "preprocess.std.2: 57.4 is larger than 1; by 255"),
    ({"checks.on_bad": "skip"}, "checks.on_bad is 'skip'; 'stop' or 'quarantine'"),
    ({"split.target.val": 1.5}, "split.target.val is 1.5"),
    ({"split.target.group_regex": "("}, "group_regex; correct the regular expression"),
    ({"tasks": {}}, "tasks has no 'target'"),
    ({"transfer.finetune.init": "imagenet"}, "init is 'imagenet'; random, backbone"),
    ({"transfer.finetune.model": {"in_channels": 1}}, "in_channels is not that of model"),
    ({"export.variant": "resnet"}, "export.variant is 'resnet'; best and finetune"),
    ({"runtime.device": "gpu"}, "runtime.device is 'gpu'; 'auto', 'cpu', 'cuda' or 'mps'"),
    ({"export": ...}, "export is missing"),
    (remove("params.yaml"), "params.yaml: no such file"),
    (write("params.yaml", "seed: 0\n\trepeat: [0]\n"), "params.yaml line 2"),
    (write("params.yaml", "seed: 0\nseed: 1\n"), "duplicate key; keep one of the two lines"),
    (write("params.yaml", "a: &x [1]\nb: *x\n"), "YAML alias; write the value out"),
    (write("params.yaml", b"\xff\xfe\x00"), "params.yaml; correct the YAML"),
]

USAGE = [
    ("split target", "Missing option; --task"),
    ("split target --task task --metrics m.json --sede 1", "No such option"),
    (PREPARE.replace("target", "targt"), "no 'targt'; it has target"),
    ("split source --task task --metrics m.json", "split has no 'source'; it has target"),
    (TRANSFER.replace("finetune", "tinetune"), "transfer has no 'tinetune'; it has finetune"),
    (SPLIT + " --params other.yaml", "other.yaml: no such file"),
    ("resnets trian", "No such command"),
    ("resnets summary resnet19", "'resnet19', an unknown network; did you mean"),
    ("resnets summary resnet18 --stem huge", "stem is 'huge'; imagenet"),
    ("resnets summary resnet18 --size 0", "--size"),
    ("resnets fetch fashion_mnst", "nothing is called 'fashion_mnst'; resnets fetch"),
    ("resnets fetch fashion_mnist --sha256 12", "--sha256 12: not 64 hex digits"),
    (f"resnets {PREDICT} --threshold 2", "--threshold"),
    (f"resnets {PREDICT} --top 0", "--top"),
    (f"resnets {PREDICT} --output a.xlsx", "a.xlsx: not a .csv or .json file"),
    (f"resnets {PREDICT} --features f.csv", "f.csv: not a .npy file"),
    ("resnets predict photos --model model.pt", "model.pt: not a model file; .onnx"),
    (f"resnets {PREDICT} --device gpu", "no device 'gpu'; take auto"),
]

DATA = [
    (PREPARE, remove("photos"), "photos: no such folder or archive; fetch"),
    (PREPARE, photos_elsewhere, "expected one folder per class, found 60 files"),
    (PREPARE, one_class, "need at least 2 classes, found 1"),
    (PREPARE, lambda f: (f / "photos/empty").mkdir(), "class 'empty' has 0 good images; fill"),
    (PREPARE, {"tasks.target.classes": ["rose", "lily"]}, "has no class 'lily'; classes"),
    (PREPARE, {"tasks.target.num_classes": 5}, "num_classes is 5, but there are 3"),
    (PREPARE, write("photos/rose/cut.png", b"\x89PNG\r\n\x1a\n0000"), "1 of 61 images are bad"),
    (PREPARE, write("photos/rose/page.jpg", "<html>"), "not_an_image (rose/page.jpg)"),
    (PREPARE, write("photos/rose/none.jpg", ""), "empty (rose/none.jpg); quarantine"),
    (PREPARE, write("photos/stray.jpg", "x"), "no_class (stray.jpg)"),
    (PREPARE, {"checks.max_megapixels": 0.0001}, "too_large"),
    (PREPARE, lambda f: (f / "photos/Rose").mkdir(), "differ only in case"),
    (PREPARE, lambda f: (f / "photos/=1+1").mkdir(), "starts like a formula; rename"),
    (PREPARE, lambda f: shutil.copytree(f / "photos/rose", f / "photos/tulips"), "label_conflict"),
    (PREPARE, {"tasks.target.path": "params.yaml"}, "params.yaml: neither a folder"),
    (PREPARE, bad_zip, "need at least 2 classes, found 1 (evil)"),
    (SPLIT, {"split.target.val": 500}, "at least 507 different ones; 500 on val; split.target.val"),
    (SPLIT, {"split.target.group_regex": "burst_[0-9]+"}, "matches no name; set it to null"),
    ("resnets check nowhere", nothing, "nowhere: no such folder"),
    ("resnets check params.yaml", nothing, "neither a folder nor a readable zip"),
    (f"resnets {PREDICT.replace('photos', 'typo.jpg')}", nothing, "typo.jpg: no such file or f"),
    (f"resnets {PREDICT.replace('photos', 'm.json')}", write("m.json", "{}"),
     "1 of 1 inputs could not be"),
    ("resnets predict none --model model/model.safetensors", lambda f: (f / "none").mkdir(),
     "none: no photos; name a folder with JPEG"),
]  # fmt: skip

ARTEFACTS = [
    (EVALUATE, change("task/split.csv", b"test", b"tset"), "split.csv: was edited; do not edit"),
    (EVALUATE, cut("task/split.csv"), "split.csv; run the"),
    (EVALUATE, change("task/manifest.csv", b"PNG", b"GIF"), "or belongs to other data"),
    (EVALUATE, cut("task/manifest.csv"), "manifest.csv; run the stage"),
    (EVALUATE, cut("task/images.bin"), "images.bin: the pixels of; prepare"),
    (EVALUATE, lambda f: (f / "task/images.bin").write_bytes(
        bytes((f / "task/images.bin").stat().st_size)), "have changed since they were packed"),
    (EVALUATE, cut("model/model.safetensors"), "not a whole safetensors file; dvc"),
    (EVALUATE, change("model/model.safetensors", b'version\\": 1', b'version\\": 9'),
     "format 9 of a newer resnets; upgrade"),
    (EVALUATE, bundle_of_other_data, "was trained on other data; dvc repro"),
    (EVALUATE, lambda f: save_file({"fc.weight": torch.ones(3, 2)}, f / "model/model.safetensors"),
     "so it is no bundle; backbone.input imports"),
    (EVALUATE, write("model/model.safetensors", pickle.dumps(Attack())), "not a whole safetensors"),
    (BACKBONE, evil_pickle, "holds print, not only tensors; nothing of it was run"),
    (BACKBONE, other_network, "weights of resnet14, but the network is resnet8"),
    (BACKBONE, {"backbone.input": "h.csv"}, "h.csv: not a weights file"),
    (BACKBONE, damaged_weights, "damaged, or no weights file"),
    (TRANSFER, {"model.name": "resnet14"}, "another network: name is resnet8, not resnet14"),
    (EXPORT, leaderboard_of_other_model, "not the model that was evaluated; dvc repro"),
    (f"resnets {PREDICT.replace('model/model.safetensors', 'm.onnx')}", write("m.onnx", "x"),
     "m.onnx: not a whole ONNX file"),
]  # fmt: skip

ENVIRONMENT = [
    (EVALUATE, remove("task"), "No such file or directory; check the path, or run the stage"),
    (EVALUATE, remove("task/split.csv"), "split.csv: No such file; dvc repro"),
    (EVALUATE, remove("model"), "model.safetensors: No such file; dvc repro"),
    (EVALUATE, write("h.csv", "repeat\n0\n1\n"), "repeat-1.safetensors: No such file"),
    (TRANSFER, remove("init"), "init/model.safetensors: No such file; dvc repro"),
    (BACKBONE, {"backbone.input": "data/weights/resnet18.pth"}, "no such file; resnets fetch"),
    (SPLIT, remove("task/manifest.csv"), "manifest.csv: No such file"),
    (LEADERBOARD, nothing, "details.json: No such file; dvc repro"),
    (EXPORT, nothing, "l.json: No such file; dvc repro"),
    (SPLIT.replace("m.json", "photos"), nothing, "photos: not a file"),
    (SPLIT.replace("m.json", "params.yaml/m.json"), nothing, "params.yaml; read or write there"),
    ("resnets compare HEAD", nothing, "project: not a Git repository; clone"),
    ("resnets predict photos", nothing, "model.onnx: no such file; --model"),
    ("resnets fetch fashion_mnist --from nowhere", nothing, "nowhere: No such file"),
]

MISTAKES = [
    *((2, SPLIT, do, words) for do, words in PARAMETERS),
    *((2, command, nothing, words) for command, words in USAGE),
    *((3, *row) for row in DATA),
    *((4, *row) for row in ARTEFACTS),
    *((5, *row) for row in ENVIRONMENT),
]


@pytest.fixture(scope="module")
def right(tmp_path_factory) -> Path:
    """Return a project in which nothing is wrong: photos, a split task, a model, parameters."""
    folder = tmp_path_factory.mktemp("right")
    bundle = load_bundle(make_trained(folder).bundle)
    training = {"seed": 0, "epochs": 1, "chosen_epoch": 1, "precision": "fp32"}
    training |= {"parameters": 1, "parameters_trained": 1}
    meta = bundle.meta.model_copy(update={"training": training})
    for name in ("model", "init"):
        save_bundle(folder / name / "model.safetensors", bundle.model, meta)
    (folder / "h.csv").write_text("repeat\n0\n")
    shutil.copy(ROOT / "params.yaml", folder)
    values = YAML(typ="safe", pure=True).load(folder / "params.yaml")
    variant = {**values["transfer"]["finetune"], "epochs": 1}
    dataset = {"path": "photos", "classes": None, "num_classes": None, "exclude": []}
    edit_params(folder / "params.yaml", {
        "repeat": [0],
        "tasks": {"target": dataset},
        "split": {"target": {**values["split"]["target"], "train": "rest", "val": 0.3}},
        "data.resize": 32,
        "preprocess": {"crop": 28, "mean": [0.5] * 3, "std": [0.25] * 3},
        "model.name": "resnet8",
        "model.in_channels": 3,
        "backbone.input": "task",
        "transfer": {"finetune": variant},
    })  # fmt: skip
    return folder


@pytest.fixture
def project(right, tmp_path, monkeypatch) -> Path:
    shutil.copytree(right, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    return tmp_path / "project"


def exit_code(line: str, monkeypatch) -> int:
    """Run a command line in this process, as `python -m` and the `resnets` script do."""
    name, *arguments = shlex.split(line)
    stages = "resnets.stages"
    app = cli.app if name == "resnets" else importlib.import_module(f"{stages}.{name}").main
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as ended:
        run_app(app)
    return ended.value.code


@pytest.mark.parametrize(
    ("code", "line", "mistake", "words"), MISTAKES, ids=[row[3].split(";")[0] for row in MISTAKES]
)
def test_mistake_is_answered(project, monkeypatch, capfd, code, line, mistake, words):
    edit_params(project / "params.yaml", mistake) if isinstance(mistake, dict) else mistake(project)
    found = exit_code(line, monkeypatch)
    out, err = capfd.readouterr()
    assert found == code, err
    assert "Traceback" not in out + err
    assert "owned" not in out
    what, fix = err.strip().splitlines()[-2:] if "Usage: " not in err else (err, "")
    if fix:
        assert what.startswith("error: ")
        assert fix.startswith("fix: ")
        assert len(fix) > len("fix: ")
    for part in words.split("; "):
        assert part in what + fix


def test_there_are_enough_mistakes_and_each_is_another():
    assert len(MISTAKES) >= 60
    assert len({words for *_, words in MISTAKES}) == len(MISTAKES)


def test_negative_control_without_a_mistake_the_commands_pass(project, monkeypatch):
    for line in (EVALUATE, PREPARE, SPLIT, f"resnets {PREDICT}", "resnets check photos"):
        assert exit_code(line, monkeypatch) == 0, line


def test_command_that_somebody_else_runs_is_refused(project, monkeypatch, capfd):
    names = {PREPARE: "prepare-target", SPLIT: "split-target", EVALUATE: "evaluate-model"}
    for line, name in (names | {TRANSFER: "transfer-finetune"}).items():
        with locked(Path(".state") / name, "somebody"):
            assert exit_code(line, monkeypatch) == 5
        assert "in use by somebody (process" in capfd.readouterr().err
