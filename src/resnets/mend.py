"""Mend what a killed DVC leaves half written, and remove what stages that are gone have left.

`make repro` does both before it calls DVC; `make tidy` does nothing else.

DVC writes dvc.lock and .dvc/tmp/rwlock in place: killed at that instant, it cannot read them again,
and every later command ends with 255. No result is lost with them: what ran is in DVC's run cache,
and a training that ended keeps its state until dvc.lock has its hashes (files.py).

Of a variant that is renamed or removed DVC leaves all files, and its stages in dvc.lock, which says
what they made. DVC's cache still has it, should the variant come back.
"""

import json
import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from resnets.system.errors import EnvironmentFault, run_app
from resnets.system.files import locked, write_bytes

if TYPE_CHECKING:
    from dvc.repo import Repo

WAIT = "wait until it ends, and run again"


def main() -> None:
    """Restore or remove what DVC cannot read, or no stage makes, any more, and say so.

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
            with suppress(DvcException):  # it refuses dvc.yaml or params.yaml, and says why itself
                _tidy(repo, lock)
    except LockError:
        raise EnvironmentFault("another DVC process is at work in this project", WAIT) from None


def _mend_lock(lock: Path) -> None:
    """Put the last commit's dvc.lock in place of one that cannot be read, or none."""
    if b"<<<<<<<" in lock.read_bytes():
        fix = "take one side: git checkout --ours (or --theirs) dvc.lock"
        raise EnvironmentFault(f"{lock}: has conflict markers of Git", fix)
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


def _tidy(repo: "Repo", lock: Path) -> None:
    """Remove the outs, the state and the entry of each stage that dvc.lock has and dvc.yaml not."""
    from dvc.dvcfile import Lockfile

    lockfile, names = Lockfile(repo, str(lock)), {stage.name for stage in repo.index.stages}
    gone = {k: v for k, v in lockfile.load().get("stages", {}).items() if k not in names}
    outs = {Path(out.fs_path) for out in repo.index.outs}
    needed = outs | {Path(dep.fs_path) for dep in repo.index.deps if dep.protocol == "local"}
    needed |= {parent for path in needed for parent in path.parents}
    for name, entry in gone.items():
        state = lock.parent / ".state" / name.replace("@", "-")
        with suppress(EnvironmentFault), locked(state, "removal"):  # it may run at this moment
            for path in (lock.parent / out["path"] for out in entry.get("outs", ())):
                if path.exists() and path not in needed and not outs.intersection(path.parents):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                    repo.scm_context.ignore_remove(str(path))
                    print(f"removed: {path.relative_to(lock.parent)}, which {name} made")
                    with suppress(OSError):  # there are other files beside it
                        path.parent.rmdir()
            shutil.rmtree(state)
            lockfile.remove_stage(SimpleNamespace(name=name))


if __name__ == "__main__":
    run_app(main)
