"""Test `resnets check` as a user sees it."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnets.data.check import odd_names
from resnets.data.containers import Container
from resnets.data.layout import Source
from tests.data.photos import encode, make_photo, pets, write_folder, write_zip


def run(path: Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "resnets.cli", "check", str(path)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def table(text: str) -> list[list[str]]:
    return [line.replace("│", " ").split() for line in text.splitlines() if line.startswith("│")]


def lines_below(text: str, title: str) -> list[str]:
    """Return the findings below the one title that starts so, which ends with their number."""
    _, *blocks = text.split("\n\n")
    (block,) = [block for block in blocks if block.startswith(title)]
    head, *lines = block.splitlines()
    assert head.endswith(f" ({len(lines)})")
    return [line.strip() for line in lines]


def test_a_good_dataset_is_described_and_passes(tmp_path):
    done = run(write_zip(tmp_path / "x.zip", {**pets(3, "train/"), **pets(1, "val/", start=50)}))
    assert done.returncode == 0, done.stderr
    assert table(done.stdout) == [["cat", "3", "1", "0"], ["dog", "3", "1", "0"]]
    assert done.stdout.splitlines()[-3:] == [
        "8 PNG",
        "width 96 to 96 pixels, median 96",
        "height 72 to 72 pixels, median 72",
    ]


def test_findings_are_named_and_escaped_and_stop(tmp_path):
    photo = make_photo(400, (200, 160))
    files = {
        **pets(3),
        "cat/[red]half[/red].jpg": encode(photo, "JPEG")[:-99],
        "cat/white.png": encode(Image.new("L", (80, 80), 255)),
        "dog/one.png": encode(photo),
        "dog/two.jpg": encode(photo, "JPEG"),
        "dog/0 again.png": pets(3)["dog/0.png"],
        "dog/\x1b]0;evil\x07.png": encode(make_photo(401)),
        "bird/only.jpg": b"<html>",
        "notes.txt": b"notes",
    }
    done = run(write_folder(tmp_path / "x", files))
    assert done.returncode == 3
    assert table(done.stdout) == [["bird", "0", "1"], ["cat", "4", "1"], ["dog", "6", "1"]]
    for title, line in {
        "Bad, damaged: fetch": "cat/[red]half[/red].jpg: does not decode: image file is truncated",
        "Bad, bad_name: rename": "dog/\\x1b]0;evil\\x07.png: a name that is not UTF-8",
        "Bad, not_an_image: remove": "bird/only.jpg: not an image (starts with '<html>')",
        "Odd: tasks": "cat/white.png: low information",
        "Odd, pale": "cat/white.png: its dark pixels are 0 levels below white",
        "To leave all of them out": 'exclude: ["cat/white.png", "bird/only.jpg", "cat/[red]half',
        "Near-duplicates: split keeps": "dog/one.png, dog/two.jpg",
        "Exact copies: split keeps": "dog/0 again.png, dog/0.png",
        "Ignored": "notes.txt",
    }.items():
        (found,) = lines_below(done.stdout, title)
        assert found.startswith(line)
    title = "put this in place of `exclude:` under tasks.target in params.yaml (1)\n"
    assert f"To leave all of them out, {title}" in done.stdout
    assert "\x1b]0;" not in done.stdout + done.stderr
    assert done.stderr.splitlines()[-2].endswith("3 of 13 images are bad, as listed")
    assert done.stderr.splitlines()[-1].startswith("fix: ")


def test_copies_across_given_sides_are_told_apart(tmp_path):
    files = {**pets(3, "train/"), **pets(1, "val/", start=50)}
    files["val/cat/leak.png"] = files["train/cat/1.png"]
    done = run(write_folder(tmp_path / "x", files))
    assert done.returncode == 0
    assert lines_below(done.stdout, "Exact copies across sides") == [
        "train/cat/1.png, val/cat/leak.png"
    ]


@pytest.mark.parametrize("name", ["nowhere", ".", "one"])
def test_what_is_no_dataset_ends_with_exit_code_3(tmp_path, name):
    write_folder(tmp_path / "one", {"cat/1.png": encode(make_photo(1))})
    done = run(tmp_path / name)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr


def test_classes_too_small_or_much_smaller_and_odd_names_are_named(tmp_path):
    files = pets(12)
    files |= {f"bird/{i}.png": encode(make_photo(7000 + i)) for i in range(3)}
    files |= {f"owl/{i}.png": files["bird/0.png"] for i in range(4)}
    files = {name: data for name, data in files.items() if name != "bird/0.png"}
    files |= {"bird/Two.PNG": encode(make_photo(81)), "bird/two.png": encode(make_photo(82))}
    latin, cyrillic = "cat/ace.png", "cat/\N{CYRILLIC SMALL LETTER A}ce.png"
    files |= {name: encode(make_photo(90 + i)) for i, name in enumerate((latin, cyrillic))}
    done = run(write_folder(tmp_path / "x", files))
    assert done.returncode == 0, done.stderr
    assert lines_below(done.stdout, "Too small for 3 sides: add images") == [
        "owl: 4 images of 1 picture"
    ]
    assert lines_below(
        done.stdout, "Few: cat has 14, over 3 times as many: add images, and set training.loss.cl"
    ) == [
        "bird: 4 images",
        "owl: 4 images",
    ]
    assert lines_below(done.stdout, "Names that differ only in case or look alike: rename") == [
        "'bird/Two.PNG', 'bird/two.png'",
        "'cat/ace.png', 'cat/\\u0430ce.png'",
    ]


def test_of_many_classes_the_ends_are_shown_and_the_others_counted(tmp_path):
    sizes = {f"c{k:02}": 1 + 2 * (k > 30) + 7 * (k > 42) for k in np.random.permutation(55)}
    names = [f"{label}/{i}.png" for label, number in sizes.items() for i in range(number)]
    files = {name: encode(make_photo(seed, (40, 40))) for seed, name in enumerate(names)}
    done = run(write_folder(tmp_path / "x", files))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) < 60
    ordered = sorted(sizes)  # here by size as well
    assert table(done.stdout) == [
        [label, str(sizes[label]), "0"] for label in ordered[:10] + ordered[-10:]
    ]
    assert f"55 classes, {len(names)} images: the 10 smallest and" in done.stdout
    for title, number in (("Too small for 3 sides", 31), ("Few: c43 has 10, over 3", 43)):
        lines = lines_below(done.stdout, title)
        assert [line.split(":")[0] for line in lines] == ordered[:10]
        assert f"; the smallest of {number} (10)\n" in done.stdout


def test_given_sides_need_fewer_images(tmp_path):
    files = {**pets(1, "train/"), **pets(1, "val/", start=50), **pets(1, "test/", start=60)}
    assert "Too small" not in run(write_folder(tmp_path / "x", files)).stdout
    files = {name: data for name, data in files.items() if not name.startswith("test/")}
    lines = lines_below(run(write_folder(tmp_path / "y", files)).stdout, "Too small for 2")
    assert lines == ["cat: 1 image", "dog: 1 image"]


def test_a_class_without_images_on_a_given_side_is_named(tmp_path):
    files = {**pets(4, "train/"), **pets(2, "test/", start=50)}
    assert "Missing" not in run(write_folder(tmp_path / "x", files)).stdout
    files = {name: data for name, data in files.items() if not name.startswith("test/dog")}
    lines = lines_below(run(write_folder(tmp_path / "y", files)).stdout, "Missing on a given side")
    assert lines == ["dog: none on test"]


def test_photos_that_a_camera_leaves_raw_are_bad_and_not_ignored(tmp_path):
    """Some hold a small TIFF of the photo, which would pass as the photo itself."""
    names = [f"rose/{i}{x}" for i, x in enumerate((".NEF", ".dng", ".cr2", ".psd", ".jxl", ".jp2"))]
    preview = encode(make_photo(1), "TIFF")
    files = {**pets(3), **dict.fromkeys(names, preview), "rose/7.arw": b"no image"}
    done = run(write_folder(tmp_path / "x", files))
    assert done.returncode == 3
    assert table(done.stdout)[-1] == ["rose", "0", "7"]
    lines = lines_below(done.stdout, "Bad, other_format: export it as JPEG")
    assert lines[0] == "rose/0.NEF: .NEF files are not read"
    assert len(lines) == 7
    assert "Ignored" not in done.stdout
    assert "7 of 13 images are bad" in done.stderr


def test_images_beside_a_table_of_labels_are_told_to_name_it(tmp_path):
    files = {name.replace("cat/", "images/"): data for name, data in pets(3).items()}
    files = {name: data for name, data in files.items() if name.startswith("images")}
    root = write_folder(tmp_path / "kag", {**files, "labels.csv": b"path,label\nimages/0.png,cat"})
    done = run(root)
    assert "need at least 2 classes, found 1 (images)" in done.stderr
    assert done.stderr.strip().endswith(f", or name the table: {root}/labels.csv")
    assert "found 1 (cat)\nfix: give at least two labels\n" in run(root / "labels.csv").stderr


def test_a_class_of_notes_alone_stops_as_it_stops_prepare(tmp_path):
    done = run(write_folder(tmp_path / "x", {**pets(3), "docs/readme.txt": b"read me"}))
    assert done.returncode == 3
    assert "class 'docs' has 0 good images" in done.stderr


def test_a_table_that_marks_only_its_test_trains_on_the_others(tmp_path):
    root = write_folder(tmp_path / "x", pets(5))
    lines = [f"{name},{name[:3]},{'test' if '0.' in name else ''}" for name in pets(5)]
    (root / "labels.csv").write_text("\n".join(["path,label,side", *lines]))
    assert table(run(root / "labels.csv").stdout) == [
        ["cat", "4", "1", "0"],
        ["dog", "4", "1", "0"],
    ]


def test_look_alike_classes_are_named():
    classes = ["cat", "\N{CYRILLIC SMALL LETTER ES}at", "c\N{ZERO WIDTH SPACE}at", "dog"]
    source = Source(Path("x"), [], classes, [], [], Container([], [], [], str.encode))
    ((title, line),) = odd_names(source)
    assert title.startswith("Names that differ only in case or look alike")
    assert line == "'cat', '\\u0441at', 'c\\u200bat'"


def test_the_limit_of_megapixels_is_that_of_the_parameters_here(tmp_path):
    files = {**pets(), "cat/large.png": encode(make_photo(1, (400, 300)))}
    root = write_folder(tmp_path / "x", files)
    params = (Path(__file__).parents[2] / "params.yaml").read_text()
    limit = "checks:\n  max_megapixels: 0.01\n"
    (tmp_path / "params.yaml").write_text(
        re.sub(r"^checks:.*\n", limit, params, flags=re.MULTILINE)
    )
    done = run(root, cwd=tmp_path)
    assert done.returncode == 3
    (line,) = lines_below(done.stdout, "Bad, too_large: scale it down, or raise checks.max_mega")
    assert line.startswith("cat/large.png: 400×300 is 0 megapixels; at most 0.01")
