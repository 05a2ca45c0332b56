"""Turn an image file into upright uint8 pixels, and resize and crop them.

Training data, evaluation, export and prediction all come through this one decoder. Its rule:

- The first image of the file counts (animations, multi-page files).
- EXIF orientation is applied; colour profiles are ignored, as the field's loaders do.
- Transparent pixels are blended with white.
- 16-bit grey keeps its high byte, as Pillow does for 16-bit colour. 32-bit and float are refused:
  nothing in the file says which value is white.
- CMYK, YCbCr, palettes and 1-bit are converted by Pillow; colour to grey is ITU-R 601 luma.
- Where the caller says which size is wanted, a JPEG of four times that or more is decoded at 1/2,
  1/4 or 1/8 of its scale, still of twice the size or more (benchmarks/scaled_decoding.py).

The format is found from the content, never from the name, and the size is checked in the header
before any pixel is decoded. A file that ends early is refused, never filled up with grey.

While it is decoded, an image takes 7 bytes per pixel (turned 8, progressive JPEG 10, HEIC 11, AVIF
13, WebP 16, transparent 19), and all threads together decode up to `ROOM.limit` pixels.
"""

import io
import os
import re
import stat
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from resnets.system.errors import DataError
from resnets.system.runtime import Room

Pixels = npt.NDArray[np.uint8]  # (H, W, C), C = 1 or 3, contiguous
Crops = npt.NDArray[np.uint8]  # (N, crop, crop, C)

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
HEIC = re.compile(rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL)  # ISO/IEC 23008-12
AVIF = re.compile(rb"....ftypavi[fs]", re.DOTALL)
MAX_FILE_BYTES = 256 * 2**20
MAX_ASPECT = 20  # a centre crop would see less than a twentieth of a longer strip
CONVERTIBLE = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
# libjpeg writes 10 scans for colour and at most 18, for CMYK; each goes over every pixel
MAX_SCANS = 50
MAX_SEGMENTS = 1000  # of up to 64 KB; phones put depth maps of some megabytes into hundreds
MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # of a JPEG, but those within a scan
ROOM = Room(200_000_000)
FIXES = {  # every reason to refuse a file, and what to do about it
    "empty": "fetch the file again, or remove it",
    "unreadable": "check the permissions and the disk, or remove the file",
    "not_an_image": f"remove it; accepted are {', '.join(FORMATS)} and HEIC",
    "no_decoder": "python -m pip install pillow-heif, or save it as a JPEG",
    "damaged": "fetch the file again, or remove it",
    "encrypted": "unpack the archive with its password, and name the folder",
    "other_format": "export it as JPEG",
    "too_large": "scale it down, or raise checks.max_megapixels",
    "too_thin": "crop it, or remove it",
    "unsupported": "save it as an 8-bit PNG or JPEG",
    "bad_name": "rename it",
    "no_class": "move it into the folder of its class, or remove it",
    "label_conflict": "keep it under the right label only",
}
# here and not around a call: what catches warnings for a while does so for all threads at once
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class Images(Protocol):
    """Give images one by one as uint8 (H, W, C); a `PixelStore` and a plain list do."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, row: int, /) -> Pixels:
        """Return one image."""


class BadImageError(DataError):
    """Report one file that is refused; `reason` is a key of FIXES."""

    def __init__(self, reason: str, what: str) -> None:
        super().__init__(what, FIXES[reason])
        self.reason = reason


@dataclass(frozen=True)
class Decoded:
    """Hold what one file contains: an upright picture, its format, and what is unusual about it."""

    picture: Image.Image  # in mode L or RGB; Pillow's own, since to copy it costs time
    format: str
    note: str
    width: int  # of the file, upright; the picture may be of a reduced scale
    height: int


def read_file(path: Path) -> bytes:
    """Read a regular file of an acceptable size; pipes and devices are never opened."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadImageError("unreadable", "not a regular file")
        check_file_size(status.st_size)
        return path.read_bytes()
    except OSError as error:
        raise BadImageError("unreadable", os.strerror(error.errno or 0)) from error


def check_file_size(num_bytes: int) -> None:
    """Refuse a file that no single image fills, before it is read."""
    if num_bytes > MAX_FILE_BYTES:
        raise BadImageError("too_large", f"file of {num_bytes} bytes; at most {MAX_FILE_BYTES}")


