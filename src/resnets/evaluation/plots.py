"""Draw diagrams as PNG files whose bytes depend on nothing but the data."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resnets.system.files import atomic_path
from resnets.system.fonts import families, legible

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MOST_NUMBERS = 12  # classes beyond which cells of a confusion matrix are too small for numbers
MOST_TICKS = 40  # classes beyond which their names are
NAME_LETTERS = 20


def plot_curves(histories: Mapping[str, "pd.DataFrame"], path: Path) -> None:
    """Draw loss and accuracy per epoch of every variant; a dot marks the chosen epoch.

    A history has the columns epoch, train_loss, train_accuracy, val_loss, val_accuracy, is_chosen.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    with open_figure(path, 10, 4.2) as figure:
        panels = dict(zip(("loss", "accuracy"), figure.subplots(1, 2), strict=True))
        for metric, panel in panels.items():
            for index, (name, history) in enumerate(histories.items()):
                colour = COLOURS[index % len(COLOURS)]
                panel.plot(history["epoch"], history[f"train_{metric}"], ":", color=colour)
                panel.plot(history["epoch"], history[f"val_{metric}"], color=colour, label=name)
                best = history[history["is_chosen"].astype(bool)].tail(1)
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
    with open_figure(path, size + 1, size) as figure:
        panel = figure.subplots()
        panel.set_facecolor("0.9")  # a class without images stays grey
        picture = panel.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        bar = figure.colorbar(picture, label="share of the true class", shrink=0.8)
        bar.ax.yaxis.set_major_formatter("{x:.0%}")
        panel.set(xlabel="predicted", ylabel="true")
        panel.grid(False)
        if num_classes <= MOST_TICKS:
            cut = [legible(name, lambda text: len(text) <= NAME_LETTERS) for name in classes]
            fonts = families(cut)
            panel.set_xticks(range(num_classes), cut, rotation=45, ha="right", family=fonts)
            panel.set_yticks(range(num_classes), cut, family=fonts)
        for (row, column), count in np.ndenumerate(confusion):
            if count and num_classes <= MOST_NUMBERS:
                share = shares[row, column]
                text = f"{share:.1%}\n{count}" if num_classes <= 6 else f"{share:.1%}"
                colour = "white" if share > 0.5 else "black"
                panel.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)


def plot_reliability(lines: Mapping[str, Mapping[str, NDArray[Any]]], path: Path) -> None:
    """Draw accuracy over confidence, and below it the images, of each result of `reliability`."""
    with open_figure(path, 5, 5.5) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        upper.plot([0, 1], [0, 1], "--", color="0.6", label="perfect")
        for (name, bins), colour in zip(lines.items(), COLOURS, strict=False):
            upper.plot(bins["confidence"], bins["accuracy"], "o-", color=colour, label=name)
            lower.vlines(bins["confidence"], 0, bins["images"], color=colour, lw=5, alpha=0.6)
        upper.set(ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
        lower.set(xlabel="confidence", ylabel="images", ylim=(0, None))
        upper.legend(loc="upper left")


@contextmanager
def open_figure(path: Path, width: float, height: float) -> "Iterator[Figure]":
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
