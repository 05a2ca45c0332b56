"""Rank the variants by validation: a table of rows, the same as a page, and the choice to ship."""

import hashlib
import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from resnets.evaluation.metrics import metrics_for
from resnets.evaluation.predictions import Predictions, read_predictions
from resnets.evaluation.report import code, points, table
from resnets.evaluation.significance import ALPHA, compare_runs, holm, wilson
from resnets.system.errors import ArtefactError, ParamsError

RankedVariant = dict[str, Any]  # a row of the leaderboard

OF_SHIPPED = ("parameters_trained", "model_bytes", "epochs", "best_epoch", "model", "weights")


@dataclass(frozen=True)
class Standing:
    """Hold a variant's runs (runs.csv, the shipped one first), predictions and learning curves."""

    runs: pd.DataFrame
    predictions: Predictions
    history: pd.DataFrame


def read_standing(folder: Path) -> Standing:
    """Read the folder of a candidate; the history is that of the repeat that is shipped."""
    runs, history = (pd.read_csv(folder / f"{name}.csv") for name in ("runs", "history"))
    predictions, seeds = ((folder / f"{name}.csv").read_text() for name in ("predictions", "seeds"))
    shipped = history[history["repeat"] == runs.loc[0, "repeat"]]
    accuracies = dict(zip(runs["repeat"].astype(str), runs["test_accuracy"], strict=True))
    record = {"seeds": {"n": len(runs), "test": accuracies}}
    where = str(folder / "predictions.csv")
    return Standing(runs, read_predictions(predictions, seeds, record, where), shipped)


def remove_others(candidates: Path, variants: Collection[str]) -> None:
    """Remove the candidates that params.yaml no longer has; DVC leaves the outs of such stages."""
    for folder in candidates.iterdir():
        if folder.is_dir() and folder.name not in variants:
            shutil.rmtree(folder)


def leaderboard(standings: Mapping[str, Standing]) -> list[RankedVariant]:
    """Rank variants by validation accuracy (mean over seeds), best first, leaked ones last.

    Equal ones are told apart by validation nll, then by fewer trained parameters. `difference`
    (with `low`, `high`, and `p`, which is adjusted for all variants) is the paired test accuracy
    minus that of the best; `is_like_best` says that it may be noise.
    """
    rows = [_row(variant, standing) for variant, standing in standings.items()]
    rows.sort(key=_order)
    best, *others = (standings[row["variant"]].predictions.right() for row in rows)
    groups = standings[rows[0]["variant"]].predictions.groups
    found = [compare_runs(best, right, groups=groups) for right in others]
    rows[0] |= {"rank": 1, "is_like_best": True}
    adjusted = holm([one.p for one in found])
    for rank, (row, one, p) in enumerate(zip(rows[1:], found, adjusted, strict=True), start=2):
        row |= {"rank": rank, "is_like_best": p >= ALPHA, "p": round(p, 6), "test": one.test}
        numbers = {"difference": one.value, "low": one.low, "high": one.high}
        row |= {key: round(value, 6) for key, value in numbers.items()}
    return rows


def _order(row: RankedVariant) -> tuple[Any, ...]:
    """Return what variants are sorted by, smallest first."""
    ranks = [(row[f"val_{name}"], metric) for name, metric in metrics_for("rank").items()]
    values = [-value if metric.higher_is_better else value for value, metric in ranks]
    return row["val_leaked"] > 0, *values, row["parameters_trained"], row["variant"]


def _row(variant: str, standing: Standing) -> RankedVariant:
    """Return what a row of the leaderboard says of one variant alone."""
    runs, images = standing.runs, len(standing.predictions.ids)
    shipped = runs.to_dict("records")[0]
    low, high = wilson(round(shipped["test_accuracy"] * images), images)
    spread = round(float(runs["test_accuracy"].std()), 6) if len(runs) > 1 else None
    return {
        "variant": variant,
        **{f"val_{name}": round(runs[f"val_{name}"].mean(), 6) for name in metrics_for("rank")},
        "val_leaked": shipped["val_leaked"],
        "test_accuracy": shipped["test_accuracy"],
        "test_low": round(low, 6),
        "test_high": round(high, 6),
        "images": images,
        "seeds": len(runs),
        "seeds_mean": round(float(runs["test_accuracy"].mean()), 6),
        "seeds_std": spread,
        **{key: shipped[key] for key in OF_SHIPPED},
    }


