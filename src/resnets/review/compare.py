"""Compare the models of two revisions image by image, and say which differences are real.

Everything is read from the reviewed files: metrics/<model>.json says what was measured and on
what, plots/<model>/predictions.csv and seeds.csv what was predicted for each test image.
`resnets.evaluation.significance` explains the tests.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from resnets.evaluation.metrics import Outcomes, metrics_for
from resnets.evaluation.predictions import Predictions, read_predictions
from resnets.evaluation.report import code
from resnets.evaluation.significance import (
    LOSS_SPREAD,
    SEED_SPREAD,
    Difference,
    Verdict,
    compare_runs,
    holm,
    judge,
)
from resnets.review.revisions import Revision, changes, is_of_model

METRICS = metrics_for("compare")
# The 5% of false verdicts are shared out: the first may use most of them, the others the rest, so
# that in all of a report at most 5% are wrong
SHARES = {tuple(METRICS)[:1]: 0.6, tuple(METRICS)[1:]: 0.4}
Changes = list[tuple[str, object, object]]
Record = Mapping[str, Any]


@dataclass(frozen=True)
class ModelComparison:
    """Hold all that was found about one model.

    `records` are the metrics of base and head, `pair` their predictions for the common images, in
    one order. `obstacles` say why there is no verdict and `notes` what to bear in mind (Markdown).
    `p` are the p values of `differences`, adjusted for the number of looks.
    """

    name: str
    records: tuple[Record, Record]
    pair: tuple[Predictions, Predictions] | None = None
    obstacles: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    differences: Mapping[str, Difference] = field(default_factory=dict)
    p: Mapping[str, float] = field(default_factory=dict)

    def verdict(self, metric: str) -> Verdict | Literal["not comparable"]:
        """Return the verdict on head."""
        if metric not in self.differences:
            return "not comparable"
        found = self.differences[metric]
        return judge(found, self.p[metric], higher_is_better=METRICS[metric].higher_is_better)

    @property
    def is_unchanged(self) -> bool:
        """Say whether all runs predict the same for every image, as an untouched model does."""
        found = self.differences.values()
        return bool(found) and not self.notes and not any(x.decisive or x.value for x in found)

    def shown(self, metric: str) -> tuple[float | None, float | None]:
        """Return the numbers of base and head: of the common images, or else as recorded."""
        if metric in self.differences:
            return self.differences[metric].base, self.differences[metric].head
        return self.records[0]["test"].get(metric), self.records[1]["test"].get(metric)

    def broken_and_fixed(self) -> tuple[list[int], list[int]]:
        """Return the images that only base, and that only head got right (shipped models).

        Those whose probability of the true class moved most come first.
        """
        if self.pair is None:
            return [], []
        base, head = self.pair
        base_right, head_right = base.right()[0], head.right()[0]
        order = np.argsort(-np.abs(head.losses[0] - base.losses[0]), kind="stable")
        moves = base_right & ~head_right, ~base_right & head_right
        broken, fixed = (order[move[order]].tolist() for move in moves)
        return broken, fixed


@dataclass(frozen=True)
class Comparison:
    """Hold the comparison of two revisions; changes are (key, base, head)."""

    base: str
    head: str
    models: list[ModelComparison]
    added: list[str]
    removed: list[str]
    params: Changes
    data: Changes


def compare_revisions(base: Revision, head: Revision) -> Comparison:
    """Compare all models that both revisions have, and list what else changed."""
    metrics = base.metrics(), head.metrics()
    before, after = (
        {name: record for name, record in records.items() if is_of_model(record)}
        for records in metrics
    )
    counts = (
        {name: records[name] for name in records if name.startswith(("data_", "split_"))}
        for records in metrics
    )
    models = [
        _compare_model(name, (before[name], after[name]), (base, head))
        for name in after
        if name in before
    ]
    return Comparison(
        base=base.name,
        head=head.name,
        models=_adjust(models),
        added=[name for name in after if name not in before],
        removed=[name for name in before if name not in after],
        params=changes(base.yaml("params.yaml"), head.yaml("params.yaml")),
        data=changes(*counts),
    )


def _compare_model(
    name: str, records: tuple[Record, Record], revisions: tuple[Revision, Revision]
) -> ModelComparison:
    """Compare one model on the images that both revisions tested."""
    base = _results("base", revisions[0], name, records[0])
    head = _results("head", revisions[1], name, records[1])
    if isinstance(base, str) or isinstance(head, str):
        obstacles = tuple(problem for problem in (base, head) if isinstance(problem, str))
        return ModelComparison(name, records, obstacles=obstacles)
    obstacles = _obstacles(records, base, head)
    if base.classes != head.classes:
        return ModelComparison(name, records, obstacles=obstacles)
    notes: tuple[str, ...] = ()
    if not _is_same_test(base, head):
        base, head, note = _common(base, head)
        notes = (note,)
        if not base.ids:
            obstacles += ("the tests have no image in common",)
    differences = {} if obstacles else _measure(base, head)
    return ModelComparison(name, records, (base, head), obstacles, notes, differences)


def _results(side: str, revision: Revision, name: str, record: Record) -> Predictions | str:
    """Return a model's predictions, which must agree with its metrics, or why there are none."""
    tables = [f"plots/{name}/{table}.csv" for table in ("predictions", "seeds")]
    for table in tables:
        if table not in revision.files:
            return f"{side} has no {code(table)}"
    predictions, seeds = (revision.text(table) or "" for table in tables)
    results = read_predictions(predictions, seeds, record, f"{tables[0]} at {revision.name}")
    if why := revision.stale.get(f"metrics/{name}.json"):
        others = f" and {len(why) - 1:,} more" if len(why) > 1 else ""
        return f"{side} is out of date, so no result of it: {code(why[0], 200)}{others}"
    return results


