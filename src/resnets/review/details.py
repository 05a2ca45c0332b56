"""Show what changed inside one model: its classes, its confusions, and the images themselves."""

from pathlib import Path
from urllib.parse import quote

import numpy as np

from resnets.evaluation.predictions import Predictions
from resnets.evaluation.report import chance, code, points, table
from resnets.evaluation.significance import holm, mcnemar
from resnets.review.compare import ModelComparison
from resnets.system.errors import EnvironmentFault

MOST_ROWS = 12  # of a table
MOST_PICTURES = 16  # fixed and broken together


def details(model: ModelComparison) -> list[str]:
    """Return what changed inside one model: classes, confusions, images."""
    if model.pair is None or not model.pair[0].ids:
        return []
    base, head = model.pair
    blocks = [*_classes(base, head), *_confusions(base, head)]
    for word, changed in zip(("broke", "were fixed"), model.broken_and_fixed(), strict=True):
        if changed:
            rows = [map(code, (base.ids[k], *_words(base, head, k))) for k in changed[:MOST_ROWS]]
            title = f"### Images that {word}: {len(changed):,}"
            blocks += [title, table(["image", "true", "base", "head"], map(list, rows), words=4)]
    return [f"## {code(model.name)}", *blocks] if blocks else []


def _words(base: Predictions, head: Predictions, k: int) -> tuple[str, str, str]:
    """Return an image's true class, and those that base and head predicted."""
    places = base.labels[k], base.runs[0, k], head.runs[0, k]
    true, base_class, head_class = (base.classes[place] for place in places)
    return true, base_class, head_class


def _classes(base: Predictions, head: Predictions) -> list[str]:
    """Return the classes whose recall moved, most first; p is McNemar's within the class (Holm)."""
    rows, moves, ps = [], [], []
    for k in np.unique(base.labels):
        base_right, head_right = (side.runs[0][base.labels == k] == k for side in (base, head))
        moves.append(float(head_right.mean() - base_right.mean()))
        num_broken, num_fixed = (base_right & ~head_right).sum(), (~base_right & head_right).sum()
        ps.append(mcnemar(int(num_broken), int(num_fixed)))
        recalls = [points(base_right.mean()), points(head_right.mean())]
        move = points(moves[-1], signed=True)
        rows.append([code(base.classes[k]), f"{len(base_right):,}", *recalls, move])
    ps = holm(ps)
    order = np.argsort(-np.abs(moves), kind="stable")[:MOST_ROWS]
    full = [[*rows[k], chance(ps[k])] for k in order if moves[k]]
    if not full:
        return []
    header = ["class", "images", "base recall", "head recall", "difference", "p"]
    return ["### Classes that moved", table(header, full)]


def _confusions(base: Predictions, head: Predictions) -> list[str]:
    """Return the confusions that became more or less frequent."""
    names, size = base.classes, len(base.classes)
    confused = (side.labels * size + side.runs[0] for side in (base, head))
    counts = np.stack([np.bincount(cells, minlength=size**2) for cells in confused])
    moves = counts[1] - counts[0]
    moves[:: size + 1] = 0  # right answers
    rows = [
        [*map(code, (names[k // size], names[k % size])), *counts[:, k], f"{moves[k]:+d}"]
        for k in np.argsort(-np.abs(moves), kind="stable")[:MOST_ROWS]
        if moves[k]
    ]
    header = ["true", "predicted", "base", "head", "difference"]
    return ["### Confusions that changed", table(header, rows, words=2)] if rows else []


def draw_sheet(model: ModelComparison, root: Path, report: Path) -> str:
    """Draw the images that broke and were fixed beside the report; return the link to them."""
    from resnets.tasks.sheet import plot_sheet
    from resnets.tasks.task import open_task

    changes = zip(("broke", "fixed"), model.broken_and_fixed(), strict=True)
    chosen = [(word, k) for word, rows in changes for k in rows[: MOST_PICTURES // 2]]
    if not chosen or model.pair is None:
        return ""
    folder = root / "data" / "tasks" / ("source" if model.name == "backbone" else "target")
    try:
        test = open_task(folder).side("test")
    except EnvironmentFault:
        return "No pictures: the images are not here (`dvc pull` or `dvc repro` brings them)."
    if test.digest() != model.records[1]["measured_on"].get("test_set"):
        return "No pictures: the images here are not those that head was tested on."
    row_of = {name: row for row, name in enumerate(test.ids)}
    base, head = model.pair
    captions = ["{}: {}\n{} → {}".format(word, *_words(base, head, k)) for word, k in chosen]
    path = report.with_name(f"{report.stem}.{model.name}.png")
    plot_sheet([test.images[row_of[base.ids[k]]] for _, k in chosen], captions, path)
    return f"![Images that broke and that were fixed]({quote(path.name)})"
