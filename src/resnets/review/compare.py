"""Compare the models of two revisions image by image, and say which differences are real.

Everything is read from the reviewed files: plots/<model>/details.json says what was measured and
on what, predictions.csv and seeds.csv beside it what was predicted for each test image.
`resnets.evaluation.significance` explains the tests.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from resnets.evaluation.markdown import code
from resnets.evaluation.metrics import metrics_for
from resnets.evaluation.predictions import DETAILS, FIX, Predictions, read_predictions
from resnets.evaluation.significance import (
    LOSS_SPREAD,
    SEED_SPREAD,
    Difference,
    Verdict,
    compare_runs,
    holm,
    judge,
)
from resnets.review.revisions import Record, Revision
from resnets.system.errors import ArtefactError

METRICS = metrics_for("compare")
FIRST, *OTHERS = METRICS
# The 5% of false verdicts are shared out: the first may use most of them, the others the rest, so
# that in all of a report at most 5% are wrong
SHARES = (([FIRST], 0.6), (OTHERS, 0.4))
Pair = tuple[Predictions, Predictions]  # of base and head


@dataclass(frozen=True)
class ModelComparison:
    """Hold all that was found about one model.

    `records` are the details of base and head, `pair` their predictions for the common images, in
    one order, if there are any. `obstacles` say why there is no verdict and `notes` what to bear
    in mind (Markdown). `p` are the p values of `differences`, adjusted for the number of looks.
    """

    name: str
    records: tuple[Record, Record]
    obstacles: list[str]
    pair: Pair | None = None
    notes: list[str] = field(default_factory=list)
    differences: dict[str, Difference] = field(default_factory=dict)
    p: dict[str, float] = field(default_factory=dict)

    def verdict(self, metric: str) -> Verdict | Literal["not comparable"]:
        """Return the verdict on head."""
        if metric not in self.differences:
            return "not comparable"
        difference, p = self.differences[metric], self.p.get(metric, 1.0)
        return judge(difference, p, higher_is_better=METRICS[metric].higher_is_better)

    @property
    def is_unchanged(self) -> bool:
        """Say whether all runs predict the same for every image, as an untouched model does."""
        moved = any(x.decisive or x.value for x in self.differences.values())
        return bool(self.differences) and not self.notes and not moved

    def broken_and_fixed(self) -> tuple[list[int], list[int]]:
        """Return the images that only base, and that only head got right (shipped models).

        Those whose probability of the true class moved most come first.
        """
        if self.pair is None:
            return [], []
        base, head = self.pair
        base_right, head_right = base.right()[0], head.right()[0]
        order = np.argsort(-np.abs(head.losses[0] - base.losses[0]), kind="stable")
        broken, fixed = base_right & ~head_right, ~base_right & head_right
        return order[broken[order]].tolist(), order[fixed[order]].tolist()


def compare_revisions(base: Revision, head: Revision) -> list[ModelComparison]:
    """Compare all models that both revisions have."""
    names = [name for name in head.models if name in base.models]
    models = [_compare_model(name, base, head) for name in names]
    _adjust(models)
    return models


def _compare_model(name: str, base: Revision, head: Revision) -> ModelComparison:
    """Compare one model on the images that both revisions tested."""
    records = base.models[name], head.models[name]
    sides = [_read(side, revision, name) for side, revision in (("base", base), ("head", head))]
    pair = [side for side in sides if isinstance(side, Predictions)]
    obstacles = [side for side in sides if isinstance(side, str)]
    if obstacles:
        return ModelComparison(name, records, obstacles)
    obstacles += _obstacles(records, *pair)
    if pair[0].classes != pair[1].classes:
        return ModelComparison(name, records, obstacles)
    common, notes = _common(*pair)
    if not common[0].ids:
        return ModelComparison(name, records, [*obstacles, "the tests have no image in common"])
    differences = {} if obstacles else _measure(*common)
    return ModelComparison(name, records, obstacles, common, notes, differences)


def _read(side: str, revision: Revision, name: str) -> Predictions | str:
    """Return a model's predictions, which must agree with its numbers, or why there are none."""
    tables = [f"plots/{name}/{table}.csv" for table in ("predictions", "seeds")]
    if missing := [table for table in tables if table not in revision.files]:
        return f"{side} has no {code(missing[0])}"
    where, record = f"{tables[0]} at {revision.name}", revision.models[name]
    predictions, seeds = (revision.files[table] for table in tables)
    try:
        results = read_predictions(predictions, seeds, record, where)
        _check_means(results, record["means"]["test"], where)
    except (AttributeError, KeyError, TypeError):  # of a number that is no number, or missing
        what = f"{where}: {DETAILS} or the metrics of {name} are not whole"
        raise ArtefactError(what, FIX) from None
    if f"metrics/{name}.json" in revision.stale:
        return f"{side} is out of date"
    return results


