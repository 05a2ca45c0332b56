"""Find, without any data, which outputs do not belong to the parameters and the code beside them.

DVC says of a stage what differs from dvc.lock; what is made from its outputs is out of date too.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc.stage import Stage


def stale_outputs(repo: "Repo") -> dict[str, list[str]]:
    """Return why outputs are no results of what lies beside them, by path.

    The repository may be switched to any revision; what was not pulled there is no difference.
    """
    from networkx import descendants

    graph = repo.index.graph  # from each stage to those that it needs
    absent = [
        out.fs_path
        for stage in graph
        for out in stage.outs
        if out.use_cache and out.hash_info and not out.exists
    ]
    reasons = {stage: list(_differences(repo, stage, absent)) for stage in graph}
    stale: dict[str, list[str]] = {}
    for stage in graph:
        why = [line for one in (stage, *descendants(graph, stage)) for line in reasons[one]]
        stale |= {_path(repo, out): why for out in stage.outs if why}
    return stale


def _differences(repo: "Repo", stage: "Stage", absent: list[str]) -> Iterator[str]:
    """Yield what differs from dvc.lock in one stage, one line each."""
    name = stage.addressing.rpartition(":")[2]
    if stage.changed_stage():
        yield f"{name}: changed command"
    new = [out for out in stage.outs if not out.hash_info]
    yield from (f"{name}: {_path(repo, out)} was never made" for out in new)
    files = [] if new else [*stage.deps, *(out for out in stage.outs if out.fs_path not in absent)]
    for file in files:
        path = _path(repo, file)
        for state in file.workspace_status().values():
            if isinstance(state, dict):  # a file of parameters
                yield from (f"{name}: {path} {key} is {how}" for key, how in state.items())
            elif file in stage.outs or (
                state != "deleted" and not any(x.startswith(f"{file.fs_path}/") for x in absent)
            ):
                yield f"{name}: {path} is {state}"


def _path(repo: "Repo", file: "Output") -> str:
    return str(repo.fs.relpath(file.fs_path, repo.root_dir))
