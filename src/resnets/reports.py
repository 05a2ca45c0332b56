"""Rank the variants: a table of rows, and the same as a page of Markdown."""

from collections.abc import Mapping
from typing import Any

from resnets.markdown import code, points, table
from resnets.predictions import Predictions
from resnets.statistics import ALPHA, compare_runs, holm

Row = dict[str, Any]


def leaderboard(
    records: Mapping[str, Mapping[str, Any]], predictions: Mapping[str, Predictions]
) -> list[Row]:
    """Rank variants by validation accuracy (mean over seeds), best first, leaked ones last.

    `records` are the contents of metrics/<variant>.json, `predictions` those of the same
    variants on the same test images. Equal validation accuracies are told apart by validation
    loss, then by fewer trained parameters. `difference` (with `low`, `high`, `p`, the last one
    adjusted for all variants) is the paired test accuracy minus that of the best; `is_like_best`
    says that it may be noise.
    """
    rows = [_row(variant, record) for variant, record in records.items()]
    rows.sort(
        key=lambda r: (
            r["val_leaked"] > 0, -r["val_accuracy"], r["val_loss"], r["parameters_trained"],
            r["variant"],
        )
    )  # fmt: skip
    best = predictions[rows[0]["variant"]]
    right = {name: p.runs == p.labels for name, p in predictions.items()}
    others = [row["variant"] for row in rows[1:]]
    found = [compare_runs(right[rows[0]["variant"]], right[name]) for name in others]
    rows[0] |= {"rank": 1, "images": len(best.ids), "is_like_best": True}
    adjusted = holm([one.p for one in found])
    for rank, (row, one, p) in enumerate(zip(rows[1:], found, adjusted, strict=True), start=2):
        row |= {"rank": rank, "images": one.images, "is_like_best": p >= ALPHA, "p": round(p, 6)}
        row |= {"difference": round(one.value, 6), "test": one.test}
        row |= {"low": round(one.low, 6), "high": round(one.high, 6)}
    return rows


def _row(variant: str, record: Mapping[str, Any]) -> Row:
    """Return what a row of the leaderboard takes from a variant's metrics."""
    test, seeds, training = record["test"], record["seeds"], record["training"]
    return {
        "variant": variant,
        "val_accuracy": seeds["val_mean"],
        "val_loss": record["val"]["loss"],
        "val_leaked": record["val"]["leaked"],
        "test_accuracy": test["accuracy"],
        "test_low": test["accuracy_low"],
        "test_high": test["accuracy_high"],
        "seeds": seeds["n"],
        "seeds_mean": seeds["mean"],
        "seeds_std": seeds.get("std"),
        **{
            key: training[key]
            for key in ("parameters_trained", "model_bytes", "epochs", "best_epoch")
        },
    }


def leaderboard_markdown(rows: list[Row]) -> str:
    """Return the leaderboard as a page of Markdown."""
    header = [
        "rank", "variant", "val", "test (95% interval)", "test over seeds", "test − best (95%)",
        "trained", "MB", "best epoch",
    ]  # fmt: skip
    blocks = ["# Leaderboard", _verdict(rows), table(header, map(_cells, rows), words=2)]
    blocks.append(
        "Validation ranks (mean over seeds), the test only reports. Accuracies are in percent, "
        f"the test has {rows[0]['images']:,} images. The interval of the test is that of the "
        "shipped model over other images; ± is the standard deviation from seed to seed."
    )
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


def _verdict(rows: list[Row]) -> str:
    """Say which variant is best, and which may be as good."""
    best = f"**{code(rows[0]['variant'])}** is best on validation."
    if len(rows) == 1:
        return best
    like = [code(row["variant"]) for row in rows[1:] if row["is_like_best"]]
    if not like:
        return f"{best} The test tells every other variant apart from it."
    return f"{best} The test cannot tell {', '.join(like)} apart from it."


def _cells(row: Row) -> list[str]:
    """Write one row of the table."""
    bounds = f"({points(row['test_low'])} to {points(row['test_high'])})"
    return [
        "–" if row["val_leaked"] else str(row["rank"]),
        code(row["variant"]),
        ("leaked: " if row["val_leaked"] else "") + points(row["val_accuracy"]),
        f"{points(row['test_accuracy'])} {bounds}",
        _spread(row),
        _gap(row),
        f"{row['parameters_trained']:,}",
        f"{row['model_bytes'] / 1e6:.2f}",
        f"{row['best_epoch']} of {row['epochs']}",
    ]


def _spread(row: Row) -> str:
    """Write mean, spread and number of the runs."""
    spread = "" if row["seeds_std"] is None else f" ± {points(row['seeds_std'])}"
    return f"{points(row['seeds_mean'])}{spread} (n = {row['seeds']})"


def _gap(row: Row) -> str:
    """Write the difference to the best, and whether it may be noise."""
    if "difference" not in row:
        return "best"
    bounds = f"({points(row['low'], signed=True)} to {points(row['high'], signed=True)})"
    sign = "≈ " if row["is_like_best"] else ""
    return f"{sign}{points(row['difference'], signed=True)} {bounds}"
