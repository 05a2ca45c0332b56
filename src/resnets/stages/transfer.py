"""Train one variant on the target task, once per entry of `repeat`, or once per fold of it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from resnets.system.errors import run_app


def main(
    variant: Annotated[str, typer.Argument(help="A key of `transfer` in params.yaml.")],
    task: Annotated[Path, typer.Option(help="Folder of the prepared and split task.")],
    init: Annotated[Path, typer.Option(help="Folder of the model to start from.")],
    out: Annotated[Path, typer.Option(help="Folder for the bundles.")],
    history: Annotated[Path, typer.Option(help="CSV file for the learning curves.")],
    params: Annotated[Path, typer.Option(help="The parameters.")] = Path("params.yaml"),
) -> None:
    """Train one variant, or continue where a stopped run of the same inputs was.

    For example:
      python -m resnets.stages.transfer finetune --task data/tasks/target --init artifacts/backbone
        --out artifacts/finetune --history plots/finetune/history.csv
    """
    from resnets.params.load import choose, load_params
    from resnets.training.processes import launch

    values = load_params(params)
    launch(values.runtime.processes)
    section = choose(values.transfer, "transfer", variant)
    from resnets.tasks.task import Task
    from resnets.training.identity import training_inputs
    from resnets.training.parts import parts_of
    from resnets.training.publish import full_preprocess, origin, publish_bundle
    from resnets.training.recorded import keep, recorded_bundles
    from resnets.training.show import Curves
    from resnets.training.start import initial_model
    from resnets.training.state import held
    from resnets.training.trainer import Trainer

    opened, from_variant = Task(task).redrawn(section.redraw_split), section.init in values.transfer
    preprocess = full_preprocess(values.data, values.preprocess, section.model.in_channels)
    state, curves = Path(f".state/transfer-{variant}"), Curves(history)
    seeds, origins = [values.seed + repeat for repeat in values.repeat], dict[str, Any]()
    with held(state, f"transfer of {variant}", history, seeds, values.transfer):
        recorded = recorded_bundles(out, seeds)
        for part in parts_of(opened, values.repeat, values.seed):
            seed, start = part.seed, part.start(init, is_variant=from_variant)
            model, weights = initial_model(section.model, section.init, start, opened.classes, seed)
            inputs = training_inputs(__file__, values, variant, weights)
            inputs |= {fold: origins[fold]["training"] for fold in part.folds}
            trainer = Trainer(*part.sides(), section, preprocess, values.runtime, state, part.word)
            identity, write = trainer.identity(seed, inputs), part.curve(curves)
            origins[part.file] = origin(part.task, identity)
            if keep(recorded, origins[part.file], out / part.file, f"{variant} {part}", write):
                continue
            trained = trainer.run(model, f"{variant} {part}", identity=identity, write_curve=write)
            about = {"variant": variant, "redraw_split": section.redraw_split}
            publish_bundle(out, trained, part, section.model, preprocess, about)


if __name__ == "__main__":
    run_app(main)
