"""Draw where the default pipeline's test images lie before and after fine-tuning.

python docs/explained/features.py     after `dvc repro`, in its folder
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from matplotlib.axes import Axes
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from resnets.evaluation.plots import COLOURS, open_figure
from resnets.models.bundle import load_bundle
from resnets.models.inference import infer
from resnets.system.errors import run_app
from resnets.tasks.task import Side, Task

HERE = Path(__file__).resolve().parent
MODELS = {"backbone": "before: features of the backbone", "finetune": "after fine-tuning"}
NEIGHBOURS = 5
SHOWN = 4  # images of each class


def features_of(model: Path, side: Side) -> NDArray[np.float32]:
    """Return the pooled features (N, F) that a model computes of the images of a side."""
    bundle = load_bundle(model / "model.safetensors")
    return infer(bundle.model, side.images, preprocess=bundle.meta.preprocess, output="features")


def share_right(features: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the share of images whose class is that of most of their nearest neighbours."""
    nearest = KNeighborsClassifier(NEIGHBOURS)
    return float(cross_val_score(nearest, features, labels, cv=LeaveOneOut()).mean())


def choose_images(places: NDArray[np.float32], labels: NDArray[np.int64]) -> list[int]:
    """Return some images of each class, evenly spaced on the first axis of `places`."""
    chosen = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        ranked = rows[np.argsort(places[rows, 0])]
        chosen += ranked[np.linspace(0, len(rows) - 1, SHOWN).astype(int)].tolist()
    return chosen


def draw_points(panel: Axes, places: NDArray[np.float32], side: Side, shown: list[int]) -> None:
    """Draw a dot for each image, in the colour of its class, and some of the images themselves."""
    for label, name in enumerate(side.classes):
        chosen = places[side.labels == label]
        panel.plot(*chosen.T, "o", ms=3, color=COLOURS[label], label=name)
    for index in shown:
        picture = OffsetImage(255 - side.images[index][:, :, 0], zoom=0.9, cmap="gray")
        frame = {"edgecolor": COLOURS[side.labels[index]], "linewidth": 1.5}
        panel.add_artist(AnnotationBbox(picture, places[index], pad=0.1, bboxprops=frame))


def main(
    task: Annotated[Path, typer.Option(help="The prepared task.")] = Path("data/tasks/target"),
    models: Annotated[Path, typer.Option(help="Folder of the models.")] = Path("artifacts"),
    out: Annotated[Path, typer.Option(help="Folder for the picture.")] = HERE,
) -> None:
    """Draw features.png: the two main axes of the features of each model, image by image."""
    side, shown = Task(task).side("test"), list[int]()
    with open_figure(out / "features.png", 9.3, 4.4) as figure:
        panels = figure.subplots(1, len(MODELS))
        for panel, (name, title) in zip(panels, MODELS.items(), strict=True):
            features = features_of(models / name, side)
            axes = PCA(2).fit(features)
            places = axes.transform(features)
            shown = shown or choose_images(places, side.labels)
            draw_points(panel, places, side, shown)
            right = share_right(features, side.labels)
            panel.set_title(
                f"{title}\n{NEIGHBOURS} nearest neighbours: {right:.1%} right", fontsize=11
            )
            first, second = (
                f"{share:.0%} of the variance" for share in axes.explained_variance_ratio_
            )
            panel.set(xlabel=f"first axis, {first}", ylabel=f"second axis, {second}")
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names))


if __name__ == "__main__":
    run_app(main)