def decode(
    source: bytes | Path, *, channels: Literal[1, 3], max_megapixels: float, size: int | None = None
) -> Decoded:
    """Decode one image file, at a reduced scale where `size` tells how large it is wanted.

    Raises BadImageError, also for whatever Pillow raises on broken bytes: its plugins raise a dozen
    types, from OSError to struct.error, and none of them is our bug.
    """
    data = source if isinstance(source, bytes) else read_file(source)
    if not data:
        raise BadImageError("empty", "empty file")
    # our own check below, on the same header, takes the place of Pillow's fixed limit
    Image.MAX_IMAGE_PIXELS = None
    try:
        _check_segments(data)
        formats = _formats_and_heic() if HEIC.match(data) else FORMATS
        with Image.open(io.BytesIO(data), formats=formats) as image:
            _check_size(image.width, image.height, max_megapixels)
            full = image.size
            with ROOM.hold(image.width * image.height):
                if size and image.format in ("JPEG", "MPO"):  # MPO: a phone's, with a second view
                    image.draft(None, (2 * size, 2 * size))
                image.load()
                is_turned = _turn_upright(image)
                picture = convert(image, channels)
            note = "first image of several" if getattr(image, "is_animated", False) else ""
            width, height = full[::-1] if is_turned else full
            return Decoded(picture, image.format or "", note, width, height)
    except (BadImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        if HEIC.match(data):
            reason = "damaged" if "HEIF" in formats else "no_decoder"
            raise BadImageError(reason, "a HEIC photo that cannot be opened") from error
        if AVIF.match(data):
            raise BadImageError("damaged", "an AVIF photo that cannot be opened") from error
        start = data[:12].decode("latin-1")
        raise BadImageError("not_an_image", f"not an image (starts with {start!r})") from error
    except Exception as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise BadImageError("damaged", f"does not decode: {words}") from error


@cache
def _formats_and_heic() -> tuple[str, ...]:
    """Return what is read; HEIC belongs to it where pillow-heif, an extra, is installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return FORMATS
    register_heif_opener(decode_threads=1, thumbnails=False)  # images have a thread each
    return (*FORMATS, "HEIF")


def _check_segments(data: bytes) -> None:
    """Refuse a JPEG that takes minutes because of how often it repeats a part."""
    if not data.startswith(b"\xff\xd8"):
        return
    # nearly all files have few starts of a scan wherever one looks: theirs need no search
    has_many = data.count(b"\xff\xda") > MAX_SCANS
    place, segments, scans = 2, 0, 0
    while (marker := MARKER.search(data, place)) and marker[1] != b"\xd9":  # the image's end
        segments, scans = segments + 1, scans + (marker[1] == b"\xda")
        if segments > MAX_SEGMENTS or scans > MAX_SCANS:
            most = f"{MAX_SEGMENTS} segments or {MAX_SCANS} scans"
            raise BadImageError("unsupported", f"a JPEG of more than {most}")
        if scans and not has_many:
            return
        place = marker.end() + max(2, int.from_bytes(data[marker.end() : marker.end() + 2]))


def _check_size(width: int, height: int, max_megapixels: float) -> None:
    """Refuse what is too large to decode or too thin to crop."""
    size, megapixels = f"{width}×{height}", width * height / 1e6
    if megapixels > max_megapixels:
        most = f"at most {max_megapixels}"
        raise BadImageError("too_large", f"{size} is {megapixels:.0f} megapixels; {most}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadImageError("too_thin", f"{size}: more than {MAX_ASPECT} times longer")


def _turn_upright(image: Image.Image) -> bool:
    """Apply the EXIF orientation, and say if width and height change places.

    Broken EXIF data does not spoil the picture.
    """
    try:
        is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:
        return False
    return is_turned


def convert(image: Image.Image, channels: Literal[1, 3]) -> Image.Image:
    """Convert any accepted mode to L or RGB by the rule of this module."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode not in CONVERTIBLE:
        raise BadImageError("unsupported", f"pixels of type {image.mode}")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def to_pixels(picture: Image.Image) -> Pixels:
    """Return a picture in mode L or RGB as (H, W, C)."""
    return np.asarray(picture).reshape(picture.height, picture.width, -1)


def to_picture(image: Pixels) -> Image.Image:
    """Return (H, W, C) as Pillow has it."""
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def resize(
    image: Pixels | Image.Image, size: int, fit: Literal["shorter_side", "stretch"]
) -> Pixels:
    """Resize to (H, W, C) as torchvision's Resize does on a Pillow image: bilinear, antialiased.

    With "shorter_side" the shorter side becomes `size` and the aspect is kept (the longer side is
    rounded down, as torchvision does); with "stretch" the result is a square.
    """
    picture = image if isinstance(image, Image.Image) else to_picture(image)
    new_size = size, size
    if fit == "shorter_side":
        width, height = picture.size
        short = min(width, height)
        new_size = int(size * width / short), int(size * height / short)
    return to_pixels(picture.resize(new_size, Image.Resampling.BILINEAR))


def center_crop(image: Pixels, crop: int) -> Pixels:
    """Take the central square, a view, where torchvision's CenterCrop takes it.

    Raises ValueError when the image is smaller than the crop.
    """
    height, width = image.shape[:2]
    if min(height, width) < crop:
        raise ValueError(f"a crop of {crop} does not fit in {width}×{height} pixels")
    top, left = round((height - crop) / 2), round((width - crop) / 2)
    return image[top : top + crop, left : left + crop]


def crop_batch(images: Images, rows: Sequence[int] | npt.NDArray[np.int64], crop: int) -> Crops:
    """Return the centre crops of these images as one new array."""
    uniform: Crops | None = getattr(images, "uniform", None)
    if uniform is not None and uniform.shape[1:3] == (crop, crop):
        crops: Crops = uniform[np.asarray(rows)]  # whole images of one size: one copy, no loop
        return crops
    return np.stack([center_crop(images[row], crop) for row in rows])
