"""Train the backbone on the source task, or import its weights from a file."""

from pathlib import Path
from typing import Annotated

import typer

from resnets.system.errors import run_app


def main(
    out: Annotated[Path, typer.Option(help="Folder for the bundle.")],
    history: Annotated[Path, typer.Option(help="CSV file for the learning curve.")],
    params: Annotated[Path, typer.Option(help="The parameters.")] = Path("params.yaml"),
) -> None:
    """Make the backbone from `backbone.input`: a task folder, a weights file, or none at all.

    For example:
      python -m resnets.stages.backbone --out artifacts/backbone
        --history plots/backbone/history.csv
    """
    from resnets.params import load_params

    values = load_params(params)
    section, source = values.backbone, Path(values.backbone.input)

    from resnets.training.processes import launch
    from resnets.training.publish import full_preprocess, publish_bundle, publish_given
    from resnets.training.show import Curves

    network, curves = values.model, Curves(history)
    preprocess = full_preprocess(values.data, values.preprocess, network.in_channels)
    if not source.is_dir():
        publish_given(source, out, network, preprocess)
        curves.of(0)([])
        return

    launch(values.runtime.processes)
    from resnets.models.bundle import SHIPPED
    from resnets.tasks.task import Task
    from resnets.training.identity import training_inputs
    from resnets.training.parts import Part
    from resnets.training.start import initial_model
    from resnets.training.state import held
    from resnets.training.trainer import Trainer

    task, state, seed = Task(source), Path(".state/backbone"), values.seed
    part = Part(0, seed, task, SHIPPED)
    trainer = Trainer(*part.sides(), section, preprocess, values.runtime, state)
    with held(state, "training of the backbone", history, [seed]):
        model, weights = initial_model(network, "random", source, task.classes, seed)
        inputs = training_inputs(__file__, values, "backbone", weights)
        identity, write = trainer.identity(seed, inputs), curves.of(0)
        trained = trainer.run(model, title="backbone", identity=identity, write_curve=write)
        publish_bundle(out, trained, part, network, preprocess, {"variant": "backbone"})


if __name__ == "__main__":
    run_app(main)