def leaderboard_markdown(rows: list[RankedVariant]) -> str:
    """Return the leaderboard as a page of Markdown."""
    header = [
        "rank", "variant", "val", "test (95% interval)", "test over seeds", "test − best (95%)",
        "trained", "MB", "best epoch",
    ]  # fmt: skip
    best = f"**{code(rows[0]['variant'])}** is best on validation."
    like = ", ".join(code(row["variant"]) for row in rows[1:] if row["is_like_best"])
    verdict = f" The test cannot tell {like} apart from it." if like else ""
    if len(rows) > 1 and not like:
        verdict = " The test tells every other variant apart from it."
    note = (
        "Validation ranks (mean over seeds), the test only reports. Accuracies are in percent, "
        f"the test has {rows[0]['images']:,} images. The interval of the test is that of the "
        "shipped model over other images; ± is the standard deviation from seed to seed."
    )
    blocks = ["# Leaderboard", best + verdict, table(header, map(_cells, rows), words=2), note]
    if len(rows) > 1:
        blocks.append(
            "≈ may be noise: p ≥ 0.05, after Holm's correction for looking at "
            f"{len(rows) - 1}. Test: {rows[1]['test']}."
        )
    blocks += [
        f"leaked: {points(row['val_leaked'])}% of the images that {code(row['variant'])} was "
        "validated on had trained the variant that it started from. Its validation number says "
        "nothing, so it is neither ranked nor shipped; its test number is honest."
        for row in rows if row["val_leaked"]
    ]  # fmt: skip
    return "\n\n".join(blocks) + "\n"


def _cells(row: RankedVariant) -> list[str]:
    """Write one row of the table."""
    spread = "" if row["seeds_std"] is None else f" ± {points(row['seeds_std'])}"
    gap = "best"
    if "difference" in row:
        value, low, high = (points(row[key], signed=True) for key in ("difference", "low", "high"))
        gap = f"{'≈ ' if row['is_like_best'] else ''}{value} ({low} to {high})"
    return [
        "–" if row["val_leaked"] else str(row["rank"]),
        code(row["variant"]),
        ("leaked: " if row["val_leaked"] else "") + points(row["val_accuracy"]),
        f"{points(row['test_accuracy'])} ({points(row['test_low'])} to {points(row['test_high'])})",
        f"{points(row['seeds_mean'])}{spread} (n = {row['seeds']})",
        gap,
        f"{row['parameters_trained']:,}",
        f"{row['model_bytes'] / 1e6:.2f}",
        f"{row['best_epoch']} of {row['epochs']}",
    ]


def read_choice(ranking: Path, candidates: Path, wanted: str) -> tuple[Path, RankedVariant]:
    """Return the bundle of the best or the named candidate, and its row of the leaderboard.

    Raises ParamsError for a variant that is not ranked, and ArtefactError where the bundle is not
    the one that was evaluated.
    """
    ranked = json.loads(ranking.read_text())
    name = ranked["best"] if wanted == "best" else wanted
    if name not in ranked["variants"]:
        raise ParamsError(
            f"export.variant is {name!r}, which the leaderboard does not have",
            f"ranked are {', '.join(ranked['variants'])}",
        )
    row = ranked["variants"][name]
    path = candidates / name / "model.safetensors"
    if hashlib.sha256(path.read_bytes()).hexdigest() != row["weights"]:
        raise ArtefactError(
            f"{path}: not the model that was evaluated", "run `dvc repro`, which evaluates it again"
        )
    return path, row
