"""Read a dataset, judge every image, find duplicates and pack the good ones."""

from itertools import groupby, islice
from pathlib import Path
from typing import Annotated

import typer

from resnets.system.errors import about_task, printable, run_app
from resnets.system.files import locked, write_json

MOST_CLASSES = 50  # that samples are shown of
PER_CLASS = 8  # samples shown of each class: those with the smallest hashes, so at random


def main(
    task: Annotated[str, typer.Argument(help="A key of `tasks` in params.yaml.")],
    out: Annotated[Path, typer.Option(help="Folder for images.bin and the two tables.")],
    metrics: Annotated[Path, typer.Option(help="JSON file for the counts.")],
    samples: Annotated[Path, typer.Option(help="PNG file for a grid of samples.")],
    findings: Annotated[Path, typer.Option(help="PNG file for the worst of each finding.")],
    params: Annotated[Path, typer.Option(help="The parameters.")] = Path("params.yaml"),
) -> None:
    """Prepare one task.

    For example:
      python -m resnets.stages.prepare target --out data/tasks/target
        --metrics metrics/data_target.json --samples plots/data_target/samples.png
        --findings plots/data_target/findings.png
    """
    from resnets.params import load_params
    from resnets.params.load import choose

    values = load_params(params)
    dataset = choose(values.tasks, "tasks", task)

    from resnets.data.findings import count, find_across, find_odd, worst_first
    from resnets.data.prepare import list_bad, prepare_task
    from resnets.tasks.sheet import plot_sheet
    from resnets.tasks.task import PixelStore

    with about_task(task), locked(Path(".state") / f"prepare-{task}", f"preparation of {task}"):
        channels, store = values.model.in_channels, out / "images.bin"
        rows, rejected, counts = prepare_task(dataset, values.data, values.checks, channels, out)
        found = [*find_odd(rows, PixelStore(store, rows)), *find_across(rows)]
        write_json(metrics, counts | {"findings": count(found)})
        if ignored := counts["ignored"]:
            typer.echo(f"skipped {ignored}: excluded, hidden, of a tool, or no images", err=True)
        if rejected:
            bad = printable(list_bad(rejected))
            typer.echo(f"left out {bad}; see {out}/rejected.csv", err=True)
        by_label = sorted(rows, key=lambda row: (row.label, row.pixel_sha256))
        classes = islice(groupby(by_label, lambda row: row.label), MOST_CLASSES)
        shown = [row for _, members in classes for row in islice(members, PER_CLASS)]
        plot_sheet(PixelStore(store, shown), [row.label for row in shown], samples)
        worst, captions = worst_first(found, rows)
        plot_sheet(PixelStore(store, worst), captions, findings)


if __name__ == "__main__":
    run_app(main)
