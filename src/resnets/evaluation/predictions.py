"""Write and read what a model and its repeats predicted for each test image.

predictions.csv has id, label, predicted and one calibrated probability per class, of the model
that is shipped. seeds.csv has id, label, group and, of every repeat, what it predicted and its
calibrated loss; images of one group, of which there are several, stand or fall together. Both are
read without pandas, which takes long to import, and the first by position, since a class may be
called `id`.
"""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from resnets.calibration import log_softmax
from resnets.errors import ArtefactError

if TYPE_CHECKING:
    import pandas as pd


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


def read_predictions(predictions: str, seeds: str | None, where: str) -> Predictions:
    """Read the texts of predictions.csv and, where there is one, seeds.csv.

    `where` names the file in errors. Raises ArtefactError for a table that is not ours.
    """
    header, columns = _read(predictions, where, ["id", "label", "predicted"])
    ids, labels, predicted = columns[:3]
    of_class = dict(zip(header[3:], columns[3:], strict=True))
    table: dict[str, tuple[str, ...]] = {"0": predicted}
    if seeds is not None:
        seeds_where = where.replace("predictions", "seeds")
        table = dict(zip(*_read(seeds, seeds_where, ["id", "label"]), strict=True))
        if (table["id"], table["label"]) != (ids, labels) or not any(map(str.isdigit, table)):
            raise _broken(seeds_where)
    repeats = [name for name in table if name.isdigit()]
    losses = [table[f"nll {repeat}"] for repeat in repeats if f"nll {repeat}" in table]
    groups = [word or name for name, word in zip(ids, table.get("group", ids), strict=True)]
    try:
        of_label = np.array([float(of_class[label][k]) for k, label in enumerate(labels)])
        place = {name: k for k, name in enumerate(sorted(of_class))}
        return Predictions(
            ids=list(ids),
            classes=list(place),
            labels=np.array([place[name] for name in labels]),
            runs=np.array([[place[name] for name in table[repeat]] for repeat in repeats]),
            # what the table rounds to zero is half of its last digit
            losses=np.array(losses or [-np.log(np.maximum(of_label, 5e-7))], np.float64),
            groups=np.unique(groups, return_inverse=True)[1],
        )
    except (KeyError, ValueError):
        raise _broken(where) from None


def _read(text: str, where: str, start: list[str]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return header and columns of a table that starts with these columns."""
    header, *rows = list(csv.reader(io.StringIO(text))) or [[]]
    if not rows or header[: len(start)] != start or {len(row) for row in rows} != {len(header)}:
        raise _broken(where)
    return header, list(zip(*rows, strict=True))


def _broken(where: str) -> ArtefactError:
    return ArtefactError(f"{where}: not a table of predictions", "run the evaluate stage again")
