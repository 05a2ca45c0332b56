"""Score bundles on a task: one pass over validation and test, and the files that come of it."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from resnets.bundle import Bundle, BundleMeta, check_origin, load_bundle
from resnets.data.decode import center_crop
from resnets.data.task import Side, Task
from resnets.evaluation import (
    Evaluation,
    evaluate,
    log_softmax,
    metrics_record,
    predictions_table,
)
from resnets.explain import explain
from resnets.inference import infer
from resnets.plots import plot_confusion, plot_mistakes, plot_reliability
from resnets.runtime import write_json, write_text

BATCH = 256
RESAMPLES = 1000  # of the shipped model; the other repeats give no intervals
MOST_MISTAKES = 24

Logits = NDArray[np.float32]


def score_models(
    bundles: Mapping[int, Path], task: Task, *, device: str, metrics: Path, plots: Path
) -> None:
    """Score the bundles of all repeats; the first one is the one that is shipped.

    Everything is computed in fp32, so that the exported file must give the same. Writes the
    headline numbers to `metrics` and all tables and pictures into the folder `plots`. Raises
    ArtefactError where a bundle was trained on other data, another split or other classes.
    """
    trained_on, test = set(task.side("train").ids), task.side("test")
    runs: dict[int, tuple[Evaluation, Evaluation]] = {}
    logits: dict[int, Logits] = {}
    rows = []
    for repeat, path in bundles.items():
        bundle = load_bundle(path)
        check_origin(bundle.meta, task.hashes(), path)
        val = task.redrawn(bundle.meta.training.get("redraw_split")).side("val")
        sides = {"test": test, "val": val}
        scored = {name: _infer(bundle, side, device) for name, side in sides.items()}
        logits[repeat] = scored["test"]
        resamples = RESAMPLES if repeat == next(iter(bundles)) else 0
        of_test, of_val = (
            evaluate(
                scored[name],
                side.labels,
                task.classes,
                temperature=bundle.meta.temperature,
                resamples=resamples,
            )
            for name, side in sides.items()
        )
        runs[repeat] = of_test, of_val
        leaked = round(len(trained_on.intersection(val.ids)) / len(val.ids), 6)
        rows.append(_run_row(repeat, path, bundle, runs[repeat]) | {"val_leaked": leaked})
    shipped = load_bundle(next(iter(bundles.values())))
    record = metrics_record(
        runs,
        training={key: rows[0][key] for key in TRAINING},
        measured_on=measured_on(shipped, task, test),
    )
    record["val"]["leaked"] = rows[0]["val_leaked"]  # share of val images that were trained on
    write_json(metrics, record)
    _write(plots / "runs.csv", pd.DataFrame(rows))
    first = next(iter(runs.values()))[0]
    _write_tables(plots, first, logits, test, shipped.meta)
    _draw(plots, first, logits[next(iter(bundles))], test, shipped, device)


TRAINING = ("epochs", "best_epoch", "parameters", "parameters_trained", "model_bytes")


def measured_on(bundle: Bundle, task: Task, test: Side) -> dict[str, str]:
    """Return what a reviewer must know to compare two numbers, as short hashes."""
    preprocess = bundle.meta.preprocess.model_dump_json()
    return {
        **task.hashes(),
        "test_set": test.digest(),
        "preprocess": hashlib.sha256(preprocess.encode()).hexdigest()[:16],
        "weights": bundle.sha256[:16],
        "precision": bundle.meta.training["precision"],
    }


def _infer(bundle: Bundle, side: Side, device: str) -> Logits:
    return infer(
        bundle.model, side.images, preprocess=bundle.meta.preprocess, batch_size=BATCH,
        device=device, precision="fp32",
    )  # fmt: skip


def _run_row(
    repeat: int, path: Path, bundle: Bundle, scores: tuple[Evaluation, Evaluation]
) -> dict[str, Any]:
    """Return the row of one training run in runs.csv."""
    training = bundle.meta.training
    row: dict[str, Any] = {"repeat": repeat, "seed": training["seed"]}
    for name, scored in zip(("test", "val"), scores, strict=True):
        row[f"{name}_accuracy"] = round(scored.scores["accuracy"].value, 6)
        row[f"{name}_nll"] = round(scored.scores["nll"].value, 6)
    row |= {key: training[key] for key in TRAINING if key != "model_bytes"}
    row |= {"temperature": bundle.meta.temperature, "model_bytes": path.stat().st_size}
    return row | {"model": path.as_posix(), "weights": bundle.sha256}


def _write(path: Path, table: pd.DataFrame) -> None:
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def _write_tables(
    plots: Path,
    first: Evaluation,
    logits: Mapping[int, Logits],
    test: Side,
    meta: BundleMeta,
) -> None:
    """Write predictions, every score with its interval, per-class numbers, and all repeats."""
    classes, shipped = test.classes, next(iter(logits.values()))
    _write(
        plots / "predictions.csv",
        predictions_table(test.ids, test.labels, shipped, classes, meta.temperature),
    )
    _write(plots / "scores.csv", pd.DataFrame(first.score_rows()).round(6))
    _write(plots / "per_class.csv", pd.DataFrame(first.per_class).round(6))
    names = np.asarray(classes, dtype=object)
    seeds = {"id": test.ids, "label": names[test.labels]}
    seeds |= {str(repeat): names[values.argmax(1)] for repeat, values in logits.items()}
    _write(plots / "seeds.csv", pd.DataFrame(seeds))


def _draw(
    plots: Path, first: Evaluation, logits: Logits, test: Side, bundle: Bundle, device: str
) -> None:
    """Draw confusion, reliability, and the most confident mistakes, plain and explained."""
    plot_confusion(first.confusion, test.classes, plots / "confusion.png")
    temperature = bundle.meta.temperature
    before = evaluate(logits, test.labels, test.classes, resamples=0)
    lines = {"as trained": before.reliability, f"temperature {temperature:g}": first.reliability}
    plot_reliability(lines, plots / "reliability.png")
    confidence = np.exp(log_softmax(logits / temperature)).max(1)
    predicted = logits.argmax(1)
    wrong = np.flatnonzero(predicted != test.labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:MOST_MISTAKES]
    crops = [center_crop(test.images[row], bundle.meta.preprocess.crop) for row in worst]
    heat = explain(bundle, crops, predicted[worst], device=device) if len(worst) else []
    for name, images in (("mistakes", crops), ("mistakes_explained", heat)):
        plot_mistakes(
            images,
            _names(test.classes, test.labels[worst]),
            _names(test.classes, predicted[worst]),
            confidence[worst].tolist(),
            plots / f"{name}.png",
        )


def _names(classes: Sequence[str], rows: NDArray[np.int64]) -> list[str]:
    return [classes[row] for row in rows]
