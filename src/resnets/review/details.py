"""Show what changed inside one model: its classes, its confusions, and the images themselves."""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from resnets.evaluation.markdown import chance, code, points, section, table
from resnets.evaluation.predictions import Predictions
from resnets.evaluation.significance import holm, mcnemar
from resnets.review.compare import ModelComparison, Pair
from resnets.system.errors import ArtefactError

MOST_ROWS = 12  # of a table
MOST_PICTURES = 16  # of those that broke, and of those that were fixed


def details(model: ModelComparison, root: Path, report: Path | None) -> list[str]:
    """Return what changed inside one model: classes, confusions, images.

    Images are drawn beside the report, if there is one, from the project's folder `root`.
    """
    if model.pair is None or model.is_unchanged:
        return []
    broken, fixed = model.broken_and_fixed()
    blocks = [
        f"## {code(model.name)}",
        f"Of the models that are shipped, only base's is right on {len(broken):,} test images "
        f"(they broke), only head's on {len(fixed):,} (they were fixed): p "
        f"{chance(mcnemar(len(broken), len(fixed)))} by McNemar's exact test, which knows these "
        "two models and no other seeds.",
        *_classes(*model.pair),
        *_confusions(*model.pair),
    ]
    for word, images in (("broke", broken), ("were fixed", fixed)):
        if images:
            path = report and report.with_name(f"{report.stem}.{model.name}.{word.split()[-1]}.png")
            blocks.append(f"### Images that {word}: {len(images):,}")
            blocks += _images(model, images, root, path)
    return blocks


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
    term = "Recall: the share of the class's images that is right, in percent."
    return [*section("### Classes that moved", header, rows), *[term] * bool(rows)]


def _confusions(base: Predictions, head: Predictions) -> list[str]:
    """Return the confusions that became more or less frequent."""
    names, size = base.classes, len(base.classes)
    if size == 2:  # as many as the recalls say
        return []
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


def _images(
    model: ModelComparison, images: Sequence[int], root: Path, path: Path | None
) -> list[str]:
    """Return a link to a picture of images, drawn at `path`, or a list where it cannot be drawn."""
    assert model.pair is not None
    names, words = model.pair[0].ids, {k: _words(model.pair, k) for k in images}
    rows = [[code(names[k]), *map(code, words[k])] for k in images[:MOST_ROWS]]
    as_table = table(["image", "true", "base", "head"], rows, words=4)
    if path is None:
        return [as_table]
    from resnets.tasks.sheet import plot_sheet
    from resnets.tasks.task import Task

    folder = root / "data" / "tasks" / ("source" if model.name == "backbone" else "target")
    chosen = images[:MOST_PICTURES]
    try:
        test = Task(folder).side("test")
        if test.digest() != model.records[1]["measured_on"].get("test_set"):
            return [as_table, "No picture: the images here are not those that head was tested on."]
        row_of = {name: row for row, name in enumerate(test.ids)}
        pictures = [test.images[row_of[names[k]]] for k in chosen]
    except (FileNotFoundError, ArtefactError):
        return [as_table, "No picture: the images are not here (`dvc repro` brings them)."]
    captions = ["{}\nbase: {}\nhead: {}".format(names[k], *words[k][1:]) for k in chosen]
    plot_sheet(pictures, captions, path)
    shown = f"The {len(chosen)} whose probability of the true class moved most:"
    return [shown, f"![Images, and what base and head say of them]({quote(path.name)})"]
