"""Hold, write and read what the training runs of one variant predicted for each test image.

predictions.csv has id, label, predicted and one calibrated probability per class, of the model
that is shipped. seeds.csv has id, label, group and, of every repeat, what it predicted and its
calibrated loss. Both are read without pandas, which takes long to import.
"""

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resnets.evaluation.significance import Labels
from resnets.models.calibration import LogProbabilities, log_softmax
from resnets.system.errors import ArtefactError

if TYPE_CHECKING:
    import pandas as pd

DETAILS = "details.json"  # beside the tables: scores, runs, and what they were measured on
FIX = "restore it from Git, or run `dvc repro`, which measures it again"


@dataclass(frozen=True)
class Predictions:
    """Hold what R runs, the shipped one first, predicted of N images.

    `labels` (N,) and `runs` (R, N) are places in `classes`: the true one and those predicted.
    `losses` (R, N) are -log of the probability of the true class, `logs` (N, K) all
    log-probabilities of the shipped run, where they are known. Images with one word in `groups`
    (N,) stand or fall together.
    """

    labels: Labels
    runs: Labels
    losses: NDArray[np.float64]
    logs: LogProbabilities = field(default_factory=lambda: np.empty((0, 0)))
    classes: Sequence[str] = ()
    ids: Sequence[str] = ()
    groups: Sequence[str] = ()

    def take(self, rows: Sequence[int]) -> "Predictions":
        """Return some of the images, of predictions that were read from tables."""
        where = np.array(rows, int)
        labels, runs, losses = self.labels[where], self.runs[:, where], self.losses[:, where]
        ids, groups = ([words[row] for row in rows] for words in (self.ids, self.groups))
        return replace(self, labels=labels, runs=runs, losses=losses, ids=ids, groups=groups)

    def right(self) -> NDArray[np.bool_]:
        """Return (R, N): which images were classified as what they are."""
        return np.equal(self.runs, self.labels)


def predictions_of(
    logits: Iterable[NDArray[np.floating]], labels: Labels, **words: Sequence[str]
) -> Predictions:
    """Return the predictions of runs, given each one's logits (N, K) over its temperature.

    `words` are `classes`, `ids` and `groups`, where these matter.
    """
    logs, images = [log_softmax(run) for run in logits], np.arange(len(labels))
    runs = np.stack([run.argmax(1) for run in logs])
    losses = np.stack([-run[images, labels] for run in logs])
    return Predictions(labels, runs, losses, logs[0], **words)


def prediction_tables(
    predictions: Predictions, repeats: Iterable[int]
) -> dict[str, "pd.DataFrame"]:
    """Return the tables for predictions.csv and seeds.csv."""
    import pandas as pd

    names, groups = np.array(predictions.classes, dtype=object), predictions.groups
    images = pd.DataFrame({"id": predictions.ids, "label": names[predictions.labels]})
    sizes = Counter(groups)
    seeds = images.assign(group=[word if sizes[word] > 1 else "" for word in groups])
    for repeat, run, losses in zip(repeats, predictions.runs, predictions.losses, strict=True):
        seeds[str(repeat)], seeds[f"nll {repeat}"] = names[run], losses.round(5)
    shipped = images.assign(predicted=names[predictions.runs[0]])
    shares = pd.DataFrame(np.exp(predictions.logs).round(6), columns=names)
    # not assigned: a class may be called `id`
    return {"predictions": pd.concat([shipped, shares], axis=1), "seeds": seeds}


def read_predictions(
    predictions: str, seeds: str, record: Mapping[str, Any], where: str
) -> Predictions:
    """Read the texts of predictions.csv, which is called `where`, and seeds.csv.

    `record` is what details.json holds. Raises ArtefactError for a table that is not ours, and
    where the three contradict each other.
    """
    seeds_where = where.replace("predictions.csv", "seeds.csv")
    (header, cells), (names, table) = _read(predictions, where), _read(seeds, seeds_where)
    columns = dict(zip(names, table.T, strict=True))
    repeats = [name for name in names if name.isdigit()]
    if not repeats or len(table) != len(cells):
        raise _broken(seeds_where)
    ids, *named = *cells[:, :3].T, *(columns[repeat] for repeat in repeats)
    order = sorted(range(3, len(header)), key=header.__getitem__)
    place = {header[column]: k for k, column in enumerate(order)}
    try:
        probabilities = cells[:, order].astype(np.float64)
        labels, shipped, *runs = (np.array([place[name] for name in words]) for words in named)
    except (KeyError, ValueError):
        raise _broken(where) from None
    try:
        losses = np.array([columns[f"nll {repeat}"] for repeat in repeats], np.float64)
        groups = np.where(columns["group"] == "", ids, columns["group"]).tolist()
    except (KeyError, ValueError):
        raise _broken(seeds_where) from None
    likeliest = probabilities.max(1)  # two may be equal, as they are rounded
    _check(
        probabilities[np.arange(len(ids)), shipped] == likeliest,
        ids,
        f"{where}: predicted is not the class of the highest probability",
    )
    is_same = (table[:, :2] == cells[:, :2]).all(1)
    _check(is_same, ids, f"{seeds_where}: id or label is not that of predictions.csv")
    problem = f"{seeds_where}: the first run is not that of predictions.csv"
    _check(shipped == runs[0], ids, problem)
    words = {"classes": list(place), "ids": ids.tolist(), "groups": groups}
    read = Predictions(labels, np.array(runs), losses, **words)
    _check_record(record, read, repeats, where)
    return read


def _check(is_right: NDArray[np.bool_], ids: Sequence[str], problem: str) -> None:
    """Raise ArtefactError, with the first of the wrong rows, unless all are right."""
    if not is_right.all():
        row, more = int(is_right.argmin()), int((~is_right).sum()) - 1
        what = f"{problem}, in row {row + 1} ({ids[row]}) and {more:,} more of {len(ids):,}"
        raise ArtefactError(what, FIX)


def _check_record(
    record: Mapping[str, Any], read: Predictions, repeats: Sequence[str], where: str
) -> None:
    """Raise ArtefactError where a record has other numbers than the tables give."""
    accuracies = read.right().mean(1).tolist()
    computed = {"test.images": len(read.ids), "test.accuracy": accuracies[0]}
    computed |= zip((f"test_accuracy of run {x}" for x in repeats), accuracies, strict=True)
    computed["number of runs"] = len(repeats)
    test, runs = record["test"], record["runs"]
    recorded = {f"test.{key}": test[key] for key in ("images", "accuracy")}
    recorded |= {f"test_accuracy of run {run['repeat']}": run["test_accuracy"] for run in runs}
    recorded["number of runs"] = len(runs)
    for key, value in recorded.items():
        if not abs(value - computed.get(key, math.nan)) <= 1e-6:
            numbers = f"{computed.get(key)} by the predictions, {value} in {DETAILS}"
            raise ArtefactError(f"{where}: {key} is {numbers}", FIX)


def _read(text: str, where: str) -> tuple[list[str], NDArray[np.object_]]:
    """Return header and cells of a table that starts with id, label and a prediction."""
    header, *rows = list(csv.reader(io.StringIO(text))) or [[]]
    is_ours = header[:2] == ["id", "label"] and len(header) > 2
    if not rows or not is_ours or {len(row) for row in rows} != {len(header)}:
        raise _broken(where)
    return header, np.array(rows, dtype=object)


def _broken(where: str) -> ArtefactError:
    return ArtefactError(f"{where}: not a table of predictions", FIX)
