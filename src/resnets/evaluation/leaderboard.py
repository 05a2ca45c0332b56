"""Rank the variants by validation: a table of rows, the same as a page, and the choice to ship."""

import hashlib
import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from resnets.evaluation.markdown import code, difference, measured, points, table
from resnets.evaluation.metrics import metrics_for
from resnets.evaluation.predictions import DETAILS, Predictions, read_predictions
from resnets.evaluation.significance import (
    ALPHA,
    compare_runs,
    gap_to_tell,
    holm,
    images_to_tell,
    independent_images,
    wilson,
)
from resnets.system.errors import ArtefactError, ParamsError

RankedVariant = dict[str, Any]  # a row of the leaderboard

OF_THE_SHIPPED = (
    "folds",
    "parameters_trained",
    "model_bytes",
    "epochs",
    "chosen_epoch",
    "model",
    "weights",
)
HEADER = "rank|variant|val|test (95% interval)|test over seeds|test − best (95%)|trained|MB|epoch"
YARDSTICKS = (
    "Yardsticks are never shipped: the majority class; logistic regression (linear) and an RBF SVM "
    "(svm) on the pixels of 32-pixel thumbnails; logistic regression on what the backbone computes "
    "before its head (probe). They learn from at most 2,000 training images; validation chooses C."
)

SIDE = (
    "The interval of the test is that of the shipped model over other images (or groups of them); "
    "± is the standard deviation from seed to seed."
)
FOLDS = (
    "Measured by {}: each image was answered by a model that had not seen it. Intervals are over "
    "other images, ± is the standard deviation from one partition into folds to another; both "
    "leave out that another set of training images would give other models."
)


@dataclass(frozen=True)
class Standing:
    """Hold a variant's runs (the shipped one first), predictions and learning curves."""

    runs: pd.DataFrame
    predictions: Predictions
    history: pd.DataFrame
    val_images: int


def read_standing(folder: Path) -> Standing:
    """Read a candidate; the history is that of the shipped repeat, with folds their mean."""
    details = json.loads((folder / DETAILS).read_text("utf-8"))
    runs, history = pd.DataFrame(details["runs"]), pd.read_csv(folder / "history.csv")
    files = (folder / "predictions.csv", folder / "seeds.csv")
    predictions, seeds = (file.read_text("utf-8") for file in files)
    read = read_predictions(predictions, seeds, details, str(folder / "predictions.csv"))
    shipped = history[history["repeat"] == runs.loc[0, "repeat"]].groupby("epoch", as_index=False)
    return Standing(runs, read, shipped.mean(), details["val"]["images"])


def remove_others(candidates: Path, variants: Collection[str]) -> None:
    """Remove the candidates that params.yaml no longer has; DVC leaves the outs of such stages."""
    for folder in candidates.iterdir():
        if folder.is_dir() and folder.name not in variants:
            shutil.rmtree(folder)


def rank(standings: Mapping[str, Standing], yardsticks: pd.DataFrame) -> tuple[dict[str, Any], str]:
    """Rank all variants, beside the table of `measure_yardsticks`: return values and a page."""
    rows = leaderboard(standings)
    beside = yardstick_rows(yardsticks, standings[rows[0]["variant"]].predictions)
    power = ranking_power(rows, standings)
    page = leaderboard_markdown(rows, beside, power)
    ranking = {
        "best": rows[0]["variant"],
        "ranking": power,
        "variants": {row.pop("variant"): row for row in rows},
        "yardsticks": {row.pop("yardstick"): row for row in beside},
    }
    return ranking, page


def leaderboard(standings: Mapping[str, Standing]) -> list[RankedVariant]:
    """Rank variants by validation accuracy (mean over seeds), best first, leaked ones last.

    Equal ones are told apart by validation nll, then by fewer trained parameters. `difference`
    (with `low`, `high`, and `p`, which is adjusted for all variants) is the paired test accuracy
    minus that of the best; `is_like_best` says that it may be noise.
    """
    rows = sorted((_row(*item) for item in standings.items()), key=_order)
    best, *others = (standings[row["variant"]].predictions for row in rows)
    for rank, row in enumerate(rows, start=1):
        row |= {"rank": rank, "is_like_best": True}
    _add_differences(rows[1:], [predictions.right() for predictions in others], best)
    return rows


