"""Draw what the recipe `degradation` found: training error and gradients against depth.

    python recipes/degradation.py --out recipes/results/degradation

after `dvc repro`, in the folder where it ran. Training error is 1 - the accuracy over the last
epoch's batches. Gradients are of the loss on one batch of training images, in training mode: at
initialisation, which the seed draws again, and of the chosen checkpoint.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from resnets.evaluation.plots import COLOURS
from resnets.models.bundle import load_bundle
from resnets.params import load_params
from resnets.params.schema import Params
from resnets.system.errors import run_app
from resnets.system.files import write_text
from resnets.system.runtime import make_repeatable
from resnets.tasks.decode import center_crop
from resnets.tasks.task import Side, Task
from resnets.training.start import initial_model

IMAGES = 256  # of the batch whose gradient is shown
STYLES = ("-", "--", ":", "-.")  # of the depths, from the shallowest
COLOUR = {"plain": COLOURS[1], "residual": COLOURS[0]}


def variants(values: Params) -> Iterator[tuple[str, str, int]]:
    """Yield each variant's name, its kind and its depth."""
    for name in values.transfer:
        network = values.transfer[name].model
        kind = "plain" if network.shortcut == "none" else "residual"
        yield name, kind, int(network.name.removeprefix("resnet"))


def read_errors(values: Params) -> pd.DataFrame:
    """Return the training error per kind, depth, repeat and epoch."""
    tables = []
    for name, kind, depth in variants(values):
        history = pd.read_csv(f"plots/{name}/history.csv")
        error = (1 - history["train_accuracy"]).round(6)
        tables.append(history[["repeat", "epoch"]].assign(kind=kind, depth=depth, error=error))
    return pd.concat(tables)


def read_gradients(values: Params, side: Side, classes: list[str]) -> pd.DataFrame:
    """Return the norm of each layer's gradient per kind, depth, repeat and moment."""
    import torch
    from torch.nn import functional as F

    from resnets.models.inference import normalise

    chosen = np.linspace(0, len(side.ids) - 1, IMAGES).astype(int)  # they are sorted by class
    crops = [center_crop(side.images[row], values.preprocess.crop) for row in chosen]
    images = torch.stack([torch.from_numpy(crop.copy()).permute(2, 0, 1) for crop in crops])
    inputs = normalise(images, values.preprocess.mean, values.preprocess.std)
    labels = torch.from_numpy(side.labels[chosen])
    rows = []
    for name, kind, depth in variants(values):
        for position, repeat in enumerate(values.repeat):
            network, seed = values.transfer[name].model, values.seed + repeat
            first, _ = initial_model(network, "random", Path(), classes=classes, seed=seed)
            file = f"repeat-{repeat}" if position else "model"
            last = load_bundle(Path(f"artifacts/{name}/{file}.safetensors")).model
            for moment, model in (("start", first), ("end", last)):
                F.cross_entropy(model.train()(inputs), labels).backward()
                layers = [p for p in model.parameters() if p.ndim > 1]
                for layer, weights in enumerate(layers, 1):
                    assert weights.grad is not None
                    rows.append((kind, depth, repeat, moment, layer, float(weights.grad.norm())))
    columns = ["kind", "depth", "repeat", "moment", "layer", "norm"]
    return pd.DataFrame(rows, columns=columns)


def summarise(errors: pd.DataFrame) -> pd.DataFrame:
    """Return mean and 95% interval (Student's t over seeds) of the last epoch's error."""
    last = errors[errors["epoch"] == errors["epoch"].max()]
    rows = []
    for (kind, depth), group in last.groupby(["kind", "depth"]):
        mean, half = group["error"].mean(), 0.0
        if len(group) > 1:
            half = stats.t.ppf(0.975, len(group) - 1) * group["error"].sem()
        rows.append((kind, depth, len(group), mean, mean - half, mean + half))
    columns = ["kind", "depth", "seeds", "error", "low", "high"]
    return pd.DataFrame(rows, columns=columns).round(6)


