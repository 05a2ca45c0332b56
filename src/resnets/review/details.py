"""Show what changed inside one model: its classes, its confusions, and the images themselves."""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from resnets.evaluation.predictions import Predictions
from resnets.evaluation.report import chance, code, points, table
from resnets.evaluation.significance import holm, mcnemar
from resnets.review.compare import ModelComparison, Pair

MOST_ROWS = 12  # of a table
MOST_PICTURES = 16  # fixed and broken together


def details(model: ModelComparison) -> list[str]:
    """Return what changed inside one model: classes, confusions, images."""
    if model.pair is None:
        return []
    blocks = [*_classes(*model.pair), *_confusions(*model.pair)]
    for word, images in zip(("broke", "were fixed"), model.broken_and_fixed(), strict=True):
        ids = model.pair[0].ids
        rows = [[code(ids[k]), *map(code, _words(model.pair, k))] for k in images[:MOST_ROWS]]
        title = f"### Images that {word}: {len(images):,}"
        blocks += section(title, ["image", "true", "base", "head"], rows, words=4)
    return [f"## {code(model.name)}", *blocks] if blocks else []


def section(
    title: str, header: Sequence[str], rows: Sequence[Sequence[object]], *, words: int = 1
) -> list[str]:
    """Return a title and a table, if it has rows."""
    return [title, table(header, rows, words=words)] if rows else []


def _words(pair: Pair, k: int) -> list[str]:
    """Return an image's true class, and those that base and head predicted."""
    base, head = pair
    return [base.classes[place] for place in (base.labels[k], base.runs[0, k], head.runs[0, k])]


def _classes(base: Predictions, head: Predictions) -> list[str]:
    """Return the classes whose recall moved, most first; p is McNemar's within the class (Holm)."""
    present, images = np.unique(base.labels, return_counts=True)
    base_right, head_right = base.right()[0], head.right()[0]
    outcomes = base_right, head_right, base_right & ~head_right, ~base_right & head_right
    counts = (np.bincount(base.labels, outcome)[present] for outcome in outcomes)
    base_hits, head_hits, broken, fixed = counts
    ps = holm(list(map(mcnemar, broken.astype(int), fixed.astype(int))))
    base_recall, head_recall = base_hits / images, head_hits / images
    moves = head_recall - base_recall
    rows = []
    for k in np.argsort(-np.abs(moves), kind="stable")[:MOST_ROWS]:
        recalls = points(base_recall[k]), points(head_recall[k]), points(moves[k], signed=True)
        if moves[k]:
            rows.append([code(base.classes[present[k]]), f"{images[k]:,}", *recalls, chance(ps[k])])
    header = ["class", "images", "base recall", "head recall", "difference", "p"]
    return section("### Classes that moved", header, rows)


def _confusions(base: Predictions, head: Predictions) -> list[str]:
    """Return the confusions that became more or less frequent."""
    names, size = base.classes, len(base.classes)
    confused = (side.labels * size + side.runs[0] for side in (base, head))
    counts = np.stack([np.bincount(cells, minlength=size**2) for cells in confused])
    moves = counts[1] - counts[0]
    moves[:: size + 1] = 0  # right answers
    rows = [
        [code(names[k // size]), code(names[k % size]), *counts[:, k], f"{moves[k]:+d}"]
        for k in np.argsort(-np.abs(moves), kind="stable")[:MOST_ROWS]
        if moves[k]
    ]
    header = ["true", "predicted", "base", "head", "difference"]
    return section("### Confusions that changed", header, rows, words=2)


def draw_sheet(model: ModelComparison, root: Path, report: Path) -> list[str]:
    """Draw the images that broke and were fixed beside the report; return the link to them."""
    from resnets.tasks.sheet import plot_sheet
    from resnets.tasks.task import Task

    changed = zip(("broke", "fixed"), model.broken_and_fixed(), strict=True)
    chosen = [(word, k) for word, images in changed for k in images[: MOST_PICTURES // 2]]
    if not chosen or model.pair is None:
        return []
    folder = root / "data" / "tasks" / ("source" if model.name == "backbone" else "target")
    try:
        test = Task(folder).side("test")
    except FileNotFoundError:
        return ["No pictures: the images are not here (`dvc pull` or `dvc repro` brings them)."]
    if test.digest() != model.records[1]["measured_on"].get("test_set"):
        return ["No pictures: the images here are not those that head was tested on."]
    row_of = {name: row for row, name in enumerate(test.ids)}
    images = [test.images[row_of[model.pair[0].ids[k]]] for _, k in chosen]
    captions = ["{}: {}\n{} → {}".format(word, *_words(model.pair, k)) for word, k in chosen]
    path = report.with_name(f"{report.stem}.{model.name}.png")
    plot_sheet(images, captions, path)
    return [f"![Images that broke and that were fixed]({quote(path.name)})"]
