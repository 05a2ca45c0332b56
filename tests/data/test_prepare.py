"""Test judging, packing, duplicates and opening, on generated trees and on the real photos."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
import zipfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps
from torchvision import transforms

from resnets.data import pack
from resnets.data.sources import open_source
from resnets.data.split import split_task
from resnets.models.bundle import FullPreprocess
from resnets.predict.run import prepare as prepare_input
from resnets.system.errors import ArtefactError, DataError, StoppedBySignal
from resnets.tasks.decode import center_crop, decode, resize, to_pixels
from resnets.tasks.manifest import ManifestRow, read_table
from resnets.tasks.task import PixelStore, Task
from tests.data.photos import (
    encode,
    make_photo,
    pets,
    prepare,
    split_options,
    write_folder,
    write_tar,
    write_zip,
)

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "data" / "sample"


def refuse(source: Path, out: Path, words: str, **options: object) -> DataError:
    with pytest.raises(DataError, match=words) as caught:
        prepare(source, out, **options)
    assert not (out / "manifest.csv").exists()
    return caught.value


def reasons(out: Path) -> dict[str, str]:
    with (out / "rejected.csv").open(newline="", encoding="utf-8") as file:
        return {line["id"]: line["reason"] for line in csv.DictReader(file)}


def test_every_container_gives_the_same_task(tmp_path):
    files = pets(5)
    reversed_files = dict(reversed(files.items()))
    expected = prepare(write_folder(tmp_path / "a", files), tmp_path / "out-a")
    others = [
        write_folder(tmp_path / "b", reversed_files),
        write_zip(tmp_path / "c.zip", reversed_files),
        write_tar(tmp_path / "d.tar", files),
        write_tar(tmp_path / "e.tar.gz", reversed_files),
    ]
    images = (tmp_path / "out-a/images.bin").read_bytes()
    for number, other in enumerate(others):
        out = tmp_path / f"out-{number}"
        found = prepare(other, out)
        assert [replace(row, offset=0) for row in found.rows] == [
            replace(row, offset=0) for row in expected.rows
        ]
        if other.suffix != ".gz":  # a compressed tar is packed in its own order
            assert (out / "images.bin").read_bytes() == images
            assert found.metrics == expected.metrics
    assert read_table(tmp_path / "out-a/manifest.csv", ManifestRow) == expected.rows
    json.dumps(expected.metrics, allow_nan=False)


def test_the_sample_is_good_and_packs_its_own_pixels(tmp_path):
    found = prepare(SAMPLE, tmp_path, channels=1, resize=28)
    assert found.metrics["images"] == 12_000
    assert found.metrics["rejected"] == {"all": 0}
    assert found.metrics["duplicates"]["near"] == 0
    assert set(found.metrics["classes"].values()) == {1200}
    metrics = split_task(tmp_path, split_options(val=100, train=50))
    assert metrics["images"] == {"train": 500, "val": 1000, "test": 2000, "unused": 8500}
    source, test = open_source(SAMPLE), Task(tmp_path).side("test")
    pixels = {member.name: content for member, content in source.read(source.members)}
    assert test.images.uniform is not None
    assert all(
        np.array_equal(image, pixels[name])
        for image, name in zip(test.images.uniform, test.ids, strict=True)
    )
    assert {test.classes[label] for label in test.labels} == set(source.classes)


@pytest.fixture(scope="module")
def insects(tmp_path_factory, shared_data) -> Path:
    out = tmp_path_factory.mktemp("insects")
    prepare(shared_data / "hymenoptera_data.zip", out, resize=256, max_megapixels=64.0)
    split_task(out, split_options())
    return out


def test_real_photos_packed_and_predicted_equal_torchvision(insects, shared_data):
    """398 photos: the packed input, the one made from the file, and torchvision's are the same."""
    reference = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    rows = read_table(insects / "manifest.csv", ManifestRow)
    images = PixelStore(insects / "images.bin", rows)
    assert len(rows) == 398
    with zipfile.ZipFile(shared_data / "hymenoptera_data.zip") as archive:
        for row, packed in zip(rows, images, strict=True):
            data = archive.read(f"hymenoptera_data/{row.id}")
            upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
            pixels = resize(
                to_pixels(decode(data, channels=3, max_megapixels=64).picture), 256, "shorter_side"
            )
            expected = np.asarray(reference(upright))
            assert np.array_equal(center_crop(packed, 224), expected)
            assert np.array_equal(center_crop(pixels, 224), expected)


