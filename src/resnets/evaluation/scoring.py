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
from resnets.evaluation.markdown import measured
from resnets.evaluation.metrics import metrics_for, reliability
from resnets.evaluation.plots import plot_confusion, plot_reliability
from resnets.evaluation.predictions import (
    DETAILS,
    Predictions,
    prediction_tables,
    predictions_of,
)
from resnets.evaluation.significance import Labels
from resnets.models.bundle import SHIPPED, Bundle, bundle_names, check_origin, load_bundle
from resnets.models.calibration import log_softmax
from resnets.models.inference import infer
from resnets.system.files import write_bytes, write_json, write_text
from resnets.tasks.decode import center_crop
from resnets.tasks.manifest import SideName
from resnets.tasks.sheet import plot_sheet
from resnets.tasks.task import Side, Task

MOST_MISTAKES = 24
TABLES = ("scores", "per_class", "predictions", "seeds")
PICTURES = ("confusion", "reliability", "mistakes", "mistakes_explained")
PASSED_ON = (*(f"{name}.csv" for name in TABLES), "confusion.png", "mistakes_explained.png")
TRAINING = ("epochs", "chosen_epoch", "parameters", "parameters_trained")

Logits = NDArray[np.float32]


def repeats_of(history: Path) -> list[int]:
    """Return the repeats of a model, the shipped one first, as its history has them.

    A backbone that was not trained has no history, and so nothing that can be scored.
    """
    return list(map(int, pd.read_csv(history)["repeat"].unique()))


def pass_on(model: Path, history: Path, plots: Path, candidate: Path) -> None:
    """Copy what ranks, ships and reports a variant into a folder beside those of others.

    DVC knows no stage whose dependencies are files of all variants; it can depend on that folder.
    """
    for file in (model / SHIPPED, history, *(plots / name for name in (DETAILS, *PASSED_ON))):
        write_bytes(candidate / file.name, file.read_bytes())


def score_nothing(unscored: Path, *, metrics: Path, plots: Path) -> None:
    """Write what there is to say of a backbone without a test, and empty tables and pictures.

    DVC draws `runs`, and warns of a file without any, or whose runs have no such columns.
    """
    empty_run = {"val_accuracy": None, "test_accuracy": None}
    write_json(metrics, {})
    write_json(plots / DETAILS, json.loads(unscored.read_text("utf-8")) | {"runs": [empty_run]})
    for name in TABLES:
        write_text(plots / f"{name}.csv", "nothing to score\n")
    for name in PICTURES:
        plot_sheet([], [], plots / f"{name}.png")


@dataclass(frozen=True)
class ScoredRun:
    """Hold a run, which gives one answer per test image, its scores and what details.json has.

    Logits are (N, K); temperatures (N, 1) and bundles (N,), places in its list of bundles, are
    those of the model that answered: with folds, of the one that had not seen the image.
    """

    logits: Logits
    temperatures: NDArray[np.float64]
    bundles: Labels
    test: Evaluation
    val: Evaluation
    row: dict[str, Any]


def score_models(
    model: Path, repeats: Sequence[int], task: Task, device: str, *, metrics: Path, plots: Path
) -> None:
    """Score the bundles of all repeats, the shipped one first, in fp32 as what is exported.

    Writes means over the repeats to `metrics`, and details, tables and pictures into `plots`.
    Raises ArtefactError where a bundle was trained on other data, another split or other classes.
    """
    names = bundle_names(repeats, task.num_folds)
    bundles = [[model / name for name in names[repeat]] for repeat in repeats]
    described = [model / SHIPPED, *(paths[0] for paths in bundles[1:])]
    scored = [
        _score_run(*run, task, device) for run in zip(repeats, bundles, described, strict=True)
    ]
    shipped, runs, test = scored[0], [run.row for run in scored], task.side("test")
    bundle = load_bundle(model / SHIPPED)
    check_origin(bundle.meta, task.pooled().hashes(), model / SHIPPED)
    write_json(metrics, mean_scores(runs))
    scores = {"test": shipped.test.details(), "val": shipped.val.details()}
    measured_on = _measured_on(bundle, task, test, len(runs))
    write_json(plots / DETAILS, {**scores, "measured_on": measured_on, "runs": runs})
    calibrated = [run.logits / run.temperatures for run in scored]
    words = {"classes": task.classes, "ids": test.ids, "groups": task.groups("test")}
    predictions = predictions_of(calibrated, test.labels, **words)
    rows = [{"metric": name, **asdict(score)} for name, score in shipped.test.scores.items()]
    tables = {
        "scores": pd.DataFrame(rows).round(6),
        "per_class": pd.DataFrame(shipped.test.per_class).round(6),
        **prediction_tables(predictions, repeats),
    }
    for name, table in tables.items():
        write_text(plots / f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))
    _draw_scores(plots, shipped, predictions)
    _draw_mistakes(plots, predictions, test, bundles[0], shipped.bundles, device)


