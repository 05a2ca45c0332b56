"""Take bundles that DVC has recorded, so that another list of repeats trains only what is new.

DVC removes a stage's outs before it runs; its cache still has them. `persist` would leave them in
place, but takes the run cache from the stage: every way back to older parameters would train again.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from resnets.models.bundle import SHIPPED, BundleMeta, read_meta
from resnets.system.errors import ArtefactError
from resnets.system.files import write_bytes
from resnets.system.runtime import process_number
from resnets.training.show import History

Recorded = dict[Path, BundleMeta]  # of each file in DVC's cache


def recorded_bundles(out: Path, seeds: Sequence[int]) -> Recorded:
    """Return the bundles in an out of the running stage; torn and foreign files are none.

    None at all where there is one of each of these seeds and no other, and the first is shipped:
    such a stage runs because something else has changed, or as DVC is forced to (`dvc repro -f`).
    """
    if "DVC_STAGE" not in os.environ:
        return {}
    from dvc.repo import Repo

    bundles, seed_at = {}, {}
    with Repo() as repo:
        (known,) = repo.find_outs_by_path(str(out))
        for key, _, oid in known.get_obj() or ():
            file = Path(known.cache.oid_to_path(oid.value))
            content = file.read_bytes() if file.is_file() else b""
            if hashlib.md5(content, usedforsecurity=False).hexdigest() == oid.value:
                with suppress(ArtefactError):
                    bundles[file] = read_meta(content, file)
                    seed_at[key] = bundles[file].training.get("seed")
    is_same = {*seed_at.values()} == {*seeds} and seed_at.get((SHIPPED,)) == seeds[0]
    return {} if is_same else bundles


def keep(
    recorded: Recorded,
    origin: dict[str, str],
    path: Path,
    title: str,
    write_curve: Callable[[History], None],
) -> bool:
    """Write the recorded bundle of this origin and its curve; return whether there is one."""
    for file, meta in recorded.items():
        if meta.hashes == origin:
            if not process_number():
                write_bytes(path, file.read_bytes())
                print(f"{title}: kept, it was trained before")
            write_curve(meta.history)
            return True
    return False