def _check_means(results: Predictions, means: Mapping[str, float], where: str) -> None:
    """Raise ArtefactError where the metrics are not the means over the runs."""
    for name, value in means.items():
        mean = float(METRICS[name].terms(results).mean())
        if not abs(mean - value) <= 1e-5:  # seeds.csv has five decimals
            numbers = f"{mean:g} by the predictions, {value} in the metrics"
            raise ArtefactError(f"{where}: the mean {name} is {numbers}", FIX)


def _obstacles(
    records: tuple[Record, Record], base: Predictions, head: Predictions
) -> Iterator[str]:
    """Say why the numbers mean different things, if they do."""
    base_on, head_on = (record["measured_on"] for record in records)
    if base_on.get("preprocess") != head_on.get("preprocess"):
        yield "the evaluation preprocessing differs"
    folds = [on.get("folds", "0") for on in (base_on, head_on)]
    if folds[0] != folds[1]:
        yield "base was tested with {} folds, head with {} (0: a fixed test side)".format(*folds)
    if base.classes != head.classes:
        gone, new = set(base.classes) - set(head.classes), set(head.classes) - set(base.classes)
        listed = [f"−{code(x)}" for x in sorted(gone)] + [f"+{code(x)}" for x in sorted(new)]
        yield f"the classes differ: {', '.join(listed[:10])}"
    elif base_on.get("test_set") != head_on.get("test_set") and (
        base.ids == head.ids and np.array_equal(base.labels, head.labels)
    ):
        yield "test images of the same names and labels have other pixels"


def _common(base: Predictions, head: Predictions) -> tuple[Pair, list[str]]:
    """Return both predictions for the common images, in head's order; note if others are left."""
    row_of = {key: row for row, key in enumerate(zip(base.ids, base.labels.tolist(), strict=True))}
    head_keys = list(zip(head.ids, head.labels.tolist(), strict=True))
    head_rows = [row for row, key in enumerate(head_keys) if key in row_of]
    base_rows = [row_of[head_keys[row]] for row in head_rows]
    notes = []
    if not len(head_rows) == len(base.ids) == len(head.ids):
        relabelled = len(set(base.ids) & set(head.ids)) - len(head_rows)
        notes.append(
            f"the test sets differ ({len(base.ids):,} and {len(head.ids):,} images): compared on "
            f"the {len(head_rows):,} images that have the same name and label in both"
            + f", {relabelled:,} more have another label"
            * bool(relabelled)
        )
    return (base.take(base_rows), head.take(head_rows)), notes


def _measure(base: Predictions, head: Predictions) -> dict[str, Difference]:
    """Return the paired differences on the same images."""
    differences = {}
    for name, metric in METRICS.items():
        terms = [metric.terms(side) for side in (base, head)]
        spread = SEED_SPREAD if metric.higher_is_better else LOSS_SPREAD * float(terms[0].mean())
        differences[name] = compare_runs(*terms, spread=spread, groups=head.groups)
    return differences


def _adjust(models: list[ModelComparison]) -> None:
    """Adjust p for the number of looks, so that verdicts at 5% are false in 5% of reports.

    An unchanged model is no look: it cannot turn out different by chance.
    """
    changed = [model for model in models if not model.is_unchanged]
    for family, share in SHARES:
        looks = [(x, metric) for x in changed for metric in x.differences if metric in family]
        adjusted = holm([model.differences[metric].p for model, metric in looks])
        for (model, metric), p in zip(looks, adjusted, strict=True):
            model.p[metric] = min(1.0, p / share)