def test_ants_and_bees_keep_their_sides_and_the_placeholder_is_listed(insects):
    rows = {row.id: row for row in read_table(insects / "manifest.csv", ManifestRow)}
    listed = [row.id for row in rows.values() if row.note]
    assert listed == ["train/ants/imageNotFound.gif"]
    task = Task(insects)
    assert set(task.side("val").ids) == {name for name, row in rows.items() if row.side == "val"}
    assert all(rows[name].side == "train" for name in task.side("test").ids)


def test_redrawn_split_mixes_train_and_val_and_leaves_the_test_alone(tmp_path):
    prepare(write_folder(tmp_path / "pets", pets(30)), tmp_path)
    split_task(tmp_path, split_options())
    task = Task(tmp_path)
    first, again, other = (task.redrawn(seed) for seed in (1, 1, 2))
    sides = {name: set(task.side(name).ids) for name in ("train", "val", "test")}
    redrawn = {name: set(first.side(name).ids) for name in sides}
    assert redrawn["test"] == sides["test"]
    assert redrawn["train"] | redrawn["val"] == sides["train"] | sides["val"]
    assert len(redrawn["val"]) == len(sides["val"])
    assert redrawn["val"] & sides["train"]
    assert first.side("val").ids == again.side("val").ids != other.side("val").ids
    assert task.redrawn(None) is task
    assert first.hashes() == task.hashes()


def test_flowers_have_label_conflicts_and_copies(tmp_path, shared_data):
    path = shared_data / "flowers_128px.zip"
    found = prepare(path, tmp_path, resize=128, on_bad="quarantine", max_bad_fraction=0.01)
    assert found.metrics["images"] == 4309
    assert found.metrics["rejected"] == {"all": 8, "label_conflict": 8}
    assert "rose/15922772266_1167a06620.jpg" in reasons(tmp_path)
    assert found.metrics["duplicates"] == {"exact": 2, "same_pixels": 0, "near": 35}
    metrics = split_task(tmp_path, split_options())
    assert metrics["leakage"] == 0