def sentences(errors: pd.DataFrame) -> list[str]:
    """Say, for each depth, what plain minus residual is, with its interval (Welch's t)."""
    last = errors[errors["epoch"] == errors["epoch"].max()]
    lines = []
    for depth, group in last.groupby("depth"):
        plain, residual = (group[group["kind"] == kind]["error"] for kind in COLOUR)
        line = (
            f"{depth} layers: training error {100 * plain.mean():.2f}% plain, "
            f"{100 * residual.mean():.2f}% residual, difference "
            f"{100 * (plain.mean() - residual.mean()):+.2f} points"
        )
        if len(plain) > 1:
            found = stats.ttest_ind(plain, residual, equal_var=False).confidence_interval()
            line += (
                f" (95% interval {100 * found.low:+.2f} to {100 * found.high:+.2f}, "
                f"{len(plain)} seeds each)"
            )
        lines.append(f"{line}.")
    return lines


def draw(errors: pd.DataFrame, gradients: pd.DataFrame, path: Path) -> None:
    """Draw error against depth and epochs, and gradients at the start and the end."""
    figure = Figure(figsize=(11, 7.5), dpi=100, layout="constrained")
    panels: list[Axes] = list(figure.subplots(2, 2).ravel())
    for kind, rows in summarise(errors).groupby("kind"):
        bars = [rows["error"] - rows["low"], rows["high"] - rows["error"]]
        panels[0].errorbar(
            rows["depth"], rows["error"], bars, fmt="o-", capsize=4, color=COLOUR[str(kind)],
            label=kind,
        )  # fmt: skip
    depths = sorted(errors["depth"].unique())
    panels[0].set(xticks=depths, ylim=(0, None), title="after the last epoch, 95% interval")
    for kind, colour in COLOUR.items():
        for depth, style in zip(depths, STYLES, strict=False):
            chosen = errors[(errors["kind"] == kind) & (errors["depth"] == depth)]
            mean = chosen.groupby("epoch")["error"].mean()
            panels[1].plot(mean.index, mean, style, color=colour, label=f"{kind} {depth}")
            for panel, moment in zip(panels[2:], ("start", "end"), strict=True):
                of = gradients[(gradients["kind"] == kind) & (gradients["depth"] == depth)]
                norm = of[of["moment"] == moment].groupby("layer")["norm"].mean()
                panel.plot(norm.index, norm, style, color=colour)
    panels[1].set(title="mean over seeds")
    titles = ("at initialisation", "of the chosen checkpoint")
    for panel, title in zip(panels[2:], titles, strict=True):
        panel.set(xlabel="layer, from the image to the head", ylabel="norm of the gradient")
        panel.set(yscale="log", title=f"{title}, mean over seeds")
    for panel, xlabel in zip(panels[:2], ("layers", "epoch"), strict=True):
        panel.set(xlabel=xlabel, ylabel="training error")
        panel.legend(frameon=False)
    for panel in panels:
        panel.grid(color="0.92")
        panel.spines[["right", "top"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def main(
    out: Annotated[Path, typer.Option(help="Folder for the picture and the tables.")] = Path(
        "recipes/results/degradation"
    ),
) -> None:
    """Draw the picture, write its numbers beside it, and say what they say."""
    values = load_params("params.yaml")
    make_repeatable(values.runtime.threads)
    task = Task(Path("data/tasks/target"))
    errors = read_errors(values)
    gradients = read_gradients(values, task.side("train"), task.classes)
    draw(errors, gradients, out / "degradation.png")
    means = gradients.groupby(["kind", "depth", "moment", "layer"])["norm"].mean().reset_index()
    tables = {"errors": summarise(errors), "gradients": means}
    for name, table in tables.items():
        text = table.to_csv(index=False, lineterminator="\n", float_format="%.6g")
        write_text(out / f"{name}.csv", text)
    text = "\n".join(sentences(errors))
    write_text(out / "degradation.txt", f"{text}\n")
    print(text)


if __name__ == "__main__":
    run_app(main)
