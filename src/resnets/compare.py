"""Compare the models of two revisions image by image, and say which differences are real.

Everything is read from the reviewed files: metrics/<model>.json says what was measured and on
what, plots/<model>/predictions.csv and seeds.csv what was predicted for each test image.
`resnets.statistics` explains the tests.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from resnets.markdown import code
from resnets.predictions import Predictions, read_predictions
from resnets.revisions import Revision, changes
from resnets.statistics import (
    LOSS_SPREAD,
    Difference,
    Verdict,
    balanced_terms,
    compare_runs,
    holm,
    judge,
    macro_f1_terms,
)

Metric = Literal["accuracy", "balanced_accuracy", "macro_f1", "nll"]
METRICS: tuple[Metric, ...] = ("accuracy", "balanced_accuracy", "macro_f1", "nll")
# The 5% of false verdicts are shared out: accuracy may use most of them, the others the rest, so
# that in all of a report at most 5% are wrong
SHARES: dict[tuple[Metric, ...], float] = {METRICS[:1]: 0.6, METRICS[1:]: 0.4}
Changes = list[tuple[str, object, object]]
Record = Mapping[str, Any]


@dataclass(frozen=True)
class ModelComparison:
    """Hold all that was found about one model.

    `obstacles` say why there is no verdict and `notes` what to bear in mind (Markdown).
    `base` and `head` are the predictions for the common images, in one order. `p` are the p values
    of `differences`, adjusted for the number of looks.
    """

    name: str
    records: tuple[Record, Record]
    base: Predictions | None = None
    head: Predictions | None = None
    obstacles: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    differences: Mapping[Metric, Difference] = field(default_factory=dict)
    p: Mapping[Metric, float] = field(default_factory=dict)

    def verdict(self, metric: Metric) -> Verdict | Literal["not comparable"]:
        """Return the verdict on head."""
        if metric not in self.differences:
            return "not comparable"
        found = self.differences[metric]
        return judge(found, self.p[metric], higher_is_better=metric != "nll")

    @property
    def is_unchanged(self) -> bool:
        """Say whether all runs predict the same for every image, as an untouched model does."""
        found = self.differences.values()
        return bool(found) and not self.notes and not any(x.decisive or x.value for x in found)

    def shown(self, metric: Metric) -> tuple[float | None, float | None]:
        """Return the numbers of base and head: of the common images, or else as recorded."""
        if metric in self.differences:
            return self.differences[metric].base, self.differences[metric].head
        return self.records[0]["test"].get(metric), self.records[1]["test"].get(metric)


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
    before, after = _records(base), _records(head)
    common = [name for name in after if name in before]
    models = [
        _compare_model(
            name, (before[name], after[name]), _predictions(base, name), _predictions(head, name)
        )
        for name in common
    ]
    return Comparison(
        base=base.name,
        head=head.name,
        models=_adjust(models),
        added=[name for name in after if name not in before],
        removed=[name for name in before if name not in after],
        params=changes(base.yaml("params.yaml"), head.yaml("params.yaml")),
        data=changes(_counts(base), _counts(head)),
    )


def _records(revision: Revision) -> dict[str, Record]:
    """Return the metrics of every model that was measured on a test side."""
    paths = sorted(path for path in revision.files if path.startswith("metrics/"))
    found = {path[len("metrics/") : -len(".json")]: revision.json(path) for path in paths}
    return {name: r for name, r in found.items() if {"test", "measured_on"} <= r.keys()}


def _counts(revision: Revision) -> dict[str, Record]:
    """Return what the prepare and split stages counted."""
    paths = sorted(p for p in revision.files if p.startswith(("metrics/data_", "metrics/split_")))
    return {path[len("metrics/") : -len(".json")]: revision.json(path) for path in paths}


def _predictions(revision: Revision, name: str) -> Predictions | None:
    """Return a model's predictions, None where they are not in the revision."""
    path = f"plots/{name}/predictions.csv"
    text = revision.text(path)
    if text is None:
        return None
    seeds = revision.text(f"plots/{name}/seeds.csv")
    return read_predictions(text, seeds, f"{path} at {revision.name}")


