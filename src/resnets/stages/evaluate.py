"""Score a model's chosen checkpoints, once, on the test side."""

from pathlib import Path
from typing import Annotated

import typer

from resnets.system.errors import run_app


def main(
    model: Annotated[Path, typer.Argument(help="Folder of a model's bundles.")],
    task: Annotated[Path, typer.Option(help="Folder of the prepared and split task.")],
    history: Annotated[Path, typer.Option(help="CSV file of its learning curves.")],
    metrics: Annotated[Path, typer.Option(help="JSON file for the means over all repeats.")],
    plots: Annotated[Path, typer.Option(help="Folder for details, tables and pictures.")],
    candidate: Annotated[
        Path | None, typer.Option(help="Folder for what the leaderboard and the export read.")
    ] = None,
    params: Annotated[Path, typer.Option(help="The parameters.")] = Path("params.yaml"),
) -> None:
    """Evaluate all repeats of one variant, or the backbone.

    For example:
      python -m resnets.stages.evaluate artifacts/finetune --task data/tasks/target
        --history plots/finetune/history.csv --metrics metrics/finetune.json
        --plots plots/finetune --candidate artifacts/candidates/finetune
    """
    from resnets.params import load_params

    runtime = load_params(params).runtime

    from resnets.evaluation.scoring import pass_on, repeats_of, score_models, score_nothing
    from resnets.models.bundle import UNSCORED
    from resnets.system.files import locked
    from resnets.system.runtime import make_repeatable, resolve_device
    from resnets.tasks.task import Task

    make_repeatable(runtime.threads)
    with locked(Path(".state") / f"evaluate-{model.name}", f"evaluation of {model.name}"):
        repeats, device = repeats_of(history), resolve_device(runtime.device)
        if not repeats:
            score_nothing(model / UNSCORED, metrics=metrics, plots=plots)
            return
        score_models(model, repeats, Task(task), device, metrics=metrics, plots=plots)
        if candidate:
            pass_on(model, history, plots, candidate)


if __name__ == "__main__":
    run_app(main)
