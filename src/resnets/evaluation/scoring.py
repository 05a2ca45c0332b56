"""Score bundles on a task: one pass over validation and test, and the files that come of it."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix

from resnets.evaluation.evaluate import Evaluation, evaluate
from resnets.evaluation.gradcam import explain
from resnets.evaluation.metrics import metrics_for, reliability
from resnets.evaluation.plots import plot_confusion, plot_reliability
from resnets.evaluation.predictions import predictions_table, seeds_table
from resnets.models.bundle import Bundle, check_origin, load_bundle
from resnets.models.calibration import log_softmax
from resnets.models.inference import infer
from resnets.system.files import write_bytes, write_json, write_text
from resnets.tasks.decode import center_crop
from resnets.tasks.sheet import plot_sheet
from resnets.tasks.task import Side, Task

MOST_MISTAKES = 24
TABLES = ("runs", "scores", "per_class", "predictions", "seeds")
PICTURES = ("confusion", "reliability", "mistakes", "mistakes_explained")
PASSED_ON = ("runs", "predictions", "seeds")
TRAINING = ("epochs", "best_epoch", "parameters", "parameters_trained")

Logits = NDArray[np.float32]
TestAndVal = tuple[Evaluation, Evaluation]


def bundles_of(model: Path, history: Path) -> dict[int, Path]:
    """Return the bundles of a model by repeat, the shipped one first, as its history has them.

    A backbone that was not trained has no history, and so nothing that can be scored.
    """
    repeats = pd.read_csv(history)["repeat"].unique().tolist()
    names = [f"repeat-{repeat}" if place else "model" for place, repeat in enumerate(repeats)]
    return {
        repeat: model / f"{name}.safetensors" for repeat, name in zip(repeats, names, strict=True)
    }


def pass_on(bundles: Mapping[int, Path], history: Path, plots: Path, candidate: Path) -> None:
    """Copy what ranks and ships a variant, and nothing else, into a folder of its own.

    The leaderboard and the export can depend on no single files: DVC knows no stage whose
    dependencies are those of all variants, only a folder in which each variant has one.
    """
    shipped = next(iter(bundles.values()))
    for file in (shipped, history, *(plots / f"{name}.csv" for name in PASSED_ON)):
        write_bytes(candidate / file.name, file.read_bytes())


def score_nothing(unscored: Path, *, metrics: Path, plots: Path) -> None:
    """Write what there is to say of a backbone without a test, and empty tables and pictures."""
    write_bytes(metrics, unscored.read_bytes())
    for name in TABLES:
        write_text(plots / f"{name}.csv", "nothing to score\n")
    for name in PICTURES:
        plot_sheet([], [], plots / f"{name}.png")


def score_models(
    bundles: Mapping[int, Path], task: Task, device: str, *, metrics: Path, plots: Path
) -> None:
    """Score the bundles of all repeats; the first one is the one that is shipped.

    Everything is computed in fp32, so that the exported file must give the same. Writes the
    headline numbers to `metrics` and all tables and pictures into the folder `plots`. Raises
    ArtefactError where a bundle was trained on other data, another split or other classes.
    """
    trained_on, test = set(task.side("train").ids), task.side("test")
    runs: dict[int, TestAndVal] = {}
    logits: dict[int, Logits] = {}
    rows = []
    for repeat, path in bundles.items():
        bundle = load_bundle(path)
        check_origin(bundle.meta, task.hashes(), path)
        val = task.redrawn(bundle.meta.training.get("redraw_split")).side("val")
        logits[repeat], test_scores = _score(bundle, test, device)
        runs[repeat] = test_scores, _score(bundle, val, device)[1]
        leaked = round(len(trained_on.intersection(val.ids)) / len(val.ids), 6)
        rows.append(_run_row(repeat, path, bundle, runs[repeat]) | {"val_leaked": leaked})
    shipped, path = next(iter(bundles.items()))
    bundle, scores = load_bundle(path), runs[shipped][0]
    training = {key: rows[0][key] for key in (*TRAINING, "model_bytes")}
    record = metrics_record(runs, training=training, measured_on=measured_on(bundle, task, test))
    record["val"]["leaked"] = rows[0]["val_leaked"]  # share of val images that were trained on
    write_json(metrics, record)
    whole = (test.ids, test.labels, logits[shipped], task.classes, bundle.meta.temperature)
    calibrated = {row["repeat"]: logits[row["repeat"]] / row["temperature"] for row in rows}
    groups = task.groups("test")
    score_rows = [{"metric": name, **asdict(score)} for name, score in scores.scores.items()]
    tables = {
        "runs": pd.DataFrame(rows),
        "scores": pd.DataFrame(score_rows).round(6),
        "per_class": pd.DataFrame(scores.per_class).round(6),
        "predictions": predictions_table(*whole),
        "seeds": seeds_table(test.ids, test.labels, calibrated, task.classes, groups),
    }
    for name, table in tables.items():
        write_text(plots / f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))
    _draw(plots, logits[shipped], test, bundle, device)


def _score(bundle: Bundle, side: Side, device: str) -> tuple[Logits, Evaluation]:
    """Return a bundle's logits on a side, and what they score."""
    given, temperature = bundle.meta.preprocess, bundle.meta.temperature
    logits = infer(
        bundle.model, side.images, preprocess=given, batch_size=256, device=device, precision="fp32"
    )
    return logits, evaluate(logits, side.labels, side.classes, temperature=temperature)


