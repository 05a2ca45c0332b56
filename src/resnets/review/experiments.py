"""Show experiments as a table that fits a screen: what differs between them, and nothing else."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from dvc.repo import Repo
from dvc.repo.experiments.serialize import ExpState, SerializableExp
from dvc.scm import RevError
from dvc.utils.flatten import flatten

from resnets.evaluation.markdown import decimal, points
from resnets.review.revisions import unknown_revision

WIDTH, WIDEST = 160, 5  # of the table, and of a score: 99.25 or 100.0
SCORES = {"test.accuracy": "acc", "test.macro_f1": "F1", "test.nll": "nll", "val.accuracy": "val"}
Column = tuple[str, str]  # a model or section of params.yaml, and what of it


def experiment_table(root: Path, commit: str) -> str:
    """Return a row for a commit, for each of its experiments, and for other scores that lie here.

    The columns are the parameters and scores that differ; of the commit alone, all scores. Raises
    ParamsError for a commit that Git does not know.
    """
    try:
        with Repo(str(root)) as repo:
            commits = repo.experiments.show(revs=commit)
    except RevError:
        raise unknown_revision(commit) from None
    rows = {name: dict(_cells(data)) for name, data in _named(commits)}
    # scores alone: the parameters may be newer than they are
    measured = [{x for x in row.items() if x[0][1] in SCORES.values()} for row in rows.values()]
    if "workspace" in rows and any(measured[0] <= scores for scores in measured[1:]):
        del rows["workspace"]  # the first of them
    table = pd.DataFrame(list(rows.values()), index=list(rows), dtype=object).fillna("–")
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    scored = [column for column in columns if column[1] in SCORES.values()]
    models = list(dict.fromkeys(model for model, _ in scored))
    shown = [x for x in columns if table[x].nunique() > 1] if len(table) > 1 else scored
    shown.sort(key=lambda x: (models.index(x[0]) if x[0] in models else -1, x in scored))
    keys = {group: [key for other, key in shown if other == group] for group, _ in shown}
    if not shown:
        return "nothing was measured yet, or nothing differs"
    header = [(group, _shorten(key, keys[group])) for group, key in shown]
    table = table[shown].set_axis(pd.MultiIndex.from_tuples(header), axis=1)
    return table.to_string(line_width=WIDTH)


def _named(commits: list[ExpState]) -> Iterator[tuple[str, SerializableExp]]:
    """Yield the name and the data of commits and of their experiments, as far as these have any."""
    for commit in commits:
        for state in (commit, *(x for found in commit.experiments or () for x in found.revs)):
            if state.data:
                yield state.name or state.rev[:10], state.data


def _cells(data: SerializableExp) -> Iterator[tuple[Column, str]]:
    """Yield what a row says: parameters as they are, shares in percent."""
    for file in data.params.values():
        for key, value in flatten(file.get("data", {})).items():
            group, _, rest = key.removeprefix("transfer.").partition(".")
            yield ((group, rest) if rest else ("", group)), str(value)
    for path, file in data.metrics.items():
        for key, value in flatten(file.get("data", {})).items():
            if key in SCORES:
                text = decimal(value, 3) if key.endswith("nll") else points(value)
                yield (Path(path).stem, SCORES[key]), text[:WIDEST]


def _shorten(key: str, others: list[str]) -> str:
    """Return the shortest end of a dotted key that is no end of another one."""
    parts = key.split(".")
    ends = [".".join(parts[-k:]) for k in range(1, len(parts))]
    unique = [end for end in ends if sum(f".{x}".endswith(f".{end}") for x in others) == 1]
    return [*unique, key][0]
