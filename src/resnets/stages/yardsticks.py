"""Measure the yardsticks that the leaderboard shows beside the variants."""

from pathlib import Path
from typing import Annotated

import typer

from resnets.system.errors import run_app


def main(
    task: Annotated[Path, typer.Option(help="Folder of the prepared and split task.")],
    backbone: Annotated[Path, typer.Option(help="Folder of the backbone, for the probe.")],
    out: Annotated[Path, typer.Option(help="CSV file for a row per yardstick and run.")],
    params: Annotated[Path, typer.Option(help="The parameters.")] = Path("params.yaml"),
) -> None:
    """Measure the majority class, a linear model and an SVM on pixels, and a linear probe.

    For example:
      python -m resnets.stages.yardsticks --task data/tasks/target
        --backbone artifacts/backbone --out artifacts/yardsticks.csv
    """
    from resnets.params import load_params

    values = load_params(params)
    runtime, preprocess = values.runtime, values.preprocess

    from resnets.evaluation.yardsticks import backbone_features, measure_yardsticks
    from resnets.system.files import locked, write_text
    from resnets.system.runtime import make_repeatable, resolve_device
    from resnets.tasks.task import Task

    make_repeatable(runtime.threads)
    with locked(Path(".state/yardsticks"), "measurement of the yardsticks"):
        features = backbone_features(backbone, preprocess, resolve_device(runtime.device))
        table = measure_yardsticks(Task(task), values.repeat, features, values.seed)
        write_text(out, table.to_csv(index=False, lineterminator="\n"))


if __name__ == "__main__":
    run_app(main)