def metrics_record(
    runs: Mapping[int, TestAndVal],
    *,
    training: Mapping[str, int | float | str],
    measured_on: Mapping[str, str],
) -> dict[str, Any]:
    """Return what metrics/<variant>.json holds.

    `runs` are those of each repeat; the first is the one that is shipped, and gives `test` and
    `val`. `seeds` has `n`, mean and sample standard deviation of the accuracies (no deviation of
    one run), and the numbers of each repeat, as mappings because DVC drops lists.
    """
    test, val = next(iter(runs.values()))
    seeds: dict[str, Any] = {"n": len(runs)}
    for side, prefix in enumerate(("", "val_")):
        accuracies = [run[side].value("accuracy") for run in runs.values()]
        seeds[f"{prefix}mean"] = round(float(np.mean(accuracies)), 6)
        if len(runs) > 1:
            seeds[f"{prefix}std"] = round(float(np.std(accuracies, ddof=1)), 6)
    for name, side, metric in (("test", 0, "accuracy"), ("val", 1, "accuracy"), ("nll", 0, "nll")):
        seeds[name] = {str(repeat): run[side].value(metric) for repeat, run in runs.items()}
    record = {"test": test.headline(), "val": val.headline(), "seeds": seeds}
    return record | {"training": dict(training), "measured_on": dict(measured_on)}


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


def _run_row(repeat: int, path: Path, bundle: Bundle, scores: TestAndVal) -> dict[str, Any]:
    """Return the row of one training run in runs.csv."""
    training, sides = bundle.meta.training, dict(zip(("test", "val"), scores, strict=True))
    return {
        "repeat": repeat,
        "seed": training["seed"],
        **{f"{s}_{m}": side.value(m) for s, side in sides.items() for m in metrics_for("rank")},
        **{key: training[key] for key in TRAINING},
        "temperature": bundle.meta.temperature,
        "model_bytes": path.stat().st_size,
        "model": path.as_posix(),
        "weights": bundle.sha256,
    }


def _draw(plots: Path, logits: Logits, test: Side, bundle: Bundle, device: str) -> None:
    """Draw confusion, reliability, and the most confident mistakes, plain and explained."""
    temperature, names, predicted = bundle.meta.temperature, test.classes, logits.argmax(1)
    confusion = confusion_matrix(test.labels, predicted, labels=range(len(names)))
    plot_confusion(confusion, names, plots / "confusion.png")
    scales = {"as trained": 1.0, f"temperature {temperature:g}": temperature}
    logs = {name: log_softmax(logits.astype(np.float64) / scale) for name, scale in scales.items()}
    lines = {name: reliability(values, test.labels) for name, values in logs.items()}
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
