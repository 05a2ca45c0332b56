"""Draw the pictures of the reports as PNG files whose bytes depend on nothing but the data."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resnets.runtime import atomic_path

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Image = NDArray[np.uint8]

# Okabe and Ito's colours, which colour-blind readers can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DPI = 100
MOST_NUMBERS = 12  # classes beyond which cells of a confusion matrix are too small for numbers
MOST_TICKS = 40  # classes beyond which their names are
NAME_LETTERS = 20
LINE_LETTERS = 26  # of a caption


def plot_curves(histories: Mapping[str, "pd.DataFrame"], path: Path) -> None:
    """Draw loss and accuracy per epoch of every variant; a dot marks the chosen epoch.

    A history has the columns epoch, train_loss, train_accuracy, val_loss, val_accuracy, is_best.
    """
    from matplotlib.ticker import MaxNLocator

    with _figure(path, 10, 4.2) as figure:
        panels: list[Axes] = list(figure.subplots(1, 2))
        for index, (name, history) in enumerate(histories.items()):
            colour = COLOURS[index % len(COLOURS)]
            best = history[history["is_best"].astype(bool)].tail(1)
            for panel, metric in zip(panels, ("loss", "accuracy"), strict=True):
                for side, style in (("train", ":"), ("val", "-")):
                    y = history[f"{side}_{metric}"]
                    label = name if side == "val" else None
                    panel.plot(history["epoch"], y, style, color=colour, label=label)
                panel.plot(best["epoch"], best[f"val_{metric}"], "o", color=colour)
        for panel, metric in zip(panels, ("loss", "accuracy"), strict=True):
            panel.set(xlabel="epoch", ylabel=metric)
            if metric == "loss":
                panel.set_yscale("log")  # one wild epoch must not flatten all others
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        handles, labels = panels[0].get_legend_handles_labels()
        columns = min(len(labels), 6)
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)
        figure.suptitle("solid: validation, dotted: training, dot: chosen epoch", fontsize=10)


def plot_confusion(confusion: NDArray[np.integer], classes: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix (K, K) of counts as shares of each true class (row)."""
    num_classes = len(classes)
    totals = confusion.sum(1, keepdims=True)
    shares = np.where(totals > 0, confusion / np.maximum(totals, 1), np.nan)
    size = float(np.clip(0.55 * num_classes + 2.5, 4, 10))
    with _figure(path, size + 1, size) as figure:
        panel: Axes = figure.subplots()
        panel.set_facecolor("0.9")  # a class without images stays grey
        picture = panel.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        figure.colorbar(picture, label="share of the true class", shrink=0.8)
        panel.set(xlabel="predicted", ylabel="true")
        panel.grid(False)
        if num_classes <= MOST_TICKS:
            names = [_short(name) for name in classes]
            panel.set_xticks(range(num_classes), names, rotation=45, ha="right")
            panel.set_yticks(range(num_classes), names)
        if num_classes > MOST_NUMBERS:
            return
        for (row, column), count in np.ndenumerate(confusion):
            if count:
                share = shares[row, column]
                colour = "white" if share > 0.5 else "black"
                text = f"{share:.2f}\n{count}" if num_classes <= 6 else f"{share:.2f}"
                panel.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)


def plot_reliability(sides: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw accuracy over confidence, one line per entry of `sides` (`Evaluation.reliability`).

    The lower panel shows how many images have that confidence.
    """
    with _figure(path, 5, 5.5) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        upper.plot([0, 1], [0, 1], "--", color="0.6", label="perfect")
        for (name, rows), colour in zip(sides.items(), COLOURS, strict=False):
            confidence = [row["confidence"] for row in rows]
            upper.plot(
                confidence, [row["accuracy"] for row in rows], "o-", color=colour, label=name
            )
            lower.vlines(
                confidence, 0, [row["images"] for row in rows], color=colour, lw=5, alpha=0.6
            )
        upper.set(ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
        lower.set(xlabel="confidence", ylabel="images", ylim=(0, None))
        upper.legend(loc="upper left")


def plot_samples(images: Sequence[Image], labels: Sequence[str], path: Path) -> None:
    """Draw images (H, W, C) with the names of their classes."""
    plot_sheet(images, labels, path)


def plot_mistakes(
    images: Sequence[Image],
    true: Sequence[str],
    predicted: Sequence[str],
    confidence: Sequence[float],
    path: Path,
) -> None:
    """Draw wrongly classified images in the order given, with what they are and were taken for."""
    rows = zip(true, predicted, confidence, strict=True)
    captions = [f"{_short(t)}\n→ {_short(p)} {c:.0%}" for t, p, c in rows]
    plot_sheet(images, captions, path)


def plot_sheet(
    images: Sequence[Image], captions: Sequence[str], path: Path, *, columns: int = 8
) -> None:
    """Draw images (H, W, C), C 1 or 3, in a grid with a caption above each."""
    columns = min(columns, max(len(images), 1))
    rows = max(-(-len(images) // columns), 1)
    lines = max((caption.count("\n") + 1 for caption in captions), default=1)
    with _figure(path, 1.35 * columns, rows * (1.2 + 0.16 * lines)) as figure:
        # every panel has the same size: working the layout out would take most of the time
        figure.set_layout_engine("none")
        head = 0.2 * lines / (rows * (1.2 + 0.16 * lines))
        grid = figure.add_gridspec(
            rows, columns, left=0.01, right=0.99, bottom=0.01, top=1 - head,
            wspace=0.08, hspace=0.16 * lines,
        )  # fmt: skip
        panels = grid.subplots(squeeze=False).ravel()
        for panel in panels:
            panel.axis("off")
        for panel, image, caption in zip(panels, images, captions, strict=False):
            panel.imshow(
                image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255
            )
            cut = [_short(line, LINE_LETTERS) for line in caption.split("\n")]
            panel.set_title("\n".join(cut), fontsize=7, pad=2)
        if not images:
            panels[0].text(0.5, 0.5, "none", ha="center", va="center")


def _short(name: str, most_letters: int = NAME_LETTERS) -> str:
    """Cut a long name, so that captions do not run into each other."""
    return name if len(name) <= most_letters else name[: most_letters - 1] + "…"


@contextmanager
def _figure(path: Path, width: float, height: float) -> "Iterator[Figure]":
    """Yield a figure of this size in inches, and save it without date and version."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "axes.grid": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "font.family": "DejaVu Sans",  # comes with matplotlib, so that it is the same everywhere
        "grid.color": "0.92",
        "legend.frameon": False,
        "text.parse_math": False,  # a class may be called $x$
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        yield figure
        with atomic_path(path) as part:
            figure.savefig(part, format="png", metadata={"Software": None})
