"""Test the one decoder: what it accepts, how it converts, and that broken files never pass."""

import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps
from pillow_heif import register_heif_opener
from torchvision import transforms

from resnets.system.errors import DataError
from resnets.system.progress import map_ahead
from resnets.system.runtime import Room
from resnets.tasks.decode import (
    FIXES,
    FORMATS,
    MAX_SCANS,
    MAX_SEGMENTS,
    BadImageError,
    center_crop,
    decode,
    resize,
    to_pixels,
)
from tests.data.photos import encode, make_photo

PHOTO = make_photo(0, (61, 43))
register_heif_opener()  # for writing


def read(data: bytes, channels: int = 3) -> np.ndarray:
    return to_pixels(decode(data, channels=channels, max_megapixels=1).picture)


def reason(data: bytes, **options: float) -> str:
    with pytest.raises(BadImageError) as caught:
        decode(data, **{"channels": 3, "max_megapixels": 1, **options})
    assert isinstance(caught.value, DataError)
    assert caught.value.fix
    return caught.value.reason


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_give_the_pixels_that_were_saved(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(read(encode(PHOTO, kind, **options)), np.asarray(PHOTO))


@pytest.mark.parametrize("size", [(61, 43), (43, 61), (50, 50)])
@pytest.mark.parametrize("fit", ["shorter_side", "stretch"])
def test_resize_and_crop_equal_torchvision(size, fit):
    photo = make_photo(1, size)
    target = 32 if fit == "shorter_side" else (32, 32)
    reference = transforms.Compose([transforms.Resize(target), transforms.CenterCrop(27)])(photo)
    ours = center_crop(resize(np.asarray(photo), 32, fit), 27)
    assert np.array_equal(ours, np.asarray(reference))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("size", "reduced"), [(100, 8), (101, 4), (200, 4), (201, 2), (401, 1)])
