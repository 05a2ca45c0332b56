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
from safetensors.torch import save
from torch import Tensor

from resnets.models.inference import Output, infer
from resnets.models.resnet import ResNet
from resnets.params.section import Preprocess
from resnets.system.runtime import process_number
from resnets.tasks.decode import Images
from resnets.tasks.task import Side
from resnets.training.augment import View
from resnets.training.identity import code_digest
from resnets.training.processes import share
from resnets.training.state import read_sealed, write_sealed

EVAL_BATCH = 256  # images per forward pass outside training; changes no result in fp32


def run_over(
    images: Images,
    model: ResNet,
    preprocess: Preprocess,
    machine: dict[str, Any],
    output: Output = "logits",
) -> Tensor:
    """Return the model's output for all images in order, as `infer`."""
    values = infer(
        model,
        images,
        preprocess=preprocess,
        batch_size=EVAL_BATCH,
        device=machine["runtime.device"],
        precision=machine["runtime.precision"],
        output=output,
    )
    return torch.from_numpy(values)


@dataclass(frozen=True)
class Features:
    """Compute features (images, features), or take those that an earlier run computed."""

    folder: Path
    model: ResNet
    preprocess: Preprocess
    machine: dict[str, Any]  # what of it changes bits, device and precision first of all
    seed: int
    part: str  # which training of the seed it is, as the trainer's

    def of_view(self, side: Side, view: View) -> Tensor:
        """Return the features of the augmented images of a side."""
        drawn = {"augment": view.augment.model_dump(), "seed": view.seed, "epoch": view.epoch}
        preprocess = self.preprocess.model_copy(update={"crop": view.crop})  # one of `sides`
        name = f"seed-{self.seed}{self.part}-view-{view.epoch}"
        return self._take(name, side, view, preprocess, drawn)

    def of_side(self, side: Side) -> Tensor:
        """Return the features of the evaluation crops of a side, which without folds all share."""
        name = f"seed-{self.seed}{self.part}-plain" if self.part else "plain"
        return self._take(name, side, side.images, self.preprocess, {})

    def _take(
        self, name: str, side: Side, images: Images, preprocess: Preprocess, drawn: dict[str, Any]
    ) -> Tensor:
        """Return what the file of this name holds, if it is of the same inputs; else compute it."""
        if process_number():
            return share(torch.empty(0))
        weights = {k: v.contiguous() for k, v in self.model.state_dict().items()}
        backbone = {key: weights[key] for key in weights if not key.startswith("fc.")}
        inputs = {
            **drawn,
            "network": asdict(self.model.architecture),
            "weights": hashlib.sha256(save(backbone)).hexdigest(),
            "preprocess": preprocess.model_dump(),
            "machine": self.machine,
            "code": code_digest(Path(__file__)),
            "images": side.packed_digest(),
        }
        file, text = self.folder / f"{name}.features", json.dumps(inputs)
        known = read_sealed(file)
        if not known or known["inputs"] != text:
            computed = run_over(images, self.model, preprocess, self.machine, "features")
            known = {"inputs": text, "features": computed}
            write_sealed(file, known)
        features: Tensor = share(known["features"])
        return features
