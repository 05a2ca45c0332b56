"""Train as the bird tutorial does, on its split and on a re-drawn one, and draw what each shows.

    python docs/explained/redrawn_split.py

Runs the pipeline's own stages in a temporary folder, with the parameters beside this file.
"""

import contextlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from matplotlib.axes import Axes
from ruamel.yaml import YAML

from resnets.evaluation.plots import COLOURS, open_figure
from resnets.stages import evaluate, prepare, split, transfer
from resnets.system.errors import run_app
from resnets.system.files import write_text

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DATA, TASK, PARAMS = Path("data/sample"), Path("task"), Path("params.yaml")
COLOUR = {"first": COLOURS[6], "same_split": COLOURS[0], "redrawn_split": COLOURS[1]}
COLUMNS = ["chosen_epoch", "val_accuracy", "val_leaked", "test_accuracy"]
LABEL = {
    "first": "first run",
    "same_split": "10 more, same split",
    "redrawn_split": "10 more, new split",
}


def run_stages(values: dict[str, Any], seeds: range) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train and score all variants in this folder; return every epoch's validation, and the ends.

    The split is the same for all seeds; a seed draws weights, batches and the new split.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.dump(values, PARAMS)
    shutil.copytree(ROOT / DATA, DATA)
    prepare.main("target", TASK, Path("data.json"), Path("samples.png"), Path("odd.png"), PARAMS)
    split.main("target", TASK, Path("split.json"), PARAMS)
    epochs, ends = [], []
    for seed in seeds:
        values["seed"] = values["transfer"]["redrawn_split"]["redraw_split"] = seed
        yaml.dump(values, PARAMS)
        for name in COLOUR:  # in the order in which they start from each other
            section = values["transfer"][name]
            start, out = (Path(str(seed), "model", init) for init in (section["init"], name))
            history, plots = out.with_suffix(".csv"), Path(str(seed), name)
            transfer.main(name, TASK, start, out, history, PARAMS)
            evaluate.main(out, TASK, history, Path("metrics.json"), plots, None, PARAMS)
            run = {"variant": name, "seed": seed}
            epochs.append(pd.read_csv(history)[["epoch", "val_accuracy"]].assign(**run))
            details = json.loads((plots / "details.json").read_text())
            ends.append(pd.DataFrame(details["runs"])[COLUMNS].assign(**run))
    return pd.concat(epochs), pd.concat(ends)


def draw_epochs(panel: Axes, epochs: pd.DataFrame) -> None:
    """Draw validation accuracy per epoch: each seed thin, their mean thick."""
    num_before = epochs.loc[epochs["variant"] == "first", "epoch"].max()
    for name, colour in COLOUR.items():
        rows = epochs[epochs["variant"] == name]
        rows = rows.assign(epoch=rows["epoch"] + (0 if name == "first" else num_before))
        by_seed = 100 * rows.pivot(index="epoch", columns="seed", values="val_accuracy")
        panel.plot(by_seed.index, by_seed, color=colour, lw=0.6, alpha=0.4)
        panel.plot(by_seed.index, by_seed.mean(axis=1), color=colour, lw=2, label=LABEL[name])
    panel.axvline(num_before + 0.5, color="0.6", ls=":")
    panel.set(xlabel="epoch", ylabel="accuracy, %", ylim=(50, 100))
    panel.set_title("what the tutorial sees: validation accuracy", fontsize=11)
    panel.legend(loc="upper left")


def draw_ends(panel: Axes, ends: pd.DataFrame) -> None:
    """Draw validation and test accuracy of each seed's chosen epoch, and their means."""
    for index, (name, colour) in enumerate(COLOUR.items()):
        rows = 100 * ends.loc[ends["variant"] == name, ["val_accuracy", "test_accuracy"]]
        places = [index - 0.18, index + 0.18]
        panel.plot(places, rows.T, "o-", color=colour, lw=0.8, ms=4, alpha=0.4)
        for place, mean, side in zip(places, rows.mean(), ("val", "test"), strict=True):
            panel.plot([place - 0.12, place + 0.12], [mean, mean], color=colour, lw=3)
            panel.text(place, 52, f"{side}\n{mean:.1f}", ha="center")
    panel.set_xticks(range(len(COLOUR)), LABEL.values())
    panel.set_title("what new images say: test accuracy", fontsize=11)
    panel.grid(False, axis="x")


def main(
    out: Annotated[Path, typer.Option(help="Folder for the picture and the table.")] = HERE,
    params: Annotated[Path, typer.Option(help="The parameters.")] = HERE / "redrawn_split.yaml",
    seeds: Annotated[int, typer.Option(min=1, help="How many times all is run.")] = 5,
) -> None:
    """Run all, draw redrawn_split.png, and write the outcome of each run to redrawn_split.csv."""
    out, values = out.resolve(), YAML(typ="safe", pure=True).load(params)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        epochs, ends = run_stages(values, range(seeds))
    draw(epochs, ends, out)


def draw(epochs: pd.DataFrame, ends: pd.DataFrame, out: Path) -> None:
    """Draw the picture and write its numbers beside it."""
    with open_figure(out / "redrawn_split.png", 9.2, 3.8) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        draw_epochs(left, epochs)
        draw_ends(right, ends)
    columns = ["variant", "seed", "chosen_epoch", "val_accuracy", "val_leaked", "test_accuracy"]
    write_text(out / "redrawn_split.csv", ends[columns].to_csv(index=False, lineterminator="\n"))


if __name__ == "__main__":
    run_app(main)
