"""Write the report as one HTML page that needs no network and no script.

Names of classes and files are somebody else's: everything is escaped that is not written here.
"""

import base64
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from resnets.evaluation.markdown import difference, measured, points
from resnets.report.advice import SIMPLE, Advice, advise, enumerate_words, number, percent
from resnets.report.results import Results
from resnets.system.errors import printable

SIDE_WORDS = {"train": "to learn from", "val": "to choose by", "test": "to test"}
OURS = re.compile("`((?:resnets|checks|split|tasks|training|transfer)\\b[^`]*)`")
MOST_ROWS, MOST_CONFUSIONS = 40, 8  # of a table
FOLDS = (
    "The images were cut into {} folds. Each in turn was the test of a model that learned from the "
    "others, so that every image was tested once, by a model that had not seen it; what is shipped "
    "learned from all of them."
)


def write_page(results: Results) -> str:
    """Return the page; the same results give the same bytes."""
    best = results.variants[results.best]
    template = Path(__file__).with_name("page.html").read_text("utf-8")
    return Template(template).substitute(
        classes=_text(enumerate_words(list(results.data["classes"]))),
        accuracy=percent(best["test_accuracy"]),
        low=percent(best["test_low"]),
        high=percent(best["test_high"]),
        tested=f"{best['images']:,}",
        by=_text(f", by {measured(best)}" if best["folds"] else " by the model that is shipped"),
        best=_text(results.best),
        images=f"{results.data['images']:,}",
        guess=percent(results.yardsticks["majority"]["test_accuracy"]),
        advice="".join(map(_advice, advise(results))),
        counts=_counts(results),
        notes=_text(_notes(results)),
        rejected=_rejected(results),
        mean=" Each is the mean over the folds." if results.folds else "",
        leaderboard=_leaderboard(results),
        runs="partitions into folds" if results.folds else "<i>seeds</i>",
        recall=_recall(results),
        confusions=_confusions(results),
        suspects=_suspects(results),
        folds=f" {FOLDS.format(results.folds)}" if results.folds else "",
        **{name: _picture(png) for name, png in results.pictures.items()},
    )


def _text(text: object) -> str:
    """Escape a text for HTML; our own commands and keys between backticks become code."""
    return OURS.sub(r"<code>\1</code>", escape(printable(str(text))))


def _picture(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _advice(advice: Advice) -> str:
    return f"<li><strong>{_text(advice.step)}.</strong> {_text(advice.why)}</li>\n"


def _table(header: Sequence[str], rows: Iterable[Sequence[object]], *, words: int = 1) -> str:
    """Return a table; all but the first `words` columns hold numbers."""
    kinds = ["" if k < words else ' class="n"' for k in range(len(header))]

    def line(tag: str, cells: Sequence[object]) -> str:
        shown = zip(kinds, map(_text, cells), strict=True)
        return "<tr>" + "".join(f"<{tag}{kind}>{text}</{tag}>" for kind, text in shown) + "</tr>\n"

    all_rows = list(rows)
    body = "".join(line("td", row) for row in all_rows[:MOST_ROWS])
    left = len(all_rows) - MOST_ROWS
    more = f"<p>{left:,} more are not shown.</p>" if left > 0 else ""
    head = f"<thead>{line('th', header)}</thead>"
    return f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>{more}'


def _counts(results: Results) -> str:
    sides, split = results.split["images"], results.split["classes"]
    shown = [side for side in SIDE_WORDS if sides[side] and not results.folds]
    header = ["class", "images", *(SIDE_WORDS[side] for side in shown)]
    rows = [
        [name, f"{count:,}", *(f"{split[side][name]:,}" for side in shown)]
        for name, count in results.data["classes"].items()
    ]
    totals = ["all", f"{results.data['images']:,}", *(f"{sides[side]:,}" for side in shown)]
    return _table(header, [*rows[: MOST_ROWS - 1], totals, *rows[MOST_ROWS - 1 :]])


def _notes(results: Results) -> str:
    """Say what else is known about the images."""
    data, split = results.data, results.split
    formats = ", ".join(f"{times:,} {name}" for name, times in data["formats"].items())
    copies, unused = sum(data["duplicates"].values()), split["images"]["unused"]
    notes = [
        f"{formats}; {_range(data['width'])} pixels wide, {_range(data['height'])} pixels high."
    ]
    if results.folds:
        notes.append(FOLDS.format(results.folds))
    if data["ignored"]:
        notes.append(f"{number(data['ignored'], 'file')} ignored: excluded, hidden, or no images.")
    if copies:
        notes.append(f"{number(copies, 'image')} copies of others, or nearly: kept together.")
    if unused and not results.folds:
        notes.append(f"{number(unused, 'image')} not used: split.target asks for fewer.")
    return " ".join(notes)


def _range(sizes: dict[str, Any]) -> str:
    low, high = sizes["min"], sizes["max"]
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _rejected(results: Results) -> str:
    if not results.rejected:
        return "<p>Every image could be used.</p>"
    rows = [(row["id"], row["detail"], row["fix"]) for row in results.rejected]
    return _table(["left out", "why", "what to do"], rows, words=3)


def _leaderboard(results: Results) -> str:
    simple = {SIMPLE[name]: row for name, row in results.yardsticks.items()}
    rows = []
    for name, row in {**results.variants, **simple}.items():
        val = ("leaked: " if row.get("val_leaked") else "") + points(row["val_accuracy"])
        spread = "" if row["seeds_std"] is None else points(row["seeds_std"])
        rows.append([name, val, points(row["seeds_mean"]), spread, difference(row)])
    return _table(["", "validation", "test", "±", "test − best (95% interval)"], rows)


def _recall(results: Results) -> str:
    """Return a table of the classes, the least recognised first."""
    rows = [
        [row["class"], f"{int(row['support']):,}", _share(row["recall"]), _share(row["precision"])]
        for row in sorted(results.classes, key=lambda row: float(row["recall"] or 2))
    ]
    return _table(["class", "test images", "recognised", "right when named"], rows)


def _share(text: str) -> str:
    return percent(float(text)) if text else "–"


def _confusions(results: Results) -> str:
    """Return a table of the most frequent confusions."""
    pairs = Counter((label, answer) for label, answer, _ in results.answers if label != answer)
    rows = [[*pair, f"{times:,}"] for pair, times in pairs.most_common(MOST_CONFUSIONS)]
    return _table(["truly", "taken for", "images"], rows, words=2) if rows else ""


def _suspects(results: Results) -> str:
    if not results.suspects:
        return "<p>No label is suspected.</p>"
    columns = {"id": "image", "side": "side", "label": "its label", "suggested": "looks like"}
    if results.folds:
        del columns["side"]
    rows = [[row[column] for column in columns] for row in results.suspects]
    return _table(list(columns.values()), rows, words=4)