def test_a_large_jpeg_is_decoded_at_a_reduced_scale_that_hardly_shows(size, reduced, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(make_photo(3, (2100, 1600)), "JPEG", exif=exif)
    exact, scaled = (
        decode(data, channels=3, max_megapixels=9, size=wanted) for wanted in (None, size)
    )
    height, width = to_pixels(exact.picture).shape[:2]
    assert to_pixels(scaled.picture).shape[:2] == (-(-height // reduced), -(-width // reduced))
    assert (scaled.width, scaled.height) == (exact.width, exact.height) == (width, height)
    difference = resize(to_pixels(scaled.picture), size, "shorter_side").astype(int) - resize(
        to_pixels(exact.picture), size, "shorter_side"
    )
    assert np.abs(difference).mean() < (1 if reduced > 1 else 1e-9)
    for end in range(0, len(data) - 10, len(data) // 20):
        with pytest.raises(BadImageError):
            decode(data[:end], channels=3, max_megapixels=9, size=size)


def test_a_turned_jpeg_that_is_square_at_a_reduced_scale_has_its_own_size():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(make_photo(3, (1001, 1008)), "JPEG", exif=exif)
    found = decode(data, channels=3, max_megapixels=9, size=60)
    assert found.picture.size == (126, 126)
    assert (found.width, found.height) == (1008, 1001)


def test_only_a_jpeg_is_decoded_at_a_reduced_scale():
    for kind in ("PNG", "WEBP", "TIFF", "HEIF", "AVIF"):
        data = encode(PHOTO, kind)
        scaled = decode(data, channels=3, max_megapixels=1, size=4)
        assert np.array_equal(to_pixels(scaled.picture), read(data))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_turns_the_picture_upright(kind, orientation):
    turned = {
        1: PHOTO,
        2: ImageOps.mirror(PHOTO),
        3: PHOTO.rotate(180),
        4: ImageOps.flip(PHOTO),
        5: ImageOps.mirror(PHOTO.rotate(270, expand=True)),
        6: PHOTO.rotate(90, expand=True),
        7: ImageOps.mirror(PHOTO.rotate(90, expand=True)),
        8: PHOTO.rotate(270, expand=True),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = read(encode(turned, kind, exif=exif))
    assert upright.shape == (43, 61, 3)
    assert np.abs(upright.astype(int) - np.asarray(PHOTO)).mean() < 25  # a wrong turn: 80


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_photos_of_phones_are_read_upright_and_near_what_was_saved(kind):
    exif, photo = Image.Exif(), PHOTO.copy()
    exif[0x0112] = 6
    photo.info["exif"] = exif.tobytes()  # a HEIC has a turn of its own, written beside this one
    options = {"exif": exif} if kind == "AVIF" else {}
    found = decode(encode(photo, kind, quality=95, **options), channels=3, max_megapixels=1)
    wanted = np.asarray(PHOTO.rotate(270, expand=True)).astype(int)
    assert (found.format, found.note, to_pixels(found.picture).shape) == (kind, "", (61, 43, 3))
    assert np.abs(to_pixels(found.picture) - wanted).mean() < 12  # a wrong turn: 80
    assert reason(encode(PHOTO, kind), max_megapixels=0.001) == "too_large"


def test_a_photo_of_a_phone_that_is_not_read_is_called_by_its_kind():
    data = encode(PHOTO, "HEIF")
    assert reason(data[:60]) == "damaged"
    code = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "from resnets.tasks.decode import decode\n"
        f"decode({data!r}, channels=3, max_megapixels=1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "BadImageError: a HEIC photo that cannot be opened" in done.stderr
    assert "pip install pillow-heif" in FIXES["no_decoder"]
    with pytest.raises(BadImageError, match=r"^an AVIF photo that cannot"):
        decode(encode(PHOTO, "AVIF")[:100], channels=3, max_megapixels=1)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_impossible_orientation_is_ignored(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(read(encode(PHOTO, exif=exif)), np.asarray(PHOTO))


def test_broken_exif_data_does_not_spoil_the_picture():
    data = encode(PHOTO, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 30)
    assert read(data).shape == (43, 61, 3)


def test_transparent_pixels_are_blended_with_white():
    layer = PHOTO.copy()
    layer.putalpha(Image.linear_gradient("L").resize(PHOTO.size))
    alpha = np.asarray(layer)[..., 3:] / 255
    expected = np.asarray(PHOTO) * alpha + 255 * (1 - alpha)
    assert np.abs(read(encode(layer)) - expected).max() <= 1


def test_palette_and_grey_transparency_become_white():
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([10, 20, 30, 200, 0, 0])
    assert (read(encode(palette)) == (200, 0, 0)).all()
    assert (read(encode(palette, transparency=1)) == 255).all()
    assert (read(encode(Image.new("LA", (8, 8), (7, 0)))) == 255).all()
    assert (read(encode(Image.new("L", (8, 8), 7), transparency=7)) == 255).all()


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    for kind in ("PNG", "TIFF"):
        pixels = read(encode(Image.fromarray(ramp), kind))
        assert np.array_equal(pixels[..., 0], ramp >> 8)
        assert len(np.unique(pixels)) == 256


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_values_without_a_white_are_refused(dtype):
    picture = Image.fromarray(np.full((8, 8), 3, dtype))
    assert reason(encode(picture, "TIFF")) == "unsupported"


def test_cmyk_one_bit_and_grey_become_colour_and_back():
    cmyk = read(encode(PHOTO.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(cmyk.astype(int) - np.asarray(PHOTO)).mean() < 12
    bits = read(encode(PHOTO.convert("1")))
    assert set(np.unique(bits)) == {0, 255}
    grey = read(encode(PHOTO.convert("L")))
    assert (grey == np.asarray(PHOTO.convert("L"))[..., None]).all()
    one = read(encode(PHOTO), channels=1)
    assert np.array_equal(one[..., 0], np.asarray(PHOTO.convert("L")))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_give_their_first_frame_with_a_note(kind):
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    found = decode(data, channels=3, max_megapixels=1)
    assert (to_pixels(found.picture) == (255, 0, 0)).all()
    assert found.note == "first image of several"


def test_size_is_refused_from_the_header_before_decoding():
    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"no pixels at all")
    assert reason(bomb) == "too_large"
    assert reason(encode(PHOTO), max_megapixels=0.001) == "too_large"
    assert reason(encode(Image.new("L", (30_000, 1)))) == "too_thin"
    assert read(encode(Image.new("L", (1, 1)))).shape == (1, 1, 3)


def test_pixels_decoded_at_once_are_limited_in_all_threads_together(monkeypatch):
    held = []

    class Watched(Room):
        @contextmanager
        def hold(self, amount: int) -> Iterator[None]:
            with super().hold(amount):
                held.append((amount, self.taken))
                yield

    monkeypatch.setattr("resnets.tasks.decode.ROOM", Watched(2 * 61 * 43))
    list(map_ahead(read, [encode(PHOTO)] * 40, workers=8))
    assert {amount for amount, _ in held} == {61 * 43}
    assert max(taken for _, taken in held) <= 2 * 61 * 43


def with_scans(num: int, *, before: bytes = b"", after: bytes = b"") -> bytes:
    """Return a progressive JPEG of 10 scans, and the last one so many times more."""
    data = encode(PHOTO, "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + before + last * num + data[-2:] + after


def segment(kind: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 255, kind, len(content) + 2) + content


def test_a_jpeg_of_too_many_scans_or_segments_is_refused_before_it_is_decoded():
    plain = read(with_scans(0))
    assert read(with_scans(MAX_SCANS - 10)).shape == plain.shape
    assert reason(with_scans(MAX_SCANS - 9)) == "unsupported"
    assert reason(with_scans(3000)) == "unsupported"
    hidden = segment(0xFE, b"\xff\xd9")  # a comment that looks like the end of the image
    assert reason(with_scans(MAX_SCANS, before=hidden)) == "unsupported"
    film = b"\xff\xda" * 2 * MAX_SCANS  # phones put one behind the image
    assert np.array_equal(read(with_scans(0, after=film)), plain)
    thumbnail = segment(0xE2, film)
    data = with_scans(0)
    assert np.array_equal(read(data[:2] + thumbnail + data[2:]), plain)
    assert np.array_equal(read(data[:2] + thumbnail * (MAX_SEGMENTS // 2) + data[2:]), plain)
    assert reason(data[:2] + segment(0xFE, b"") * MAX_SEGMENTS + data[2:]) == "unsupported"


def test_every_jpeg_that_pillow_writes_is_far_from_the_limits():
    for mode, num in (("L", 6), ("RGB", 10), ("CMYK", 18)):
        data = encode(PHOTO.convert(mode), "JPEG", progressive=True)
        assert data.count(b"\xff\xda") == num < MAX_SCANS / 2


@pytest.mark.parametrize(
    "data",
    [b"<!DOCTYPE html><p>404", b"%!PS-Adobe-3.0 EPSF-3.0", b"\0" * 64, b"8BPS\0\1", b"%PDF-1.7"],
)
def test_other_files_are_no_images(data):
    assert reason(data) == "not_an_image"
    assert reason(b"") == "empty"


def test_formats_outside_the_list_are_refused():
    assert {"PPM", "ICO", "TGA", "PCX"}.isdisjoint(FORMATS)
    assert reason(encode(PHOTO, "PPM")) == "not_an_image"
    assert reason(encode(PHOTO, "ICO")) == "not_an_image"


@pytest.mark.parametrize("kind", [*FORMATS, "HEIF"])
def test_a_cut_file_never_passes_with_other_pixels(kind):
    data = encode(PHOTO, kind)
    whole = read(data)
    for end in range(0, len(data), max(1, len(data) // 150)):
        try:
            pixels = read(data[:end])
        except BadImageError:
            continue
        assert np.array_equal(pixels, whole)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", [*FORMATS, "HEIF"])
def test_mutated_files_decode_or_are_refused(kind):
    """2,000 mutations of each format: nothing but BadImageError, ever."""
    rng = np.random.default_rng([*FORMATS, "HEIF"].index(kind))
    original = np.frombuffer(encode(PHOTO, kind), np.uint8)
    for _ in range(2000):
        data = original.copy()
        for _ in range(rng.integers(1, 5)):  # the header is hit as often as the rest
            end = 64 if rng.random() < 0.5 else len(data)
            data[rng.integers(end)] = rng.integers(256)
        try:
            pixels = read(data.tobytes())
        except BadImageError:
            continue
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3


def test_a_file_is_decoded_or_its_fault_named(tmp_path: Path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(encode(PHOTO, "JPEG"))
    assert np.array_equal(
        to_pixels(decode(path, channels=3, max_megapixels=1).picture), read(path.read_bytes())
    )
    path.write_bytes(encode(PHOTO, "JPEG")[:-40])
    for file, words in (
        (path, "does not decode: image file is trunc"),
        (tmp_path / "missing.jpg", "No such file"),
        (tmp_path, "not a regular file"),
    ):
        with pytest.raises(BadImageError, match=words):
            decode(file, channels=3, max_megapixels=1)


def test_center_crop_refuses_to_pad():
    with pytest.raises(ValueError, match="does not fit"):
        center_crop(np.zeros((30, 40, 3), np.uint8), 31)
