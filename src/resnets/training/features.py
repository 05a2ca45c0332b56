"""Compute the features of a frozen backbone once, and keep them for the next run.

They lie in `.state/features`, which nobody tracks and which outlives the run, so that another
learning rate or another loss of the head runs no backbone. Each is bound by its name to all that it
depends on, and takes the place of the one before.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor, nn

from resnets.files import write_bytes
from resnets.runtime import process_number
from resnets.tasks.decode import Images
from resnets.training.batches import ImageBatches
from resnets.training.processes import share
from resnets.training.state import seal, unseal


class ViewImages:
    """Give the augmented views of one epoch as images, so that `infer` can run over them."""

    def __init__(self, batches: ImageBatches, view: int) -> None:
        self.batches, self.draws = batches, batches.draws(view)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.batches.side.ids)

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        """Return the augmented view of one image, (crop, crop, C)."""
        cut = self.batches.cut(np.array([row]), self.draws)[0]
        return np.ascontiguousarray(cut.permute(1, 2, 0).numpy())


def weights_digest(model: nn.Module) -> str:
    """Return the hash of all weights and statistics but those of the head."""
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        if not key.startswith("fc."):
            digest.update(key.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Features:
    """Compute features (images, features), or take those that an earlier run computed."""

    folder: Path
    inputs: dict[str, Any]  # what all features depend on, by hash or value
    compute: Callable[[Images], NDArray[np.float32]]

    def of(self, images: Images, slot: str, inputs: dict[str, Any]) -> Tensor:
        """Return the features of the images; `inputs` names what else they depend on.

        Those that the slot held before are removed. Of several processes, process 0 computes.
        """
        mine = None if process_number() else self._of(images, slot, {**self.inputs, **inputs})
        features = share(mine)
        assert features is not None  # process 0's
        return features

    def _of(self, images: Images, slot: str, inputs: dict[str, Any]) -> Tensor:
        key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
        path = self.folder / f"{slot}-{key}.features"
        payload = unseal(path.read_bytes()) if path.exists() else b""
        if payload:
            return load(payload)["features"]
        for old in self.folder.glob(f"{slot}-*.features"):
            old.unlink()
        features = torch.from_numpy(self.compute(images))
        write_bytes(path, seal(save({"features": features})))
        return features
