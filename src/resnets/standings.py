"""Read what the evaluate stage wrote about each variant, and which one is to be shipped."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from resnets.errors import ArtefactError, ParamsError
from resnets.predictions import Predictions, read_predictions

TRAINING = ("epochs", "best_epoch", "parameters_trained", "model_bytes")


@dataclass(frozen=True)
class Standing:
    """Hold one variant's numbers, predictions and learning curve, all of `plots/<variant>`.

    `record` has the keys of metrics/<variant>.json that a leaderboard needs.
    """

    record: dict[str, Any]
    predictions: Predictions
    history: pd.DataFrame  # of the repeat that is shipped
    model: str  # path of its bundle
    weights: str  # SHA-256 of that file


def read_standing(folder: Path) -> Standing:
    """Read the folder `plots/<variant>`."""
    runs = pd.read_csv(folder / "runs.csv", float_precision="round_trip")
    scores = pd.read_csv(folder / "scores.csv", float_precision="round_trip").set_index("metric")
    history = pd.read_csv(folder / "history.csv", float_precision="round_trip")
    accuracy = {key: float(str(value)) for key, value in scores.loc["accuracy"].items()}
    first = runs.iloc[0]
    seeds: dict[str, Any] = {"n": len(runs)}
    for side, prefix in (("test", ""), ("val", "val_")):
        values = runs[f"{side}_accuracy"]
        seeds[f"{prefix}mean"] = round(float(values.mean()), 6)
        if len(runs) > 1:
            seeds[f"{prefix}std"] = round(float(values.std()), 6)
    record = {
        "test": {
            "accuracy": accuracy["value"],
            "accuracy_low": accuracy["low"],
            "accuracy_high": accuracy["high"],
        },
        "val": {"loss": float(runs["val_nll"].mean()), "leaked": float(first["val_leaked"])},
        "seeds": seeds,
        "training": {key: int(first[key]) for key in TRAINING},
    }
    predictions, others = (
        (folder / f"{name}.csv").read_text() for name in ("predictions", "seeds")
    )
    return Standing(
        record,
        read_predictions(predictions, others, str(folder / "predictions.csv")),
        history[history["repeat"] == first["repeat"]],
        str(first["model"]),
        str(first["weights"]),
    )


def read_choice(leaderboard: Path, wanted: str) -> tuple[Path, dict[str, Any]]:
    """Return the bundle of the best or the named variant, and its row of the leaderboard.

    Raises ParamsError for a variant that is not ranked, and ArtefactError where the bundle is not
    the one that was evaluated.
    """
    ranked = json.loads(leaderboard.read_text())
    name = ranked["best"] if wanted == "best" else wanted
    if name not in ranked["variants"]:
        raise ParamsError(
            f"export.variant is {name!r}, which the leaderboard does not have",
            f"ranked are {', '.join(ranked['variants'])}",
        )
    row = ranked["variants"][name]
    path = Path(row["model"])
    if hashlib.sha256(path.read_bytes()).hexdigest() != row["weights"]:
        raise ArtefactError(
            f"{path}: not the model that was evaluated", "run `dvc repro`, which evaluates it again"
        )
    return path, row
