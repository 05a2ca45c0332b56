"""Say what differs between two revisions before anything was measured: parameters, code, data."""

from collections.abc import Iterable, Mapping
from typing import Any

from dvc.utils.flatten import flatten

from resnets.evaluation.markdown import code, section
from resnets.review.revisions import Record, Revision

MOST_NAMED = 3  # in a sentence
OF_DATA = ("data_", "split_")  # metrics that count images


def sentence(base: Revision, head: Revision) -> str:
    """Name what was changed: parameters with both values, then code, then data."""
    moves = _moves(base.params, head.params)
    parts = [f"{code(key)} {' → '.join(values)}" for key, *values in moves]
    if len(moves) > MOST_NAMED:
        parts = [f"{len(moves):,} parameters (below)"]
    inputs = _moves(*(_inputs(side.files.get("dvc.lock") or {}) for side in (base, head)))
    for word, is_code in (("code in ", True), ("data in ", False)):
        if paths := [path for path, *_ in inputs if path.startswith("src/") == is_code]:
            parts.append(word + listed(map(code, paths)))
    if parts:
        return f"Changed: {', '.join(parts)}."
    return "" if base.stale or head.stale else "Nothing was changed that a result depends on."


def listed(words: Iterable[str], most: int = MOST_NAMED) -> str:
    """Join words by commas, and count those beyond `most`."""
    words = list(words)
    more = f" and {len(words) - most:,} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def tables(base: Revision, head: Revision) -> list[str]:
    """Return the changed parameters, where the sentence does not hold them all, and counts."""
    moves = _moves(base.params, head.params)
    counts = (
        {name: record for name, record in side.metrics.items() if name.startswith(OF_DATA)}
        for side in (base, head)
    )
    new = [move for move in _moves(*counts) if not set(move[1:]) <= {"–", "0"}]
    blocks = []
    for what, rows in (("parameters", moves if len(moves) > MOST_NAMED else []), ("data", new)):
        cells = [[code(key), *values] for key, *values in rows]
        blocks += section(f"## Changed {what}", ["key", "base", "head"], cells, words=3)
    return blocks


def _moves(base: Record, head: Record) -> list[list[str]]:
    """Return the dotted key and both values of all that differ."""
    sides = flatten(base), flatten(head)
    changed = [key for key in sorted(sides[0] | sides[1]) if sides[0].get(key) != sides[1].get(key)]
    return [[key, *(_written(side.get(key)) for side in sides)] for key in changed]


def _written(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value}" if isinstance(value, int | float) else code(value)


def _inputs(lock: Mapping[str, Any]) -> dict[str, Any]:
    """Return what identifies the files and folders that stages read and none makes, by path."""
    stages = lock.get("stages", {}).values()
    made = {out["path"] for stage in stages for out in stage.get("outs", [])}
    deps = [dep for stage in stages for dep in stage.get("deps", [])]
    return {
        dep["path"]: dep.get("md5")
        for dep in deps
        if not any(f"{out}/".startswith(f"{dep['path']}/") for out in made)
        and not any(dep["path"].startswith(f"{out}/") for out in made)
    }
