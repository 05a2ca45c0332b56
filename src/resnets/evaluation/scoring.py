"""Score bundles on a task: one pass over validation and test, and the files that come of it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix

from resnets.evaluation.evaluate import Evaluation, evaluate
from resnets.evaluation.gradcam import explain
from resnets.evaluation.metrics import metrics_for, reliability
from resnets.evaluation.plots import plot_confusion, plot_reliability
from resnets.evaluation.predictions import (
    DETAILS,
    Predictions,
    prediction_tables,
    predictions_of,
)
from resnets.models.bundle import Bundle, check_origin, load_bundle
from resnets.models.calibration import log_softmax
from resnets.models.inference import infer
from resnets.system.files import write_bytes, write_json, write_text
from resnets.tasks.decode import center_crop
from resnets.tasks.sheet import plot_sheet
from resnets.tasks.task import Side, Task

MOST_MISTAKES = 24
TABLES = ("scores", "per_class", "predictions", "seeds")
PICTURES = ("confusion", "reliability", "mistakes", "mistakes_explained")
PASSED_ON = (DETAILS, "predictions.csv", "seeds.csv")
TRAINING = ("epochs", "chosen_epoch", "parameters", "parameters_trained")

Logits = NDArray[np.float32]


def bundles_of(model: Path, history: Path) -> dict[int, Path]:
    """Return the bundles of a model by repeat, the shipped one first, as its history has them.

    A backbone that was not trained has no history, and so nothing that can be scored.
    """
    repeats = pd.read_csv(history)["repeat"].unique().tolist()
    names = ["model", *(f"repeat-{repeat}" for repeat in repeats[1:])]
    return {k: model / f"{name}.safetensors" for k, name in zip(repeats, names, strict=False)}


def pass_on(bundles: Mapping[int, Path], history: Path, plots: Path, candidate: Path) -> None:
    """Copy what ranks and ships a variant into a folder beside those of the other variants.

    DVC knows no stage whose dependencies are files of all variants; it can depend on that folder.
    """
    shipped = next(iter(bundles.values()))
    for file in (shipped, history, *(plots / name for name in PASSED_ON)):
        write_bytes(candidate / file.name, file.read_bytes())


def score_nothing(unscored: Path, *, metrics: Path, plots: Path) -> None:
    """Write what there is to say of a backbone without a test, and empty tables and pictures.

    DVC draws `runs`, and warns of a file without any, or whose runs have no such columns.
    """
    empty_run = {"val_accuracy": None, "test_accuracy": None}
    write_json(metrics, {})
    write_json(plots / DETAILS, json.loads(unscored.read_text()) | {"runs": [empty_run]})
    for name in TABLES:
        write_text(plots / f"{name}.csv", "nothing to score\n")
    for name in PICTURES:
        plot_sheet([], [], plots / f"{name}.png")


@dataclass(frozen=True)
class ScoredRun:
    """Hold a run's logits on the test side, what it scores, and what details.json says of it."""

    logits: Logits
    test: Evaluation
    val: Evaluation
    row: dict[str, Any]


def score_models(
    bundles: Mapping[int, Path], task: Task, device: str, *, metrics: Path, plots: Path
) -> None:
    """Score the bundles of all repeats, the shipped one first, in fp32 as what is exported.

    Writes means over the repeats to `metrics`, and details, tables and pictures into `plots`.
    Raises ArtefactError where a bundle was trained on other data, another split or other classes.
    """
    scored = [_score_run(repeat, path, task, device) for repeat, path in bundles.items()]
    shipped, runs, test = scored[0], [run.row for run in scored], task.side("test")
    bundle = load_bundle(next(iter(bundles.values())))
    write_json(metrics, mean_scores(runs))
    measured_on = _measured_on(bundle, task, test)
    write_json(plots / DETAILS, details_of(runs, shipped.test, shipped.val, measured_on))
    calibrated = [run.logits / run.row["temperature"] for run in scored]
    words = {"classes": task.classes, "ids": test.ids, "groups": task.groups("test")}
    predictions = predictions_of(calibrated, test.labels, **words)
    scores = [{"metric": name, **asdict(score)} for name, score in shipped.test.scores.items()]
    tables = {
        "scores": pd.DataFrame(scores).round(6),
        "per_class": pd.DataFrame(shipped.test.per_class).round(6),
        **prediction_tables(predictions, bundles),
    }
    for name, table in tables.items():
        write_text(plots / f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))
    _draw_scores(plots, shipped.logits, predictions, bundle.meta.temperature)
    _draw_mistakes(plots, predictions, test, bundle, device)


