"""Test `resnets init`: what it sees, what it chooses, and that it writes all of it or nothing."""

import math
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from string import Template

import pytest
import torch
from typer.testing import CliRunner

from resnets.cli import app
from resnets.data.check import examine
from resnets.data.prepare import select_members
from resnets.data.sources import open_source
from resnets.models.bundle import BundleMeta, FullPreprocess, load_bundle, save_bundle
from resnets.models.resnet import build_model
from resnets.params import load_params
from resnets.setup import measure
from resnets.setup.look import Look, look
from resnets.setup.rules import (
    MOST_EPOCHS,
    SIZE_RULES,
    choose,
    find_weights,
    image_size,
    read_backbone,
)
from resnets.setup.write import init
from resnets.system.errors import ResNetsError
from resnets.training.publish import full_preprocess, publish_given
from tests.data.photos import encode, make_photo, pets, write_folder
from tests.data.test_findings import ALTERED, textured

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "src/resnets/setup/params.yaml"


def written(tmp_path, seen: Look, backbone=None, effort="normal"):
    """Return the parameters that would be written, as the stages read them."""
    path = tmp_path / "written.yaml"
    path.write_text(Template(TEMPLATE.read_text()).substitute(choose(seen, backbone, effort)))
    return load_params(path)


def photos(tmp_path, files) -> Path:
    return write_folder(tmp_path / 'my "photos" & é', files)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """Return a project with committed parameters, in which the test runs."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, folder / name)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], cwd=folder, check=True)
    monkeypatch.chdir(folder)
    return folder


def run(folder: Path, *, effort="normal", force=False) -> None:
    init(folder, backbone=None, effort=effort, force=force, offline=True)


def test_a_new_user_gets_parameters_and_keeps_the_old_ones(project, tmp_path, capsys):
    files = {
        f"{label}/{n}.png": encode(make_photo(100 * k + n, (20, 16)))
        for k, label in enumerate(("cat", "dog"))
        for n in range(8)
    }
    folder, old = photos(tmp_path, files), (project / "params.yaml").read_text()
    run(folder)
    output = capsys.readouterr().out
    for words in ("2 classes of 8", "colour", "16 pixels", "fetch", "dvc repro"):
        assert words in " ".join(output.split())
    assert (project / "params.yaml.old").read_text() == old
    params = load_params(project / "params.yaml")
    assert params.tasks["target"].path == str(folder)
    assert (params.data.resize, params.preprocess.crop) == (16, 16)
    assert (params.model.name, params.model.in_channels) == ("resnet20", 3)
    assert (params.split["target"].val, params.split["target"].test) == (2, 2)
    assert list(params.transfer) == ["scratch"]
    assert "the one before is kept as params.yaml.old" in " ".join(output.split())
    first = (project / "params.yaml").read_text()
    values = [line for line in first.split("\n") if line.lstrip()[:1] not in ("#", "")]
    assert all(line.index(" # ") >= 23 for line in values if " # " in line)
    run(folder, effort="fast")  # over what it wrote itself, as often as one likes
    assert (project / "params.yaml.old1").read_text() == first
    assert load_params(project / "params.yaml").training.epochs < params.training.epochs
    edited = (project / "params.yaml").read_text().replace("seed: 0", "seed: 1")
    (project / "params.yaml").write_text(edited)
    with pytest.raises(ResNetsError, match="changes that Git does not hold"):
        run(folder)
    assert (project / "params.yaml").read_text() == edited
    run(folder, force=True)
    assert (project / "params.yaml.old2").read_text() == edited


def test_a_backbone_that_the_pipeline_writes_itself_is_refused(project, tmp_path):
    folder = photos(tmp_path, pets(8))
    path = Path("artifacts/finetune/model.safetensors")
    with pytest.raises(ResNetsError, match="which `dvc repro` writes anew") as caught:
        init(folder, backbone=path, effort="normal", force=False, offline=True)
    assert "data/weights" in caught.value.fix


def test_a_folder_whose_name_is_not_utf8_is_refused(project, tmp_path):
    folder = photos(tmp_path, pets(8))
    with pytest.raises(ResNetsError, match="its name is not UTF-8"):
        run(folder.rename(tmp_path / "ros\udce9"))


TINY = {
    f"{x}/{n}.png": encode(make_photo(10 * n + k, (3, 3)))
    for k, x in enumerate("ab")
    for n in range(9)
}
TWINS = {name.replace("dog", "Cat "): data for name, data in pets().items()}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no images found"),
        ({"cat/1.png": encode(make_photo(1))}, "need at least 2 classes"),
        ({**pets(), "owl/1.png": encode(make_photo(99))}, "class 'owl' is too small"),
        (TWINS, "'Cat ' and 'cat' differ only in case, blanks"),
        ({f"{number}/1.png": b"" for number in range(1001)}, "1001 classes; at most 1000"),
        ({**pets(), "cat/bad.png": b"", "dog/bad.png": b""}, "2 images are bad, 8 good: 2 empty"),
        ({**pets(20), "owl/1.png": b"", "owl/2.png": b""}, "class 'owl' has 0 good images"),
        ({"cat/1.jpg": b"a text", "dog/1.jpg": b"a text"}, "2 images are bad, 0 good"),
        (TINY, "photos of 3 pixels"),
    ],
    ids=["empty", "one", "a photo", "twins", "many", "bad", "a bad class", "all bad", "tiny"],
)
def test_bad_photos_are_refused_and_nothing_changes(project, tmp_path, files, message):
    folder = photos(tmp_path, files)
    folder.mkdir(exist_ok=True)
    before = sorted((path, path.read_bytes()) for path in project.glob("*.yaml*"))
    with pytest.raises(ResNetsError, match=message) as caught:
        run(folder)
    assert str(folder) in caught.value.what
    assert caught.value.fix
    assert sorted((path, path.read_bytes()) for path in project.glob("*.yaml*")) == before


def test_fast_and_best_exclude_each_other(project):
    result = CliRunner().invoke(app, ["init", "photos", "--fast", "--best"])
    assert isinstance(result.exception, ResNetsError)
    assert not (project / "params.yaml.old").exists()


def test_outside_of_a_project_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ResNetsError, match=r"dvc\.yaml: no such file"):
        run(photos(tmp_path, pets()))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("patient_{group:02}_{number}.png", "patient"),
        ("IMG_{group:04}_burst{number:02}.png", "burst"),
        ("session{group}_{number}.png", "session"),
        ("IMG_{group:04}{number}.png", None),
        ("photo_{number}_{group}.png", None),
    ],
)
def test_groups_are_proposed_where_a_pattern_repeats(tmp_path, name, expected):
    files = grouped(name, groups=5)
    pattern = look(photos(tmp_path, files)).split.group_regex
    assert (expected in pattern) if expected else pattern is None


def grouped(name: str, groups: int) -> dict[str, bytes]:
    """Return photos of two classes, three in each group, named so."""
    return {
        f"{label}/{name.format(group=50 * k + group, number=number)}": encode(
            make_photo(1000 * k + 10 * group + number)
        )
        for k, label in enumerate(("cat", "dog"))
        for group in range(groups)
        for number in range(3)
    }


def test_no_groups_are_proposed_where_a_class_has_too_few(tmp_path):
    files = grouped("patient_{group}_{number}.png", groups=2)
    seen = look(photos(tmp_path, files))
    assert seen.split.group_regex is None
    assert "patient" in seen.dropped_groups


@pytest.mark.parametrize("name", ["{label}/Screenshot_{n:05}.png", "plant_{label}/{n}.png"])
def test_screenshots_and_names_of_classes_are_no_groups(tmp_path, name):
    files = {
        name.format(label=label, n=1000 * label + n): encode(make_photo(1000 * label + n))
        for label in (1, 2, 3)
        for n in range(8)
    }
    seen = look(photos(tmp_path, files))
    assert (seen.split.group_regex, seen.dropped_groups) == (None, None)


@pytest.mark.parametrize(
    ("num", "prefix", "folds"),
    [(8, "", 5), (99, "", 5), (100, "", None), (4, "", None), (60, "test/", None), (60, "val/", 5)],
)
def test_folds_are_proposed_for_few_photos_without_a_given_test(tmp_path, num, prefix, folds):
    files = pets(num, "train/") | pets(12, prefix, start=500) if prefix else pets(num)
    seen = look(photos(tmp_path, files))
    assert seen.split.folds == folds
    params = written(tmp_path, seen)
    assert params.split["target"].folds == folds
    assert params.repeat == ([0] if folds else [0, 1, 2])


def test_many_photos_are_trained_on_once_and_longer(tmp_path):
    seen = look(photos(tmp_path, pets(100)))
    many = replace(seen, num_images=dict.fromkeys(seen.num_images, 2_000))
    few, large = (written(tmp_path, found) for found in (seen, many))
    assert (few.repeat, large.repeat) == ([0, 1, 2], [0])
    steps = [
        params.training.epochs * math.ceil(found.num_images["train"] / params.training.batch_size)
        for params, found in ((few, seen), (large, many))
    ]
    assert steps[1] > 3 * steps[0]


def test_the_time_counts_the_trainings_of_folds(tmp_path, monkeypatch):
    seen = look(photos(tmp_path, pets(20)))
    params = written(tmp_path, seen)
    monkeypatch.setattr(measure, "STAGE_SECONDS", 0)
    monkeypatch.setattr(measure, "FIT_SECONDS", 0)
    monkeypatch.setattr(measure, "_measure", lambda _: (1.0, 0.0, 0.0))  # a second per trained one
    train, val, test, _ = (number := seen.num_images).values()
    epochs = params.transfer["scratch"].epochs
    assert measure.estimate_seconds(params, number, 7) == 7 + epochs * (5 * train + 40)
    monkeypatch.setattr(measure, "_measure", lambda _: (0.0, 0.0, 1.0))  # or per scored image
    # each fold scores val twice and its test, the model of all images all twice; the export 4 times
    assert measure.estimate_seconds(params, number, 0) == 5 * (2 * val + test) + 80 + 4 * 40


def test_given_sides_grey_photos_and_bad_ones_are_seen(tmp_path):
    files = {**pets(12, "train/"), **pets(3, "val/", start=50), **pets(3, "test/", start=80)}
    files = {
        name: encode(make_photo(number).convert("L").convert("RGB"), "JPEG")
        for number, name in enumerate(files)
    }
    files["train/cat/broken.jpg"] = b""
    seen = look(photos(tmp_path, files))
    assert seen.is_grey
    assert seen.num_images == {"train": 24, "val": 6, "test": 6, "unused": 0}
    params = written(tmp_path, seen)
    assert params.model.in_channels == len(params.preprocess.mean) == 1
    assert params.checks.on_bad == "quarantine"
    assert params.checks.max_bad_fraction >= 1 / 37


@pytest.mark.parametrize("effort", ["fast", "normal", "best"])
@pytest.mark.parametrize("number", [60, 600, 6_000, 60_000])
@pytest.mark.parametrize("side", [16, 64, 128, 3000])
def test_every_choice_is_accepted_and_takes_the_steps_of_its_rule(tmp_path, effort, number, side):
    seen = look(photos(tmp_path, pets(6)))
    counts = {"train": number, "val": number // 3, "test": number // 3}
    seen = replace(seen, shorter_side=side, num_images=counts)
    params = written(tmp_path, seen, effort=effort)
    rule = next(rule for rule in SIZE_RULES if number < rule.below)
    steps = params.training.epochs * -(-number // params.training.batch_size)
    most = MOST_EPOCHS["scratch"] * -(-number // params.training.batch_size)
    wanted = min(rule.scratch, most) * {"fast": 0.4, "normal": 1, "best": 2.5}[effort]
    assert steps == pytest.approx(wanted, rel=0.2)
    assert params.preprocess.crop <= max(params.data.resize, side)
    assert (params.training.augment.crop == "pad") == (side < 40)
    if side >= 40:  # TrivialAugment pays in a long training only
        assert params.training.augment.trivial == (params.training.epochs >= 30)


def test_larger_photos_make_larger_images_up_to_what_the_number_pays_for():
    small, _, _, huge = SIZE_RULES
    sizes = [image_size(side, small, None, "normal") for side in (28, 50, 120, 128, 256)]
    assert sizes == [(28, 28), (64, 64), (112, 120), (128, 128), (128, 146)]  # whole, if small
    assert image_size(3000, huge, None, "normal") == (64, 73)
    assert image_size(3000, small, None, "best") == (224, 256)
    assert image_size(3000, small, None, "fast") == (112, 128)


def test_rare_classes_are_weighed(tmp_path):
    files = pets(20)
    few = {name: data for name, data in files.items() if name[:3] == "cat" or name < "dog/14"}
    assert written(tmp_path, look(photos(tmp_path, files))).training.loss.class_weights == "none"
    seen = look(write_folder(tmp_path / "few", few))
    assert written(tmp_path, seen).training.loss.class_weights == "balanced"


def test_published_weights_are_preferred_and_are_what_their_name_says(tmp_path):
    path = tmp_path / "resnet18-f37072fd.pth"
    torch.save(build_model("resnet18").state_dict(), path)
    (tmp_path / "smaller.safetensors").touch()
    assert find_weights(tmp_path, is_published=True) == path
    assert find_weights(tmp_path, is_published=False) == tmp_path / "smaller.safetensors"
    with pytest.raises(ResNetsError, match="its name promises the SHA-256"):
        read_backbone(path)


def test_weights_of_a_file_bring_their_network_and_the_usual_preprocessing(tmp_path):
    torch.save(build_model("resnet18").state_dict(), tmp_path / "mine.pth")
    backbone = read_backbone(tmp_path / "mine.pth")
    params = written(tmp_path, look(photos(tmp_path, pets(6))), backbone)
    assert params.backbone.input == str(tmp_path / "mine.pth")
    assert (params.data.resize, params.preprocess.crop) == (256, 224)
    assert params.preprocess.mean == [0.485, 0.456, 0.406]
    assert list(params.transfer) == ["frozen", "finetune"]
    assert params.transfer["frozen"].train == "head"
    assert params.transfer["frozen"].frozen_batchnorm == "freeze"  # the size that they know
    smaller = written(tmp_path, look(photos(tmp_path, pets(6))), backbone, "fast")
    assert smaller.preprocess.crop < 224
    assert smaller.transfer["frozen"].frozen_batchnorm == "adapt"


def test_a_backbone_of_another_run_brings_what_its_bundle_says(tmp_path):
    network = {"name": "resnet8", "in_channels": 1, "shortcut": "projection"}
    size = {"crop": 28, "resize": 30, "fit": "shorter_side", "channels": 1}
    meta = BundleMeta(
        architecture={**network, "num_classes": 3, "stem": "small"},
        classes=["a", "b", "c"],
        preprocess={**size, "mean": [0.3], "std": [0.4]},
        training={},
        hashes={},
    )
    path = tmp_path / "model.safetensors"
    save_bundle(path, build_model(**meta.architecture), meta)
    seen = look(photos(tmp_path, pets(6)))
    params = written(tmp_path, seen, read_backbone(find_weights(tmp_path, is_published=False)))
    found = {key: getattr(params.model, key) for key in network}
    assert found == network
    assert (params.preprocess.crop, params.data.resize, params.preprocess.mean) == (28, 30, [0.3])


def test_own_weights_are_taken_where_published_ones_cannot_be_had(project, tmp_path, capsys):
    """What `make recipe NAME=photos_backbone` leaves: ResNet-18 for 199 classes at 64 pixels."""
    network = {"name": "resnet18", "in_channels": 3, "zero_init_residual": True}
    size = {"crop": 64, "resize": 64, "fit": "shorter_side", "channels": 3}
    meta = BundleMeta(
        architecture={**network, "num_classes": 199},
        classes=[f"n{number}" for number in range(199)],
        preprocess={**size, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        training={},
        hashes={},
    )
    path = Path("data/weights/photos_backbone.safetensors")
    made = build_model(**meta.architecture)
    save_bundle(path, made, meta)
    init(photos(tmp_path, pets(8)), backbone=None, effort="fast", force=False, offline=True)
    assert f"resnet18 with {path}, weights of an own run." in " ".join(
        capsys.readouterr().out.split()
    )
    params = load_params(project / "params.yaml")
    assert (params.backbone.input, params.preprocess.crop) == (str(path), 64)
    assert list(params.transfer) == ["frozen", "finetune"]
    preprocess = full_preprocess(params.data, params.preprocess, 3)
    publish_given(path, tmp_path / "backbone", params.model, preprocess)
    given = load_bundle(tmp_path / "backbone/model.safetensors").model.state_dict()
    assert all(torch.equal(value, given[key]) for key, value in made.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "side", "is_large"), [("JPEG", 584, True), ("JPEG", 580, False), ("PNG", 700, False)]
)
def test_jpegs_of_many_pixels_are_decoded_at_a_reduced_scale(tmp_path, kind, side, is_large):
    """At four times the 146 pixels that are kept of them."""
    pixels = (side + 90, side)
    files = {
        f"{label}/{number}.x": encode(make_photo(20 * k + number, pixels), kind)
        for k, label in enumerate(("cat", "dog"))
        for number in range(6)
    }
    params = written(tmp_path, look(photos(tmp_path, files)))
    assert params.data.resize == 146
    assert params.data.scaled_decoding == is_large


def test_weights_of_no_network_of_the_family_are_refused(tmp_path):
    torch.save({"w": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ResNetsError, match=r"other\.pth: weights of no network"):
        read_backbone(tmp_path / "other.pth")
    assert find_weights(tmp_path, is_published=True) is None
    assert find_weights(tmp_path, is_published=False) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [({"in_channels": 1}, "1 channel|conv1"), ({"include_top": False}, "has no head")],
    ids=["grey stem", "no head"],
)
def test_weights_that_the_backbone_would_refuse_are_refused_at_once(tmp_path, options, words):
    torch.save(build_model("resnet8", **options).state_dict(), tmp_path / "other.pth")
    with pytest.raises(ResNetsError, match=words):
        read_backbone(tmp_path / "other.pth")


@pytest.mark.parametrize(("crop", "expected"), [(96, 112), (112, 112), (160, 224), (224, 224)])
def test_images_are_no_smaller_than_the_backbone_learned_from(crop, expected):
    size = {"crop": crop, "resize": 256, "fit": "shorter_side", "channels": 3}
    made = FullPreprocess(**size, mean=[0.5] * 3, std=[0.5] * 3)
    assert image_size(100, SIZE_RULES[0], made, "normal")[0] == expected


def test_small_images_take_no_weights_of_imagenet(project, tmp_path):
    (project / "data/weights").mkdir(parents=True)
    weights = build_model("resnet18").state_dict()
    torch.save(weights, project / "data/weights/resnet18-f37072fd.pth")
    files = {
        f"{k}/{n}.png": encode(make_photo(20 * n + k, (28, 28))) for k in range(2) for n in range(9)
    }
    run(photos(tmp_path, files))
    assert load_params(project / "params.yaml").backbone.input == "artifacts/random"


def test_without_a_network_it_goes_on_from_random_weights_and_says_so(
    project, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nobody listens
    folder = photos(tmp_path, pets(8))
    init(folder, backbone=None, effort="fast", force=False, offline=False)
    said = capsys.readouterr()
    assert "\nno ImageNet weights: https://" in said.err
    assert "random weights" in said.out
    assert load_params(project / "params.yaml").backbone.input == "artifacts/random"


def test_odd_photos_are_named_and_left_out_where_that_is_asked_for(project, tmp_path):
    files = {f"{'ab'[n % 2]}/{n}.png": encode(textured(n, (36, 30))) for n in range(40)}
    odd = ["a/dark $path.png", 'b/it\'s: "é" #1.png']
    files |= {
        name: encode(ALTERED["dark"](textured(n, (36, 30)))) for n, name in enumerate(odd, 98)
    }
    folder = photos(tmp_path, files)
    seen = look(folder)
    assert sorted(seen.odd) == odd
    assert written(tmp_path, seen).tasks["target"].exclude == []
    done = CliRunner().invoke(
        app, ["init", str(folder), "--offline", "--fast", "--exclude-findings"]
    )
    assert done.exit_code == 0, done.output
    words = "2 dark (resnets check names them; in tasks.target.exclude)"
    assert words in " ".join(done.output.split())
    task = load_params(project / "params.yaml").tasks["target"]
    assert sorted(task.exclude) == odd
    source = open_source(folder)
    members = select_members(source, exclude=task.exclude)
    rows, _, found = examine(source, members, tmp_path)
    assert (len(rows), found) == (40, [])


def test_findings_that_are_a_whole_class_are_not_left_out(project, tmp_path):
    files = {f"{'ab'[n % 2]}/{n}.png": encode(textured(n, (36, 30))) for n in range(40)}
    files |= {
        f"night/{n}.png": encode(ALTERED["dark"](textured(n, (36, 30)))) for n in range(90, 94)
    }
    folder = photos(tmp_path, files)
    assert len(look(folder).odd) == 4
    with pytest.raises(ResNetsError, match="class 'night' look odd") as caught:
        look(folder, exclude_findings=True)
    assert "--exclude-findings" in caught.value.fix


def put_pipe(path: Path) -> None:
    os.mkfifo(path)


def put_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere.png")


@pytest.mark.parametrize(
    ("name", "put"),
    [
        (b"cat/9.png", put_dangling_link),
        (b".thumbnails/9.png", put_dangling_link),
        (b"cat/9.png", put_pipe),
        (b"cat/\xff.png", Path.touch),
    ],
)
def test_what_dvc_cannot_read_in_a_folder_is_refused(project, tmp_path, name, put):
    folder = photos(tmp_path, pets())
    path = folder / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    put(path)
    before = (project / "params.yaml").read_text()
    with pytest.raises(ResNetsError, match="DVC reads every file of the folder") as caught:
        run(folder)
    assert str(path) in caught.value.what
    assert (project / "params.yaml").read_text() == before


@pytest.mark.slow
def test_real_photos_are_understood(tmp_path, shared_data):
    seen = look(shared_data / "hymenoptera_data.zip")
    assert seen.num_images["val"] > 100
    assert not seen.is_grey
    assert written(tmp_path, seen).preprocess.crop == 128
    hand_set = load_params(ROOT / "recipes/flowers_resnet18.yaml")
    made = full_preprocess(
        hand_set.data.model_copy(update={"resize": 112}),
        hand_set.preprocess.model_copy(update={"crop": 112}),
        channels=3,
    )
    backbone = Path(hand_set.backbone.input), hand_set.model, made
    flowers = written(tmp_path, look(shared_data / "flowers_128px.zip"), backbone)
    for part in ("data", "preprocess", "split"):
        assert getattr(flowers, part) == getattr(hand_set, part)
    for name, section in flowers.transfer.items():
        assert section == hand_set.transfer[name]
    sample = written(tmp_path, look(ROOT / "data/sample"))
    assert (sample.model.name, sample.model.in_channels) == ("resnet20", 1)
