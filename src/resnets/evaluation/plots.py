"""Draw the pictures of the reports as PNG files whose bytes depend on nothing but the data.

Diagrams come from matplotlib; sheets of photos are pasted with Pillow, ten times as fast.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from resnets.errors import printable
from resnets.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Pixels = NDArray[np.uint8]

# Okabe and Ito's colours, which colour-blind readers can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MOST_NUMBERS = 12  # classes beyond which cells of a confusion matrix are too small for numbers
MOST_TICKS = 40  # classes beyond which their names are
NAME_LETTERS = 20
COLUMNS = 8  # of a sheet
TILE, GAP, LINE = 128, 6, 14  # pixels: an image's longer side, space, a line of text
BARS = 10  # classes shown beside a picture


def plot_curves(histories: Mapping[str, "pd.DataFrame"], path: Path) -> None:
    """Draw loss and accuracy per epoch of every variant; a dot marks the chosen epoch.

    A history has the columns epoch, train_loss, train_accuracy, val_loss, val_accuracy, is_best.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    with _figure(path, 10, 4.2) as figure:
        panels = dict(zip(("loss", "accuracy"), figure.subplots(1, 2), strict=True))
        for metric, panel in panels.items():
            for index, (name, history) in enumerate(histories.items()):
                colour = COLOURS[index % len(COLOURS)]
                panel.plot(history["epoch"], history[f"train_{metric}"], ":", color=colour)
                panel.plot(history["epoch"], history[f"val_{metric}"], color=colour, label=name)
                best = history[history["is_best"].astype(bool)].tail(1)
                panel.plot(best["epoch"], best[f"val_{metric}"], "o", color=colour)
            panel.set(xlabel="epoch", ylabel=metric)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        vertical = panels["loss"].yaxis
        panels["loss"].set_yscale("log")  # one wild epoch must not flatten all others
        vertical.set_major_locator(LogLocator(subs=(1, 2, 5)))
        vertical.set_major_formatter("{x:g}")
        vertical.set_minor_formatter(NullFormatter())
        handles, labels = panels["loss"].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6))
        figure.suptitle("solid: validation, dotted: training, dot: chosen epoch", fontsize=10)


