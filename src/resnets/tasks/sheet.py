"""Paste photos and their captions into PNG files whose bytes depend on nothing but the data.

Pillow does it ten times as fast as matplotlib.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from resnets.system.files import atomic_path
from resnets.system.fonts import legible, split_by_font
from resnets.tasks.decode import Images, Pixels, to_picture

BAR_COLOUR = "#0072B2"
COLUMNS = 8  # of a sheet
TILE, GAP, LINE = 128, 6, 14  # pixels: an image's longer side, space, a line of text
BARS = 10  # classes shown beside a picture


def plot_sheet(images: Images, captions: Sequence[str], path: Path) -> None:
    """Paste images (H, W, C), C 1 or 3, into a grid, each below its caption."""
    columns = min(COLUMNS, max(len(images), 1))
    lines = max((caption.count("\n") + 1 for caption in captions), default=1)
    width, height = TILE + GAP, TILE + GAP + LINE * lines
    num_rows = max(-(-len(images) // columns), 1)
    sheet = Image.new("RGB", (columns * width + GAP, num_rows * height + GAP), "white")
    for place, caption in enumerate(captions):
        left, top = GAP + place % columns * width, GAP + place // columns * height
        for number, line in enumerate(caption.split("\n")):
            _write(sheet, (left + TILE // 2, top + LINE * number), line, "ma", TILE)
        _paste(sheet, images[place], left, top + LINE * lines, TILE)
    if not len(images):
        _write(sheet, (sheet.width // 2, sheet.height // 2), "none", "mm", TILE)
    with atomic_path(path) as part:
        sheet.save(part, "PNG")


def draw_prediction(
    path: Path,
    image: Pixels,
    classes: Sequence[str],
    probabilities: NDArray[np.float64],
    overlay: Pixels | None = None,
    *,
    name: str = "",
) -> None:
    """Draw a picture and its name under the answer, beside an overlay or else a bar per class."""
    sheet = Image.new("RGB", (640, 360), "white")
    best = np.argsort(-probabilities, kind="stable")[:BARS]
    _write(sheet, (320, 8), f"{classes[best[0]]} {probabilities[best[0]]:.1%}", "ma", 620, size=15)
    _paste(sheet, image, 15, 32, 300)
    _write(sheet, (320, 338), name, "ma", 620, size=12)
    if overlay is not None:
        _paste(sheet, overlay, 325, 32, 300)
    for number, k in enumerate(best if overlay is None else ()):
        middle, end = 48 + 30 * number, 461 + round(124 * float(probabilities[k]))
        _write(sheet, (455, middle), classes[k], "rm", 130, size=12)
        ImageDraw.Draw(sheet).rectangle((460, middle - 9, end, middle + 9), fill=BAR_COLOUR)
        _write(sheet, (end + 5, middle), f"{probabilities[k]:.1%}", "lm", 50, size=12)
    with atomic_path(path) as part:
        sheet.save(part, "PNG")


_font = cache(ImageFont.truetype)


def _measure(text: str, size: int) -> list[tuple[str, ImageFont.FreeTypeFont, float]]:
    """Return the parts of a text, each with its font and its width in pixels."""
    parts = [(part, _font(path, size)) for path, part in split_by_font(text)]
    return [(part, font, font.getlength(part)) for part, font in parts]


def _write(
    sheet: Image.Image, at: tuple[int, int], text: str, anchor: str, width: int, *, size: int = 10
) -> None:
    """Write a line of text, cut to a width in pixels, with its anchor at a place."""
    shown = legible(text, lambda shown: sum(w for *_, w in _measure(shown, size)) <= width)
    parts = _measure(shown, size)
    share = {"l": 0, "m": 0.5, "r": 1}[anchor[0]]  # of the text that is left of the place
    left = at[0] - int(share * sum(width for *_, width in parts) + 0.5)
    ascent, descent = _measure("x", size)[0][1].getmetrics()
    base = at[1] + (ascent if anchor[1] == "a" else (ascent - descent + 1) // 2)
    for part, font, length in parts:
        ImageDraw.Draw(sheet).text((left, base), part, "black", font, anchor="ls")
        left += round(length)


def _paste(sheet: Image.Image, image: Pixels, left: int, top: int, side: int) -> None:
    """Paste an image (H, W, C) into the middle of a square."""
    sheet.paste(ImageOps.pad(to_picture(image), (side, side), color="white"), (left, top))
