"""Mend what a killed DVC leaves half written; `make repro` does it before it calls DVC.

DVC writes dvc.lock and .dvc/tmp/rwlock in place: killed at that instant, it cannot read them again,
and every later command ends with 255. No result is lost with them: what ran is in DVC's run cache,
and a training that ended keeps its state until dvc.lock has its hashes (files.py).
"""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import typer

from resnets.system.errors import EnvironmentFault, run_app
from resnets.system.files import write_bytes


def mend(root: Path) -> Iterator[str]:
    """Restore or remove what DVC cannot read any more; yield what was done, a line each.

    Raises EnvironmentFault while another DVC process is at work in the same project.
    """
    from dvc.dvcfile import Lockfile
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    repo = Repo(str(root))
    try:
        with repo.lock:  # both files are written under it
            yield from _mend_rwlock(Path(repo.tmp_dir, "rwlock"))
            path = Path(repo.root_dir, "dvc.lock")
            try:
                Lockfile(repo, str(path)).load()
            except DvcException:
                yield _restore(path)
    except LockError:
        raise EnvironmentFault(
            f"{repo.root_dir}: another DVC process is at work", "wait until it ends, and run again"
        ) from None


def _restore(lock: Path) -> str:
    """Put the last commit's dvc.lock in place of one that cannot be read, or none."""
    command = ["git", "show", f"HEAD:./{lock.name}"]
    committed = subprocess.run(command, cwd=lock.parent, capture_output=True, check=False)
    if committed.returncode == 0:
        write_bytes(lock, committed.stdout)
        return f"{lock.name} was half written: restored from the last commit"
    lock.unlink()
    return f"{lock.name} was half written: removed, as no commit has one"


def _mend_rwlock(rwlock: Path) -> Iterator[str]:
    """Remove the table of paths in use where it cannot be read and nobody in it lives."""
    text = rwlock.read_text(errors="replace") if rwlock.exists() else "{}"
    try:
        json.loads(text)
    except ValueError:
        for process in re.findall(r'"pid": (\d+)[,}]', text):
            if _is_alive(int(process)):
                raise EnvironmentFault(
                    f"{rwlock}: half written, and process {process} in it still runs",
                    "wait until it ends, and run again; if it is not DVC, remove that file",
                ) from None
        rwlock.unlink()
        yield f"{rwlock.name} was half written: removed; nothing in it runs any more"


def _is_alive(process: int) -> bool:
    """Tell whether there is a process of this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def main() -> None:
    """Mend the project in this folder, and say what was mended."""
    for line in mend(Path()):
        typer.echo(f"mended: {line}")


if __name__ == "__main__":
    run_app(main)
