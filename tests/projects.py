"""Make small Git projects with the files that `resnets compare` reads, from simulated runs."""

import json
import subprocess
from pathlib import Path

import numpy as np

from resnets.evaluation.evaluate import evaluate
from resnets.evaluation.predictions import prediction_tables, predictions_of
from resnets.evaluation.scoring import mean_scores

MEASURED_ON = {"data": "d0", "split": "s0", "classes": "c0", "test_set": "t0"}
MEASURED_ON |= {"preprocess": "p0", "weights": "w0"}
TRAINING = {
    "folds": 0,
    "epochs": 10,
    "chosen_epoch": 7,
    "parameters": 270_000,
    "parameters_trained": 130,
}
TRAINING |= {"model_bytes": 1_100_000}
IDENTITY = ["-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false"]


def simulated_logits(labels, num_classes, accuracy, *, seed, images_seed=0, sharpness=8.0):
    """Return logits (N, K) of a run: images differ in difficulty, runs in what they miss."""
    difficulty = np.random.default_rng(images_seed).random(len(labels))
    rng = np.random.default_rng([seed, 1])
    chance = 1 / (1 + np.exp(sharpness * (difficulty - accuracy)))
    right = rng.random(len(labels)) < chance
    wrong = (labels + rng.integers(1, num_classes, len(labels))) % num_classes
    logits = rng.normal(size=(len(labels), num_classes)) * 0.3
    logits[np.arange(len(labels)), np.where(right, labels, wrong)] += 3
    return logits


def run_row(repeat, test, val):
    """Return what details.json says of a run with these scores."""
    sides = {"test": test, "val": val}
    metrics = ("accuracy", "macro_f1", "nll")
    values = {f"{name}_{x}": side.value(x) for name, side in sides.items() for x in metrics}
    return {"repeat": repeat, **values, **TRAINING, "val_leaked": 0.0}


class Project:
    """A Git repository with metrics, predictions and parameters."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        self.git("init", "-q", "-b", "main")
        self.write(".dvc/config", "")
        self.write(".dvc/.gitignore", "/tmp\n")

    def git(self, *arguments: str) -> str:
        command = ["git", *IDENTITY, *arguments]
        done = subprocess.run(command, cwd=self.root, check=True, capture_output=True, text=True)
        return done.stdout

    def commit(self, message: str = "change") -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message)

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text, encoding="utf-8")

    def write_model(
        self, name, runs, labels, classes, *, ids=None, groups=None, measured_on=()
    ) -> None:
        """Write what the evaluate stage writes of a model; `runs` are logits (runs, N, K)."""
        ids = ids or [f"{classes[label]}/{k:05d}.png" for k, label in enumerate(labels)]
        labels = np.asarray(labels)
        scores = [evaluate(logits, labels, classes) for logits in runs]
        rows = [run_row(repeat, run, run) for repeat, run in enumerate(scores)]
        sides = {"test": scores[0].details(), "val": scores[0].details()}
        details = {**sides, "measured_on": MEASURED_ON | dict(measured_on), "runs": rows}
        self.write(f"metrics/{name}.json", json.dumps(mean_scores(rows), indent=2))
        self.write(f"plots/{name}/details.json", json.dumps(details, indent=2))
        words = {"classes": classes, "ids": ids, "groups": groups or ids}
        tables = prediction_tables(predictions_of(runs, labels, **words), range(len(runs)))
        for kind, predictions in tables.items():
            text = predictions.to_csv(index=False, lineterminator="\n")
            self.write(f"plots/{name}/{kind}.csv", text)
