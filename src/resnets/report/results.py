"""Gather what the stages wrote about the target task: this module alone knows their files."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CsvRow = dict[str, str]

PICTURES = {
    "samples": "plots/data_target/samples.png",
    "findings": "plots/data_target/findings.png",
    "curves": "reports/curves.png",
    "confusion": "artifacts/candidates/{best}/confusion.png",
    "mistakes": "artifacts/candidates/{best}/mistakes_explained.png",
    "suspected": "plots/labels/suspected.png",
}


@dataclass(frozen=True)
class Results:
    """Hold the numbers as the stages wrote them; `best` is the variant that validation chose."""

    data: dict[str, Any]
    split: dict[str, Any]
    labels: dict[str, Any]
    best: str
    ranking: dict[str, Any]  # of the variants: what the choice among them is worth
    variants: dict[str, dict[str, Any]]
    yardsticks: dict[str, dict[str, Any]]
    classes: list[CsvRow]  # precision and recall of the best variant's shipped model
    epochs: list[CsvRow]  # its learning curve
    answers: list[tuple[str, str, float]]  # of it to test images: true class, answer, confidence
    suspects: list[CsvRow]  # images whose label is suspected, the least believed first
    rejected: list[CsvRow]
    pictures: dict[str, bytes]  # PNG files

    @property
    def folds(self) -> int:
        """Return the number of folds, 0 where a fixed side is tested."""
        return int(self.split.get("folds") or 0)


def read_results(root: Path) -> Results:
    """Read the results of the project in `root`."""
    metrics = ("data_target", "split_target", "labels", "leaderboard")
    data, split, labels, board = (
        json.loads((root / f"metrics/{name}.json").read_text("utf-8")) for name in metrics
    )
    best = board["best"]
    model = root / "artifacts/candidates" / best
    history = _rows(model / "history.csv")
    shipped = [row for row in history if row["repeat"] == history[0]["repeat"]]
    with (model / "predictions.csv").open(encoding="utf-8", newline="") as file:
        _, *answers = csv.reader(file)  # by place: a class may be called as a column is
    suspects = _rows(root / "plots/labels/labels.csv")
    pictures = {name: root / path.format(best=best) for name, path in PICTURES.items()}
    return Results(
        data,
        split,
        labels,
        best,
        board.get("ranking", {}),
        board["variants"],
        board["yardsticks"],
        _rows(model / "per_class.csv"),
        shipped,
        [(label, answer, max(map(float, shares))) for _, label, answer, *shares in answers],
        [row for row in suspects if row["suspected"] == "True"],
        _rows(root / "data/tasks/target/rejected.csv"),
        {name: path.read_bytes() for name, path in pictures.items()},
    )


def _rows(path: Path) -> list[CsvRow]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
