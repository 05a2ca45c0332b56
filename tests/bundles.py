"""Make bundles and tasks for the tests: tiny networks that behave like trained ones."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from resnets.data.split import split_task
from resnets.models.bundle import BundleMeta, FullPreprocess, save_bundle
from resnets.models.inference import infer
from resnets.models.resnet import ResNet, build_model
from resnets.tasks.decode import resize
from resnets.tasks.task import Task
from tests.data.photos import prepare, split_options

CLASSES = ["daisy", "rose", "tulip|<b>"]
NORMALISE = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
PREPROCESS = FullPreprocess(crop=28, resize=32, fit="shorter_side", channels=3, **NORMALISE)


def need(engine: str) -> None:
    """Skip a test where an engine is missing; importing it here would let it report to others."""
    if not find_spec(engine):
        pytest.skip(f"{engine} is not installed")


def make_meta(architecture: dict[str, Any], **changes: Any) -> BundleMeta:
    """Describe a network of three or one channel; `changes` replace parts."""
    channels = architecture["in_channels"]
    values: dict[str, Any] = {
        "architecture": architecture,
        "classes": [f"class {i}" for i in range(architecture["num_classes"])],
        "preprocess": PREPROCESS.model_copy(
            update={"channels": channels, "mean": [0.5] * channels, "std": [0.25] * channels}
        ),
        "training": {"seed": 0, "epochs": 3},
        "hashes": {"data": "0123456789abcdef"},
    }
    return BundleMeta(**(values | changes))


def make_model(name: str = "resnet8", **options: Any) -> tuple[ResNet, BundleMeta]:
    """Build a network with fresh weights, and describe it."""
    architecture = {"name": name, "num_classes": 3, "in_channels": 1, **options}
    torch.manual_seed(0)
    return build_model(**architecture).eval(), make_meta(architecture)


def make_photos(num: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Draw smooth random pictures of differing sizes, (H, W, 3)."""
    rng = np.random.default_rng(seed)
    photos = []
    for _ in range(num):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
        size = tuple(int(x) for x in rng.integers(36, 60, 2))
        photos.append(np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)))
    return photos


def settle(model: ResNet, photos: list[NDArray[np.uint8]]) -> None:
    """Give BatchNorm the statistics of photos, and spread the logits, as training does."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a plain average
    model.train()
    crops = [torch.from_numpy(p[:28, :28].copy()).permute(2, 0, 1) for p in photos]
    batch = torch.stack(crops).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (PREPROCESS.mean, PREPROCESS.std))
    with torch.no_grad():
        model((batch - mean) / std)
        model.eval()
        logits = model((batch - mean) / std)
        scale = 2 / logits.std(0)
        model.fc.weight *= scale[:, None]
        model.fc.bias.copy_((model.fc.bias - logits.mean(0)) * scale)


@dataclass(frozen=True)
class Trained:
    """Hold a task and a bundle that is always right on it: its answers are the labels.

    `photos` is the dataset, class folders of PNG files.
    """

    photos: Path
    task: Task
    bundle: Path


def make_trained(folder: Path, num: int = 60, **options: Any) -> Trained:
    """Make a bundle, and a dataset that it classifies without an error.

    `options` of the network differ from the usual ones.
    """
    torch.set_num_threads(1)
    photos = [resize(photo, PREPROCESS.resize, PREPROCESS.fit) for photo in make_photos(num)]
    torch.manual_seed(0)
    architecture = {"name": "resnet8", "num_classes": len(CLASSES), "in_channels": 3, **options}
    model = build_model(**architecture)
    settle(model, photos)
    logits = infer(model, photos, preprocess=PREPROCESS, batch_size=num)
    for index, (photo, label) in enumerate(zip(photos, logits.argmax(1), strict=True)):
        path = folder / "photos" / CLASSES[label] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(path)
    prepare(folder / "photos", folder / "task", resize=PREPROCESS.resize, fit=PREPROCESS.fit)
    split_task(folder / "task", split_options(val=0.3, test=0.3, group_near=False))
    task = Task(folder / "task")
    meta = make_meta(
        architecture, classes=CLASSES, preprocess=PREPROCESS, hashes=task.hashes(), temperature=1.5
    )
    save_bundle(folder / "model.safetensors", model, meta)
    return Trained(folder / "photos", task, folder / "model.safetensors")
