"""Compute the features of a frozen backbone once, and keep them for the next run.

They lie beside the states of a stage and outlive its runs, so that another learning rate or another
loss of the head runs no backbone. Each file holds all that it depends on.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resnets.models.inference import infer
from resnets.models.resnet import ResNet
from resnets.params.schema import Preprocess
from resnets.params.training import Augment
from resnets.system.runtime import process_number
from resnets.tasks.decode import Images
from resnets.tasks.task import Side
from resnets.training.augment import View
from resnets.training.identity import code_digest
from resnets.training.processes import share
from resnets.training.state import read_sealed, write_sealed

EVAL_BATCH = 256  # images per forward pass outside training; changes no result in fp32


@dataclass(frozen=True)
class Features:
    """Compute features (images, features), or take those that an earlier run computed."""

    folder: Path
    model: ResNet
    preprocess: Preprocess
    machine: dict[str, Any]  # what of it changes bits, device and precision first of all

    def of_view(self, side: Side, augment: Augment, *, seed: int, epoch: int) -> Tensor:
        """Return the features of the augmented images of a side, as the epoch draws them."""
        view = View(side.images, augment, self.preprocess, seed=seed, epoch=epoch)
        drawn = {"augment": augment.model_dump(), "seed": seed, "epoch": epoch}
        return self._take(f"seed-{seed}-view-{epoch}", side, view, drawn)

    def of_side(self, side: Side) -> Tensor:
        """Return the features of the evaluation crops of a side."""
        return self._take("plain", side, side.images, {})

    def _take(self, name: str, side: Side, images: Images, drawn: dict[str, Any]) -> Tensor:
        """Return what the file of this name holds, if it is of the same inputs; else compute it.

        Of several processes, process 0 does.
        """
        if process_number():
            return share(torch.empty(0))
        inputs = {
            **drawn,
            "network": asdict(self.model.architecture),
            "weights": _digest_of_backbone(self.model),
            "preprocess": self.preprocess.model_dump(),
            "machine": self.machine,
            "code": code_digest(Path(__file__)),
            "images": side.packed_digest(),
        }
        file, text = self.folder / f"{name}.features", json.dumps(inputs)
        tensors, plain = read_sealed(file) or ({}, {})
        if plain.get("inputs") != text:
            features = infer(
                self.model,
                images,
                preprocess=self.preprocess,
                batch_size=EVAL_BATCH,
                device=self.machine["runtime.device"],
                precision=self.machine["runtime.precision"],
                output="features",
            )
            tensors = {"features": torch.from_numpy(features)}
            write_sealed(file, tensors, {"inputs": text})
        return share(tensors["features"])


def _digest_of_backbone(model: ResNet) -> str:
    """Return the hash of all weights and statistics but those of the head."""
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        if not key.startswith("fc."):
            digest.update(key.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
