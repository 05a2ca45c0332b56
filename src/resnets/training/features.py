"""Compute the features of a frozen backbone once, and keep them for the next run.

They lie in `.state/features`, which nobody tracks and which outlives the run, so that another
learning rate or another loss of the head runs no backbone. Each is bound by its name to all that it
depends on, and takes the place of those before.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from resnets.models.inference import infer
from resnets.models.resnet import ResNet
from resnets.params.schema import Preprocess
from resnets.system.files import write_bytes
from resnets.system.runtime import process_number
from resnets.tasks.decode import Images
from resnets.tasks.task import Side
from resnets.training.batches import ImageBatches
from resnets.training.identity import code_digest
from resnets.training.processes import share
from resnets.training.state import seal, unseal

EVAL_BATCH = 256  # images per forward pass outside training; changes no result in fp32


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


def weights_digest(model: ResNet) -> str:
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
    model: ResNet
    preprocess: Preprocess
    machine: dict[str, Any]  # what of it changes bits, device and precision first of all

    def of_views(self, batches: ImageBatches, views: int) -> list[Tensor]:
        """Return the features of so many augmented views of all images."""
        drawn = {"augment": batches.augment.model_dump(), "seed": batches.seed}
        parts: list[tuple[Images, dict[str, Any]]] = [
            (ViewImages(batches, view), {**drawn, "view": view}) for view in range(views)
        ]
        return self._of(f"seed-{batches.seed}", batches.side, parts)

    def of_side(self, side: Side) -> Tensor:
        """Return the features of the evaluation crops of a side."""
        return self._of("plain", side, [(side.images, {})])[0]

    def _of(
        self, kind: str, side: Side, parts: list[tuple[Images, dict[str, Any]]]
    ) -> list[Tensor]:
        """Return the features of each part, with what else it depends on; forget all others.

        Of several processes, process 0 computes.
        """
        if process_number():
            return share([])
        common = {
            "network": asdict(self.model.architecture),
            "weights": weights_digest(self.model),
            "preprocess": self.preprocess.model_dump(),
            "machine": self.machine,
            "code": code_digest(Path(__file__)),
            "images": side.packed_digest(),
        }
        files: dict[Path, Images] = {}
        for images, inputs in parts:
            text = json.dumps({**common, **inputs}, sort_keys=True)
            key = hashlib.sha256(text.encode()).hexdigest()[:16]
            files[self.folder / f"{kind}-{key}.features"] = images
        for file in self.folder.glob(f"{kind}-*"):
            if file not in files:
                file.unlink()
        return share([self._take(file, images) for file, images in files.items()])

    def _take(self, file: Path, images: Images) -> Tensor:
        payload = unseal(file.read_bytes()) if file.exists() else b""
        if payload:
            return load(payload)["features"]
        features = torch.from_numpy(
            infer(
                self.model, images, preprocess=self.preprocess, batch_size=EVAL_BATCH,
                device=self.machine["runtime.device"],
                precision=self.machine["runtime.precision"], output="features",
            )
        )  # fmt: skip
        write_bytes(file, seal(save({"features": features})))
        return features
