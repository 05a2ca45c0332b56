"""Alter single photos of a set and see that they, and next to nothing else, are found."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from resnets.data.findings import ACROSS, RULES, count, find_across, find_odd, worst_first
from resnets.data.pack import Packing, pack
from resnets.data.prepare import judge_all
from resnets.data.sources import open_source
from resnets.tasks.manifest import read_manifest
from resnets.tasks.task import PixelStore
from tests.data.photos import encode, make_photo, prepare, write_folder, write_zip


def textured(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """Return a picture with detail, as photos have, of its own contrast."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 12 + seed % 7, (size[1], size[0], 3))
    return Image.fromarray((np.asarray(make_photo(seed, size)) + noise).clip(0, 255).astype("u1"))


ALTERED = {
    "dark": lambda photo: ImageEnhance.Brightness(photo).enhance(0.1),
    "pale": lambda photo: Image.blend(photo, Image.new("RGB", photo.size, "white"), 0.9),
    "plain": lambda photo: Image.blend(photo, Image.new("RGB", photo.size, "#888"), 0.9),
    "blurred": lambda photo: photo.filter(ImageFilter.GaussianBlur(3)),
    "grey among colour": lambda photo: photo.convert("L"),
    "long": lambda photo: photo.resize((400, 80)),
    "small": lambda photo: photo.resize((20, 15)),
}


def find(folder, files):
    """Return the findings as pairs of kind and name."""
    source = open_source(write_folder(folder / "photos", files))
    packing = Packing(3, 64, "shorter_side", 1.0)
    rows, _ = judge_all(source, source.members, packing, folder / "images.bin")
    found = find_odd(rows, PixelStore(folder / "images.bin", rows))
    return [(finding.kind, rows[finding.index].id) for finding in found]


@pytest.fixture(scope="module")
def clean() -> dict[str, bytes]:
    return {f"{'ab'[index % 2]}/{index}.png": encode(textured(index)) for index in range(40)}


def test_every_rule_finds_the_photo_that_breaks_it_and_no_other(tmp_path, clean):
    altered = {f"a/{kind}.png": encode(alter(textured(99))) for kind, alter in ALTERED.items()}
    assert list(ALTERED) == list(RULES)
    assert find(tmp_path, {**clean, **altered}) == [(kind, f"a/{kind}.png") for kind in RULES]


def test_clean_photos_give_nothing(tmp_path, clean):
    assert find(tmp_path, clean) == []


@pytest.mark.parametrize("kind", ALTERED)
def test_what_is_usual_in_a_set_is_no_finding(tmp_path, kind):
    files = {f"{'ab'[i % 2]}/{i}.png": encode(ALTERED[kind](textured(i))) for i in range(20)}
    assert kind not in [found for found, _ in find(tmp_path, files)]


def test_worst_come_first_and_ten_of_a_kind_are_shown(tmp_path):
    files = {f"a/{index}.png": encode(textured(index)) for index in range(60)}
    names = [f"b/{level:02}.png" for level in range(12)]
    for level, name in enumerate(names):
        photo = ImageEnhance.Brightness(textured(70 + level))
        files[name] = encode(photo.enhance(0.02 + level / 100))
    source = open_source(write_zip(tmp_path / "x.zip", files))
    packing = Packing(3, 64, "shorter_side", 1.0)
    rows, _ = pack(source, source.members, packing, tmp_path / "images.bin")
    found = find_odd(rows, PixelStore(tmp_path / "images.bin", rows))
    assert [rows[finding.index].id for finding in found] == names
    shown, captions = worst_first(found, rows)
    assert [row.id for row in shown] == names[:10]
    assert captions[0] == "dark\n00.png"
    assert count(found) == {**dict.fromkeys(RULES, 0), ACROSS: 0, "dark": 12}


def test_copies_across_given_sides_are_found(tmp_path):
    photo = textured(1)
    names = [f"{side}/{label}/{side}.png" for side in ("train", "val") for label in "ab"]
    files = {name: encode(textured(10 + seed)) for seed, name in enumerate(names)}
    files |= {"train/a/one.png": encode(photo), "val/a/two.jpg": encode(photo, "JPEG", quality=60)}
    rows = prepare(write_folder(tmp_path / "x", files), tmp_path / "task").rows
    names = [rows[finding.index].id for finding in find_across(rows)]
    assert names == ["train/a/one.png", "val/a/two.jpg"]


def test_a_shared_set_of_photos_has_few_findings(tmp_path, shared_data):
    prepare(shared_data / "hymenoptera_data.zip", tmp_path, resize=128, max_megapixels=64.0)
    rows, _ = read_manifest(tmp_path / "manifest.csv")
    found = find_odd(rows, PixelStore(tmp_path / "images.bin", rows))
    assert "train/ants/imageNotFound.gif" in {rows[finding.index].id for finding in found}
    assert len(found) < 10
