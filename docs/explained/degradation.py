"""Draw the training error of plain and of residual networks, from the kept run of the recipe.

python docs/explained/degradation.py
"""

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from matplotlib.ticker import MaxNLocator

from resnets.evaluation.plots import COLOURS, open_figure
from resnets.system.errors import run_app

HERE = Path(__file__).resolve().parent
RUN = HERE.parents[1] / "recipes/results/degradation/plots"
DEPTHS = (20, 32, 56)
KINDS = ("plain", "residual")


def read_errors(run: Path, kind: str, depth: int) -> pd.DataFrame:
    """Return mean, min and max over the seeds of the training error, in percent, per epoch."""
    history = pd.read_csv(run / f"{kind}{depth}" / "history.csv")
    error = 100 * (1 - history["train_accuracy"])
    return error.groupby(history["epoch"]).agg(["mean", "min", "max"])


def main(
    out: Annotated[Path, typer.Option(help="Folder for the picture.")] = HERE,
    run: Annotated[Path, typer.Option(help="Folder of the variants' histories.")] = RUN,
) -> None:
    """Draw degradation.png: a panel for each kind, a line for each depth."""
    with open_figure(out / "degradation.png", 9.5, 3.8) as figure:
        panels = figure.subplots(1, len(KINDS), sharey=True)
        for panel, kind in zip(panels, KINDS, strict=True):
            for depth, colour in zip(DEPTHS, COLOURS, strict=False):
                error = read_errors(run, kind, depth)
                panel.fill_between(error.index, error["min"], error["max"], color=colour, alpha=0.2)
                panel.plot(error.index, error["mean"], color=colour, label=f"{depth} layers")
            panel.set(xlabel="epoch", ylim=(0, None))
            panel.set_title(f"{kind} networks", fontsize=11)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[0].set_ylabel("training error, %")
        panels[1].legend(loc="upper right")


if __name__ == "__main__":
    run_app(main)
