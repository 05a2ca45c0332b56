"""Test `resnets check` as a user sees it."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.data.photos import encode, make_photo, pets, write_folder, write_zip


def run(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "resnets.cli", "check", str(path)]
    return subprocess.run(command, capture_output=True, text=True)


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
        "Odd": "cat/white.png: low information",
        "Near-duplicates: split keeps": "dog/one.png, dog/two.jpg",
        "Exact copies: split keeps": "dog/0 again.png, dog/0.png",
        "Ignored": "notes.txt",
    }.items():
        (found,) = lines_below(done.stdout, title)
        assert found.startswith(line)
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