def _is_same_test(base: Predictions, head: Predictions) -> bool:
    """Say whether names, order and labels of the images are the same."""
    return base.ids == head.ids and bool((base.labels == head.labels).all())


def _obstacles(
    records: tuple[Record, Record], base: Predictions, head: Predictions
) -> tuple[str, ...]:
    """Say why the numbers mean different things, if they do."""
    found = []
    base_on, head_on = (record["measured_on"] for record in records)
    if base_on.get("preprocess") != head_on.get("preprocess"):
        found.append("the evaluation preprocessing differs")
    if base.classes != head.classes:
        gone, new = set(base.classes) - set(head.classes), set(head.classes) - set(base.classes)
        listed = [f"−{code(x)}" for x in sorted(gone)] + [f"+{code(x)}" for x in sorted(new)]
        found.append(f"the classes differ: {', '.join(listed[:10])}")
    elif base_on.get("test_set") != head_on.get("test_set") and _is_same_test(base, head):
        found.append("test images of the same names and labels have other pixels")
    return tuple(found)


def _common(base: Predictions, head: Predictions) -> tuple[Predictions, Predictions, str]:
    """Return both predictions for the common images, in head's order, and say how many they are."""
    row_of = {name: row for row, name in enumerate(base.ids)}
    both = [(row_of[name], row) for row, name in enumerate(head.ids) if name in row_of]
    kept = [rows for rows in both if base.labels[rows[0]] == head.labels[rows[1]]]
    moved = f", {len(both) - len(kept):,} more have another label" if len(both) > len(kept) else ""
    note = (
        f"the test sets differ ({len(base.ids):,} and {len(head.ids):,} images): compared on the "
        f"{len(kept):,} images that have the same name and label in both{moved}"
    )
    base_rows, head_rows = [rows[0] for rows in kept], [rows[1] for rows in kept]
    return base.take(base_rows), head.take(head_rows), note


def _measure(base: Predictions, head: Predictions) -> dict[str, Difference]:
    """Return the paired differences on the same images."""
    sides = [Outcomes(side.labels, side.runs, side.losses) for side in (base, head)]
    differences = {}
    for name, metric in METRICS.items():
        terms = [metric.terms(side) for side in sides]
        spread = SEED_SPREAD if metric.higher_is_better else LOSS_SPREAD * float(terms[0].mean())
        differences[name] = compare_runs(*terms, spread=spread, groups=head.groups)
    return differences


def _adjust(models: list[ModelComparison]) -> list[ModelComparison]:
    """Adjust p for the number of looks, so that verdicts at 5% are false in 5% of reports.

    An unchanged model is no look: it cannot turn out different by chance.
    """
    adjusted: dict[tuple[str, str], float] = {}
    for family, share in SHARES.items():
        looks = {
            (model.name, metric): model.differences[metric].p
            for model in models
            for metric in family
            if metric in model.differences and not model.is_unchanged
        }
        together = (min(1.0, p / share) for p in holm(list(looks.values())))
        adjusted |= zip(looks, together, strict=True)
    return [
        replace(model, p={metric: adjusted.get((model.name, metric), 1.0) for metric in METRICS})
        for model in models
    ]
