"""Read a dataset, judge every image, find duplicates and pack the good ones."""

from itertools import groupby, islice
from pathlib import Path
from typing import Annotated

import typer

from resnets.system.errors import run_app
from resnets.system.files import locked, write_json

PER_CLASS = 8  # samples shown of each class: those with the smallest hashes, so at random


def main(
    task: Annotated[str, typer.Argument(help="A key of `tasks` in params.yaml.")],
    out: Annotated[Path, typer.Option(help="Folder for images.bin and the two tables.")],
    metrics: Annotated[Path, typer.Option(help="JSON file for the counts.")],
    samples: Annotated[Path, typer.Option(help="PNG file for a grid of samples.")],
    params: Annotated[Path, typer.Option(help="The parameters.")] = Path("params.yaml"),
) -> None:
    r"""Prepare one task.

    \b
    Example:
      python -m resnets.stages.prepare target --out data/tasks/target
        --metrics metrics/data_target.json --samples plots/data_target/samples.png
    """
    from resnets.params import load_params
    from resnets.params.load import choose

    values = load_params(params)
    dataset = choose(values.tasks, "tasks", task)

    from resnets.data.prepare import list_bad, prepare_task
    from resnets.tasks.sheet import plot_sheet
    from resnets.tasks.task import PixelStore

    with locked(Path(".state") / f"prepare-{task}", f"preparation of {task}"):
        summary = prepare_task(dataset, values.data, values.model.in_channels, out)
        write_json(metrics, summary.metrics)
        if summary.rejected:
            typer.echo(f"left out {list_bad(summary.rejected)}; see {out}/rejected.csv", err=True)
        shown = sorted(summary.rows, key=lambda row: (row.label, row.pixel_sha256))
        shown = [
            r for _, rows in groupby(shown, lambda r: r.label) for r in islice(rows, PER_CLASS)
        ]
        images = PixelStore(out / "images.bin", shown)
        plot_sheet([images[i] for i in range(len(shown))], [row.label for row in shown], samples)


if __name__ == "__main__":
    run_app(main)
