"""Write a comparison as one page for a pull request, the most important first."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from resnets.evaluation.report import chance, code, decimal, table
from resnets.evaluation.significance import mcnemar
from resnets.review.compare import (
    METRICS,
    Changes,
    Comparison,
    ModelComparison,
    compare_revisions,
)
from resnets.review.details import details, draw_sheet
from resnets.review.gates import GateError, check_gates
from resnets.review.revisions import Revision, read_revision
from resnets.system.errors import ParamsError
from resnets.system.files import write_text

MAX_BYTES = 60_000  # GitHub takes comments of 64 KiB
MOST_CHANGES = 40
MOST_FAULTS = 12
MOST_SHEETS = 4
ORDER = ("worse", "better", "not comparable", "within noise")
Faults = Sequence[tuple[str, list[str]]]


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
    comparison = compare_revisions(*revisions)
    faults = check_gates(*revisions, comparison)
    blocks = _summary(comparison, faults)
    yield from blocks
    if report:
        for index, model in enumerate(sorted(comparison.models, key=_rank)):
            blocks += details(model)
            if index < MOST_SHEETS and (picture := draw_sheet(model, revisions[1].root, report)):
                blocks.append(picture)
        write_text(report, _cut("\n\n".join(blocks)))
        yield f"The whole report, with classes and images: {report}"
    broken = [f"{name} ({'; '.join(found[:MOST_FAULTS])})" for name, found in faults if found]
    if gate and broken:
        raise GateError(f"gate broken: {'; '.join(broken)}", _advice(revisions[1], comparison))


def _advice(head: Revision, comparison: Comparison) -> str:
    """Say what mends a broken gate."""
    if head.stale:
        return "run `dvc repro` and commit its results"
    if any(model.obstacles for model in comparison.models):
        return (
            f"measure the base again: `git switch -c remeasured {comparison.base}`, give it this "
            "change's preprocess, data, tasks and split, `dvc repro`, commit, switch back, and "
            "compare with remeasured"
        )
    return "improve the model, or argue for another rule"


def _cut(text: str) -> str:
    """End a page at the last whole block that keeps it below MAX_BYTES."""
    if len(text.encode()) < MAX_BYTES:
        return text + "\n"
    short = text.encode()[: MAX_BYTES - 100].decode(errors="ignore").rpartition("\n\n")[0]
    return short + "\n\nThe rest is left out: this page would be too long.\n"


def _summary(comparison: Comparison, faults: Faults) -> list[str]:
    """Return what matters most: obstacles, verdicts, gates, and what else changed."""
    models = sorted((m for m in comparison.models if not m.is_unchanged), key=_rank)
    unchanged = [model.name for model in comparison.models if model.is_unchanged]
    blocks = [f"# {code(comparison.base)} → {code(comparison.head)}"]
    for model in models:
        blocks += [f"**Not comparable**: {code(model.name)}: {x}." for x in model.obstacles]
        blocks += [f"**Note**: {code(model.name)}: {x}." for x in model.notes]
    lines = [_sentence(model) for model in models]
    for word, names in (
        ("unchanged", unchanged),
        ("new, nothing to compare with", comparison.added),
        ("gone, nothing to compare with", comparison.removed),
    ):
        lines += [f"- {word}: {', '.join(map(code, names))}"] * bool(names)
    blocks.append("\n".join(lines) or "No model was measured at either revision.")
    if compared := [model for model in models if model.differences]:
        blocks += [_verdicts(compared), _footnote(compared)]
    if faults:
        blocks.append("\n".join(["## Gates", "", *(_gate_line(*one) for one in faults)]))
    blocks += _changes("Changed parameters", comparison.params)
    return blocks + _changes("Changed data", comparison.data)


def _rank(model: ModelComparison) -> tuple[int, str]:
    """Sort models by what a reviewer must not miss."""
    return ORDER.index(model.verdict("accuracy")), model.name


def _sentence(model: ModelComparison) -> str:
    """Say in one line how a model changed."""
    base, head, *rest = _numbers(model, "accuracy")
    move = f"{base} → {head} ({rest[0]}, 95% {rest[1]})" if rest else f"{base} and {head}"
    others = [
        f"; {metric} is **{model.verdict(metric)}**"
        for metric in tuple(METRICS)[1:]
        if model.verdict(metric) in ("better", "worse")
    ]
    verdict = model.verdict("accuracy")
    return f"- **{verdict}**: {code(model.name)}: accuracy {move}{''.join(others)}"


def _numbers(model: ModelComparison, metric: str) -> list[str]:
    """Write base, head and, where they are comparable, their difference and its interval.

    Shares are written in percent.
    """

    def write(value: float | None, *, signed: bool = False) -> str:
        if value is None:
            return "–"
        scale, digits = (100, 2) if METRICS[metric].higher_is_better else (1, 4)
        return decimal(scale * value, digits, signed=signed)

    shown = [write(value) for value in model.shown(metric)]
    if found := model.differences.get(metric):
        value, low, high = (write(x, signed=True) for x in (found.value, found.low, found.high))
        shown += [value, f"{low} to {high}"]
    return shown


def _verdicts(models: Sequence[ModelComparison]) -> str:
    """Return the table of all models and metrics."""
    rows: list[list[str]] = []
    for model in models:
        exact = chance(mcnemar(*map(len, model.broken_and_fixed())))
        for metric in METRICS:
            row = [code(model.name), f"{metric} {'↑' if METRICS[metric].higher_is_better else '↓'}"]
            row += [*_numbers(model, metric), chance(model.p[metric])]
            rows.append([*row, exact if metric == "accuracy" else "", model.verdict(metric)])
    header = ["model", "metric", "base", "head", "difference", "95% interval", "p", "McNemar"]
    return table([*header, "verdict"], rows, words=2)


def _footnote(models: Sequence[ModelComparison]) -> str:
    """Say which test was used, on how many images, and how p was adjusted."""
    lines = []
    for model in models:
        accuracy, (broken, fixed) = model.differences["accuracy"], model.broken_and_fixed()
        lines.append(
            f"- {code(model.name)}: {accuracy.images:,} images, {accuracy.decisive:,} decided "
            f"({accuracy.test}); the shipped model broke {len(broken):,} and fixed {len(fixed):,}."
        )
    note = (
        "- ↑: more is better, in percent; ↓: less is. Numbers are means over runs. p is adjusted "
        f"(Holm) for {len(lines)}× accuracy and {(len(METRICS) - 1) * len(lines)}× the other "
        "numbers, so that all verdicts together are false at most 5% of the time. Intervals are "
        "for one number alone. McNemar's exact test sees the shipped models, and no seeds."
    )
    return "\n".join([*lines, note])


def _gate_line(name: str, faults: Sequence[str]) -> str:
    """Say whether a rule holds."""
    if not faults:
        return f"- holds: {code(name)}"
    return f"- **BROKEN**: {code(name)}: {', '.join(code(x, 200) for x in faults[:MOST_FAULTS])}"


def _changes(title: str, found: Changes) -> list[str]:
    """Return a table of changed values, if there are any."""
    if not found:
        return []
    rows = [[code(key), *("–" if x is None else code(x) for x in both)] for key, *both in found]
    more = [f"and {len(rows) - MOST_CHANGES} more"] * (len(rows) > MOST_CHANGES)
    return [f"## {title}", table(["key", "base", "head"], rows[:MOST_CHANGES], words=3), *more]
