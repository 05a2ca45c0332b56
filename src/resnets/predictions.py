"""Read the tables of predictions that the evaluate stage writes, by position, without pandas."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resnets.errors import ArtefactError


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
        return Predictions(
            [self.ids[row] for row in where],
            self.classes,
            self.labels[where],
            self.runs[:, where],
            self.losses[where],
        )


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
    rows = list(csv.reader(io.StringIO(text)))
    if (
        len(rows) < 2
        or rows[0][: len(start)] != start
        or {len(row) for row in rows} != {len(rows[0])}
    ):
        raise _broken(where)
    return rows[0], list(zip(*rows[1:], strict=True))


def _broken(where: str) -> ArtefactError:
    return ArtefactError(f"{where}: not a table of predictions", "run the evaluate stage again")
