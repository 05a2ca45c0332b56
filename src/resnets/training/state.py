"""Keep the state of a training run on disk, so that a killed run continues bit by bit.

DVC deletes a stage's outs before it runs, so the state lives in `.state/<name>`, which nobody
tracks. Each checkpoint holds the identity of its run (identity.py): that of another run is never
continued. It is removed once DVC has recorded the outs (files.locked), or when no run of the
parameters can continue it.
"""

import hashlib
import json
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resnets.system.errors import EnvironmentFault
from resnets.system.files import locked, mark_published, write_bytes
from resnets.system.runtime import process_number
from resnets.training.identity import difference
from resnets.training.processes import share

PLAIN = ("epoch", "batch", "sums", "history", "chosen")  # what of the progress is a value
PARTS = ("model", "optimizer", "average")  # what has a state_dict
DIGEST_SIZE = 32
KEEP = 2  # the newest may be torn by a crash that outlives fsync; the one before is then used

Tensors = dict[str, Tensor]


@dataclass
class Progress:
    """Hold all that training changes, and so all that a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: int = 0  # with the batch: where to go on
    batch: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # of the open epoch
    history: list[dict[str, Any]] = field(default_factory=list)
    chosen: Tensors = field(default_factory=dict)  # the weights of the epoch to ship, so far
    average: nn.Module | None = None  # of the weights

    def place(self) -> str:
        """Say where the run stands."""
        return f"epoch {self.epoch + 1}, batch {self.batch}"

    def chosen_row(self) -> dict[str, Any]:
        """Return what the history says of the epoch to ship."""
        return [row for row in self.history if row["is_chosen"]][-1]


def write_sealed(path: Path, values: dict[str, Any]) -> None:
    """Write tensors and plain values behind a hash, so that damage is noticed."""
    buffer = BytesIO()
    torch.save(values, buffer)
    payload = buffer.getvalue()
    write_bytes(path, hashlib.blake2b(payload, digest_size=DIGEST_SIZE).digest() + payload)


def read_sealed(path: Path) -> dict[str, Any] | None:
    """Return what was written, on the CPU, or None where the file is missing or damaged."""
    content = path.read_bytes() if path.exists() else b""
    seal, payload = content[:DIGEST_SIZE], content[DIGEST_SIZE:]
    if hashlib.blake2b(payload, digest_size=DIGEST_SIZE).digest() != seal:
        return None
    values: dict[str, Any] = torch.load(BytesIO(payload), map_location="cpu", weights_only=True)
    return values


class StateFolder:
    """Save and load the progress of one run; only process 0 of several touches the folder."""

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder = folder
        self.identity = json.loads(json.dumps(identity))  # all that the run depends on

    def save(self, progress: Progress, step: int) -> None:
        """Write a checkpoint, then forget all but the newest few."""
        if process_number():
            return
        values = {key: getattr(progress, key) for key in PLAIN} | {"identity": self.identity}
        values |= {key: part.state_dict() for key in PARTS if (part := getattr(progress, key))}
        write_sealed(self.folder / f"checkpoint-{step:09d}.state", values)
        for old in self._newest_first()[KEEP:]:
            old.unlink()

    def load(self, progress: Progress) -> str:
        """Restore the newest whole checkpoint, or remove those of another run, and say why.

        Where none is whole all go, or they would pass for newer than those that follow.
        """
        files = [] if process_number() else self._newest_first()
        newest = next(filter(None, map(read_sealed, files)), None)
        reason = difference(newest["identity"], self.identity) if newest else ""
        for file in files if reason or not newest else ():
            file.unlink()
        if newest := share(None if reason else newest):
            _restore(progress, newest)
        return reason

    def _newest_first(self) -> list[Path]:
        files = self.folder.glob("checkpoint-*.state")
        return sorted(files, key=lambda file: int(file.stem.split("-")[1]), reverse=True)


def _restore(progress: Progress, values: dict[str, Any]) -> None:
    """Fill the progress with what a checkpoint holds; memory formats come back with the tensors."""
    for key in PLAIN:
        setattr(progress, key, values[key])
    for key in PARTS:
        if part := getattr(progress, key):
            part.load_state_dict(values[key])


@contextmanager
def held(
    state: Path, owner: str, history: Path, seeds: Collection[int], variants: Collection[str] = ()
) -> Iterator[None]:
    """Hold the folder of a stage's states, without what no run of its parameters can use.

    Without an error inside, `history` and all else that the stage makes is in place at the end.

    States and features of other seeds are removed, and those of variants that are not among
    `variants` (if any are given), unless a process holds them. Raises EnvironmentFault as `locked`.
    """
    with locked(state, owner):
        if not process_number():
            for path in state.glob("seed-*"):
                if int(path.name.split("-")[1]) not in seeds:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            for other in state.parent.glob("transfer-*") if variants else ():
                if other.name.removeprefix("transfer-") not in variants:
                    with suppress(EnvironmentFault), locked(other, "removal"):
                        shutil.rmtree(other)
        yield
        if not process_number():
            mark_published(state, history)
