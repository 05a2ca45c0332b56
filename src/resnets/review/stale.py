"""Check, without any data, that dvc.lock belongs to the parameters, the code and the metrics.

`dvc repro --dry` always exits 0 and `dvc status -q` takes data that was not pulled for a change;
so this reads `dvc status --json` and leaves out what is only absent.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import typer

from resnets.errors import ArtefactError, EnvironmentFault, run_app

Status = Mapping[str, Sequence[str | Mapping[str, Mapping[str, Any]]]]


def stale(status: Status) -> Iterator[str]:
    """Yield what differs from dvc.lock, one line each; `status` is DVC's, by stage.

    An output "not in cache" was not pulled; one that was never made DVC calls "deleted". A
    dependency that is "deleted" was not pulled; nor was a "modified" folder of such outputs.
    """
    entries = [(stage, entry) for stage, found in status.items() for entry in found]
    outputs = [entry.get("changed outs", {}) for _, entry in entries if not isinstance(entry, str)]
    absent = {path for found in outputs for path, state in found.items() if state == "not in cache"}
    for stage, entry in entries:
        if isinstance(entry, str):
            yield f"{stage}: {entry}"
            continue
        for path, state in entry.get("changed outs", {}).items():
            if path not in absent:
                yield f"{stage}: {path} is {state}"
        for path, state in entry.get("changed deps", {}).items():
            if isinstance(state, Mapping):  # a file of parameters
                yield from (f"{stage}: {path} {key} is {how}" for key, how in state.items())
            elif state != "deleted" and not any(out.startswith(f"{path}/") for out in absent):
                yield f"{stage}: {path} is {state}"


def main() -> None:
    """Exit with 4, and name what differs, when `dvc repro` would change something."""
    command = [sys.executable, "-m", "dvc", "status", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        problem = (done.stderr.strip() or "dvc status failed").splitlines()[0]
        raise EnvironmentFault(problem, "run `dvc status` to see more")
    if found := list(stale(json.loads(done.stdout or "{}"))):
        raise ArtefactError(
            f"dvc.lock is out of date: {'; '.join(found)}", "run `dvc repro` and commit its results"
        )
    typer.echo("dvc.lock matches the parameters, the code and the metrics")


if __name__ == "__main__":
    run_app(main)