def bad_files() -> dict[str, bytes]:
    jpeg = encode(make_photo(77), "JPEG")
    return {
        "cat/empty.jpg": b"",
        "cat/half.jpg": jpeg[: len(jpeg) // 2],
        "cat/page.jpg": b"<html>404</html>",
        "cat/huge.png": encode(Image.new("1", (2000, 2000))),
        "cat/strip.png": encode(Image.new("L", (2100, 100))),
        "dog/float.tif": encode(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"),
        "dog/tab\there.png": encode(make_photo(78)),
        "lost.png": encode(make_photo(79)),
    }


def test_what_is_wrong_stops_with_names_and_is_listed(tmp_path):
    root = write_folder(tmp_path / "x", {**pets(8), **bad_files()})
    error = refuse(root, tmp_path / "out", "8 of 24 images are bad: 1 bad_name .*1 unsupported")
    assert error.exit_code == 3
    assert "rejected.csv" in error.what
    expected = {
        "cat/empty.jpg": "empty",
        "cat/half.jpg": "damaged",
        "cat/page.jpg": "not_an_image",
        "cat/huge.png": "too_large",
        "cat/strip.png": "too_thin",
        "dog/float.tif": "unsupported",
        "dog/tab\\there.png": "bad_name",
        "lost.png": "no_class",
    }
    assert reasons(tmp_path / "out") == expected
    refuse(root, tmp_path / "out", "max_bad_fraction", on_bad="quarantine", max_bad_fraction=0.3)
    found = prepare(root, tmp_path / "out", on_bad="quarantine", max_bad_fraction=0.34)
    assert found.metrics["images"] == 16
    assert found.metrics["rejected"]["all"] == 8
    assert reasons(tmp_path / "out") == expected


def test_what_is_no_image_by_name_and_content_is_ignored_and_counted(tmp_path):
    extra = {"cat/notes.txt": b"notes", "dog/IMG_1.AAE": b"<xml>", "dog/empty": b""}
    root = write_folder(tmp_path / "x", {**pets(3), **extra})
    found = prepare(root, tmp_path / "out")
    assert (found.metrics["images"], found.metrics["ignored"], found.rejected) == (6, 3, [])
    (root / "cat" / "page.jpg").write_bytes(b"<html>")
    refuse(root, tmp_path / "out", r"1 not_an_image \(cat/page\.jpg\)")


def test_raw_photos_count_as_bad_wherever_they_lie(tmp_path):
    extra = {"cat/IMG_1.NEF": b"II*\0 of a camera", "lost.cr3": b"x"}
    root = write_folder(tmp_path / "x", {**pets(3), **extra})
    refuse(root, tmp_path / "out", r"2 of 8 images are bad: 1 no_class .*; 1 other_format")
    refuse(root, tmp_path / "out", "max_bad_fraction", on_bad="quarantine", max_bad_fraction=0.2)
    found = prepare(root, tmp_path / "out", on_bad="quarantine", max_bad_fraction=0.25)
    assert found.rejected[0].fix == "export it as JPEG"


def test_groups_and_sides_of_a_table_hold_in_the_split(tmp_path):
    folder, out = write_folder(tmp_path / "x", pets(20)), tmp_path / "out"
    lines = [f"{name};{name[:3]};{int(name[4:-4]) // 4}" for name in pets(20)]
    (folder / "labels.csv").write_text("\n".join(["path;label;group", *lines]))
    prepare(folder / "labels.csv", out)
    groups = {row.id: row.given_group for row in read_table(out / "manifest.csv", ManifestRow)}
    assert groups == {line.split(";")[0]: line.split(";")[2] for line in lines}
    metrics = split_task(out, split_options(val=4, test=4))
    assert metrics["images"] == {"train": 24, "val": 8, "test": 8, "unused": 0}
    sides = [set(map(groups.get, Task(out).side(side).ids)) for side in ("train", "val", "test")]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 5
    # with a side for some, their group follows and is not trained on
    lines = [f"{line};{'test' if ';3' in line and '12' in line else 'train'}" for line in lines]
    (folder / "labels.csv").write_text("\n".join(["path;label;group;side", *lines]))
    assert prepare(folder / "labels.csv", out).metrics["given_sides"] == {"test": 2, "train": 38}
    assert split_task(out, split_options(val=4))["images"]["unused"] == 6


def test_without_groups_the_manifest_has_no_such_column(tmp_path):
    prepare(write_folder(tmp_path / "x", pets(3)), tmp_path / "out")
    head = (tmp_path / "out/manifest.csv").read_text().splitlines()[0]
    assert head.split(",") == [field.name for field in fields(ManifestRow)][:-1]


def test_prepare_and_predict_decode_large_photos_at_one_reduced_scale(tmp_path):
    files = {
        f"{label}/{number}.jpg": encode(
            make_photo(number + 10 * (label == "cat"), (640, 480)), "JPEG"
        )
        for label in ("cat", "dog")
        for number in range(2)
    }
    folder = write_folder(tmp_path / "x", files)
    prepare(folder, tmp_path / "out", scaled_decoding=True)
    form = FullPreprocess(
        resize=32, fit="shorter_side", channels=3, scaled_decoding=True, crop=24,
        mean=[0.5] * 3, std=[0.5] * 3,
    )  # fmt: skip
    rows = read_table(tmp_path / "out/manifest.csv", ManifestRow)
    assert {(row.width, row.height) for row in rows} == {(640, 480)}
    for row, image in zip(rows, PixelStore(tmp_path / "out/images.bin", rows), strict=True):
        crop = prepare_input(row.id, folder / row.id, form).crop
        assert np.array_equal(center_crop(image, 24), crop)
        photo = Image.open(io.BytesIO(files[row.id]))
        photo.draft(None, (64, 64))
        assert np.array_equal(image, np.asarray(transforms.Resize(32)(photo)))
    exact = FullPreprocess.model_validate(form.model_dump() | {"scaled_decoding": False})
    assert "scaled_decoding" in form.model_dump()
    assert "scaled_decoding" not in exact.model_dump()  # as in models of before


def test_unreadable_files_are_named(tmp_path):
    root = write_folder(tmp_path / "x", pets())
    (root / "cat" / "gone.png").symlink_to("nothing.png")
    refuse(root, tmp_path / "out", r"1 unreadable \(cat/gone\.png\)")


def test_names_and_contents_need_not_agree(tmp_path):
    files = pets(3)
    files["cat/photo.JPG"] = files.pop("cat/0.png")
    files["cat/no ending"] = files.pop("cat/1.png")
    files["dog/photo.txt"] = encode(make_photo(5), "WEBP")
    found = prepare(write_folder(tmp_path / "x", files), tmp_path / "out")
    assert found.metrics["formats"] == {"PNG": 6, "WEBP": 1}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classes": ["cat", "bird"]}, r"no class 'bird'; it has 3 classes \(cat, dog, empty\)"),
        ({"num_classes": 5}, r"is 5, but there are 3 classes \(cat, dog, empty\)"),
        ({"classes": ["cat"]}, r"need at least 2 classes, found 1 \(cat\)"),
        ({}, "class 'empty' has 0 good images"),
    ],
)
def test_classes_must_be_the_expected_ones(tmp_path, options, words):
    root = write_folder(tmp_path / "x", pets())
    (root / "empty").mkdir()
    refuse(root, tmp_path / "out", words, **options)
    assert prepare(root, tmp_path / "out", classes=["cat", "dog"]).metrics["images"] == 8


