"""Assign every image of a task to train, val or test."""

from pathlib import Path
from typing import Annotated

import typer

from resnets.system.errors import about_task, printable, run_app
from resnets.system.files import locked, write_json


def main(
    name: Annotated[str, typer.Argument(help="A key of `split` in params.yaml.")],
    task: Annotated[Path, typer.Option(help="Folder of the prepared task.")],
    metrics: Annotated[Path, typer.Option(help="JSON file for the counts.")],
    params: Annotated[Path, typer.Option(help="The parameters.")] = Path("params.yaml"),
) -> None:
    """Split one task.

    For example:
      python -m resnets.stages.split target --task data/tasks/target
        --metrics metrics/split_target.json
    """
    from resnets.params import load_params
    from resnets.params.load import choose

    values = load_params(params)
    section = choose(values.split, "split", name)

    from resnets.data.split import split_task

    with about_task(name), locked(Path(".state") / f"split-{name}", f"split of {name}"):
        counts = split_task(task, section, values.repeat)
        write_json(metrics, counts)
    if pooled := counts.get("pooled"):
        shown = ", ".join(f"{side} {number}" for side, number in pooled.items())
        typer.echo(f"the folds pool the sides that the dataset brings: {shown}")
    for side, classes in counts["off_quota"].items():
        shown = ", ".join(f"{number:+d} of {label}" for label, number in classes.items())
        if shown:
            typer.echo(f"{side} misses its size, as groups stay together: {printable(shown)}")


if __name__ == "__main__":
    run_app(main)
