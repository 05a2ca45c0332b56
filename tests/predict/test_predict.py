"""Test `resnets predict`: one answer for each input, the same from any file, kind and batch."""

import csv
import io
import itertools
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from PIL import Image

from resnets.evaluation.predictions import prediction_tables, predictions_of
from resnets.export.classifier import _refusing, open_classifier
from resnets.export.onnx import to_onnx
from resnets.models.bundle import KEY, load_bundle
from resnets.models.inference import infer
from resnets.predict.answers import Answer, Reports, open_writers
from resnets.predict.inputs import find_inputs, parse_shard
from resnets.predict.run import predict
from resnets.system.errors import (
    ArtefactError,
    DataError,
    EnvironmentFault,
    NumericalError,
    ParamsError,
)
from resnets.system.runtime import Engine
from resnets.tasks.decode import BadImageError
from tests.bundles import CLASSES, PREPROCESS, Trained, make_trained, need
from tests.copies import ROOT, edit_params


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Make a bundle, and beside it the same model as plain.onnx."""
    trained = make_trained(tmp_path_factory.mktemp("trained"), num=40)
    model = to_onnx(load_bundle(trained.bundle))
    (trained.bundle.parent / "plain.onnx").write_bytes(model.SerializeToString())
    return trained


@pytest.fixture(scope="module")
def model(trained: Trained) -> Path:
    return trained.bundle.parent / "plain.onnx"


def run(
    arguments: Iterable[object],
    model: Path | None,
    *,
    lines: Iterable[bytes] = (),
    batch_size: int = 8,
    precision: str = "fp32",
    shard: str = "1/1",
    **reports: Any,
) -> None:
    """Predict, and let inputs be bad."""
    try:
        predict(
            [str(a) for a in arguments], lines, model=model, reports=Reports(**reports),
            batch_size=batch_size, device="cpu", precision=precision, shard=parse_shard(shard),
        )  # fmt: skip
    except DataError as error:
        if "could not be read" not in error.what:
            raise


def table(
    arguments: Iterable[object], model: Path | None, folder: Path, **options: Any
) -> list[dict[str, str]]:
    """Predict into a CSV file and read it."""
    run(arguments, model, output=folder / "answers.csv", **options)
    with (folder / "answers.csv").open(newline="", errors="surrogateescape") as file:
        return list(csv.DictReader(file, strict=True))


def numbers(rows: list[dict[str, str]]) -> NDArray[np.float64]:
    return np.array([[float(row[name]) for name in CLASSES] for row in rows])


def png(color: int = 128) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), (color, 10, 20)).save(file, "PNG")
    return file.getvalue()


# ---- the same answers everywhere ----------------------------------------------------------------


def test_answers_are_those_of_the_evaluation(trained: Trained, tmp_path: Path) -> None:
    test = trained.task.side("test")
    bundle = load_bundle(trained.bundle)
    logits = infer(
        bundle.model, test.images, preprocess=PREPROCESS, batch_size=64, device="cpu",
        precision="fp32",
    )  # fmt: skip
    words = {"classes": CLASSES, "ids": test.ids, "groups": test.ids}
    predictions = predictions_of([logits / bundle.meta.temperature], test.labels, **words)
    wanted = prediction_tables(predictions, [0])["predictions"]
    files = [trained.photos / name for name in test.ids]
    for name in ("plain.onnx", "model.safetensors"):
        rows = table(files, trained.bundle.parent / name, tmp_path)
        assert [row["predicted"] for row in rows] == wanted["predicted"].tolist()
        assert [row["predicted"] for row in rows] == wanted["label"].tolist()
        np.testing.assert_allclose(numbers(rows), wanted.iloc[:, 3:].to_numpy(), atol=1e-5)
        confidence = [float(row["confidence"]) for row in rows]
        np.testing.assert_allclose(confidence, numbers(rows).max(axis=1))
        assert not any(row["error"] for row in rows)


@pytest.mark.parametrize("batch_size", [1, 3, 40, 100])
def test_batch_size_and_order_change_nothing(
    trained: Trained, model: Path, tmp_path: Path, batch_size: int
) -> None:
    files = sorted(trained.photos.rglob("*.png"))
    wanted = table(files, model, tmp_path, batch_size=7)
    found = table(reversed(files), model, tmp_path, batch_size=batch_size)[::-1]
    assert [row["path"] for row in found] == [str(file) for file in files]
    assert [row["predicted"] for row in found] == [row["predicted"] for row in wanted]
    np.testing.assert_allclose(numbers(found), numbers(wanted), atol=1e-5)


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar"])
def test_folder_and_archive_give_the_same_rows(
    trained: Trained, model: Path, tmp_path: Path, kind: str
) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(trained.photos, photos)
    (photos / "daisy.png").write_bytes(png())  # sorts between the folders daisy and rose
    (photos / ".hidden.png").write_bytes(b"")
    (photos / "notes.txt").write_bytes(b"no picture")
    (photos / "rose.NEF").write_bytes(png())  # a camera's, with a small preview first
    archive = shutil.make_archive(str(tmp_path / "archive"), kind, photos)
    folder, packed = table([photos], model, tmp_path), table([archive], model, tmp_path)
    for row in (*folder, *packed):
        row["path"] = row["path"].removeprefix(f"{photos}/").removeprefix(f"{archive}/")
    if kind != "zip":  # a tar keeps its own order
        packed.sort(key=lambda row: row["path"])
    assert packed == folder
    assert len(folder) == 42
    assert [row["error"] for row in folder if row["error"]] == [".NEF files are not read"]
    assert [row["path"] for row in folder] == sorted(row["path"] for row in folder)


@settings(deadline=None)
@given(st.lists(st.text("ab/", min_size=1), max_size=30), st.integers(1, 40))
def test_shards_in_turn_give_all_inputs_once_in_their_order(names: list[str], count: int) -> None:
    lines = [f"no:{name}".encode() for name in names]
    whole = [path for path, _ in find_inputs(["-"], lines)]
    parts = [find_inputs(["-"], lines, shard=(k + 1, count)) for k in range(count)]
    turns = itertools.zip_longest(*([path for path, _ in part] for part in parts))
    assert [path for turn in turns for path in turn if path is not None] == whole
    assert len(whole) == len(names)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_rows_of_all_shards_are_those_of_one_run(
    trained: Trained, model: Path, tmp_path: Path, kind: str
) -> None:
    photos = trained.photos
    if kind == "zip":
        photos = Path(shutil.make_archive(str(tmp_path / "photos"), "zip", photos))
    whole = table([photos, "missing.png"], model, tmp_path)
    shards = [f"{k}/3" for k in (1, 2, 3)]
    parts = [table([photos, "missing.png"], model, tmp_path, shard=shard) for shard in shards]
    assert [len(part) for part in parts] == [14, 14, 13]
    assert [row for turn in itertools.zip_longest(*parts) for row in turn if row] == whole


def test_a_shard_of_few_inputs_may_be_empty_but_not_all_may(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    assert len(table([tmp_path / "a.png"], model, tmp_path, shard="1/2")) == 1
    assert table([tmp_path / "a.png"], model, tmp_path, shard="2/2") == []
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no photos"):
        table([tmp_path / "empty"], model, tmp_path, shard="1/2")
    (tmp_path / "empty/0 notes.txt").write_bytes(b"no picture")
    with pytest.raises(DataError, match="no photos"):
        table([tmp_path / "empty"], model, tmp_path)
    (tmp_path / "empty/1.png").write_bytes(png())
    parts = [table([tmp_path / "empty"], model, tmp_path, shard=f"{k}/2") for k in (1, 2)]
    assert [len(part) for part in parts] == [0, 1]


def test_pictures_of_all_shards_fit_into_one_folder(model: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in "abcde":
        (tmp_path / f"photos/{name}.png").write_bytes(png())
    for shard in ("1/2", "2/2"):
        run([tmp_path / "photos"], model, plot=tmp_path / "plots", shard=shard)
    names = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert names == [f"{k:05d}_{name}.png.png" for k, name in enumerate("abcde", 1)]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/", "/2", "1/2/3", "-1/2", "a/b", "²/3"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(ParamsError, match="no shard"):
        parse_shard(text)


# ---- what can be asked about --------------------------------------------------------------------


def test_every_way_to_name_inputs_in_the_order_given(
    trained: Trained, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "a.png", "sub/c.png", "sub/deep/d.PNG", "-e.png", "g[1].png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(png())
    lines = [b"b.png\n", b"\n", b"sub\r\n", b"missing.png"]
    arguments = ["b.png", "b.png", "-", "sub/*", "g[1].png", "**/*.PNG", "*.tif", "http://x/y.png"]
    rows = table(arguments, model, tmp_path, lines=lines)
    assert [row["path"] for row in rows] == [
        "b.png", "b.png", "b.png", "sub/c.png", "sub/deep/d.PNG", "missing.png", "sub/c.png",
        "sub/deep/d.PNG", "g[1].png", "sub/deep/d.PNG", "*.tif", "http://x/y.png",
    ]  # fmt: skip
    errors = {row["path"]: row["error"] for row in rows if row["error"]}
    assert errors == {
        "missing.png": "No such file or directory",
        "*.tif": "no file matches",
        "http://x/y.png": "not a local file; nothing is downloaded",
    }
    assert table(["./-e.png"], model, tmp_path)[0]["error"] == ""


def test_a_pattern_gives_each_photo_once_whatever_links_and_names_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photos = ["d/a.jpg", "d/test/b.jpg", "d/x/test/c.jpg", "d/x/test/y/test/e.jpg"]
    for name in (*photos, "links/IMG1.jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(png())
    Path("d/loop").symlink_to(".")
    for name in ("links/IMG[1].jpg", "links/**"):
        Path(name).symlink_to("nowhere")

    def names(pattern: str) -> list[str]:
        return [path for path, _ in find_inputs([pattern], ())]

    assert names("d/**/*.jpg") == photos
    assert names("d/**/test") == photos[1:]
    assert names("d/**") == names("d/**/*") == sorted([*photos, "d/loop"])  # it says why
    assert names("d/loop/**/a.jpg") == ["d/loop/a.jpg"]  # the link is named
    assert names("./links/*") == ["./links/**", "./links/IMG1.jpg", "./links/IMG[1].jpg"]


def test_nothing_to_predict_is_an_error_and_writes_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    with pytest.raises(DataError, match=f"{folder}: no photos$") as caught:
        table([folder], model, tmp_path)
    assert caught.value.fix.startswith("name a folder with JPEG, PNG, ")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    for name in ("a.xmp", "b.xmp", "c.txt", "README"):
        (folder / name).write_bytes(b"no picture")
    words = rf"{folder}: no photos, 4 other files \(\.xmp, \.txt\) skipped$"
    with pytest.raises(DataError, match=words):
        run([folder], model)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("names", [["/typo"], ["none*.png", "typo/also"]])
def test_paths_of_nothing_leave_earlier_answers_as_they_were(
    trained: Trained, model: Path, tmp_path: Path, names: list[str]
) -> None:
    earlier = table([trained.photos], model, tmp_path)
    text = (tmp_path / "answers.csv").read_text()
    with pytest.raises(DataError, match="no such file or folder, and no file matches") as caught:
        table(names, model, tmp_path)
    assert (caught.value.what.partition(":")[0], caught.value.fix) == (names[0], "correct the path")
    assert (tmp_path / "answers.csv").read_text() == text
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "a/b/c/1.png").write_bytes(png())
    assert len(table([tmp_path / "**/1.png"], model, tmp_path)) == 1  # some folders down
    some = table([names[0], trained.photos], model, tmp_path)  # one of many is a row
    assert some[0]["error"]
    assert some[1:] == earlier


def test_pipes_links_and_broken_archives_are_rows_not_ends(model: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    os.mkfifo(photos / "a_pipe.png")
    (photos / "b_loop").symlink_to(photos)
    (photos / "c_gone.png").symlink_to("nowhere")
    (photos / "d_good.png").write_bytes(png())
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 and no more")
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../../out.png", png())  # nothing is extracted: it is harmless
    rows = table([photos, tmp_path / "cut.zip", tmp_path / "evil.zip", "a\0b"], model, tmp_path)
    errors = [row["error"] for row in rows]
    for error, words in zip(
        errors,
        [
            "not a regular file",
            "a link to a folder",
            "No such file",
            "",
            "zip",
            "",
            "null",
        ],
        strict=True,
    ):
        assert words in error
        assert bool(words) == bool(error)


def test_an_image_that_does_not_fit_into_memory_is_a_row_not_the_end(
    model: Path, tmp_path: Path
) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 14_000, 14_000, 16, 6, 0, 0, 0))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"none"))
    (tmp_path / "b.png").write_bytes(png())
    program = (
        "import os, resource, onnxruntime\n"
        "from resnets.cli import main\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"  # each thread has its memory
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 500_000_000,) * 2)\n"  # it needs 784 MB
        "main()"
    )
    command = [sys.executable, "-c", program, "predict", "a.png", "b.png"]
    command += ["--model", str(model), "--output", "answers.csv", "--engine", "onnxruntime"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    with (tmp_path / "answers.csv").open(newline="") as file:
        bad, good = csv.DictReader(file)
    assert (bad["error"], bad["predicted"]) == ("not enough memory to decode it", "")
    assert (good["error"], good["predicted"] in CLASSES) == ("", True)


@pytest.mark.slow
def test_a_thousand_real_images_with_twenty_bad_ones(
    shared_data: Path, model: Path, tmp_path: Path
) -> None:
    bomb = io.BytesIO()
    Image.new("1", (40_000, 40_000)).save(bomb, "PNG")
    with zipfile.ZipFile(shared_data / "flowers_128px.zip") as source:
        names = [name for name in sorted(source.namelist()) if name.endswith(".jpg")][::4][:980]
        photos = {f"photos/{name.split('/')[-1]}": source.read(name) for name in names}
    first = next(iter(photos.values()))
    bad = [b"", b"<html>404</html>", b"%PDF-1.4", bomb.getvalue(), first[:-1]]
    bad += [first[: len(first) * part // 16] for part in range(1, 16)]
    for number, content in enumerate(bad):
        photos[f"photos/{number * 50}_bad.jpg"] = content
    for name, content in photos.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for name in sorted(photos):
            archive.writestr(name.removeprefix("photos/"), photos[name])
    rows = table([tmp_path / "photos"], model, tmp_path, batch_size=32)
    packed = table([tmp_path / "photos.zip"], model, tmp_path, batch_size=13)
    assert len(rows) == len(packed) == 1000
    for row, other in zip(rows, packed, strict=True):
        assert Path(row["path"]).name == Path(other["path"]).name
        assert (row["predicted"], row["error"]) == (other["predicted"], other["error"])
        assert bool(row["error"]) == row["path"].endswith("_bad.jpg")
    good = [row for row in rows if not row["error"]]
    np.testing.assert_allclose(
        numbers(good), numbers([row for row in packed if not row["error"]]), atol=1e-5
    )
    np.testing.assert_allclose(numbers(good).sum(axis=1), 1, atol=1e-5)


# ---- what is written ----------------------------------------------------------------------------


def test_csv_and_json_say_the_same(trained: Trained, model: Path, tmp_path: Path) -> None:
    arguments = [trained.photos, tmp_path / "missing.png"]
    rows = table(arguments, model, tmp_path)
    run(arguments, model, output=tmp_path / "answers.json")
    objects = json.loads((tmp_path / "answers.json").read_text())
    assert (
        list(rows[0]) == list(objects[0]) == ["path", "predicted", "confidence", "error", *CLASSES]
    )
    for row, found in zip(rows, objects, strict=True):
        assert {k: "" if v is None else str(v) for k, v in found.items()} == row
    assert objects[-1]["confidence"] is None


def test_threshold_marks_unsure_answers(trained: Trained, model: Path, tmp_path: Path) -> None:
    plain = table([trained.photos], model, tmp_path)
    marked = table([trained.photos], model, tmp_path, threshold=0.8)
    for row, other in zip(plain, marked, strict=True):
        sure = float(row["confidence"]) >= 0.8
        assert other == row | {"predicted": row["predicted"] if sure else "unsure"}
    assert {"unsure"} < {row["predicted"] for row in marked}


def test_table_prints_the_best_classes(
    trained: Trained, model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    evil = tmp_path / "\x1b[31mred.png"
    evil.write_bytes(png())
    run([evil, tmp_path / "missing.png"], model, top=2)
    out = capsys.readouterr().out
    head, first, second = out.splitlines()
    [row] = table([evil], model, tmp_path)
    assert "\x1b" not in out
    assert r"\x1b[31mred.png" in first
    best = sorted(CLASSES, key=lambda name: -float(row[name]))
    shares = [f"{float(row[name]):.1%}" for name in best[:2]]
    assert first.split()[1:-1] == [shares[0], best[0], shares[0], best[1], shares[1]]
    assert second.endswith("missing.png: No such file or directory")
    (tmp_path / "bad.jpg").write_bytes(b"<html>")
    (tmp_path / "empty.png").write_bytes(b"")
    run([tmp_path / "bad.jpg", tmp_path / "empty.png"], model)
    _, bad, empty = capsys.readouterr().out.splitlines()
    assert "bad.jpg: not an image (starts with '<html>'); remove it; accepted are JPEG" in bad
    assert empty.endswith("empty.png: empty file; fetch the file again, or remove it")
    with open_writers(Reports(), CLASSES, 0) as [write]:
        write(Answer("huge.png", "201 megapixels", BadImageError("too_large", "").fix))
    assert capsys.readouterr().out.endswith("huge.png: 201 megapixels; scale it down\n")
    assert head.index("path") == first.index(str(tmp_path)) == second.index(str(tmp_path))
    run([evil], model, top=99)  # more than there are classes
    assert capsys.readouterr().out.count("%") == 4


def test_features_are_the_models_and_rows_fit_the_paths(
    trained: Trained, model: Path, tmp_path: Path
) -> None:
    side = trained.task.side("test")
    wanted = infer(
        load_bundle(trained.bundle).model, side.images, preprocess=PREPROCESS, batch_size=64,
        device="cpu", precision="fp32", output="features",
    )  # fmt: skip
    files = [tmp_path / "missing.png", *(trained.photos / name for name in side.ids)]
    for path in (model, trained.bundle):
        run(files, path, features=tmp_path / "features.npy", batch_size=5)
        found = np.load(tmp_path / "features.npy")
        assert found.dtype == np.float32
        assert np.isnan(found[0]).all()
        np.testing.assert_allclose(found[1:], wanted, atol=1e-4)
        with (tmp_path / "features.csv").open() as file:
            assert [row["path"] for row in csv.DictReader(file)] == [str(file) for file in files]


@pytest.mark.parametrize("num", [0, 1, 9, 10, 12345])
def test_matrix_grows_in_place(tmp_path: Path, num: int) -> None:
    path = tmp_path / "m.npy"
    with open_writers(Reports(features=path), CLASSES, 2) as writers:
        for number in range(num):
            answer = Answer("x", features=np.array([number, -number], np.float32))
            for write in writers:
                write(answer)
    assert np.array_equal(np.load(path), np.arange(num)[:, None] * [1.0, -1.0])


def test_run_ends_with_what_was_answered_skipped_and_written(
    trained: Trained, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, notes = tmp_path / "photos", tmp_path / "photos/notes.txt"
    (photos / ".DS_Store").parent.mkdir()
    for name in (".DS_Store", "notes.txt", "empty"):
        (photos / name).write_bytes(b"" if name == "empty" else b"no picture")
    for name in ("a.png", "b.png"):
        (photos / name).write_bytes(png())
    rows = table([photos], model, tmp_path)
    assert [Path(row["path"]).name for row in rows] == ["a.png", "b.png"]
    last = capsys.readouterr().err.splitlines()[-1]
    wanted = f"2 images: 2 {rows[0]['predicted']}; skipped 2 that are no images; wrote {tmp_path}"
    assert last == f"{wanted}/answers.csv"
    for arguments, lines in (([str(notes)], []), (["-"], [str(notes).encode()])):
        [row] = table(arguments, model, tmp_path, lines=lines)  # what is named gets its answer
        assert row["error"]


def test_pictures_show_the_whole_photo_and_keep_names_of_any_script(
    trained: Trained, model: Path, tmp_path: Path
) -> None:
    photo = tmp_path / f"葵 {60 * 'и'}{35 * '花'}.png"  # 234 bytes
    photo.write_bytes(wide_png())
    run([photo], model, plot=tmp_path / "plots")
    [path] = (tmp_path / "plots").iterdir()
    assert path.name.startswith("00001_葵_ии")
    shown = np.asarray(Image.open(path).convert("RGB"))[32:332, 15:315].astype(int)
    middle = shown[150]
    assert (middle[5] - middle[-6] > 100)[0]  # red at its left end and blue at its right one
    assert (middle[-6] - middle[5] > 100)[2]


def wide_png() -> bytes:
    """Return a picture, three times as wide as high, whose ends the crop leaves out."""
    pixels = np.full((30, 90, 3), 128, np.uint8)
    pixels[:, :20], pixels[:, -20:] = (255, 0, 0), (0, 0, 255)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def test_pictures_are_drawn_for_each_good_input(
    trained: Trained, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "a b.png").write_bytes(png())
    arguments = [tmp_path / "missing.png", tmp_path / "a b.png"]
    run(arguments, model, plot=tmp_path / "plots", explain=tmp_path / "heat")
    for folder, name in (("plots", "00002_a_b.png.png"), ("heat", "00002_a_b.png_explained.png")):
        [path] = (tmp_path / folder).iterdir()
        assert path.name == name
        assert Image.open(path).size == (640, 360)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    classes=st.lists(
        st.sampled_from(["path", "error", "a,b", 'q"', "new\nline", "\r", "=1+1", "日本", "'", ""]),
        min_size=2, max_size=5, unique=True,
    ),
    names=st.lists(st.binary(min_size=1).filter(lambda b: b"\0" not in b), min_size=1, max_size=3),
)  # fmt: skip
def test_any_names_survive_in_csv_and_json(
    tmp_path: Path, classes: list[str], names: list[bytes]
) -> None:
    paths = [os.fsdecode(name) for name in names]
    for kind in (".csv", ".json"):
        reports = Reports(output=tmp_path / f"a{kind}", raw=True)
        with open_writers(reports, classes, 0) as [write]:
            for path in paths:
                write(Answer(path, probabilities=np.full(len(classes), 1 / len(classes))))
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        header, *rows = csv.reader(file, strict=True)
    objects = json.loads((tmp_path / "a.json").read_text())
    assert [row[0] for row in rows] == [found["path"] for found in objects] == paths
    assert [row[1] for row in rows] == [classes[0]] * len(paths)
    assert len(set(header)) == len(header) == 4 + len(classes)
    assert list(objects[0]) == header


def test_names_in_a_csv_drive_neither_spreadsheets_nor_terminals(tmp_path: Path) -> None:
    classes = ["=cmd()", "plain"]
    paths = [
        "=1+1",
        "+1.png",
        "-1.png",
        "@a",
        "\uff1d1",
        "\tx",
        "\r=1",
        "\x1b]0;x\x07\x9b2J\x7f",
        "a=1",
    ]
    guarded = ["'=1+1", "'+1.png", "'-1.png", "'@a", "'\uff1d1", r"\tx", r"\r=1"]
    guarded += [r"\x1b]0;x\x07\x9b2J\x7f", "a=1"]
    for raw, wanted in ((False, guarded), (True, paths)):
        reports = Reports(output=tmp_path / "a.csv", raw=raw)
        with open_writers(reports, classes, 0) as [write]:
            for path in paths:
                write(Answer(path, probabilities=np.array([0.75, 0.25])))
            write(Answer("x", "=error"))
        with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
            header, *rows, last = csv.reader(file, strict=True)
        mark = "" if raw else "'"
        assert header == ["path", "predicted", "confidence", "error", f"{mark}=cmd()", "plain"]
        assert [row[0] for row in rows] == wanted
        assert rows[0][1:] == [f"{mark}=cmd()", "0.75", "", "0.75", "0.25"]
        assert last == ["x", "", "", f"{mark}=error", "", ""]


def test_a_failure_on_the_way_leaves_the_old_file(
    trained: Trained, model: Path, tmp_path: Path
) -> None:
    old = "path,predicted,confidence,error,old\n"
    (tmp_path / "answers.csv").write_text(old)
    broken = onnx.load(model)
    [bias] = [t for t in broken.graph.initializer if t.name == "model.fc.bias"]
    bias.CopyFrom(numpy_helper.from_array(np.array([0, np.nan, 0], np.float32), bias.name))
    onnx.save(broken, tmp_path / "nan.onnx")
    with pytest.raises(NumericalError, match="not finite"):
        run([trained.photos], tmp_path / "nan.onnx", output=tmp_path / "answers.csv")
    assert (tmp_path / "answers.csv").read_text() == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.csv", "nan.onnx"]


@pytest.mark.parametrize("option", ["plot", "explain"])
def test_pictures_are_not_drawn_among_the_photos(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Path("photos/a.png").write_bytes(png())
    Path("link").symlink_to("photos")
    for folder in ("photos", "photos/new/heat", "link", "pictures/../photos"):
        with pytest.raises(ParamsError, match="lies among the photos") as caught:
            run(["photos"], model, **{option: Path(folder)})
        assert caught.value.fix == "name a folder outside of the photos"
    assert [path.name for path in Path("photos").iterdir()] == ["a.png"]
    run(["photos"], model, **{option: Path("photos2")})
    run(["photos/a.png"], model, **{option: Path()})  # of a file that is named


@pytest.mark.parametrize("option", ["plot", "explain"])
def test_a_file_in_place_of_a_folder_is_refused_before_any_answer(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    (tmp_path / "a.png").write_bytes(png())
    for folder in (tmp_path / "a.png", tmp_path / "a.png/below"):
        with pytest.raises(ParamsError, match=r"a\.png: is a file") as caught:
            run([tmp_path / "a.png"], model, **{option: folder})
        assert caught.value.fix == "name a folder"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", [".csv", ".CSV", ".json", ".JSON"])
def test_answers_take_the_place_of_answers_only(
    trained: Trained, model: Path, tmp_path: Path, kind: str
) -> None:
    photo, output = next(trained.photos.rglob("*.png")), tmp_path / f"labels{kind}"
    others = ["path,label\na.png,rose\n", '[{"path": "a.png", "label": "rose"}]', "{}", "[1]"]
    for text in others:
        output.write_text(text)
        with pytest.raises(ParamsError, match=f"labels{kind}: exists, and holds no ans") as caught:
            run([photo], model, output=output)
        assert caught.value.fix == "name another file, or remove it"
        assert output.read_text() == text
    output.write_text("")
    run([photo], model, output=output)
    run([photo], model, output=output, shard="2/2")  # no answer over some
    run([photo], model, output=output)  # and some over none
    if kind.lower() == ".json":
        output.write_text(json.dumps(json.loads(output.read_text()), indent=4))
        run([photo], model, output=output)
    (tmp_path / "features.csv").write_text(others[0])
    with pytest.raises(ParamsError, match=r"features\.csv: exists"):
        run([photo], model, features=tmp_path / "features.npy")


# ---- models that are refused --------------------------------------------------------------------


def test_unknown_kinds_of_files_are_refused(model: Path, tmp_path: Path) -> None:
    for name, better in (("ANS.xlsx", "ANS.csv"), ("ANS", "ANS.csv"), ("/", "answers.csv")):
        with pytest.raises(ParamsError, match=r"not a \.csv or \.json file") as caught:
            run([tmp_path], model, output=tmp_path / name)
        assert caught.value.fix == f"call it {better}"
    with pytest.raises(ParamsError, match=r"not a \.npy file") as caught:
        run([tmp_path], model, features=tmp_path / "f.csv")
    assert caught.value.fix == "call it f.npy"
    with pytest.raises(ParamsError, match="not a model file"):
        run([tmp_path], tmp_path / "model.pt")


@pytest.mark.parametrize("threshold", [float("nan"), -0.1, 1.1])
def test_a_threshold_that_is_no_share_is_refused(threshold: float) -> None:
    with pytest.raises(ParamsError, match=f"--threshold is {threshold}"):
        Reports(threshold=threshold)


def test_an_engine_that_cannot_be_loaded_is_not_the_files_fault(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # an import of it would raise
    with pytest.raises(EnvironmentFault, match="onnxruntime") as caught:
        open_classifier(model, engine="onnxruntime")
    assert "--engine" in caught.value.fix


def test_memory_that_is_missing_is_not_the_files_fault() -> None:
    with pytest.raises(MemoryError), _refusing("m.onnx: not a whole ONNX file"):
        raise MemoryError


def test_without_a_model_the_export_is_taken_and_its_int8_first(
    trained: Trained, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_probability() -> float:
        [photo, *_] = sorted(trained.photos.rglob("*.png"))
        return float(numbers(table([photo], None, tmp_path))[0, 0])

    monkeypatch.chdir(tmp_path)
    exact, int8 = Path("artifacts/export/model.onnx"), Path("artifacts/export/model_int8.onnx")
    exact.parent.mkdir(parents=True)
    with pytest.raises(EnvironmentFault, match=r"artifacts/export/model\.onnx"):
        first_probability()
    shutil.copy(model, exact)
    assert first_probability() < 1
    changed = onnx.load(model)
    [bias] = [t for t in changed.graph.initializer if t.name == "model.fc.bias"]
    bias.CopyFrom(numpy_helper.from_array(np.array([999, 0, 0], np.float32), bias.name))
    onnx.save(changed, int8)
    assert first_probability() == 1


def test_the_exported_model_of_other_photos_than_params_yaml_names_says_so(
    trained: Trained,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def warnings(given: Path | None = None) -> list[str]:
        run([next(trained.photos.rglob("*.png"))], given)
        return [line for line in capsys.readouterr().err.splitlines() if "params.yaml" in line]

    monkeypatch.chdir(tmp_path)
    Path("artifacts/export").mkdir(parents=True)
    shutil.copy(model, "artifacts/export/model.onnx")
    lock = (ROOT / "dvc.lock").read_text()  # as DVC writes it
    [path] = set(re.findall("tasks.target:\n +path: (.*)\n", lock))
    assert warnings() == []  # no project
    Path("dvc.lock").write_text(lock)
    Path("params.yaml").write_text("tasks: [")
    assert warnings() == []
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    edit_params(Path("params.yaml"), {"tasks.target.path": f"{path}/"})
    assert warnings() == []
    edit_params(Path("params.yaml"), {"tasks.target.path": "/home/u/photos"})
    known = "knows 3 classes (daisy, rose, tulip|<b>)"
    words = f"artifacts/export/model.onnx {known}; params.yaml names other photos since: dvc repro"
    assert warnings() == [words]
    assert warnings(model) == []


@pytest.fixture(params=["onnxruntime", "openvino"])
def engine(request: pytest.FixtureRequest) -> Engine:
    engine: Engine = request.param
    need(engine)
    return engine


def test_damaged_and_foreign_onnx_files_are_refused(
    trained: Trained, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    raw = model.read_bytes()
    for length in (0, 1, 100, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:length])
        for output in ("logits", "features"):
            with pytest.raises(ArtefactError):
                open_classifier(path, output=output)
    for change, words in (
        ({"format_version": 99}, "format 99 of a newer resnets"),
        ({"classes": ["a", "b"]}, "num_classes"),
        ({"preprocess": PREPROCESS.model_copy(update={"crop": 24}).model_dump()}, "do not fit"),
    ):
        changed = onnx.load_model_from_string(raw)
        [entry] = changed.metadata_props
        entry.value = json.dumps(json.loads(entry.value) | change)
        onnx.save(changed, path)
        with pytest.raises(ArtefactError, match=words):
            open_classifier(path)
    foreign = onnx.load_model_from_string(raw)
    del foreign.metadata_props[:]
    onnx.save(foreign, path)
    with pytest.raises(ArtefactError, match=f"no '{KEY}' metadata"):
        open_classifier(path)


Change = Callable[[onnx.ModelProto], object]


def endless(model: onnx.ModelProto) -> None:
    """Let the logits pass through a loop of 2**62 steps."""
    [logits] = model.graph.output
    names = [onnx.helper.make_tensor_value_info(n, t, s) for n, t, s in (
        ("step", TensorProto.INT64, []), ("before", TensorProto.BOOL, []),
        ("carried", TensorProto.FLOAT, None), ("after", TensorProto.BOOL, []),
        ("passed", TensorProto.FLOAT, None),
    )]  # fmt: skip
    body = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Identity", ["before"], ["after"]),
            onnx.helper.make_node("Identity", ["carried"], ["passed"]),
        ],
        "body", names[:3], names[3:],
    )  # fmt: skip
    for name, value in (("steps", np.array(2**62)), ("yes", np.array(True))):
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    model.graph.node[-1].output[0] = "once"
    inputs = ["steps", "yes", "once"]
    model.graph.node.append(onnx.helper.make_node("Loop", inputs, [logits.name], body=body))


def alien(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.example"
    model.opset_import.add(domain="com.example", version=1)


def call(model: onnx.ModelProto) -> None:
    model.opset_import.add(domain="local", version=1)
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    model.functions.append(
        onnx.helper.make_function("local", "Relu", ["x"], ["y"], [node], model.opset_import[:1])
    )


def elsewhere(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")


def retyped(model: onnx.ModelProto) -> None:
    [weight] = [t for t in model.graph.initializer if t.name == "model.fc.weight"]
    values = numpy_helper.to_array(weight).astype(np.int64)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))


def nested(model: onnx.ModelProto) -> None:
    [relu, *_] = [node for node in model.graph.node if node.op_type == "Relu"]
    relu.attribute.append(onnx.helper.make_attribute("body", onnx.GraphProto(name="body")))


def pixels(model: onnx.ModelProto) -> None:
    given = onnx.helper.make_tensor_type_proto(TensorProto.UINT8, ["batch", 28, 28, 3])
    model.graph.input[0].type.CopyFrom(given)


def probabilities(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = model.graph.output[0].name = "probabilities"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (endless, "has the operator Loop"),
        (alien, r"has the operator com\.example\.Conv"),
        (call, "has functions"),
        (elsewhere, "has weights in other files"),
        (lambda model: model.graph.sparse_initializer.add(), "has sparse weights"),
        (retyped, "not a whole ONNX file"),
        (nested, "has graphs within its graph"),
        (lambda model: model.graph.ClearField("input"), "do not fit"),
        (lambda model: model.graph.ClearField("output"), "do not fit"),
        (lambda model: model.graph.output[0].CopyFrom(model.graph.input[0]), "do not fit"),
        (pixels, "do not fit"),
        (probabilities, "do not fit"),
    ],
)
def test_a_graph_that_no_export_writes_is_refused_before_it_runs(
    model: Path, tmp_path: Path, engine: Engine, change: Change, words: str
) -> None:
    changed = onnx.load(model)
    change(changed)
    (tmp_path / "m.onnx").write_bytes(changed.SerializeToString())
    with pytest.raises(ArtefactError, match=words):
        open_classifier(tmp_path / "m.onnx", engine=engine)


def test_a_head_that_does_not_fit_its_features_is_refused(
    model: Path, tmp_path: Path, engine: Engine
) -> None:
    changed = onnx.load(model)
    [weight] = [t for t in changed.graph.initializer if t.name == "model.fc.weight"]
    for node in changed.graph.node:
        if weight.name in node.input:
            node.input[1] = "other"
    changed.graph.initializer.append(
        numpy_helper.from_array(numpy_helper.to_array(weight), "other")
    )
    for values in (np.zeros((3, 5), np.float32), np.zeros((2, 2, 2), np.float32)):
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
        onnx.save(changed, tmp_path / "m.onnx")
        with pytest.raises(ArtefactError, match="do not fit"):
            open_classifier(tmp_path / "m.onnx", output="features", engine=engine)
    weight.raw_data = b"cut"
    onnx.save(changed, tmp_path / "m.onnx")
    with pytest.raises(ArtefactError, match=r"has no weights model\.fc\.weight"):
        open_classifier(tmp_path / "m.onnx", output="features")


def test_a_graph_that_fails_while_it_runs_is_named(
    model: Path, tmp_path: Path, engine: Engine
) -> None:
    changed = onnx.load(model)
    [conv, *_] = [node for node in changed.graph.node if node.op_type == "Conv"]
    pads = [0, 0, 0, 0, 0, 0, 2**40, 2**40]  # what no memory holds
    values = {"pads": pads, "start": [0, 0], "end": [28, 28], "axes": [2, 3]}
    for name, numbers in values.items():
        changed.graph.initializer.append(numpy_helper.from_array(np.array(numbers), name))
    pad = onnx.helper.make_node("Pad", [conv.input[0], "pads"], ["padded"])
    cut = onnx.helper.make_node("Slice", ["padded", "start", "end", "axes"], ["cut"])
    conv.input[0] = "cut"
    nodes = [pad, cut, *changed.graph.node]
    del changed.graph.node[:]
    changed.graph.node.extend(nodes)
    onnx.save(changed, tmp_path / "m.onnx")
    crops = np.zeros((1, 28, 28, 3), np.uint8)
    words = r"m\.onnx: (its graph cannot be computed|not a whole ONNX file)"
    with pytest.raises(ArtefactError, match=words):
        open_classifier(tmp_path / "m.onnx", engine=engine).score(crops)


# ---- the command --------------------------------------------------------------------------------


def test_in_an_empty_folder_with_only_the_model_and_without_torch(
    trained: Trained, model: Path, tmp_path: Path
) -> None:
    shutil.copy(model, tmp_path / "model.onnx")
    (tmp_path / "bad.jpg").write_bytes(b"<html>")
    program = (
        "import sys\n"
        "sys.modules['torch'] = None\n"  # an import of torch would raise
        "from resnets.cli import main\n"
        "main()"
    )
    photos = sorted(map(str, trained.photos.rglob("*.png")))[:3]
    command = [sys.executable, "-c", program, "predict", *photos, "bad.jpg"]
    command += ["--model", "model.onnx", "--output", "answers.csv", "--features", "f.npy"]
    command += ["--explain", "heat"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "error: 1 of 4 inputs could not be read" in done.stderr
    assert "fix: their rows say why; the other answers are complete" in done.stderr
    assert "Traceback" not in done.stderr
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"model.onnx", "bad.jpg", "answers.csv", "f.npy", "heat"}
    assert len((tmp_path / "answers.csv").read_text().splitlines()) == 5
    assert len(list((tmp_path / "heat").iterdir())) == 3


def test_odd_photos_leave_no_warning_of_pillow_and_no_answers_are_not_complete(
    model: Path, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description, cut below"
    Image.new("RGB", (40, 40)).save(tmp_path / "odd.jpg", exif=exif.tobytes()[:-20])
    with pytest.warns(UserWarning, match="orrupt EXIF|runcated File Read"):
        Image.open(tmp_path / "odd.jpg").getexif()
    command = [sys.executable, "-m", "resnets.cli", "predict", "--model", str(model)]
    done = subprocess.run(
        [*command, "odd.jpg", "odd.jpg"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "Warning" not in done.stderr
    (tmp_path / "x.jpg").write_bytes(b"no image")
    done = subprocess.run(
        [*command, "x.jpg"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == "fix: their rows say why"


def test_the_first_answer_waits_for_no_package_that_it_does_not_need(
    trained: Trained, model: Path
) -> None:
    photo = next(trained.photos.rglob("*.png"))
    command = [sys.executable, "-X", "importtime", "-m", "resnets.cli", "predict", photo]
    done = subprocess.run([*command, "--model", model], capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"onnx", "pydantic", "resnets.params.section", "rich.cells"} <= loaded
    late = {"joblib", "matplotlib", "pandas", "rich.console", "scipy", "sklearn", "torch"}
    late |= {f"resnets.params.{part}" for part in ("architecture", "load", "schema", "training")}
    assert not late & loaded


def test_list_on_standard_input_and_good_end(trained: Trained, model: Path) -> None:
    files = sorted(trained.photos.rglob("*.png"))[:3]
    done = subprocess.run(
        [sys.executable, "-m", "resnets.cli", "predict", "-", "--model", str(model)],
        input="\n".join(map(str, files)), capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert all(str(file) in line for file, line in zip(files, lines[1:], strict=True))


def test_fp32_means_fp32_on_a_gpu_once_a_bundle_is_open(trained: Trained) -> None:
    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    for switch in switches:
        switch.allow_tf32 = True
    open_classifier(trained.bundle, device="cpu")
    assert [switch.allow_tf32 for switch in switches] == [False, False]
