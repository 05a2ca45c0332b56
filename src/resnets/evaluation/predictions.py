"""Write and read what a model and its repeats predicted for each test image.

predictions.csv has id, label, predicted and one calibrated probability per class, of the model
that is shipped. seeds.csv has id, label, group and, of every repeat, what it predicted and its
calibrated loss; images of one group, of which there are several, stand or fall together. Both are
read without pandas, which takes long to import, and the first by position, since a class may be
called `id`.
"""

import csv
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resnets.models.calibration import log_softmax
from resnets.system.errors import ArtefactError

if TYPE_CHECKING:
    import pandas as pd

FIX = "restore it from Git, or run `dvc repro`, which measures it again"


@dataclass(frozen=True)
class Predictions:
    """Hold what one variant predicted on one test set.

    `labels` is (images,) and `runs` (runs, images): places in `classes`, which are sorted, of the
    true class and of the classes that every training run predicted, the shipped one first.
    `losses` is (runs, images), or (1, images) of the shipped one alone in an older table: -log of
    the probability of the true class. `groups` is (images,): one number for images that stand or
    fall together.
    """

    ids: list[str]
    classes: list[str]
    labels: NDArray[np.int64]
    runs: NDArray[np.int64]
    losses: NDArray[np.float64]
    groups: NDArray[np.int64]

    def take(self, rows: Sequence[int]) -> "Predictions":
        """Return some of the images."""
        where = list(rows)
        ids = [self.ids[row] for row in where]
        labels, runs, losses = self.labels[where], self.runs[:, where], self.losses[:, where]
        return Predictions(ids, self.classes, labels, runs, losses, self.groups[where])

    def right(self) -> NDArray[np.bool_]:
        """Return (runs, images): which images were classified as what they are."""
        return np.equal(self.runs, self.labels)


def predictions_table(
    ids: Sequence[str],
    labels: NDArray[np.int64],
    logits: NDArray[np.floating],
    classes: Sequence[str],
    temperature: float,
) -> "pd.DataFrame":
    """Return the table for predictions.csv."""
    import pandas as pd

    names = np.asarray(classes, dtype=object)
    words = {"id": list(ids), "label": names[labels], "predicted": names[logits.argmax(1)]}
    probabilities = np.exp(log_softmax(logits / temperature)).round(6)
    numbers = pd.DataFrame(probabilities, columns=list(classes))
    return pd.concat([pd.DataFrame(words), numbers], axis=1)


def seeds_table(
    ids: Sequence[str],
    labels: NDArray[np.int64],
    logits: Mapping[int, NDArray[np.floating]],
    classes: Sequence[str],
    groups: Sequence[str],
) -> "pd.DataFrame":
    """Return the table for seeds.csv; `logits` are each repeat's, divided by its temperature.

    `groups` has one word for all images that stand or fall together.
    """
    import pandas as pd

    names, sizes = np.asarray(classes, dtype=object), Counter(groups)
    shared = [word if sizes[word] > 1 else "" for word in groups]
    table = {"id": list(ids), "label": names[labels], "group": shared}
    for repeat, values in logits.items():
        table[str(repeat)] = names[values.argmax(1)]
        table[f"nll {repeat}"] = -log_softmax(values)[np.arange(len(labels)), labels].round(5)
    return pd.DataFrame(table)


def read_predictions(
    predictions: str, seeds: str, record: Mapping[str, Any], where: str
) -> Predictions:
    """Read the texts of predictions.csv and seeds.csv.

    `record` is what metrics/<model>.json says of the model, or a part of it; `where` names
    predictions.csv in errors. Raises ArtefactError for a table that is not ours, and where the
    three contradict each other.
    """
    header, (ids, labels, predicted, *columns) = _read(predictions, where)
    seeds_where = where.replace("predictions.csv", "seeds.csv")
    table = dict(zip(*_read(seeds, seeds_where), strict=True))
    repeats = [name for name in table if name.isdigit()]
    if not repeats or len(table["id"]) != len(ids):
        raise _broken(seeds_where)
    of_class = dict(zip(header[3:], columns, strict=True))
    place = {name: k for k, name in enumerate(sorted(of_class))}
    named = (labels, predicted, *(table[repeat] for repeat in repeats))
    try:
        probabilities = np.array([of_class[name] for name in place], np.float64)
        truth, shipped, *places = (np.array([place[name] for name in names]) for names in named)
        losses = np.array([table[f"nll {repeat}"] for repeat in repeats], np.float64)
    except (KeyError, ValueError):
        raise _broken(where) from None
    rows = np.arange(len(ids))
    is_likeliest = probabilities[shipped, rows] >= probabilities.max(0)  # ties, as it is rounded
    _hold(is_likeliest, ids, f"{where}: predicted is not the class of the highest probability")
    pairs = zip(ids, labels, table["id"], table["label"], strict=True)
    is_same = np.array([(a, b) == (c, d) for a, b, c, d in pairs])
    _hold(is_same, ids, f"{seeds_where}: id or label is not that of predictions.csv")
    _hold(shipped == places[0], ids, f"{seeds_where}: the first run is not that of predictions.csv")
    groups = [word or name for name, word in zip(ids, table["group"], strict=True)]
    read = Predictions(
        ids=list(ids),
        classes=list(place),
        labels=truth,
        runs=np.array(places),
        losses=losses,
        groups=np.unique(groups, return_inverse=True)[1],
    )
    _agree(record, read, repeats, where)
    return read


def _hold(is_right: NDArray[np.bool_], ids: Sequence[str], problem: str) -> None:
    """Raise ArtefactError, with the first of the wrong rows, unless all are right."""
    if not is_right.all():
        row, wrong = int(is_right.argmin()), int((~is_right).sum())
        what = f"{problem}, in row {row + 1} ({ids[row]}) and {wrong - 1:,} more of {len(ids):,}"
        raise ArtefactError(what, FIX)


def _agree(
    record: Mapping[str, Any], read: Predictions, repeats: Sequence[str], where: str
) -> None:
    """Raise ArtefactError where a record has other numbers than the tables give."""
    accuracies = read.right().mean(1).tolist()
    computed = {"test.images": len(read.ids), "test.accuracy": accuracies[0]}
    computed["seeds.n"] = len(repeats)
    computed |= {f"seeds.test.{k}": x for k, x in zip(repeats, accuracies, strict=True)}
    test, seeds = record.get("test", {}), record.get("seeds", {})
    told = {f"test.{key}": test[key] for key in ("images", "accuracy") if key in test}
    told |= {f"seeds.test.{key}": value for key, value in seeds.get("test", {}).items()}
    told |= {"seeds.n": seeds["n"]} if "n" in seeds else {}
    for key, value in told.items():
        if not abs(value - computed.get(key, math.nan)) <= 1e-6:
            what = (
                f"{where}: {key} is {computed.get(key)} by the predictions, {value} in the metrics"
            )
            raise ArtefactError(what, FIX)


def _read(text: str, where: str) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return header and columns of a table that starts with id, label and a prediction."""
    header, *rows = list(csv.reader(io.StringIO(text))) or [[]]
    is_ours = header[:2] == ["id", "label"] and len(header) > 2
    if not rows or not is_ours or {len(row) for row in rows} != {len(header)}:
        raise _broken(where)
    return header, list(zip(*rows, strict=True))


def _broken(where: str) -> ArtefactError:
    return ArtefactError(f"{where}: not a table of predictions", FIX)