def test_a_class_whose_images_are_all_bad_stops(tmp_path):
    root = write_folder(tmp_path / "x", {**pets(), "bird/1.jpg": b"x"})
    options = {"on_bad": "quarantine", "max_bad_fraction": 0.5}
    error = refuse(root, tmp_path / "out", "class 'bird' has 0 good images", **options)
    assert "repair what `resnets check` lists" in error.fix


def test_excluded_images_are_left_out_by_name(tmp_path):
    photo = make_photo(3, (200, 150))
    files = {**pets(3), "cat/x.png": encode(photo), "dog/x.png": encode(photo), "lost.png": b"x"}
    root = write_folder(tmp_path / "x", files)
    found = prepare(root, tmp_path / "out", exclude=["dog/x.png", "lost.png"])
    assert sorted(row.id for row in found.rows) == sorted({*files} - {"dog/x.png", "lost.png"})
    assert found.metrics["ignored"] == 2
    refuse(root, tmp_path / "no", "has no image 'x.png', which is to be", exclude=["x.png"])
    cats = sorted(name for name in files if name.startswith("cat"))
    refuse(root, tmp_path / "no", "class 'cat' has 0 good images", exclude=cats)


def copies_of(photo: Image.Image) -> dict[str, bytes]:
    """Return a photo and altered copies of it."""
    width, height = photo.size
    dx, dy = round(width * 0.02), round(height * 0.02)
    exif = Image.Exif()
    exif[0x010E] = "a description"
    return {
        "cat/photo.png": encode(photo),
        "cat/same bytes.png": encode(photo),
        "cat/other metadata.png": encode(photo, exif=exif),
        "cat/other container.bmp": encode(photo, "BMP"),
        "cat/quality 40.jpg": encode(photo, "JPEG", quality=40),
        "cat/half size.png": encode(photo.resize((width // 2, height // 2))),
        "cat/cropped.png": encode(photo.crop((dx, dy, width - dx, height - dy))),
    }


def test_copies_of_one_picture_are_one_group_and_counted(tmp_path):
    files = {**pets(6), **copies_of(make_photo(9, (240, 180)))}
    found = prepare(write_folder(tmp_path / "x", files), tmp_path / "out")
    assert found.metrics["duplicates"] == {"exact": 1, "same_pixels": 2, "near": 3}
    words = {row.near for row in found.rows if row.id in copies_of(make_photo(9, (240, 180)))}
    assert len(words) == 1
    assert len({row.near for row in found.rows}) == 13


def test_near_duplicates_are_found_and_others_are_not(tmp_path, shared_data):
    """On every eighth real insect: recall of altered copies at least 95%, no false pair."""
    files: dict[str, bytes] = {}
    with zipfile.ZipFile(shared_data / "hymenoptera_data.zip") as archive:
        names = [i.filename for i in archive.infolist() if i.filename.endswith(".jpg")][::8]
        for number, name in enumerate(names):
            photo = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
            photo.thumbnail((256, 256))
            for copy, data in copies_of(photo).items():
                files[f"{'cat' if number % 2 else 'dog'}/{number} {copy[4:]}"] = data
    found = prepare(write_folder(tmp_path / "x", files), tmp_path / "out")
    number_of = {row.id: row.id.split("/")[1].split()[0] for row in found.rows}
    near_of = {number_of[row.id]: row.near for row in found.rows if "photo.png" in row.id}
    assert len(set(near_of.values())) == len(near_of)  # no two photos are taken for one
    altered = [row for row in found.rows if "photo.png" not in row.id]
    recall = np.mean([row.near == near_of[number_of[row.id]] for row in altered])
    assert recall >= 0.95


def test_small_or_plain_pictures_are_no_near_duplicates(tmp_path):
    photo = make_photo(1, (48, 48))
    files = {
        **pets(),
        "cat/s1.png": encode(photo),
        "cat/s2.jpg": encode(photo, "JPEG"),
        "cat/white.png": encode(Image.new("L", (99, 99), 255)),
        "dog/black.png": encode(Image.new("L", (99, 99), 0)),
    }
    found = prepare(write_folder(tmp_path / "x", files), tmp_path / "out")
    assert found.metrics["duplicates"]["near"] == 0
    assert found.metrics["notes"] == {"low information": 2}


def test_a_placeholder_is_listed(tmp_path):
    sorry = Image.new("RGB", (300, 300), (247, 247, 247))
    ImageDraw.Draw(sorry).text((100, 140), "image not available", "black")
    files = {**pets(), "cat/1234.jpg": encode(sorry, "JPEG", quality=60)}
    found = prepare(write_folder(tmp_path / "x", files), tmp_path / "out")
    assert [row.id for row in found.rows if row.note == "low information"] == ["cat/1234.jpg"]


def test_one_picture_under_two_labels_is_bad_data(tmp_path):
    photo = make_photo(3, (200, 150))
    files = {**pets(10), "cat/x.png": encode(photo), "dog/y.bmp": encode(photo, "BMP")}
    root = write_folder(tmp_path / "x", {**files, "dog/z.jpg": encode(photo, "JPEG")})
    error = refuse(root, tmp_path / "out", "2 label_conflict")
    assert "cat/x.png, dog/y.bmp" in error.what
    found = prepare(root, tmp_path / "out", on_bad="quarantine", max_bad_fraction=0.2)
    assert {one.id for one in found.rejected} == {"cat/x.png", "dog/y.bmp"}
    assert "the same picture is labelled 'dog': dog/y.bmp" in found.rejected[0].detail


def test_a_conflict_between_screenshots_of_macos_is_left_out_and_can_be_excluded(tmp_path):
    """Their names have a narrow blank, U+202F, which is no character for a terminal."""
    screenshot, name = encode(make_photo(3, (200, 150))), "Shot 3.00\u202fPM.png"
    files = {**pets(10), f"cat/{name}": screenshot, f"dog/{name}": screenshot}
    root = write_folder(tmp_path / "x", files)
    found = prepare(root, tmp_path / "out", on_bad="quarantine", max_bad_fraction=0.2)
    assert {bad.id for bad in found.rejected} == {f"cat/{name}", f"dog/{name}"}
    assert not {bad.id for bad in found.rejected} & {row.id for row in found.rows}
    excluded = prepare(root, tmp_path / "out", exclude=[bad.id for bad in found.rejected])
    assert len(excluded.rows) == 20


def test_near_duplicates_under_two_labels_are_noted(tmp_path):
    photo = make_photo(500, (200, 150))
    files = {**pets(), "cat/x.png": encode(photo), "dog/z.jpg": encode(photo, "JPEG")}
    found = prepare(write_folder(tmp_path / "x", files), tmp_path / "out")
    assert found.metrics["notes"] == {"near-duplicate has another label": 2}


def many_files(num: int = 110) -> dict[str, bytes]:
    return {
        f"{label}/{index:03}.png": encode(make_photo(1000 * number + index, (40, 30)))
        for number, label in enumerate(("cat", "dog"))
        for index in range(num)
    } | {"dog/bad.png": b"bad"}


def run(source: Path, out: Path, fault: str = "") -> subprocess.CompletedProcess[str]:
    """Prepare in a process of its own, which dies where `fault` says."""
    code = (
        "from pathlib import Path\n"
        "import sys\n"
        "from tests.data.photos import prepare\n"
        "options = {'on_bad': 'quarantine', 'max_bad_fraction': 0.1}\n"
        "prepare(Path(sys.argv[1]), Path(sys.argv[2]), **options)\n"
    )
    env = {**os.environ, "RESNETS_FAULT": fault}
    command = [sys.executable, "-c", code, str(source), str(out)]
    return subprocess.run(command, env=env, capture_output=True, text=True, cwd=ROOT)


def outputs(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_killed_anywhere_it_continues_and_ends_with_the_same_bytes(tmp_path):
    source = write_zip(tmp_path / "x.zip", many_files())

    assert run(source, tmp_path / "whole").returncode == 0
    expected = outputs(tmp_path / "whole")
    assert set(expected) == {"images.bin", "manifest.csv", "rejected.csv"}
    out = tmp_path / "broken"
    assert run(source, out, "prepare.flushed@3").returncode == -signal.SIGKILL
    with (out / "rows.part").open("ab") as file:
        file.write(b'["row", {"id": "cat/half of a li')  # torn, as a dying disk leaves it
    done = run(source, out)
    assert done.returncode == 0
    assert ": 29 images in" in done.stderr  # 221 - 3 × 64
    assert outputs(out) == expected
    out = tmp_path / "late"
    assert run(source, out, "write.before_rename@2").returncode == -signal.SIGKILL
    assert run(source, out).returncode == 0
    assert outputs(out) == expected


def test_asked_to_stop_it_saves_and_continues(tmp_path):
    source = open_source(write_folder(tmp_path / "x", many_files()))
    packing = pack.Packing(3, 32, "shorter_side", 1.0)

    def read_one(path):
        if path == source.members[100].path:
            os.kill(os.getpid(), signal.SIGTERM)
        return source.container.read_one(path)

    out = tmp_path / "out" / "images.bin"
    stopping = replace(source, container=replace(source.container, read_one=read_one))
    with pytest.raises(StoppedBySignal, match=r"state saved at image \d+ of 221") as caught:
        pack.pack(stopping, source.members, packing, out)
    assert caught.value.exit_code == 143
    rows, rejected = pack.pack(source, source.members, packing, out)
    whole = pack.pack(source, source.members, packing, tmp_path / "whole" / "images.bin")
    assert (rows, rejected) == whole
    assert out.read_bytes() == (tmp_path / "whole" / "images.bin").read_bytes()


def test_other_data_or_another_packing_starts_afresh(tmp_path):
    root = write_folder(tmp_path / "x", many_files())
    out = tmp_path / "out"
    run(root, out, "prepare.flushed@2")
    assert (out / "rows.part").exists()
    changed = make_photo(12345, (40, 30))
    (root / "cat/000.png").write_bytes(encode(changed))
    (root / "dog/bad.png").unlink()
    found = prepare(root, out, resize=16)
    task = PixelStore(out / "images.bin", found.rows)
    assert np.array_equal(task[0], resize(np.asarray(changed), 16, "shorter_side"))


@pytest.mark.parametrize("write", [write_tar, write_zip, write_folder])
def test_a_part_of_other_bytes_is_continued_up_to_the_first_that_changed(tmp_path, write):
    """Sizes and dates tell nothing: the new file has 9,999 bytes too, and the old one's date."""
    files = {name: data.ljust(9999, b"\0") for name, data in many_files().items()}
    name = tmp_path / ("x.tar" if write is write_tar else "x.zip")
    path, out = write(name, files), tmp_path / "out"
    run(path, out, "prepare.flushed@3")
    changed = path / "cat/100.png" if path.is_dir() else path
    date = changed.stat().st_mtime_ns
    files["cat/100.png"] = encode(make_photo(7, (40, 30))).ljust(9999, b"\0")
    write(name, files)
    os.utime(changed, ns=(date, date))
    done = run(path, out)
    assert ": 121 images in" in done.stderr
    assert run(path, tmp_path / "fresh").returncode == done.returncode == 0
    assert outputs(out) == outputs(tmp_path / "fresh")


def test_a_part_that_is_no_list_of_ours_starts_afresh(tmp_path):
    root, out = write_folder(tmp_path / "x", many_files()), tmp_path / "out"
    run(root, out, "prepare.flushed@2")
    (out / "rows.part").write_bytes(b"garbage\n")
    assert run(root, out).returncode == 0


def test_a_part_of_other_code_starts_afresh(tmp_path, monkeypatch):
    packing = pack.Packing(3, 32, "shorter_side", 1.0)
    before = pack._code(packing)
    for folder in ("data", "tasks"):
        shutil.copytree(pack.PACKAGE / folder, tmp_path / "code" / folder)
    monkeypatch.setattr(pack, "PACKAGE", tmp_path / "code")
    assert pack._code(packing) == before
    with (tmp_path / "code/tasks/decode.py").open("a") as file:
        file.write("# another rule\n")
    assert pack._code(packing) != before


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """Four times the images: the peak grows by the rows alone, far less than by the pixels."""
    peaks = []
    for number in (60, 240):
        files = {
            f"{label}/{i}.bmp": encode(Image.new("RGB", (256, 256), (i, 2 * n, 0)), "BMP")
            for n, label in enumerate(("cat", "dog"))
            for i in range(number // 2)
        }
        source = write_zip(tmp_path / f"{number}.zip", files)
        del files
        tracemalloc.start()
        prepare(source, tmp_path / f"out{number}", resize=256)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    pixels = 180 * 256 * 256 * 3
    assert peaks[1] - peaks[0] < pixels / 20


def split_pets(tmp_path: Path, **options: object) -> Path:
    out = tmp_path / "out"
    prepare(write_folder(tmp_path / "x", pets(60)), out)
    split_task(out, split_options(**options))
    return out


def test_a_task_gives_each_side_its_images_and_labels(tmp_path):
    out = split_pets(tmp_path)
    task = Task(out)
    assert task.classes == ["cat", "dog"]
    ids = set()
    for name in ("train", "val", "test"):
        side = task.side(name)
        ids |= set(side.ids)
        assert len(side.images) == len(side.ids) == len(side.labels)
        for row in (0, len(side.ids) - 1):
            label = ("cat", "dog")[side.labels[row]]
            assert side.ids[row].startswith(label)
            file = decode(tmp_path / "x" / side.ids[row], channels=3, max_megapixels=1)
            assert np.array_equal(
                side.images[row], resize(to_pixels(file.picture), 32, "shorter_side")
            )
        assert np.array_equal(side.images.uniform[2], side.images[2])
        with pytest.raises(ValueError, match="read-only"):
            side.images[0][0, 0, 0] = 1
    assert len(ids) == 120
    assert task.hashes() == Task(out).hashes()
    digests = {task.side(name).digest() for name in ("train", "val", "test")}
    assert len(digests) == 3


def test_copies_on_one_side_share_a_group(tmp_path):
    files = pets(60)
    files |= {f"{name[:-4]}_again.png": data for name, data in files.items()}
    prepare(write_folder(tmp_path / "x", files), tmp_path / "out")
    split_task(tmp_path / "out", split_options())
    task = Task(tmp_path / "out")
    group_of = dict(zip(task.side("test").ids, task.groups("test"), strict=True))
    firsts = [name for name in group_of if "_again" not in name]
    assert [group_of[name] for name in firsts] == [
        group_of[f"{name[:-4]}_again.png"] for name in firsts
    ]
    assert len(set(group_of.values())) == len(firsts) == len(group_of) / 2 > 0


def test_training_opens_no_test_image(tmp_path):
    """With every test image destroyed, the other sides do not notice, and test does."""
    out = split_pets(tmp_path)
    test = Task(out).side("test")
    with (out / "images.bin").open("r+b") as file:
        for row in test.images.rows:
            file.seek(row.offset)
            file.write(bytes(row.num_bytes))
    task = Task(out)
    for name in ("train", "val"):
        images = task.side(name).images
        assert all(images[row].any() for row in range(len(images)))
    with pytest.raises(ArtefactError, match=r"the pixels of '.*' have changed"):
        task.side("test").images[0]


def test_one_changed_bit_is_noticed(tmp_path):
    out = split_pets(tmp_path)
    side = Task(out).side("train")
    row = side.images.rows[5]
    data = bytearray((out / "images.bin").read_bytes())
    data[row.offset + row.num_bytes - 1] ^= 1
    (out / "images.bin").write_bytes(data)
    images = Task(out).side("train").images
    assert images[4].any()
    with pytest.raises(ArtefactError, match=f"pixels of '{row.id}' have changed"):
        images[5]


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    out = split_pets(tmp_path)
    manifest, images = (out / "manifest.csv"), (out / "images.bin")
    text = manifest.read_text()
    manifest.write_text(text.replace("cat/7.png,cat", "cat/7.png,dog"))
    with pytest.raises(ArtefactError, match=r"split\.csv"):
        Task(out)
    manifest.write_text(text)
    data = images.read_bytes()
    images.write_bytes(data[:-1])
    with pytest.raises(ArtefactError, match="have changed"):
        list(PixelStore(images, read_table(manifest, ManifestRow)))
    images.unlink()
    with pytest.raises(FileNotFoundError, match=r"images\.bin"):
        Task(out).side("train")
