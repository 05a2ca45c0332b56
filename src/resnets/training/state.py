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
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from resnets.system.errors import EnvironmentFault
from resnets.system.files import locked, write_bytes
from resnets.system.runtime import process_number
from resnets.training.identity import difference
from resnets.training.processes import gather, share, statistics_of

FEATURES = "features"  # beside the states; outlives them
PLAIN = ("epoch", "batch", "sums", "history")  # what of the progress is no tensor
DIGEST_SIZE = 32
KEEP = 2  # the newest may be torn by a crash that outlives fsync; the one before is then used


@dataclass
class Progress:
    """Hold all that training changes, and so all that a checkpoint holds.

    `epoch` and `batch` say where to go on; `sums` are those of the open epoch; `best` holds the
    weights of the best epoch so far.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    batch: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)


def seal(payload: bytes) -> bytes:
    """Put a hash before the bytes, so that damage is noticed."""
    return hashlib.sha256(payload).digest() + payload


def unseal(content: bytes) -> bytes:
    """Return the bytes behind the hash, or none where the two do not fit."""
    payload = content[DIGEST_SIZE:]
    return payload if content == seal(payload) else b""


class StateFolder:
    """Save and load the progress of one run; only process 0 of several touches the folder."""

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        """Take the folder, and by name and value all that the run depends on."""
        self.folder = folder
        self.identity = json.loads(json.dumps(identity))
        self.reason = ""  # why `load` has removed a state that was there

    def _checkpoints(self) -> list[Path]:
        found = self.folder.glob("checkpoint-*.state")
        return sorted(found, key=lambda file: int(file.stem.split("-")[1]), reverse=True)

    def save(self, progress: Progress, step: int) -> None:
        """Write a checkpoint, then forget all but the newest few.

        All processes call it: between two epochs each has BatchNorm statistics of its own.
        """
        statistics = gather(statistics_of(progress.model))
        if process_number():
            return
        payload = save(*_pack(progress, self.identity, statistics[1:]))
        target = self.folder / f"checkpoint-{step:09d}.state"
        write_bytes(target, seal(payload))
        for old in self._checkpoints()[KEEP:]:
            old.unlink()

    def load(self, progress: Progress) -> str:
        """Restore the newest checkpoint that is whole; return where it stands, or "".

        A checkpoint whose bytes do not match their own hash is passed over. Those of another run
        are removed, and `reason` says what differs.
        """
        payload = share(b"" if process_number() else self._newest())
        if not payload:
            return ""
        _unpack(progress, payload)
        return f"epoch {progress.epoch + 1}, batch {progress.batch}"

    def _newest(self) -> bytes:
        contents = (unseal(file.read_bytes()) for file in self._checkpoints())
        payload = next(filter(None, contents), b"")
        if payload:
            self.reason = difference(_plain(payload).get("identity", {}), self.identity)
        if self.reason:
            for file in self._checkpoints():
                file.unlink()
        return b"" if self.reason else payload


@contextmanager
def held(
    state: Path, owner: str, seeds: Collection[int], variants: Collection[str] = ()
) -> Iterator[None]:
    """Hold the folder of a stage's states, without what no run of its parameters can use.

    States and features of other seeds are removed, and those of variants that are not among
    `variants` (if any are given), unless a process holds them. Raises EnvironmentFault as `locked`.
    """
    with locked(state, owner):
        if not process_number():
            features = state.parent / FEATURES / state.name
            for path in [*state.glob("seed-*"), *features.glob("seed-*")]:
                if int(path.name.split("-")[1]) not in seeds:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            names = {path.name for path in state.parent.rglob("transfer-*")}
            for name in names if variants else ():
                if name.removeprefix("transfer-") not in variants:
                    with suppress(EnvironmentFault), locked(state.parent / name, "removal"):
                        shutil.rmtree(state.parent / FEATURES / name, ignore_errors=True)
                        shutil.rmtree(state.parent / name)
        yield


def _pack(
    progress: Progress, identity: dict[str, Any], statistics: list[dict[str, Tensor]]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Flatten the progress into tensors and one JSON text, which keeps the order of columns.

    `statistics` are those of the other processes.
    """
    tensors = {f"model.{k}": v.contiguous() for k, v in progress.model.state_dict().items()}
    tensors |= {f"best.{k}": v.contiguous() for k, v in progress.best.items()}
    for number, buffers in enumerate(statistics, start=1):
        tensors |= {f"process-{number}.{k}": v.contiguous() for k, v in buffers.items()}
    for index, values in progress.optimizer.state_dict()["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value.contiguous()
    plain = {key: getattr(progress, key) for key in PLAIN}
    return tensors, {"progress": json.dumps({**plain, "identity": identity})}


def _plain(payload: bytes) -> dict[str, Any]:
    """Return what a checkpoint's bytes hold beside tensors."""
    header = json.loads(payload[8 : 8 + int.from_bytes(payload[:8], "little")])
    plain: dict[str, Any] = json.loads(header["__metadata__"]["progress"])
    return plain


def _unpack(progress: Progress, payload: bytes) -> None:
    """Fill the progress from a checkpoint's bytes, which were verified by their hash."""
    plain = _plain(payload)
    for key in PLAIN:
        setattr(progress, key, plain[key])
    tensors = load(payload)
    own = _part(tensors, f"process-{process_number()}.")
    progress.model.load_state_dict({**_part(tensors, "model."), **own})
    progress.best = _part(tensors, "best.")
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _part(tensors, "optimizer.").items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    groups = progress.optimizer.state_dict()["param_groups"]
    progress.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
