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


def test_a_good_dataset_is_described_and_passes(tmp_path):
    done = run(write_zip(tmp_path / "x.zip", {**pets(3, "train/"), **pets(1, "val/", start=50)}))
    assert done.returncode == 0, done.stderr
    rows = [line.replace("│", " ").split() for line in done.stdout.splitlines()]
    assert ["cat", "4", "3", "1"] in rows
    assert "8 images; width 96 to 96 (median 96), height 72 to 72 (median 72); 8 PNG" in done.stdout


def test_findings_are_named_and_escaped_and_stop(tmp_path):
    photo = make_photo(400, (200, 160))
    files = {
        **pets(3),
        "cat/[red]half[/red].jpg": encode(photo, "JPEG")[:-99],
        "cat/white.png": encode(Image.new("L", (80, 80), 255)),
        "dog/one.png": encode(photo),
        "dog/two.jpg": encode(photo, "JPEG"),
        "dog/\x1b]0;evil\x07.png": encode(make_photo(401)),
        "notes.txt": b"notes",
    }
    done = run(write_folder(tmp_path / "x", files))
    assert done.returncode == 3
    assert "bad: cat/[red]half[/red].jpg: does not decode: image file is truncated" in done.stdout
    assert "note: cat/white.png: low information" in done.stdout
    assert "near-duplicates: dog/one.png, dog/two.jpg" in done.stdout
    assert "bad: dog/\\x1b]0;evil\\x07.png: a name that is not UTF-8" in done.stdout
    assert "ignored: notes.txt" in done.stdout
    assert "\x1b]0;" not in done.stdout + done.stderr
    assert done.stderr.splitlines()[-2].endswith("2 of 11 images are bad, as listed above")
    assert done.stderr.splitlines()[-1].startswith("fix: ")


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_what_is_no_dataset_ends_with_exit_code_3(tmp_path, name):
    done = run(tmp_path / name)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
