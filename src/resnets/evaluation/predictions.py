"""Write and read what a model and its repeats predicted for each test image.

predictions.csv has id, label, predicted and one calibrated probability per class, of the model
that is shipped; seeds.csv has id, label and what every repeat predicted. Both are read by
position, since a class may be called `id`, and without pandas, which takes long to import.
"""

import csv
import io
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
    `losses` is (images,): the shipped model's -log of the probability of the true class.
    """

    ids: list[str]
    classes: list[str]
    labels: NDArray[np.int64]
    runs: NDArray[np.int64]
    losses: NDArray[np.float64]

    def take(self, rows: Sequence[int]) -> "Predictions":
        """Return some of the images."""
        where = list(rows)
        ids = [self.ids[row] for row in where]
        labels, runs, losses = self.labels[where], self.runs[:, where], self.losses[where]
        return Predictions(ids, self.classes, labels, runs, losses)

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
) -> "pd.DataFrame":
    """Return the table for seeds.csv; `logits` are those of each repeat."""
    import pandas as pd

    names = np.asarray(classes, dtype=object)
    picked = {str(repeat): names[values.argmax(1)] for repeat, values in logits.items()}
    return pd.DataFrame({"id": list(ids), "label": names[labels], **picked})


def read_predictions(predictions: str, seeds: str | None, where: str) -> Predictions:
    """Read the texts of predictions.csv and, where there is one, seeds.csv.

    `where` names the file in errors. Raises ArtefactError for a table that is not ours.
    """
    header, columns = _read(predictions, where, ["id", "label", "predicted"])
    ids, labels, *runs = columns[:3]
    of_class = dict(zip(header[3:], columns[3:], strict=True))
    if seeds is not None:
        seeds_where = where.replace("predictions", "seeds")
        seed_ids, seed_labels, *runs = _read(seeds, seeds_where, ["id", "label"])[1]
        if (seed_ids, seed_labels) != (ids, labels) or not runs:
            raise _broken(seeds_where)
    try:
        of_label = np.array([float(of_class[label][k]) for k, label in enumerate(labels)])
        place = {name: k for k, name in enumerate(sorted(of_class))}
        return Predictions(
            ids=list(ids),
            classes=list(place),
            labels=np.array([place[name] for name in labels]),
            runs=np.array([[place[name] for name in run] for run in runs]),
            losses=-np.log(np.maximum(of_label, 5e-7)),  # what the table rounds to zero
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
