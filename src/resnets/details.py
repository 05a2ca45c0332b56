"""Show what changed inside one model: its classes, its confusions, and the images themselves."""

from collections import Counter
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from resnets.compare import ModelComparison
from resnets.errors import EnvironmentFault
from resnets.markdown import chance, code, points, table
from resnets.predictions import Predictions
from resnets.statistics import holm, mcnemar

MOST_ROWS = 12  # of a table
MOST_PICTURES = 16  # fixed and broken together


def broken_and_fixed(model: ModelComparison) -> list[NDArray[np.bool_]]:
    """Return which common images only base, and which only head got right (shipped models)."""
    if model.base is None or model.head is None:
        return [np.zeros(0, bool)] * 2
    was, now = ((side.runs[0] == side.labels) for side in (model.base, model.head))
    return [was & ~now, ~was & now]


def details(model: ModelComparison) -> list[str]:
    """Return what changed inside one model: classes, confusions, images."""
    base, head = model.base, model.head
    if base is None or head is None or not base.ids:
        return []
    blocks = [*_classes(base, head), *_confusions(base, head)]
    broken, fixed = broken_and_fixed(model)
    for word, changed in (("broke", broken), ("were fixed", fixed)):
        rows = [
            [code(base.ids[k]), *(code(base.classes[c]) for c in _of_image(base, head, k))]
            for k in _worst(model, changed)[:MOST_ROWS]
        ]
        if rows:
            title = f"### Images that {word}: {int(changed.sum()):,}"
            blocks += [title, table(["image", "true", "base", "head"], rows, words=4)]
    return [f"## {code(model.name)}", *blocks] if blocks else []


def _of_image(base: Predictions, head: Predictions, k: int) -> tuple[int, int, int]:
    """Return an image's true class, and those that base and head predicted."""
    return int(base.labels[k]), int(base.runs[0, k]), int(head.runs[0, k])


def _worst(model: ModelComparison, changed: NDArray[np.bool_]) -> list[int]:
    """Return the changed images, those whose probability moved most first."""
    if model.base is None or model.head is None:
        return []
    moved = np.abs(model.head.losses - model.base.losses)
    where = np.flatnonzero(changed)
    return [int(k) for k in where[np.argsort(-moved[where], kind="stable")]]


def _classes(base: Predictions, head: Predictions) -> list[str]:
    """Return the classes whose recall moved, most first; p is McNemar's within the class (Holm)."""
    rows: list[tuple[float, list[str]]] = []
    ps = []
    for k in np.unique(base.labels):
        of_class = base.labels == k
        was, now = ((side.runs[0] == k)[of_class] for side in (base, head))
        ps.append(mcnemar(int((was & ~now).sum()), int((~was & now).sum())))
        move = float(now.mean() - was.mean())
        numbers = [points(was.mean()), points(now.mean()), points(move, signed=True)]
        rows.append((abs(move), [code(base.classes[k]), f"{of_class.sum():,}", *numbers]))
    full = [
        (move, [*row, chance(p)]) for (move, row), p in zip(rows, holm(ps), strict=True) if move
    ]
    if not full:
        return []
    full.sort(key=lambda one: -one[0])
    header = ["class", "images", "base recall", "head recall", "difference", "p"]
    return ["### Classes that moved", table(header, [row for _, row in full[:MOST_ROWS]])]


def _confusions(base: Predictions, head: Predictions) -> list[str]:
    """Return the confusions that became more or less frequent."""
    counts = [
        Counter(
            pair
            for pair in zip(side.labels.tolist(), side.runs[0].tolist(), strict=True)
            if pair[0] != pair[1]
        )
        for side in (base, head)
    ]
    pairs = sorted(counts[0] | counts[1], key=lambda p: (-abs(counts[1][p] - counts[0][p]), p))
    rows = [
        [
            code(base.classes[true]),
            code(base.classes[taken]),
            counts[0][true, taken],
            counts[1][true, taken],
            f"{move:+d}",
        ]
        for true, taken in pairs[:MOST_ROWS]
        if (move := counts[1][true, taken] - counts[0][true, taken])
    ]
    header = ["true", "predicted", "base", "head", "difference"]
    return ["### Confusions that changed", table(header, rows, words=2)] if rows else []


def draw_sheet(model: ModelComparison, root: Path, report: Path) -> str:
    """Draw the images that broke and were fixed beside the report; return the link to them."""
    from resnets.data.task import open_task
    from resnets.plots import plot_sheet

    chosen = [
        (word, k)
        for word, changed in zip(("broke", "fixed"), broken_and_fixed(model), strict=True)
        for k in _worst(model, changed)[: MOST_PICTURES // 2]
    ]
    base, head = model.base, model.head
    if not chosen or base is None or head is None:
        return ""
    folder = root / "data" / "tasks" / ("source" if model.name == "backbone" else "target")
    try:
        test = open_task(folder).side("test")
    except EnvironmentFault:
        return "No pictures: the images are not here (`dvc pull` or `dvc repro` brings them)."
    if test.digest() != model.records[1]["measured_on"].get("test_set"):
        return "No pictures: the images here are not those that head was tested on."
    row_of = {name: row for row, name in enumerate(test.ids)}
    captions = []
    for word, k in chosen:
        true, was, now = (base.classes[c] for c in _of_image(base, head, k))
        captions.append(f"{word}: {true}\n{was} → {now}")
    path = report.with_name(f"{report.stem}.{model.name}.png")
    plot_sheet([test.images[row_of[base.ids[k]]] for _, k in chosen], captions, path)
    return f"![Images that broke and that were fixed]({quote(path.name)})"