def ranking_power(rows: list[RankedVariant], standings: Mapping[str, Standing]) -> dict[str, float]:
    """Return by how much the first two variants differ on validation, and what that takes to tell.

    `detectable` is the difference that the `images` there are can tell, `needed` the images for the
    `gap` there is, as means over runs. How much the answers to one image differ is taken from the
    test, as nothing else keeps them. It is empty where there is nothing to choose.
    """
    ranked = [row for row in rows if not row["val_leaked"]][:2]
    gap = float(np.ptp([row["val_accuracy"] for row in ranked])) if len(ranked) == 2 else 0.0
    if not gap:
        return {}
    first, second = (standings[row["variant"]].predictions.right().mean(0) for row in ranked)
    images, variance = standings[ranked[0]["variant"]].val_images, float((first - second).var())
    return {
        "images": images,
        "gap": round(gap, 6),
        "detectable": round(gap_to_tell(images, variance), 6),
        "needed": images_to_tell(gap, variance),
    }


def yardstick_rows(table: pd.DataFrame, best: Predictions) -> list[RankedVariant]:
    """Return the row of each yardstick, best on validation first, beside the best variant.

    `table` is that of `measure_yardsticks`; `p` is adjusted for all yardsticks.
    """
    means = table.groupby("yardstick")["val_accuracy"].mean()
    rows, rights = [], []
    for name, val in means.sort_values(ascending=False, kind="stable").items():
        runs = table[table["yardstick"] == name]
        rights.append(np.array([list(digits) for digits in runs["right"]]) == "1")
        scores = _test(runs["test_accuracy"], rights[-1][0], best.groups)
        rows.append({"yardstick": name, "val_accuracy": round(val, 6), **scores})
    # one run stands for all: no seed plays a part in it
    size = len(best.runs)
    rights = [np.repeat(right, size, axis=0) if len(right) == 1 else right for right in rights]
    _add_differences(rows, rights, best)
    return rows


def _add_differences(
    rows: list[RankedVariant], rights: list[NDArray[np.bool_]], best: Predictions
) -> None:
    """Add to each row how its test accuracy differs from that of the best, with Holm's p."""
    gaps = [compare_runs(best.right(), right, groups=best.groups) for right in rights]
    for row, gap, p in zip(rows, gaps, holm([gap.p for gap in gaps]), strict=True):
        row |= {"is_like_best": p >= ALPHA, "p": round(p, 6), "test": gap.test}
        numbers = {"difference": gap.value, "low": gap.low, "high": gap.high}
        row |= {key: round(value, 6) for key, value in numbers.items()}


def _order(row: RankedVariant) -> tuple[Any, ...]:
    """Return what variants are sorted by, smallest first."""
    values = [
        -row[f"val_{name}"] if metric.higher_is_better else row[f"val_{name}"]
        for name, metric in metrics_for("rank").items()
    ]
    return row["val_leaked"] > 0, *values, row["parameters_trained"], row["variant"]


def _row(variant: str, standing: Standing) -> RankedVariant:
    """Return what a row of the leaderboard says of one variant alone."""
    runs, read = standing.runs, standing.predictions
    shipped = runs.to_dict("records")[0]
    return {
        "variant": variant,
        **{f"val_{name}": round(runs[f"val_{name}"].mean(), 6) for name in metrics_for("rank")},
        "val_leaked": shipped["val_leaked"],
        **_test(runs["test_accuracy"], read.right()[0], read.groups),
        **{key: shipped[key] for key in OF_THE_SHIPPED},
    }


def _test(
    accuracies: "pd.Series[float]", right: NDArray[np.bool_], groups: Sequence[str]
) -> dict[str, Any]:
    """Return the first run's accuracy with its interval, and mean and spread of all runs.

    `right` (N,) are the answers of the first, `groups` (N,) images that stand or fall together.
    """
    shipped, spread = float(accuracies.iloc[0]), round(float(accuracies.std()), 6)
    number = independent_images(right, groups)
    low, high = wilson(shipped * number, number)
    return {
        "test_accuracy": shipped,
        "test_low": round(low, 6),
        "test_high": round(high, 6),
        "images": right.size,
        "seeds": len(accuracies),
        "seeds_mean": round(float(accuracies.mean()), 6),
        "seeds_std": spread if len(accuracies) > 1 else None,
    }


