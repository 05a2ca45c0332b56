"""Train one variant on the target task, once per entry of `repeat`."""

from pathlib import Path
from typing import Annotated

import typer

from resnets.system.errors import run_app
from resnets.system.files import mark_published
from resnets.system.runtime import process_number


def main(
    variant: Annotated[str, typer.Argument(help="A key of `transfer` in params.yaml.")],
    task: Annotated[Path, typer.Option(help="Folder of the prepared and split task.")],
    init: Annotated[Path, typer.Option(help="Folder of the model to start from.")],
    out: Annotated[Path, typer.Option(help="Folder for the bundles.")],
    history: Annotated[Path, typer.Option(help="CSV file for the learning curves.")],
    params: Annotated[Path, typer.Option(help="The parameters.")] = Path("params.yaml"),
) -> None:
    r"""Train one variant, or continue where a stopped run of the same inputs was.

    \b
    Example:
      python -m resnets.stages.transfer finetune --task data/tasks/target --init artifacts/backbone
        --out artifacts/finetune --history plots/finetune/history.csv
    """
    from resnets.params import load_params
    from resnets.params.load import choose
    from resnets.training.processes import launch

    values = load_params(params)
    launch(values.runtime.processes)
    section = choose(values.transfer, "transfer", variant)
    network = section.model

    from resnets.tasks.task import Task
    from resnets.training.identity import training_inputs
    from resnets.training.publish import full_preprocess, origin, publish_bundle
    from resnets.training.recorded import keep, recorded_bundles
    from resnets.training.show import Curves
    from resnets.training.start import initial_model
    from resnets.training.state import held
    from resnets.training.trainer import Trainer

    opened = Task(task).redrawn(section.redraw_split)
    preprocess = full_preprocess(values.data, values.preprocess, network.in_channels)
    state, sides = Path(f".state/transfer-{variant}"), (opened.side("train"), opened.side("val"))
    trainer = Trainer(*sides, section, preprocess, values.runtime, state)
    curves, seeds = Curves(history), {repeat: values.seed + repeat for repeat in values.repeat}
    with held(state, f"transfer of {variant}", seeds.values(), values.transfer):
        recorded = recorded_bundles(out, seeds.values())
        for repeat, seed in seeds.items():
            model, weights = initial_model(network, section.init, init, opened.classes, seed)
            identity = trainer.identity(seed, training_inputs(__file__, values, variant, weights))
            name = "model" if repeat == values.repeat[0] else f"repeat-{repeat}"
            path, title, write = out / f"{name}.safetensors", f"{variant} {seed}", curves.of(repeat)
            if kept := keep(recorded, origin(opened, identity), path, title):
                write(kept)
                continue
            trained = trainer.run(model, title=title, identity=identity, write_curve=write)
            about = {"variant": variant, "seed": seed, "redraw_split": section.redraw_split}
            publish_bundle(path, trained, opened, network, preprocess, about)
        if not process_number():
            mark_published(state, history)


if __name__ == "__main__":
    run_app(main)
