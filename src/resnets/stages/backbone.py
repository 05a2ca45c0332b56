"""Train the backbone on the source task, or import its weights from a file."""

from pathlib import Path
from typing import Annotated

import typer

from resnets.system.errors import run_app
from resnets.system.files import mark_published, write_json
from resnets.system.runtime import process_number
from resnets.training.processes import launch


def main(
    out: Annotated[Path, typer.Option(help="Folder for the bundle.")],
    history: Annotated[Path, typer.Option(help="CSV file for the learning curve.")],
    params: Annotated[Path, typer.Option(help="The parameters.")] = Path("params.yaml"),
) -> None:
    r"""Make the backbone from `backbone.input`: a task folder, a weights file, or none at all.

    \b
    Example:
      python -m resnets.stages.backbone --out artifacts/backbone
        --history plots/backbone/history.csv
    """
    from resnets.params import load_params
    from resnets.params.schema import NO_BACKBONE

    values = load_params(params)
    section, source = values.backbone, Path(values.backbone.input)

    from resnets.models.bundle import UNSCORED
    from resnets.training.publish import (
        full_preprocess,
        publish_bundle,
        publish_import,
        write_history,
    )

    preprocess = full_preprocess(values.data, values.preprocess, values.model.in_channels)
    if not source.is_dir():
        if section.input == NO_BACKBONE:
            write_json(out / UNSCORED, {"backbone": "none"})
        else:
            publish_import(source, out, values.model, preprocess)
        write_history(history, {})
        return

    launch(values.runtime.processes)
    from resnets.tasks.task import Task
    from resnets.training.identity import training_inputs
    from resnets.training.start import initial_model
    from resnets.training.state import held
    from resnets.training.trainer import Trainer

    task, state, seed = Task(source), Path(".state/backbone"), values.seed
    trainer = Trainer(
        task.side("train"), task.side("val"), section, preprocess, values.runtime, state
    )
    with held(state, "training of the backbone", [seed]):
        model, weights = initial_model(values.model, "random", out, classes=task.classes, seed=seed)
        inputs = training_inputs(__file__, values, "backbone", weights)
        trained = trainer.run(model, title="backbone", seed=seed, inputs=inputs)
        if process_number():
            return
        publish_bundle(
            out / "model.safetensors", trained, task, network=values.model, preprocess=preprocess,
            training={"variant": "backbone", "seed": seed},
        )  # fmt: skip
        write_history(history, {0: trained.history})
        mark_published(state, history)


if __name__ == "__main__":
    run_app(main)
