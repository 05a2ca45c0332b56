"""Score a variant's best checkpoint, once, on the test side."""

from pathlib import Path
from typing import Annotated

import typer

from resnets.errors import run_app


def main(
    model: Annotated[Path, typer.Argument(help="Folder of a variant's bundles.")],
    task: Annotated[Path, typer.Option(help="Folder of the prepared and split task.")],
    metrics: Annotated[Path, typer.Option(help="JSON file for the headline numbers.")],
    plots: Annotated[Path, typer.Option(help="Folder for tables and pictures.")],
    params: Annotated[Path, typer.Option(help="The parameters.")] = Path("params.yaml"),
) -> None:
    r"""Evaluate all repeats of one variant.

    \b
    Example:
      python -m resnets.stages.evaluate artifacts/finetune --task data/tasks/target
        --metrics metrics/finetune.json --plots plots/finetune
    """
    from resnets.params import load_params

    values = load_params(params)

    from resnets.evaluation.scoring import score_models
    from resnets.files import locked
    from resnets.runtime import make_repeatable, resolve_device
    from resnets.tasks.task import open_task

    make_repeatable(values.runtime.threads)
    names = ["model", *(f"repeat-{repeat}" for repeat in values.repeat[1:])]
    bundles = {
        repeat: model / f"{name}.safetensors"
        for repeat, name in zip(values.repeat, names, strict=True)
    }
    device = resolve_device(values.runtime.device)
    with locked(Path(".state") / f"evaluate-{model.name}", f"evaluation of {model.name}"):
        score_models(bundles, open_task(task), device=device, metrics=metrics, plots=plots)


if __name__ == "__main__":
    run_app(main)
