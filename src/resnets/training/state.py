"""Keep the state of a training run on disk, so that a killed run continues bit by bit.

DVC deletes a stage's outs before it runs, so the state lives in `.state/<name>`, which nobody
tracks. It is bound to the run's identity (parameters, data, split, weights and code): state of
another run is never continued. It is removed once DVC has recorded the outs (files.locked).
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from resnets.files import write_bytes, write_text
from resnets.runtime import process_number
from resnets.training.processes import share

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


def code_digest() -> str:
    """Return the hash of this package's code that can change the result of training."""
    package = Path(__file__).parents[1]
    files = [*package.glob("models/*.py"), *package.glob("training/*.py"),
             package / "tasks" / "decode.py",
             package / "inference.py"]  # fmt: skip
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


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
        """Take the folder; state that another identity left there is removed.

        `reason` says what changed, or is empty.
        """
        self.folder = folder
        identity = json.loads(json.dumps(identity))
        recorded = folder / "identity.json"
        self.reason = ""
        if process_number():
            return
        if recorded.exists():
            try:
                before = json.loads(recorded.read_text())
            except ValueError:
                before = {}
            changed = [key for key in identity if before.get(key) != identity[key]]
            if changed:
                self.reason = f"{', '.join(changed)} changed"
                self._remove_checkpoints()
        write_text(recorded, json.dumps(identity, indent=1, sort_keys=True))

    def _checkpoints(self) -> list[Path]:
        found = self.folder.glob("checkpoint-*.state")
        return sorted(found, key=lambda file: int(file.stem.split("-")[1]), reverse=True)

    def _remove_checkpoints(self) -> None:
        for file in self._checkpoints():
            file.unlink()

    def save(self, progress: Progress, step: int) -> None:
        """Write a checkpoint, then forget all but the newest few."""
        if process_number():
            return
        payload = save(*_pack(progress))
        target = self.folder / f"checkpoint-{step:09d}.state"
        write_bytes(target, seal(payload))
        for old in self._checkpoints()[KEEP:]:
            old.unlink()

    def load(self, progress: Progress) -> str:
        """Restore the newest checkpoint that is whole; return where it stands, or "".

        A checkpoint whose bytes do not match their own hash is passed over.
        """
        payload = share(b"" if process_number() else self._newest())
        if not payload:
            return ""
        _unpack(progress, payload)
        return f"epoch {progress.epoch + 1}, batch {progress.batch}"

    def _newest(self) -> bytes:
        return next(filter(None, (unseal(file.read_bytes()) for file in self._checkpoints())), b"")


def _pack(progress: Progress) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Flatten the progress into tensors and one JSON text, which keeps the order of columns."""
    tensors = {f"model.{k}": v.contiguous() for k, v in progress.model.state_dict().items()}
    tensors |= {f"best.{k}": v.contiguous() for k, v in progress.best.items()}
    for index, values in progress.optimizer.state_dict()["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value.contiguous()
    plain = {key: getattr(progress, key) for key in ("epoch", "batch", "sums", "history")}
    return tensors, {"progress": json.dumps(plain)}


def _unpack(progress: Progress, payload: bytes) -> None:
    """Fill the progress from a checkpoint's bytes, which were verified by their hash."""
    header_size = int.from_bytes(payload[:8], "little")
    header = json.loads(payload[8 : 8 + header_size])
    for key, value in json.loads(header["__metadata__"]["progress"]).items():
        setattr(progress, key, value)
    tensors = load(payload)
    progress.model.load_state_dict(_part(tensors, "model."))
    progress.best = _part(tensors, "best.")
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _part(tensors, "optimizer.").items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    groups = progress.optimizer.state_dict()["param_groups"]
    progress.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
