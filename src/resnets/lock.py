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

# an absent input is data that was not pulled; an absent output that was never made has no hash
# in dvc.lock, and DVC calls only such a one "deleted"
ABSENT = {"changed deps": "deleted", "changed outs": "not in cache"}


def stale(status: Mapping[str, Sequence[str | Mapping[str, Any]]]) -> Iterator[str]:
    """Yield what differs from dvc.lock, one line each; `status` is DVC's, by stage."""
    for stage, entries in status.items():
        for entry in entries:
            if isinstance(entry, str):
                yield f"{stage}: {entry}"
                continue
            for kind, found in entry.items():
                for path, change in found.items():
                    keys = change if isinstance(change, Mapping) else {"": change}
                    for key, state in keys.items():
                        if key or state != ABSENT.get(kind):
                            yield f"{stage}: {path}{f' {key}' if key else ''} is {state}"


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
