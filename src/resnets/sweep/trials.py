"""File the trials of a sweep as DVC experiments, and rank by validation those that are done."""

import hashlib
import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from dvc.api import read
from dvc.repo import Repo

from resnets.evaluation.markdown import points, table
from resnets.evaluation.significance import ALPHA, SEED_SPREAD, holm
from resnets.params.load import choose, load_params, load_section
from resnets.sweep.ranges import Settings, Sweep
from resnets.system.errors import ParamsError

PARAMS = "params.yaml"


class Trial(NamedTuple):
    """Hold what was drawn, and the same with the epochs of its rung, which the experiment has."""

    drawn: Settings
    settings: Settings


def sweep(path: Path) -> Iterator[str]:
    """File what is missing of a sweep; yield tables of what is done, and what to do next.

    It goes down the rungs as far as their trials are done. Raises ParamsError for a wrong file or
    setting, and where Git lacks a change of the project.
    """
    plan = load_section(path, Sweep)
    with Repo() as repo:
        _refuse_changes(repo, path)
        states = {x["name"]: x["status"] for x in repo.experiments.celery_queue.status()}
        # DVC goes on calling an experiment a success that was removed; what it has counts
        states = {name: state for name, state in states.items() if state != "Success"}
        states |= {name: "done" for names in repo.experiments.ls().values() for name, _ in names}
        drawn = plan.draw()
        for rung in reversed(range(plan.halvings + 1)):
            # few choices are drawn more than once, and by name are one trial
            trials = dict(_trial(plan, settings, rung, repo.scm.get_rev()) for settings in drawn)
            for name in [name for name in trials if name not in states]:
                _queue(repo, plan, name, trials[name].settings)
                states[name] = "Queued"
            done = [name for name in trials if states[name] == "done"]
            failed = [name for name in trials if states[name] == "Failed"]
            if done:
                ranked = rank(_runs(plan, done), _num_images(plan))
                yield _page(plan, ranked, trials)
                best = list(ranked.index)
                drawn = [trials[name].drawn for name in best[: (len(best) + 1) // 2]]
            yield from (f"failed: `dvc queue logs {name}` says why" for name in failed)
            if waiting := len(trials) - len(done) - len(failed):
                yield f"{waiting} to do: `dvc queue start`, and when it is through, this again"
            if waiting or not done:
                return
    yield f"all done: `dvc exp apply {best[0]}` takes the best into {PARAMS}"


def _refuse_changes(repo: Repo, path: Path) -> None:
    """Raise ParamsError where tracked files differ from HEAD, but for the sweep's own."""
    staged, unstaged, _ = repo.scm.status(untracked_files="no")
    for name in sorted({*unstaged, *(name for names in staged.values() for name in names)}):
        if Path(repo.scm.root_dir, name) != path.resolve():
            what = f"{name}: changed, and the trials of a sweep share one commit"
            raise ParamsError(what, "commit or restore it")


def _trial(plan: Sweep, drawn: Settings, rung: int, commit: str) -> tuple[str, Trial]:
    """Check the settings, with the epochs of the rung; name the trial by them and the commit."""
    values, settings = load_params(PARAMS, drawn), dict(drawn)
    sections = {f"transfer.{name}": section for name, section in values.transfer.items()}
    section = choose({"backbone": values.backbone, **sections}, PARAMS, plan.training)
    if plan.halvings:
        settings[f"{plan.training}.epochs"] = max(1, section.epochs >> rung)
        load_params(PARAMS, settings)  # a warm-up may not fit any more
    digest = hashlib.sha256(json.dumps([commit, settings], sort_keys=True).encode()).hexdigest()
    return f"{plan.variant}-{digest[:8]}", Trial(drawn, settings)


def _queue(repo: Repo, plan: Sweep, name: str, settings: Settings) -> None:
    """Add an experiment to DVC's queue."""
    repo.experiments.run(
        targets=[plan.training.replace(".", "@", 1)],  # no evaluate, which would touch the test
        params=[f"++{key}={json.dumps(value)}" for key, value in settings.items()],
        name=name,
        queue=True,
        allow_missing=True,  # of the data, which were prepared before
    )


def _runs(plan: Sweep, names: list[str]) -> pd.DataFrame:
    """Return the histories of the trials, with their names."""
    texts = {name: read(f"plots/{plan.variant}/history.csv", rev=name) for name in names}
    runs = [pd.read_csv(StringIO(text)).assign(name=name) for name, text in texts.items()]
    return pd.concat(runs)


def _num_images(plan: Sweep) -> int:
    """Return the number of validation images, of all folds together."""
    is_backbone = plan.training == "backbone"
    task = Path(load_params(PARAMS).backbone.input).name if is_backbone else "target"
    counts = json.loads(Path(f"metrics/split_{task}.json").read_text("utf-8"))
    images: int = counts["images"]["val"] * (counts.get("folds") or 1)
    return images


def rank(runs: pd.DataFrame, images: int) -> pd.DataFrame:
    """Return mean, std and is_like_best of each name in these histories, best mean first.

    Two means differ by chance as their runs' seeds do (one variance for all trials) and as if each
    had its own validation images, which is the most that images can do; p is adjusted after Holm.
    """
    from scipy.special import ndtr

    # of the epochs that were the one to ship, the last one is
    places = [key for key in ("name", "repeat", "fold") if key in runs]
    shipped = runs[runs["is_chosen"]].groupby(places, sort=False)["val_accuracy"].last()
    shipped = shipped.groupby(["name", "repeat"], sort=False).mean()  # over folds, if any
    found = shipped.groupby("name", sort=False).agg(["mean", "std", "count"])
    found = found.sort_values("mean", ascending=False, kind="stable")
    over_seeds = found["std"].pow(2).mean() if found["count"].max() > 1 else SEED_SPREAD**2
    share = (found["mean"] * images + 2) / (images + 4)  # not 0 or 1 (Agresti & Coull 1998)
    variance = over_seeds / found["count"] + share * (1 - share) / images
    gap = found["mean"].iloc[0] - found["mean"]
    p = 2 * ndtr(-gap / np.sqrt(variance + variance.iloc[0]))
    found["is_like_best"] = [True, *(value >= ALPHA for value in holm(p.iloc[1:].tolist()))]
    return found


def _page(plan: Sweep, ranked: pd.DataFrame, trials: dict[str, Trial]) -> str:
    """Return the table of the trials of a rung."""
    rows, keys = [], next(iter(trials.values())).settings
    for number, (name, row) in enumerate(ranked.to_dict("index").items(), start=1):
        score = points(row["mean"]) + (f" ± {points(row['std'])}" if row["count"] > 1 else "")
        values = (json.dumps(value) for value in trials[str(name)].settings.values())
        mark = "≈ " if row["is_like_best"] and number > 1 else ""
        rows.append([f"{mark}{number}", name, *values, score])
    header = ["rank", "trial", *(key.removeprefix(f"{plan.training}.") for key in keys)]
    note = (
        f"Validation accuracy in percent of {_num_images(plan):,} images, mean ± standard "
        f"deviation over seeds; ≈ may be noise: p ≥ {ALPHA} against the best, after Holm."
    )
    return f"{table([*header, 'validation'], rows, words=2)}\n\n{note}"