def _compare_model(
    name: str, records: tuple[Record, Record], base: Predictions | None, head: Predictions | None
) -> ModelComparison:
    """Compare one model on the images that both revisions tested."""
    if base is None or head is None:
        side = "base" if base is None else "head"
        return ModelComparison(name, records, obstacles=(f"{side} has no predictions.csv",))
    obstacles = _obstacles(records, base, head)
    if base.classes != head.classes:
        return ModelComparison(name, records, obstacles=obstacles)
    notes: tuple[str, ...] = ()
    of_runs = [list(record.get("seeds", {}).get("nll", {}).values()) for record in records]
    if not _is_same_test(base, head):
        notes = (_overlap(base, head),)
        base, head = _common(base, head)
        of_runs = [[], []]  # they are losses on other images
        if not base.ids:
            obstacles += ("the tests have no image in common",)
    differences = {} if obstacles else _measure(base, head, *of_runs)
    return ModelComparison(name, records, base, head, obstacles, notes, differences)


def _is_same_test(base: Predictions, head: Predictions) -> bool:
    """Say whether names, order and labels of the images are the same."""
    return base.ids == head.ids and bool((base.labels == head.labels).all())


def _obstacles(
    records: tuple[Record, Record], base: Predictions, head: Predictions
) -> tuple[str, ...]:
    """Say why the numbers mean different things, if they do."""
    found = []
    was, now = (record["measured_on"] for record in records)
    if was.get("preprocess") != now.get("preprocess"):
        found.append("the evaluation preprocessing differs")
    if base.classes != head.classes:
        gone, new = set(base.classes) - set(head.classes), set(head.classes) - set(base.classes)
        listed = [f"−{code(x)}" for x in sorted(gone)] + [f"+{code(x)}" for x in sorted(new)]
        found.append(f"the classes differ: {', '.join(listed[:10])}")
    elif was.get("test_set") != now.get("test_set") and _is_same_test(base, head):
        found.append("test images of the same names and labels have other pixels")
    return tuple(found)


def _overlap(base: Predictions, head: Predictions) -> str:
    """Say how two test sets overlap."""
    labels = dict(zip(base.ids, base.labels, strict=True))
    shared = [
        (labels[i], label) for i, label in zip(head.ids, head.labels, strict=True) if i in labels
    ]
    relabelled = sum(was != now for was, now in shared)
    moved = f", {relabelled:,} more have another label" if relabelled else ""
    return (
        f"the test sets differ ({len(base.ids):,} and {len(head.ids):,} images): compared on the "
        f"{len(shared) - relabelled:,} images that have the same name and label in both{moved}"
    )


def _common(base: Predictions, head: Predictions) -> tuple[Predictions, Predictions]:
    """Return both predictions for the images that have one name and label, in head's order."""
    row_of = {key: row for row, key in enumerate(zip(base.ids, base.labels, strict=True))}
    keys = list(zip(head.ids, head.labels, strict=True))
    rows = [row for row, key in enumerate(keys) if key in row_of]
    return base.take([row_of[keys[row]] for row in rows]), head.take(rows)


def _measure(
    base: Predictions, head: Predictions, base_nll: Sequence[float], head_nll: Sequence[float]
) -> dict[Metric, Difference]:
    """Return the paired differences on the same images."""
    labels, runs = base.labels, (base.runs, head.runs)
    right = [run == labels for run in runs]
    return {
        "accuracy": compare_runs(*right),
        "balanced_accuracy": compare_runs(*(balanced_terms(r, labels) for r in right)),
        "macro_f1": compare_runs(*(macro_f1_terms(run, labels) for run in runs)),
        "nll": compare_runs(
            base.losses[None],
            head.losses[None],
            spread=LOSS_SPREAD * float(base.losses.mean()),
            base_means=base_nll,
            head_means=head_nll,
        ),
    }


def _adjust(models: list[ModelComparison]) -> list[ModelComparison]:
    """Adjust p for the number of looks, so that verdicts at 5% are false in 5% of reports.

    An unchanged model is no look: it cannot turn out different by chance.
    """
    adjusted: dict[tuple[str, Metric], float] = {}
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
