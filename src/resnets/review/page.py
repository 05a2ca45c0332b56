"""Write a comparison as one page for a pull request, the most important first."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from dvc.utils.flatten import flatten

from resnets.evaluation.report import chance, code, decimal, table
from resnets.evaluation.significance import mcnemar
from resnets.review.compare import FIRST, METRICS, OTHERS, ModelComparison, compare_revisions
from resnets.review.details import details, draw_sheet, section
from resnets.review.gates import Faults, GateError, check_gates
from resnets.review.revisions import Record, Revision, read_revision
from resnets.system.errors import ParamsError
from resnets.system.files import write_text

MAX_BYTES = 60_000  # GitHub takes comments of 64 KiB
MOST_CHANGES = 40
MOST_FAULTS = 12
MOST_SHEETS = 4
OF_DATA = ("data_", "split_")  # metrics that count images
ORDER = ("worse", "better", "not comparable", "within noise")


def review(
    base: str, head: str | None, *, gate: bool, report: Path | None, root: Path
) -> Iterator[str]:
    """Compare two revisions; yield the blocks of text for a terminal, and write the report.

    `head=None` is what lies on the disk, `root` the project's folder or one inside it. Raises
    GateError when `gate` is asked for and a rule of gates.yaml is broken, after everything else
    is done.
    """
    revisions = read_revision(base, root), read_revision(head, root)
    if gate and not any("gates.yaml" in revision.files for revision in revisions):
        sides = " nor ".join(revision.name for revision in revisions)
        raise ParamsError(f"no gates.yaml in {sides}", "add one, or leave out --gate")
    models = compare_revisions(*revisions)
    faults = check_gates(models, *revisions)
    blocks = _summary(models, faults, *revisions)
    yield from blocks
    if report:
        for index, model in enumerate(sorted(models, key=_rank)):
            blocks += details(model)
            if index < MOST_SHEETS:
                blocks += draw_sheet(model, revisions[1].root, report)
        write_text(report, _cut("\n\n".join(blocks)))
        yield f"The whole report, with classes and images: {report}"
    broken = [f"{name} ({'; '.join(lines[:MOST_FAULTS])})" for name, lines in faults if lines]
    if gate and broken:
        raise GateError(f"gate broken: {'; '.join(broken)}", _advice(models, *revisions))


def _advice(models: list[ModelComparison], base: Revision, head: Revision) -> str:
    """Say what mends a broken gate."""
    if head.stale:
        return "run `dvc repro` and commit its results"
    if any(model.obstacles for model in models):
        return (
            f"measure the base again: `git switch -c remeasured {base.name}`, give it "
            "this change's preprocess, data, tasks and split, `dvc repro`, commit, switch back, "
            "and compare with remeasured"
        )
    return "improve the model, or argue for another rule"


def _cut(text: str) -> str:
    """End a page at the last whole block that keeps it below MAX_BYTES."""
    if len(text.encode()) < MAX_BYTES:
        return text + "\n"
    short = text.encode()[: MAX_BYTES - 100].decode(errors="ignore").rpartition("\n\n")[0]
    return short + "\n\nThe rest is left out: this page would be too long.\n"


def _summary(
    models: list[ModelComparison], faults: Faults, base: Revision, head: Revision
) -> list[str]:
    """Return what matters most: obstacles, verdicts, gates, and what else changed."""
    changed = sorted((model for model in models if not model.is_unchanged), key=_rank)
    blocks = [f"# {code(base.name)} → {code(head.name)}"]
    for model in changed:
        blocks += [f"**Not comparable**: {code(model.name)}: {x}." for x in model.obstacles]
        blocks += [f"**Note**: {code(model.name)}: {x}." for x in model.notes]
    others = {
        "unchanged": [model.name for model in models if model.is_unchanged],
        "new, nothing to compare with": [x for x in head.models if x not in base.models],
        "gone, nothing to compare with": [x for x in base.models if x not in head.models],
    }
    lines = [_sentence(model) for model in changed]
    lines += [f"- {word}: {', '.join(map(code, names))}" for word, names in others.items() if names]
    blocks.append("\n".join(lines) or "No model was measured at either revision.")
    blocks += _verdicts([model for model in changed if model.differences])
    blocks += [_gates(faults), *_changes("parameters", base.params, head.params)]
    counts = (
        {name: record for name, record in side.metrics.items() if name.startswith(OF_DATA)}
        for side in (base, head)
    )
    return [*blocks, *_changes("data", *counts)]


def _rank(model: ModelComparison) -> tuple[int, str]:
    """Sort models by what a reviewer must not miss."""
    return ORDER.index(model.verdict(FIRST)), model.name


def _sentence(model: ModelComparison) -> str:
    """Say in one line how a model changed."""
    move = "{} → {} ({}, 95% {})" if model.differences else "{} and {}"
    others = [
        f"; {metric} is **{model.verdict(metric)}**"
        for metric in OTHERS
        if model.verdict(metric) in ("better", "worse")
    ]
    numbers = f"{FIRST} {move.format(*_numbers(model, FIRST))}{''.join(others)}"
    return f"- **{model.verdict(FIRST)}**: {code(model.name)}: {numbers}"


def _numbers(model: ModelComparison, metric: str) -> list[str]:
    """Write base, head and, where they are comparable, their difference and its interval.

    Shares are written in percent.
    """
    scale, digits = (100, 2) if METRICS[metric].higher_is_better else (1, 4)

    def write(value: float, *, signed: bool = False) -> str:
        return decimal(scale * value, digits, signed=signed)

    if difference := model.differences.get(metric):
        changed = difference.value, difference.low, difference.high
        value, low, high = (write(x, signed=True) for x in changed)
        return [write(difference.base), write(difference.head), value, f"{low} to {high}"]
    tests = (record["test"] for record in model.records)
    return [write(test[metric]) if metric in test else "–" for test in tests]


def _verdicts(models: Sequence[ModelComparison]) -> list[str]:
    """Return a table of models and metrics, and which test was used and how p was adjusted."""
    rows, notes = [], []
    for model in models:
        broken, fixed = map(len, model.broken_and_fixed())
        exact = {FIRST: chance(mcnemar(broken, fixed))}
        for metric in METRICS:
            arrow = "↑" if METRICS[metric].higher_is_better else "↓"
            row = [code(model.name), f"{metric} {arrow}", *_numbers(model, metric)]
            row += [chance(model.p[metric]), exact.get(metric, ""), model.verdict(metric)]
            rows.append(row)
        first = model.differences[FIRST]
        notes.append(
            f"- {code(model.name)}: {first.images:,} images, {first.decisive:,} decided "
            f"({first.test}); the shipped model broke {broken:,} and fixed {fixed:,}."
        )
    notes.append(
        "- ↑: more is better, in percent; ↓: less is. Numbers are means over runs. p is adjusted "
        f"(Holm) for {len(models)}× accuracy and {len(OTHERS) * len(models)}× the other "
        "numbers, so that all verdicts together are false at most 5% of the time. Intervals are "
        "for one number alone. McNemar's exact test sees the shipped models, and no seeds."
    )
    header = ["model", "metric", "base", "head", "difference", "95% interval", "p", "McNemar"]
    return [table([*header, "verdict"], rows, words=2), "\n".join(notes)] if rows else []


def _gates(faults: Faults) -> str:
    """Say which rules hold, and how the others are broken."""
    lines = ["## Gates", ""]
    for name, broken in faults:
        listed = ", ".join(code(x, 200) for x in broken[:MOST_FAULTS])
        lines.append(
            f"- **BROKEN**: {code(name)}: {listed}" if broken else f"- holds: {code(name)}"
        )
    return "\n".join(lines)


def _changes(what: str, base: Record, head: Record) -> list[str]:
    """Return a table of all values that differ, by their dotted keys, if there are any."""
    sides = flatten(base), flatten(head)
    changed = [key for key in sorted(sides[0] | sides[1]) if sides[0].get(key) != sides[1].get(key)]
    rows = [
        [code(key), *("–" if side.get(key) is None else code(side[key]) for side in sides)]
        for key in changed[:MOST_CHANGES]
    ]
    more = [f"and {len(changed) - MOST_CHANGES} more"] * (len(changed) > MOST_CHANGES)
    return [*section(f"## Changed {what}", ["key", "base", "head"], rows, words=3), *more]
