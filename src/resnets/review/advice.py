"""Say how much more must be measured before a difference could be told from noise."""

import math
from typing import Literal

from resnets.evaluation.markdown import code
from resnets.evaluation.significance import ALPHA, Difference, least_found
from resnets.review.compare import FIRST, SHARES, ModelComparison
from resnets.review.revisions import Revision

WANTED = 0.01  # the difference in accuracy that a reviewer would want to see
MOST_RUNS = 50
MORE_RUNS = 4  # times, where neither seeds nor images do alone
MOST_IMAGES = 100_000


def repair(models: list[ModelComparison], base: Revision, head: Revision) -> str:
    """Say what makes results comparable that are not; nothing if all are."""
    if head.stale:
        return "run `dvc repro` and commit its results"
    if any(model.obstacles for model in models):
        return (
            f"measure the base again: `git switch -c remeasured {base.name}`, give it "
            "this change's preprocess, data, tasks and split, `dvc repro`, commit, switch back, "
            "and compare with remeasured"
        )
    return ""


def more_measurements(models: list[ModelComparison]) -> str:
    """Say, of the undecided model that is nearest to a verdict, how much more would decide it."""
    changed = [model for model in models if not model.is_unchanged]
    undecided = [model for model in changed if model.verdict(FIRST) == "within noise"]
    if not undecided:
        return "no more seeds or test images are needed" if changed else ""
    nearest = min(undecided, key=lambda model: model.differences[FIRST].p)
    alpha = ALPHA * SHARES[0][1] / len(changed)
    return f"{code(nearest.name)}: {plan(nearest.differences[FIRST], alpha)}"


def plan(difference: Difference, alpha: float) -> str:
    """Say what a comparison can find, and how many seeds or images would find WANTED.

    `alpha` is the chance of a false verdict that one comparison may have.
    """
    found, wanted = least_found(difference, alpha), f"{100 * WANTED:.0f} point"
    seeds = " and ".join(f"{n}" for n in sorted(set(difference.num_runs)))
    able = (
        f"{difference.images:,} test images and {seeds} {'seed' if seeds == '1' else 'seeds'} show "
        f"a difference of {100 * found:.1f} points in four of five cases"
    )
    if found <= WANTED:
        return f"{able}; a smaller one hardly matters, so no more are needed"
    if difference.is_spread_assumed:
        return f"{able}; train at least 3 seeds (`repeat`), so that their spread is measured"
    ways = [f"{n:,} seeds of each (`repeat`)" for n in _needed(difference, alpha, "runs")]
    ways += [f"{n:,} test images" for n in _needed(difference, alpha, "images")]
    if not ways:
        both = _needed(difference, alpha, "images", runs=MORE_RUNS)
        runs = MORE_RUNS * min(difference.num_runs)
        ways = [f"{runs:,} seeds of each (`repeat`) and {n:,} test images" for n in both]
    return f"{able}; to see {wanted}, take {' or '.join(ways) or 'far more of both'}"


def _needed(
    difference: Difference, alpha: float, what: Literal["runs", "images"], **fixed: float
) -> list[int]:
    """Return how many, rounded up to two digits, would find WANTED; nothing if too many."""
    start, most = {
        "runs": (min(difference.num_runs), MOST_RUNS),
        "images": (difference.images, MOST_IMAGES),
    }[what]
    for count in sorted({_rounded_up(start * 1.02**k) for k in range(1000)}):
        if count > most:
            break
        if least_found(difference, alpha, **{what: count / start}, **fixed) <= WANTED:
            return [count]
    return []


def _rounded_up(count: float) -> int:
    unit: int = 10 ** max(0, len(str(math.ceil(count))) - 2)
    return math.ceil(count / unit) * unit