def _score_run(
    repeat: int, paths: Sequence[Path], described: Path, task: Task, device: str
) -> ScoredRun:
    """Score the bundles of a run on the images of their test and validation sides.

    The row describes another one where the shipped model is trained on all images.
    """
    answers: dict[SideName, list[Any]] = {"test": [], "val": []}
    folds, num_leaked = task.folds(repeat), 0
    for number, (path, fold) in enumerate(zip(paths, folds, strict=True)):
        bundle = load_bundle(path)
        check_origin(bundle.meta, fold.hashes(), path)
        seen = fold.redrawn(bundle.meta.training.get("redraw_split"))
        num_leaked += len(set(fold.side("train").ids).intersection(seen.side("val").ids))
        how: dict[str, Any] = {"preprocess": bundle.meta.preprocess, "batch_size": 256}
        for name in answers:
            side = seen.side(name)
            logits = infer(bundle.model, side.images, device=device, **how)
            temperatures = np.full((len(logits), 1), bundle.meta.temperature)
            given = logits, side.labels, temperatures, np.full(len(logits), number)
            answers[name].append((*given, np.array(seen.groups(name))))
    order = np.argsort(np.concatenate([fold.rows("test") for fold in folds]))
    sides = {k: list(map(np.concatenate, zip(*x, strict=True))) for k, x in answers.items()}
    sides["test"] = [values[order] for values in sides["test"]]
    scores = {
        name: evaluate(logits, labels, task.classes, temperature=temperatures, groups=list(groups))
        for name, (logits, labels, temperatures, _, groups) in sides.items()
    }
    logits, _, temperatures, numbers, _ = sides["test"]
    bundle = load_bundle(described)
    row = {
        "repeat": repeat,
        "seed": bundle.meta.training["seed"],
        "folds": task.num_folds,
        **{f"{s}_{m}": scores[s].value(m) for s in scores for m in metrics_for("headline")},
        **{key: bundle.meta.training[key] for key in TRAINING},
        "temperature": bundle.meta.temperature,
        "model_bytes": described.stat().st_size,
        "model": described.as_posix(),
        "weights": bundle.sha256,
        # share of val images that were trained on
        "val_leaked": round(num_leaked / len(sides["val"][0]), 6),
    }
    return ScoredRun(logits, temperatures, numbers, scores["test"], scores["val"], row)


def mean_scores(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return what metrics/<model>.json holds, and `dvc exp show` shows: means over all runs."""
    shown = {"test": list(metrics_for("headline")), "val": ["accuracy"]}
    return {
        side: {name: round(fmean(run[f"{side}_{name}"] for run in runs), 6) for name in names}
        for side, names in shown.items()
    }


def _measured_on(bundle: Bundle, task: Task, test: Side, num_runs: int) -> dict[str, str]:
    """Return what a reviewer must know to compare two numbers, most of it as short hashes."""
    preprocess = bundle.meta.preprocess.model_dump_json()
    how = {"folds": task.num_folds, "seeds": num_runs, "images": len(test.ids)}
    return {
        "by": measured(how),
        "folds": str(task.num_folds),
        **task.hashes(),
        "test_set": test.digest(),
        "preprocess": hashlib.sha256(preprocess.encode()).hexdigest()[:16],
        "weights": bundle.sha256[:16],
        "precision": bundle.meta.training["precision"],
    }


def _draw_scores(plots: Path, run: ScoredRun, predictions: Predictions) -> None:
    """Draw confusion and reliability of the shipped run."""
    labels, names = predictions.labels, predictions.classes
    confusion = confusion_matrix(labels, predictions.runs[0], labels=range(len(names)))
    plot_confusion(confusion, names, plots / "confusion.png")
    ends = dict.fromkeys(np.quantile(run.temperatures, (0, 1)))
    word = " to ".join(f"{value:g}" for value in ends)
    logs = {"as trained": log_softmax(run.logits), f"temperature {word}": predictions.logs}
    lines = {name: reliability(values, labels) for name, values in logs.items()}
    plot_reliability(lines, plots / "reliability.png")


def _draw_mistakes(
    plots: Path,
    predictions: Predictions,
    test: Side,
    bundles: Sequence[Path],
    number: Labels,
    device: str,
) -> None:
    """Show the most confident mistakes of the shipped run, plain and explained.

    `number` (N,) says which of the bundles answered for an image.
    """
    names, predicted = test.classes, predictions.runs[0]
    confidence = np.exp(predictions.logs).max(1)
    wrong = np.flatnonzero(predicted != test.labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:MOST_MISTAKES]
    explained: dict[int, tuple[Any, Any]] = {}
    for k in np.unique(number[worst]):
        bundle, rows = load_bundle(bundles[k]), worst[number[worst] == k]
        crops = [center_crop(test.images[row], bundle.meta.preprocess.crop) for row in rows]
        pictures = explain(bundle, crops, predicted[rows], device=device)
        explained |= dict(zip(rows, zip(crops, pictures, strict=True), strict=True))
    captions = [
        f"{names[test.labels[k]]}\n→ {names[predicted[k]]} {confidence[k]:.0%}" for k in worst
    ]
    for place, name in enumerate(("mistakes", "mistakes_explained")):
        plot_sheet([explained[k][place] for k in worst], captions, plots / f"{name}.png")