def _score_run(repeat: int, path: Path, task: Task, device: str) -> ScoredRun:
    """Score one bundle on the test side, and on the validation side that it was chosen on."""
    bundle = load_bundle(path)
    check_origin(bundle.meta, task.hashes(), path)
    training, temperature = bundle.meta.training, bundle.meta.temperature
    val = task.redrawn(training.get("redraw_split")).side("val")
    leaked = len(set(task.side("train").ids).intersection(val.ids)) / len(val.ids)
    how: dict[str, Any] = {"preprocess": bundle.meta.preprocess, "batch_size": 256}
    logits, scores = {}, {}
    for name, side in (("test", task.side("test")), ("val", val)):
        logits[name] = infer(bundle.model, side.images, device=device, precision="fp32", **how)
        scores[name] = evaluate(logits[name], side.labels, side.classes, temperature=temperature)
    row = {
        "repeat": repeat,
        "seed": training["seed"],
        **{f"{s}_{m}": scores[s].value(m) for s in scores for m in metrics_for("headline")},
        **{key: training[key] for key in TRAINING},
        "temperature": temperature,
        "model_bytes": path.stat().st_size,
        "model": path.as_posix(),
        "weights": bundle.sha256,
        "val_leaked": round(leaked, 6),  # share of val images that were trained on
    }
    return ScoredRun(logits["test"], scores["test"], scores["val"], row)


def mean_scores(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return what metrics/<model>.json holds, and `dvc exp show` shows: means over all runs."""
    shown = {"test": list(metrics_for("headline")), "val": ["accuracy"]}
    return {
        side: {name: round(fmean(run[f"{side}_{name}"] for run in runs), 6) for name in names}
        for side, names in shown.items()
    }


def details_of(
    runs: Sequence[Mapping[str, Any]],
    test: Evaluation,
    val: Evaluation,
    measured_on: Mapping[str, str],
) -> dict[str, Any]:
    """Return what details.json holds: scores of the shipped run, which is the first, and all runs.

    It has but one list, which DVC draws.
    """
    scores = {"test": test.details(), "val": val.details()}
    return {**scores, "measured_on": measured_on, "runs": runs}


def _measured_on(bundle: Bundle, task: Task, test: Side) -> dict[str, str]:
    """Return what a reviewer must know to compare two numbers, as short hashes."""
    preprocess = bundle.meta.preprocess.model_dump_json()
    return {
        **task.hashes(),
        "test_set": test.digest(),
        "preprocess": hashlib.sha256(preprocess.encode()).hexdigest()[:16],
        "weights": bundle.sha256[:16],
        "precision": bundle.meta.training["precision"],
    }


def _draw_scores(plots: Path, logits: Logits, predictions: Predictions, temperature: float) -> None:
    """Draw confusion and reliability of the shipped run."""
    labels, names = predictions.labels, predictions.classes
    confusion = confusion_matrix(labels, predictions.runs[0], labels=range(len(names)))
    plot_confusion(confusion, names, plots / "confusion.png")
    scales = {"as trained": 1.0, f"temperature {temperature:g}": temperature}
    logs = {name: log_softmax(logits.astype(np.float64) / scale) for name, scale in scales.items()}
    lines = {name: reliability(values, labels) for name, values in logs.items()}
    plot_reliability(lines, plots / "reliability.png")


def _draw_mistakes(
    plots: Path, predictions: Predictions, test: Side, bundle: Bundle, device: str
) -> None:
    """Show the most confident mistakes of the shipped run, plain and explained."""
    names, predicted, confidence = (
        test.classes,
        predictions.runs[0],
        np.exp(predictions.logs).max(1),
    )
    wrong = np.flatnonzero(predicted != test.labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:MOST_MISTAKES]
    crops = [center_crop(test.images[row], bundle.meta.preprocess.crop) for row in worst]
    captions = [
        f"{names[test.labels[k]]}\n→ {names[predicted[k]]} {confidence[k]:.0%}" for k in worst
    ]
    plot_sheet(crops, captions, plots / "mistakes.png")
    explained = explain(bundle, crops, predicted[worst], device=device) if len(worst) else []
    plot_sheet(explained, captions, plots / "mistakes_explained.png")
