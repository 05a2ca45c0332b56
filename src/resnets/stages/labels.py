"""Rank the images of the target task by how little their label is believed."""

from pathlib import Path
from typing import Annotated

import typer

from resnets.system.errors import run_app
from resnets.system.files import locked, write_json, write_text

LISTED, SHOWN = 200, 16  # images in the table, beside all that are suspected, and on the sheet


def main(
    task: Annotated[Path, typer.Option(help="Folder of the prepared and split task.")],
    source: Annotated[Path, typer.Option(help="What the backbone comes from.")],
    backbone: Annotated[Path, typer.Option(help="Folder of the backbone, for its features.")],
    metrics: Annotated[Path, typer.Option(help="JSON file for the counts.")],
    plots: Annotated[Path, typer.Option(help="Folder for labels.csv and suspected.png.")],
    params: Annotated[Path, typer.Option(help="The parameters.")] = Path("params.yaml"),
) -> None:
    """Look for wrong labels, and for images of the task that the backbone was trained on.

    For example:
      python -m resnets.stages.labels --task data/tasks/target --source data/tasks/source
        --backbone artifacts/backbone --metrics metrics/labels.json --plots plots/labels
    """
    from resnets.params import load_params

    values = load_params(params)
    runtime, preprocess = values.runtime, values.preprocess

    from resnets.data.duplicates import near_between
    from resnets.evaluation.label_issues import captions_of, counts_of, judge_labels
    from resnets.evaluation.yardsticks import backbone_features, thumbnails
    from resnets.system.runtime import make_repeatable, resolve_device
    from resnets.tasks.manifest import read_manifest
    from resnets.tasks.sheet import plot_sheet
    from resnets.tasks.task import PixelStore, Task

    make_repeatable(runtime.threads)
    with locked(Path(".state/labels"), "search for wrong labels"):
        features = backbone_features(backbone, preprocess, resolve_device(runtime.device))
        opened = Task(task)
        table, scores = judge_labels(opened, features or thumbnails)
        rows, _ = read_manifest(task / "manifest.csv")
        listed = source / "manifest.csv"
        others = read_manifest(listed)[0] if listed.is_file() else []
        near = near_between(rows, others)
        table["near_source"] = [near.get(name, "") for name in table["id"]]
        write_json(metrics, counts_of(table) | {"groups": scores})
        kept = table["suspected"] | (table["near_source"] != "") | (table.index < LISTED)
        write_text(plots / "labels.csv", table[kept].to_csv(index=False, lineterminator="\n"))
        worst, row_of = table[table["suspected"]].head(SHOWN), {row.id: row for row in rows}
        images = PixelStore(task / "images.bin", [row_of[name] for name in worst["id"]])
        captions = captions_of(worst, has_sides=not opened.num_folds)
        plot_sheet(images, captions, plots / "suspected.png")


if __name__ == "__main__":
    run_app(main)