def leaderboard_markdown(
    rows: list[RankedVariant],
    yardsticks: list[RankedVariant],
    power: Mapping[str, float],
) -> str:
    """Return the leaderboard as a page of Markdown."""
    best, *others = rows
    like = ", ".join(code(row["variant"]) for row in others if row["is_like_best"])
    verdict = f" The test cannot tell {like} apart from it." if like else ""
    if others and not like:
        verdict = " The test tells every other variant apart from it."
    unbeaten = [row for row in yardsticks if row["is_like_best"] or row["difference"] > 0]
    how = FOLDS.format(measured(best)) if best["folds"] else SIDE
    cells = map(_cells, [*rows, *yardsticks])
    blocks = [
        "# Leaderboard",
        f"**{code(best['variant'])}** is best on validation.{verdict}",
        *([_warning(best, unbeaten)] if unbeaten else []),
        table(HEADER.split("|"), cells, words=2),
        "Validation ranks (mean over seeds), the test only reports. Accuracies are in percent, "
        f"the test has {best['images']:,} images. {how}",
        f"≈ may be noise: p ≥ 0.05, after Holm's correction for looking at {len(others)} other "
        f"variants, and for the {len(yardsticks)} yardsticks apart from them. "
        f"Test: {(others or yardsticks)[0]['test']}.",
        *([_few_images(power)] if power and power["needed"] > power["images"] else []),
        YARDSTICKS,
    ]
    for row in rows:
        if row["val_leaked"]:
            blocks.append(
                f"leaked: {points(row['val_leaked'])}% of the images that {code(row['variant'])} "
                "was validated on had trained the variant that it started from. Its validation "
                "number says nothing, so it is neither ranked nor shipped; its test number is "
                "honest."
            )
    return "\n\n".join(blocks) + "\n"


def _warning(best: RankedVariant, unbeaten: list[RankedVariant]) -> str:
    """Say which yardsticks the best variant does not beat."""
    scores = ", ".join(f"{row['yardstick']} ({points(row['seeds_mean'])})" for row in unbeaten)
    name = f"{code(best['variant'])} ({points(best['seeds_mean'])})"
    return f"**The test does not show that {name} beats these yardsticks**: {scores}."


def _few_images(power: Mapping[str, float]) -> str:
    """Say that validation cannot tell the first two variants apart, and what could."""
    return (
        f"**Too few validation images to rank the first two**: they differ by "
        f"{points(power['gap'])} points there. {power['images']:,} images tell "
        f"{points(power['detectable'])} points or more (four times in five, at p < 0.05); for this "
        f"difference it takes about {power['needed']:,}."
    )


def _cells(row: RankedVariant) -> list[str]:
    """Write the row of a variant, or of a yardstick, which has no rank and no network."""
    spread = "" if row["seeds_std"] is None else f" ± {points(row['seeds_std'])}"
    rank, name, val, network = "–", f"yardstick: {row.get('yardstick')}", "", ["", "", ""]
    if "variant" in row:
        rank, name = str(row["rank"]), code(row["variant"])
        epochs = f"{row['chosen_epoch']} of {row['epochs']}"
        network = [f"{row['parameters_trained']:,}", f"{row['model_bytes'] / 1e6:.2f}", epochs]
    if row.get("val_leaked"):
        rank, val = "–", "leaked: "
    return [
        rank,
        name,
        val + points(row["val_accuracy"]),
        f"{points(row['test_accuracy'])} ({points(row['test_low'])} to {points(row['test_high'])})",
        f"{points(row['seeds_mean'])}{spread} (n = {row['seeds']})",
        difference(row),
        *network,
    ]


def read_choice(ranking: Path, candidates: Path, wanted: str) -> tuple[Path, RankedVariant]:
    """Return the bundle of the best or the named candidate, and its row of the leaderboard.

    Raises ParamsError for a variant that is not ranked, and ArtefactError where the bundle is not
    the one that was evaluated.
    """
    ranked = json.loads(ranking.read_text("utf-8"))
    name = ranked["best"] if wanted == "best" else wanted
    if name not in ranked["variants"]:
        raise ParamsError(
            f"export.variant is {name!r}, which the leaderboard does not have",
            f"ranked are {', '.join(ranked['variants'])}",
        )
    row, path = ranked["variants"][name], candidates / name / "model.safetensors"
    if hashlib.sha256(path.read_bytes()).hexdigest() != row["weights"]:
        what = f"{path}: not the model that was evaluated"
        raise ArtefactError(what, "run `dvc repro`, which evaluates it again")
    return path, row
