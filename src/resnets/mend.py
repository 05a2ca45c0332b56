"""Mend what a killed DVC leaves half written; `make repro` does it before it calls DVC.

DVC writes dvc.lock and .dvc/tmp/rwlock in place: killed at that instant, it cannot read them again,
and every later command ends with 255. No result is lost with them: what ran is in DVC's run cache,
and a training that ended keeps its state until dvc.lock has its hashes (files.py).
"""

import json
import re
import subprocess
from pathlib import Path

from resnets.system.errors import EnvironmentFault, run_app
from resnets.system.files import write_bytes

WAIT = "wait until it ends, and run again"


def main() -> None:
    """Restore or remove what DVC cannot read any more in this project, and say so.

    Raises EnvironmentFault while another DVC process is at work.
    """
    from dvc.dvcfile import Lockfile
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    repo = Repo()
    lock = Path(repo.root_dir, "dvc.lock")
    try:
        with repo.lock:  # both files are written under it
            _mend_rwlock(Path(repo.tmp_dir, "rwlock"))
            try:
                Lockfile(repo, str(lock)).load()
            except DvcException:
                _mend_lock(lock)
    except LockError:
        raise EnvironmentFault("another DVC process is at work in this project", WAIT) from None


def _mend_lock(lock: Path) -> None:
    """Put the last commit's dvc.lock in place of one that cannot be read, or none."""
    command = ["git", "show", "HEAD:./dvc.lock"]
    committed = subprocess.run(command, cwd=lock.parent, capture_output=True, check=False)
    if committed.returncode == 0:
        write_bytes(lock, committed.stdout)
        print("mended: dvc.lock was half written: restored from the last commit")
    else:
        lock.unlink()
        print("mended: dvc.lock was half written: removed, as no commit has one")


def _mend_rwlock(rwlock: Path) -> None:
    """Remove the table of paths in use where it cannot be read and nobody in it lives."""
    from psutil import pid_exists

    text = rwlock.read_text(errors="replace") if rwlock.exists() else "{}"
    try:
        json.loads(text)
    except ValueError:
        alive = [pid for pid in re.findall(r'"pid": (\d+)[,}]', text) if pid_exists(int(pid))]
        if alive:
            what = f"{rwlock}: half written, and process {alive[0]} in it still runs"
            raise EnvironmentFault(what, f"{WAIT}; if it is not DVC, remove that file") from None
        rwlock.unlink()
        print("mended: rwlock was half written: removed; nothing in it runs any more")


if __name__ == "__main__":
    run_app(main)
