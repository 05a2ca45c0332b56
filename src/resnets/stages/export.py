"""Write the chosen variant as ONNX and prove that it computes the same."""

from pathlib import Path
from typing import Annotated

import typer

from resnets.system.errors import run_app
from resnets.system.files import locked, write_json


def main(
    leaderboard: Annotated[Path, typer.Option(help="What ranks the variants.")],
    candidates: Annotated[Path, typer.Option(help="Folder with a folder for each variant.")],
    task: Annotated[Path, typer.Option(help="Folder of the prepared and split task.")],
    out: Annotated[Path, typer.Option(help="Folder for model.onnx and what goes with it.")],
    metrics: Annotated[Path, typer.Option(help="JSON file for the differences found.")],
    params: Annotated[Path, typer.Option(help="The parameters.")] = Path("params.yaml"),
) -> None:
    """Export the best variant, or the one that `export.variant` names.

    For example:
      python -m resnets.stages.export --leaderboard metrics/leaderboard.json
        --candidates artifacts/candidates --task data/tasks/target --out artifacts/export
        --metrics metrics/export.json
    """
    from resnets.params import load_params

    options = load_params(params).export

    from resnets.evaluation.evaluate import read_evaluation
    from resnets.evaluation.leaderboard import read_choice
    from resnets.export.onnx import export_bundle
    from resnets.tasks.task import Task

    bundle, row = read_choice(leaderboard, candidates, options.variant)
    with locked(Path(".state/export"), "export"):
        opened, scores = Task(task), read_evaluation(bundle.parent)
        report = export_bundle(bundle, out, task=opened, options=options, row=row, scores=scores)
        write_json(metrics, report)


if __name__ == "__main__":
    run_app(main)