def plot_confusion(confusion: NDArray[np.integer], classes: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix (K, K) of counts as shares of each true class (row)."""
    num_classes, totals = len(classes), confusion.sum(1, keepdims=True)
    shares = np.where(totals > 0, confusion / np.maximum(totals, 1), np.nan)
    size = float(np.clip(0.55 * num_classes + 2.5, 4, 10))
    with _figure(path, size + 1, size) as figure:
        panel = figure.subplots()
        panel.set_facecolor("0.9")  # a class without images stays grey
        picture = panel.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        bar = figure.colorbar(picture, label="share of the true class", shrink=0.8)
        bar.ax.yaxis.set_major_formatter("{x:.0%}")
        panel.set(xlabel="predicted", ylabel="true")
        panel.grid(False)
        if num_classes <= MOST_TICKS:
            cut = [c if len(c) <= NAME_LETTERS else c[: NAME_LETTERS - 1] + "…" for c in classes]
            panel.set_xticks(range(num_classes), cut, rotation=45, ha="right")
            panel.set_yticks(range(num_classes), cut)
        for (row, column), count in np.ndenumerate(confusion):
            if count and num_classes <= MOST_NUMBERS:
                share = shares[row, column]
                text = f"{share:.1%}\n{count}" if num_classes <= 6 else f"{share:.1%}"
                colour = "white" if share > 0.5 else "black"
                panel.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)


def plot_reliability(sides: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw accuracy over confidence, one line per entry of `sides` (rows of `reliability`).

    The lower panel shows how many images have that confidence.
    """
    with _figure(path, 5, 5.5) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        upper.plot([0, 1], [0, 1], "--", color="0.6", label="perfect")
        for (name, rows), colour in zip(sides.items(), COLOURS, strict=False):
            confidence, accuracy, images = (
                [row[key] for row in rows] for key in ("confidence", "accuracy", "images")
            )
            upper.plot(confidence, accuracy, "o-", color=colour, label=name)
            lower.vlines(confidence, 0, images, color=colour, lw=5, alpha=0.6)
        upper.set(ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
        lower.set(xlabel="confidence", ylabel="images", ylim=(0, None))
        upper.legend(loc="upper left")


def plot_sheet(images: Sequence[Pixels], captions: Sequence[str], path: Path) -> None:
    """Paste images (H, W, C), C 1 or 3, into a grid, each below its caption."""
    columns = min(COLUMNS, max(len(images), 1))
    lines = max((caption.count("\n") + 1 for caption in captions), default=1)
    width, height = TILE + GAP, TILE + GAP + LINE * lines
    num_rows = max(-(-len(images) // columns), 1)
    sheet = Image.new("RGB", (columns * width + GAP, num_rows * height + GAP), "white")
    for place, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = GAP + place % columns * width, GAP + place // columns * height
        for number, line in enumerate(caption.split("\n")):
            _write(sheet, (left + TILE // 2, top + LINE * number), line, "ma", TILE)
        _paste(sheet, image, left, top + LINE * lines, TILE)
    if not images:
        _write(sheet, (sheet.width // 2, sheet.height // 2), "none", "mm", TILE)
    _save(sheet, path)


def draw_prediction(
    path: Path,
    image: Pixels,
    classes: Sequence[str],
    probabilities: NDArray[np.float64],
    overlay: Pixels | None = None,
) -> None:
    """Draw a picture under its answer, beside an overlay of it or else a bar per class."""
    sheet = Image.new("RGB", (640, 340), "white")
    best = np.argsort(-probabilities, kind="stable")[:BARS]
    _write(sheet, (320, 8), f"{classes[best[0]]} {probabilities[best[0]]:.1%}", "ma", 620, size=15)
    _paste(sheet, image, 15, 32, 300)
    if overlay is not None:
        _paste(sheet, overlay, 325, 32, 300)
    for number, k in enumerate(best if overlay is None else ()):
        middle, end = 48 + 30 * number, 461 + round(124 * float(probabilities[k]))
        _write(sheet, (455, middle), classes[k], "rm", 130, size=12)
        ImageDraw.Draw(sheet).rectangle((460, middle - 9, end, middle + 9), fill=COLOURS[0])
        _write(sheet, (end + 5, middle), f"{probabilities[k]:.1%}", "lm", 50, size=12)
    _save(sheet, path)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font that comes with matplotlib, so that it is the same everywhere."""
    import matplotlib as mpl

    return ImageFont.truetype(Path(mpl.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)


def _write(
    sheet: Image.Image, at: tuple[int, int], text: str, anchor: str, width: int, *, size: int = 10
) -> None:
    """Write a line of text, cut to a width in pixels, with its anchor at a place."""
    font, text = _font(size), printable(text)[:200]
    if font.getlength(text) > width:
        while text and font.getlength(text + "…") > width:
            text = text[:-1]
        text += "…"
    ImageDraw.Draw(sheet).text(at, text, "black", font, anchor=anchor)


def _paste(sheet: Image.Image, image: Pixels, left: int, top: int, side: int) -> None:
    """Paste an image (H, W, C) into the middle of a square."""
    picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    scale = side / max(picture.size)
    picture = picture.resize(
        (round(picture.width * scale) or 1, round(picture.height * scale) or 1)
    )
    sheet.paste(picture, (left + (side - picture.width) // 2, top + (side - picture.height) // 2))


def _save(sheet: Image.Image, path: Path) -> None:
    with atomic_path(path) as part:
        sheet.save(part, "PNG")


@contextmanager
def _figure(path: Path, width: float, height: float) -> "Iterator[Figure]":
    """Yield a figure of this size in inches, and save it without date and version."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "axes.grid": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "font.family": "DejaVu Sans",
        "grid.color": "0.92",
        "legend.frameon": False,
        "text.parse_math": False,  # a class may be called $x$
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
        yield figure
        with atomic_path(path) as part:
            figure.savefig(part, format="png", metadata={"Software": None})
