"""Score bundles on a task: one pass over validation and test, and the files that come of it."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from resnets.bundle import Bundle, check_origin, load_bundle
from resnets.calibration import log_softmax
from resnets.evaluation.gradcam import explain
from resnets.evaluation.metrics import Evaluation, evaluate, metrics_record, reliability
from resnets.evaluation.plots import plot_confusion, plot_reliability, plot_sheet
from resnets.evaluation.predictions import predictions_table, seeds_table
from resnets.files import write_json, write_text
from resnets.inference import infer
from resnets.tasks.decode import center_crop
from resnets.tasks.task import Side, Task

BATCH = 256
RESAMPLES = 1000  # of the shipped model; the other repeats give no intervals
MOST_MISTAKES = 24
TRAINING = ("epochs", "best_epoch", "parameters", "parameters_trained")

Logits = NDArray[np.float32]


def score_models(
    bundles: Mapping[int, Path], task: Task, device: str, *, metrics: Path, plots: Path
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
        resamples = 0 if runs else RESAMPLES
        logits[repeat], of_test = _score(bundle, test, device, resamples)
        runs[repeat] = of_test, _score(bundle, val, device, resamples)[1]
        leaked = round(len(trained_on.intersection(val.ids)) / len(val.ids), 6)
        rows.append(_run_row(repeat, path, bundle, runs[repeat]) | {"val_leaked": leaked})
    repeat, path = next(iter(bundles.items()))
    shipped = load_bundle(path)
    training = {key: rows[0][key] for key in (*TRAINING, "model_bytes")}
    on = measured_on(shipped, task, test)
    record = metrics_record(runs, training=training, measured_on=on)
    record["val"]["leaked"] = rows[0]["val_leaked"]  # share of val images that were trained on
    write_json(metrics, record)
    first, temperature = runs[repeat][0], shipped.meta.temperature
    whole = (test.ids, test.labels, logits[repeat], task.classes, temperature)
    calibrated = {row["repeat"]: logits[row["repeat"]] / row["temperature"] for row in rows}
    groups = task.groups("test")
    tables = {
        "runs": pd.DataFrame(rows),
        "scores": pd.DataFrame(first.score_rows()).round(6),
        "per_class": pd.DataFrame(first.per_class).round(6),
        "predictions": predictions_table(*whole),
        "seeds": seeds_table(test.ids, test.labels, calibrated, task.classes, groups),
    }
    for name, table in tables.items():
        write_text(plots / f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))
    _draw(plots, first, logits[repeat], test, shipped, device)


def _score(bundle: Bundle, side: Side, device: str, resamples: int) -> tuple[Logits, Evaluation]:
    """Return a bundle's logits on a side, and what they score."""
    logits = infer(
        bundle.model, side.images, preprocess=bundle.meta.preprocess, batch_size=BATCH,
        device=device, precision="fp32",
    )  # fmt: skip
    temperature = bundle.meta.temperature
    return logits, evaluate(
        logits, side.labels, side.classes, temperature=temperature, resamples=resamples
    )


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


def _run_row(
    repeat: int, path: Path, bundle: Bundle, scores: tuple[Evaluation, Evaluation]
) -> dict[str, Any]:
    """Return the row of one training run in runs.csv."""
    training = bundle.meta.training
    row: dict[str, Any] = {"repeat": repeat, "seed": training["seed"]}
    for name, side in zip(("test", "val"), scores, strict=True):
        row |= {f"{name}_accuracy": side.value("accuracy"), f"{name}_nll": side.value("nll")}
    row |= {key: training[key] for key in TRAINING}
    row |= {"temperature": bundle.meta.temperature, "model_bytes": path.stat().st_size}
    return row | {"model": path.as_posix(), "weights": bundle.sha256}


def _draw(
    plots: Path, first: Evaluation, logits: Logits, test: Side, bundle: Bundle, device: str
) -> None:
    """Draw confusion, reliability, and the most confident mistakes, plain and explained."""
    temperature, names, predicted = bundle.meta.temperature, test.classes, logits.argmax(1)
    plot_confusion(first.confusion, names, plots / "confusion.png")
    before = reliability(log_softmax(logits), test.labels)
    lines = {"as trained": before, f"temperature {temperature:g}": first.reliability}
    plot_reliability(lines, plots / "reliability.png")
    confidence = np.exp(log_softmax(logits / temperature)).max(1)
    wrong = np.flatnonzero(predicted != test.labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:MOST_MISTAKES]
    crops = [center_crop(test.images[row], bundle.meta.preprocess.crop) for row in worst]
    captions = [
        f"{names[test.labels[k]]}\n→ {names[predicted[k]]} {confidence[k]:.0%}" for k in worst
    ]
    plot_sheet(crops, captions, plots / "mistakes.png")
    explained = explain(bundle, crops, predicted[worst], device=device) if len(worst) else []
    plot_sheet(explained, captions, plots / "mistakes_explained.png")
