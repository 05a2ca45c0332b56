"""Write a comparison as one page for a pull request, the most important first."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from resnets.evaluation.markdown import chance, code, decimal, table
from resnets.evaluation.significance import SEED_SPREAD
from resnets.review import changes
from resnets.review.advice import more_measurements, repair
from resnets.review.changes import listed
from resnets.review.compare import FIRST, METRICS, OTHERS, ModelComparison, compare_revisions
from resnets.review.details import details
from resnets.review.gates import Faults, GateError, check_gates
from resnets.review.labels import label_changes
from resnets.review.revisions import Revision, read_revision
from resnets.system.errors import ParamsError
from resnets.system.files import write_text

MAX_BYTES = 60_000  # GitHub takes comments of 64 KiB
MOST_FAULTS = 12
MOST_SHEETS = 4  # models whose images are shown
DECIDED = {"better", "worse"}
ORDER = ("worse", "better", "not comparable", "within noise")
NEW, GONE = "nothing to compare the new {} with", "gone: {}"
HEADER = ["base", "head", "difference", "95% interval", "p", "verdict"]
TERMS = {
    "balanced_accuracy": "the mean over the classes of the share of their images that is right",
    "macro_f1": "the mean over the classes of F1, which is lowered by missed images and by false "
    "alarms",
    "nll": "the mean of -log of the probability given to the true class; it is high for answers "
    "that are wrong and sure",
}


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
    models = sorted(compare_revisions(*revisions), key=_rank)
    faults = check_gates(models, *revisions)
    blocks = _summary(models, faults, *revisions)
    yield from blocks
    if report:
        for index, model in enumerate(models):
            blocks += details(model, revisions[1].root, report if index < MOST_SHEETS else None)
        write_text(report, _cut("\n\n".join(blocks)))
        yield f"The whole report, with classes and images: {report}"
    broken = [f"{name} ({'; '.join(lines[:MOST_FAULTS])})" for name, lines in faults if lines]
    if gate and broken:
        fix = repair(models, *revisions) or "improve the model, or argue for another rule"
        raise GateError(f"gate broken: {'; '.join(broken)}", fix)


def _cut(text: str) -> str:
    """End a page at the last whole block that keeps it below MAX_BYTES."""
    if len(text.encode()) < MAX_BYTES:
        return text + "\n"
    short = text.encode()[: MAX_BYTES - 100].decode(errors="ignore").rpartition("\n\n")[0]
    return short + "\n\nThe rest is left out: this page would be too long.\n"


def _summary(
    models: list[ModelComparison], faults: Faults, base: Revision, head: Revision
) -> list[str]:
    """Return what was changed and what came of it, then the numbers, advice and gates."""
    blocks = [f"# {code(base.name)} (base) → {code(head.name)} (head)"]
    blocks.append(f"{changes.sentence(base, head)} {_outcome(models, base, head)}".strip())
    blocks += _remarks("Not comparable", models, lambda model: model.obstacles)
    labels, labels_table = label_changes(base, head)
    blocks += [*_stale(base, head), *_remarks("Note", models, lambda model: model.notes), *labels]
    judged = [model for model in models if model.differences and not model.is_unchanged]
    blocks += _accuracies(judged)
    if todo := repair(models, base, head) or more_measurements(models):
        blocks.append(f"**Advice**: {todo}.")
    blocks += [_gates(faults), *_other_measures(judged), *labels_table]
    return blocks + changes.tables(base, head)


def _rank(model: ModelComparison) -> tuple[bool, int, str]:
    """Sort models by what a reviewer must not miss."""
    return model.is_unchanged, ORDER.index(model.verdict(FIRST)), model.name


def _outcome(models: list[ModelComparison], base: Revision, head: Revision) -> str:
    """Say in one sentence what came of the change, the worst first."""
    parts: dict[str, list[str]] = {}
    for model in models:
        what, name = _came_of(model), code(model.name)
        others = [x for x in OTHERS if model.verdict(x) in DECIDED - {model.verdict(FIRST)}]
        turned = [f"its {metric} became **{model.verdict(metric)}**" for metric in others]
        name += f" (but {', '.join(turned)})" if turned else ""
        parts.setdefault(what, []).append(name)
    for what, one, other in ((NEW, head, base), (GONE, base, head)):
        parts[what] = [code(name) for name in one.models if name not in other.models]
    said = [what.format(", ".join(names)) for what, names in parts.items() if names]
    return f"Result: {'; '.join(said)}." if said else "No model was measured at either revision."


def _came_of(model: ModelComparison) -> str:
    """Say what came of the change for a model, {}."""
    verdict = model.verdict(FIRST)
    if verdict in DECIDED:
        found = model.differences[FIRST]
        values = sorted(abs(x) for x in (found.low, found.value, found.high))
        low, size, high = (decimal(100 * x, 1) for x in values)
        return (
            f"{{}} became **{verdict}** by {size} points of test accuracy "
            f"(95% interval {low} to {high})"
        )
    if model.is_unchanged:
        return "the same answers as before from {}"
    return "no difference beyond noise in {}" if verdict == "within noise" else "no verdict on {}"


def _remarks(
    title: str,
    models: list[ModelComparison],
    remarks: Callable[[ModelComparison], list[str]],
) -> list[str]:
    """Return remarks on models, each once, with the names of all that it is about."""
    about: dict[str, list[str]] = {}
    for model in models:
        about.setdefault(" and ".join(remarks(model)), []).append(code(model.name))
    return [f"**{title}**: {', '.join(names)}: {text}." for text, names in about.items() if text]


def _stale(base: Revision, head: Revision) -> list[str]:
    """Say what was changed since results were made."""
    changed: dict[str, list[str]] = {}
    for side, revision in (("base", base), ("head", head)):
        lines = (line for why in revision.stale.values() for line in why)
        paths = dict.fromkeys(re.split(": | is | was ", line)[1] for line in lines)
        changed.setdefault(listed(map(code, paths)), []).append(side)
    return [
        f"Changed since the results of {' and '.join(sides)} were made: {paths}."
        for paths, sides in changed.items()
        if paths
    ]


def _numbers(model: ModelComparison, metric: str) -> list[str]:
    """Write base, head, their difference, its interval, p and the verdict; shares in percent."""
    scale, digits = (100, 2) if METRICS[metric].higher_is_better else (1, 4)
    found, verdict = model.differences[metric], model.verdict(metric)
    base, head = (decimal(scale * x, digits) for x in (found.base, found.head))
    changed = found.value, found.low, found.high
    value, low, high = (decimal(scale * x, digits, signed=True) for x in changed)
    verdict_shown = verdict if verdict == "within noise" else f"**{verdict}**"
    return [base, head, value, f"{low} to {high}", chance(model.p[metric]), verdict_shown]


def _accuracies(judged: Sequence[ModelComparison]) -> list[str]:
    """Return a table of accuracies, what its columns mean, and what was counted."""
    if not judged:
        return []
    rows = [[code(model.name), *_numbers(model, FIRST)] for model in judged]
    notes = [
        "Test accuracy in percent, the mean over the seeds that were trained.",
        "- 95% interval: the differences that fit what was measured, had other test images and "
        "other seeds been drawn.",
        "- p: how often chance alone gives a difference this large, raised for all that this page "
        "tests; a verdict needs p < 0.05, and at most one page in 20 has a false one.",
    ]
    return [table(["model", *HEADER], rows), "\n".join([*notes, *_counts(judged)])]


def _counts(judged: Sequence[ModelComparison]) -> list[str]:
    """Say what was counted for the verdicts, in one line for all models that are alike in it."""
    lines: dict[str, list[str]] = {}
    for model in judged:
        found = model.differences[FIRST]
        line = "- Of {:,} test images{}, base and head ({} and {} seeds{}) disagree on".format(
            found.images,
            f" in {found.num_groups:,} groups, that count as one each"
            * (found.num_groups < found.images),
            *found.num_runs,
            f", whose spread is taken to be {100 * SEED_SPREAD:g} points" * found.is_spread_assumed,
        )
        lines.setdefault(line, []).append(f"{found.decisive:,} ({code(model.name)})")
    return [f"{line} {', '.join(counts)}." for line, counts in lines.items()]


def _other_measures(judged: Sequence[ModelComparison]) -> list[str]:
    """Return a table of the other measures, each explained."""
    looks = [(model, metric) for model in judged for metric in OTHERS]
    rows = [[code(model.name), metric, *_numbers(model, metric)] for model, metric in looks]
    terms = [f"- {metric}: {TERMS[metric]}." for metric in OTHERS]
    shown = table(["model", "measure", *HEADER], rows, words=2)
    return ["## Other measures", shown, "\n".join(terms)] if rows else []


def _gates(faults: Faults) -> str:
    """Say which rules hold, and how the others are broken."""
    lines = ["## Gates", ""]
    for name, broken in faults:
        if broken:
            why = listed(code(x, 200) for x in broken)
            lines.append(f"- **BROKEN**: {code(name)}: {why}")
    held = [code(name) for name, broken in faults if not broken]
    lines += [f"- hold: {', '.join(held)}"] * bool(held)
    return "\n".join(lines)
