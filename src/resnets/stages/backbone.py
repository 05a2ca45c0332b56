"""Train the backbone on the source task, or import its weights from a file."""

from pathlib import Path
from typing import Annotated

import typer

from resnets.errors import run_app
from resnets.files import mark_published, write_json, write_text
from resnets.runtime import process_number
from resnets.training.processes import launch


def main(
    out: Annotated[Path, typer.Option(help="Folder for the bundle.")],
    metrics: Annotated[Path, typer.Option(help="JSON file for the headline numbers.")],
    plots: Annotated[Path, typer.Option(help="Folder for the learning curve and the scores.")],
    params: Annotated[Path, typer.Option(help="The parameters.")] = Path("params.yaml"),
) -> None:
    r"""Make the backbone from `backbone.input`: a task folder, a weights file, or none at all.

    \b
    Example:
      python -m resnets.stages.backbone --out artifacts/backbone
        --metrics metrics/backbone.json --plots plots/backbone
    """
    from resnets.params import NO_BACKBONE, Backbone, load_params

    values = load_params(params)
    section, bundle = values.backbone, out / "model.safetensors"
    source = Path(section.input)
    if section.input == NO_BACKBONE:
        for folder in (out, plots):  # DVC and Git want something to keep
            write_text(folder / "none.txt", source.read_text())
        write_json(metrics, {"backbone": "none"})
        return

    from resnets.training.publish import full_preprocess, publish_import

    preprocess = full_preprocess(values.data, values.preprocess, values.model.in_channels)
    if not source.is_dir() or not isinstance(section, Backbone):
        publish_import(source, bundle, values.model, preprocess, metrics=metrics, plots=plots)
        return

    launch(values.runtime.processes)
    from resnets.evaluation.scoring import score_models
    from resnets.tasks.task import open_task
    from resnets.training.identity import training_inputs
    from resnets.training.publish import publish_bundle, write_history
    from resnets.training.start import initial_model
    from resnets.training.state import held
    from resnets.training.trainer import Trainer

    task, state, seed = open_task(source), Path(".state/backbone"), values.seed
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
            bundle, trained, task, network=values.model, preprocess=preprocess,
            training={"variant": "backbone", "seed": seed},
        )  # fmt: skip
        write_history(plots / "history.csv", {0: trained.history})
        score_models({0: bundle}, task, trained.summary["device"], metrics=metrics, plots=plots)
        mark_published(state)


if __name__ == "__main__":
    run_app(main)
