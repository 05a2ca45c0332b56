"""Read the small reviewed files of the project as they are at a Git revision, or on the disk.

DVC says, without any data, which outputs do not belong to the parameters and the code beside them.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException, NotDvcRepoError
from dvc.repo import Repo
from dvc.repo.brancher import switch
from dvc.scm import RevError, SCMError
from dvc.stage import Stage
from dvc.utils.serialize import load_path
from networkx import dfs_preorder_nodes

from resnets.evaluation.predictions import DETAILS
from resnets.system.errors import ArtefactError, EnvironmentFault, ParamsError

TOPS = ("params.yaml", "gates.yaml", "dvc.lock", "metrics", "plots")
TABLES = ("predictions.csv", "seeds.csv", "labels.csv")
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Revision:
    """Hold the reviewed files of one state of the project.

    `files` are by path: values of JSON and YAML, the text of tables. `root` is the project's
    folder. `stale` says of outputs why they are no results of this state.
    """

    name: str
    root: Path
    files: Mapping[str, Any]
    stale: Mapping[str, list[str]]

    @property
    def metrics(self) -> dict[str, Record]:
        """Return the files of the folder metrics, but those of variants that params.yaml lost."""
        paths = sorted(path for path in self.files if path.startswith("metrics/"))
        records = {Path(path).stem: self.files[path] for path in paths}
        variants = self.params.get("transfer", records)
        return {
            name: record
            for name, record in records.items()
            if name in {"backbone", *variants} or not self._is_of_model(name)
        }

    @property
    def params(self) -> Record:
        """Return params.yaml, as far as there is one."""
        return dict(self.files.get("params.yaml", {}))

    @property
    def models(self) -> dict[str, Record]:
        """Return the details of the models that were scored; `means` are those over their runs."""
        return {
            name: {**self._details(name), "means": record}
            for name, record in self.metrics.items()
            if self._is_of_model(name)
        }

    def _details(self, name: str) -> Record:
        details: Record = self.files.get(f"plots/{name}/{DETAILS}", {})
        return details

    def _is_of_model(self, name: str) -> bool:
        return {"test", "measured_on"} <= set(self._details(name))


def read_revision(name: str | None, root: Path) -> Revision:
    """Read a commit, branch, tag or experiment; None is what lies on the disk.

    `root` is the project's folder or one inside it. Raises ParamsError for a revision that Git
    does not know, ArtefactError for a file that DVC cannot read, and EnvironmentFault where there
    is no project.
    """
    shown = name or "workspace"
    try:
        with Repo(str(root)) as repo:
            folder = Path(repo.root_dir)
            if ":" in shown:
                raise RevError("a file, not a commit")
            with switch(repo, shown):
                files = dict(_reviewed(repo))
                stale = _stale_outputs(repo)
    except RevError:
        raise unknown_revision(shown) from None
    except (NotDvcRepoError, SCMError):
        what = f"{root.resolve()}: not a Git repository with a DVC project"
        raise EnvironmentFault(what, "run it in a clone of the project") from None
    except DvcException as error:
        what = f"{shown}: {error}".replace("\n", " ")
        raise ArtefactError(what, "restore it from Git, or see `dvc status` there") from None
    shown = shown[:10] if re.fullmatch("[0-9a-f]{40}", shown) else shown
    return Revision(shown, folder, files, stale)


def unknown_revision(name: str) -> ParamsError:
    """Return the error about a name that stands for no commit."""
    fix = "see `git branch -a`; a shallow clone lacks commits until `git fetch --unshallow`"
    return ParamsError(f"{name}: Git knows no such revision here", fix)


def _reviewed(repo: Repo) -> Iterator[tuple[str, Any]]:
    """Yield path and content of the reviewed files, as the repository is switched."""
    fs, root = repo.fs, repo.root_dir
    tops = [fs.join(root, name) for name in TOPS]
    for file in (file for top in tops for file in ([top] if fs.isfile(top) else fs.find(top))):
        if file.endswith((".json", ".yaml", ".lock")):
            yield fs.relpath(file, root), load_path(file, fs)
        elif fs.name(file) in TABLES:
            text = fs.read_text(file, encoding="utf-8", errors="surrogateescape", newline="")
            yield fs.relpath(file, root), text


def _stale_outputs(repo: Repo) -> dict[str, list[str]]:
    """Return why outputs are no results of what lies beside them, by path.

    What is made from the outputs of a stale stage is stale too; what was not pulled is no
    difference.
    """
    graph = repo.index.graph  # from each stage to those that it needs
    outs = [out for stage in graph for out in stage.outs]
    absent = [out.fs_path for out in outs if out.use_cache and out.hash_info and not out.exists]
    reasons = {stage: list(_differences(stage, absent)) for stage in graph}
    stale: dict[str, list[str]] = {}
    for stage in graph:
        why = [line for needed in dfs_preorder_nodes(graph, stage) for line in reasons[needed]]
        stale |= {repo.fs.relpath(out.fs_path, repo.root_dir): why for out in stage.outs if why}
    return stale


def _differences(stage: Stage, absent: list[str]) -> Iterator[str]:
    """Yield what differs from dvc.lock in one stage, one line each."""
    fs, root, name = stage.repo.fs, stage.repo.root_dir, stage.addressing.rpartition(":")[2]
    if stage.changed_stage():
        yield f"{name}: changed command"
    for out in (new := [out for out in stage.outs if not out.hash_info]):
        yield f"{name}: {fs.relpath(out.fs_path, root)} was never made"
    for file in [] if new else [*stage.deps, *stage.outs]:
        path = fs.relpath(file.fs_path, root)
        if any(f"{out}/".startswith(f"{file.fs_path}/") for out in absent):
            continue
        for state in file.workspace_status().values():
            if isinstance(state, dict):  # a file of parameters
                yield from (f"{name}: {path} {key} is {how}" for key, how in state.items())
            elif state != "deleted" or file in stage.outs:
                yield f"{name}: {path} is {state}"
