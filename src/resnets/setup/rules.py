"""Choose parameters from the number of photos and their size, in the manner of BiT-HyperRule.

That is section 3.3 of arXiv 1912.11370: the number of steps follows the number of training images,
the size of the images that of the photos, and learning rates are the same for all.
"""

import json
import math
import re
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

from resnets.data.findings import IMBALANCE
from resnets.models.bundle import FullPreprocess
from resnets.params.architecture import IMAGENET, PUBLISHED, network_of
from resnets.params.schema import NO_BACKBONE, Model
from resnets.setup.look import Look
from resnets.system.errors import ArtefactError

Effort = Literal["fast", "normal", "best"]
FoundBackbone = tuple[Path, Model, FullPreprocess]


class SizeRule(NamedTuple):
    """Say how to train on so many images, in steps of BATCH images."""

    below: float  # training images
    finetune: int  # steps
    scratch: int  # steps
    side: int  # the largest crop that is worth its time
    seeds: int = 1  # trainings of each variant: with few images they differ, and cost little
    label_smoothing: float = 0.1


BATCH = 32
SIZE_RULES = (
    # 60 epochs fine-tuned and 100 from scratch did best on the default task's 200 images, in
    # batches of 32; from scratch 80 in batches of 16 are as good or better, and not tried on photos
    SizeRule(500, finetune=400, scratch=700, side=128, seeds=3, label_smoothing=0.0),
    # as recipes/flowers_resnet18.yaml; of its photos from scratch 1,400 steps gave 69%, 3,800 74%
    SizeRule(5_000, finetune=4_300, scratch=5_000, side=128),
    # BiT takes 20 times the steps for 25 times the images; smaller crops pay for some of them
    SizeRule(50_000, finetune=5_000, scratch=10_000, side=112),
    SizeRule(math.inf, finetune=15_000, scratch=30_000, side=64),
)
# with 12 flowers per class 80, 120, 200 epochs gave 50.8, 51.2, 51.8%; with 32 more than 80 nothing
MOST_EPOCHS = {"finetune": 120, "scratch": 250}
# epochs from which TrivialAugment pays: with 32 flowers per class in 80 epochs 62% with it and 60
# without; with 500 per class in 19 and 37 epochs 76 with it, in 19 without 77, which may be chance
TRIVIAL_FROM = 30
EFFORTS = {"fast": (0.4, -1), "normal": (1.0, 0), "best": (2.5, 1)}  # of the steps; along CROPS
CROPS = (64, 112, 128, 224)
RESIZE = 8 / 7  # times the crop, as 256 to 224 for ImageNet, if photos are not smaller
GROWING = (1 / 2, 3 / 4, 7 / 8)  # of the crop: arXiv 1906.06423 trains at less than it tests at
SMALL = 40  # pixels: below, the network for small images, and crops that shift (arXiv 1512.03385)
LR = {"finetune": 0.02, "scratch": 0.05, "frozen": 0.05}  # of the recipes, for batches of 32
HEAD_DECAY = 10.0  # the penalty on a head's weights, which all training images share
LARGE = 4  # times the pixels that are kept: from there on `decode` reads JPEGs at a reduced scale
SCRATCH_FROM = 5_000  # training images: from here on random weights may catch up


def find_weights(folder: Path, *, is_published: bool) -> Path | None:
    """Return the smallest published file in a folder, or the smallest bundle of an own run."""
    names = PUBLISHED if is_published else [path.name for path in folder.glob("*.safetensors")]
    files = [folder / name for name in names if (folder / name).is_file()]
    return min(files, key=lambda file: file.stat().st_size, default=None)


def read_backbone(path: Path) -> FoundBackbone:
    """Return a weights file with its network and the preprocessing that it was trained with.

    Raises ArtefactError for weights that the stage `backbone` would refuse.
    """
    from resnets.models.weights import load_weights
    from resnets.training.start import import_backbone, recorded

    weights, own = load_weights(path), recorded(path)
    if own:
        options = {k: v for k, v in own.architecture.items() if k in Model.model_fields}
        return path, Model.model_validate(options), own.preprocess
    # weights of others say nothing but their shapes
    name = network_of({key: tuple(tensor.shape) for key, tensor in weights.items()})
    if name is None:
        what = f"{path}: weights of no network of the family"
        raise ArtefactError(what, "name another file with --backbone")
    network = Model.model_validate({"name": name, "in_channels": 3})
    crop, resize = (32, 32) if network.stem == "small" else (224, 256)
    size = {"crop": crop, "resize": resize, "fit": "shorter_side", "channels": 3}
    mean, std = IMAGENET[3]
    usual = FullPreprocess.model_validate({**size, "mean": mean, "std": std})
    return path, network, import_backbone(path, network, usual)[1].preprocess


def image_size(
    shorter_side: int, rule: SizeRule, made: FullPreprocess | None, effort: Effort
) -> tuple[int, int]:
    """Return crop and resize: what photos fill, and no less than a backbone learned from."""
    if made and made.crop < SMALL:
        return made.crop, made.resize
    if not made and shorter_side < SMALL:
        return shorter_side, shorter_side
    index = sum(side <= min(shorter_side, rule.side) for side in CROPS) - 1
    if made:  # a network that learned from larger pictures sees little in smaller ones
        index = max(index, sum(side < made.crop for side in CROPS))
    crop = CROPS[min(max(index + EFFORTS[effort][1], 0), len(CROPS) - 1)]
    if made and made.crop == crop:
        return crop, made.resize
    return crop, min(round(RESIZE * crop), max(shorter_side, crop))


def choose(seen: Look, backbone: FoundBackbone | None, effort: Effort) -> dict[str, Any]:
    """Return the values that the template of params.yaml asks for."""
    path, network, made = backbone or (None, None, None)
    num_train, sizes = seen.num_images["train"], Counter(row.label for row in seen.rows).values()
    rule = next(rule for rule in SIZE_RULES if num_train < rule.below)
    crop, resize = image_size(seen.shorter_side, rule, made, effort)
    if network is None:
        name, channels = "resnet20" if crop < SMALL else "resnet18", 1 if seen.is_grey else 3
        network = Model.model_validate({"name": name, "in_channels": channels})
    mean, std = (made.mean, made.std) if made else IMAGENET[network.in_channels]
    shift = {"crop": "pad", "padding": max(2, crop // 8)}
    trainings = _trainings(rule, num_train, EFFORTS[effort][0], made, crop)
    # with 32 flowers per class, fine-tuned: boxes that grow were as good as large ones, in little
    # more than half the time
    sides = [16 * round(share * crop / 16) for share in GROWING]
    is_long = trainings["epochs"] >= TRIVIAL_FROM
    boxes = {"crop": "random_resized", "scale": [0.25, 1.0], "sides": sides, "trivial": is_long}
    bad = len(seen.rejected) / (len(seen.rejected) + len(seen.rows))
    jpegs = [min(row.width, row.height) for row in seen.rows if row.format in ("JPEG", "MPO")]
    return {
        "path": json.dumps(str(seen.path), ensure_ascii=False),
        "num_classes": len(sizes),
        "exclude": _block(seen.excluded),
        "resize": resize,
        "scaled_decoding": json.dumps(bool(jpegs) and median(jpegs) >= LARGE * resize),
        "max_bad": max(0.01, math.ceil(200 * bad) / 100),  # room for twice as many
        **seen.split.model_dump(include={"val", "test"}),
        "folds": json.dumps(seen.split.folds),
        # six trainings each are the price of folds; a second entry tells the spread between them
        "repeat": json.dumps([*range(1 if seen.split.folds else rule.seeds)]),
        "group_regex": json.dumps(seen.split.group_regex),
        "crop": crop,
        "mean": mean,
        "std": std,
        "model": _flow(network.model_dump(exclude_defaults=True)),
        "augment": _flow(shift if crop < SMALL else boxes),
        "label_smoothing": rule.label_smoothing,
        "class_weights": "balanced" if max(sizes) > IMBALANCE * min(sizes) else "none",
        "backbone": json.dumps(str(path)) if path else NO_BACKBONE,
        **trainings,
    }


def _trainings(
    rule: SizeRule, num_train: int, factor: float, made: FullPreprocess | None, crop: int
) -> dict[str, Any]:
    """Return what all trainings share, and the variants with what each has of its own."""
    main = "finetune" if made else "scratch"
    steps = {"finetune": rule.finetune, "scratch": rule.scratch}
    steps_per_epoch = math.ceil(num_train / BATCH)
    usual = {k: min(n / steps_per_epoch, MOST_EPOCHS[k]) for k, n in steps.items()}
    epochs = {k: max(4, round(factor * n)) for k, n in usual.items()}
    variants: dict[str, dict[str, Any]] = {}
    if not made or num_train >= SCRATCH_FROM:
        own = {"epochs": epochs["scratch"], "optimizer": {"lr": LR["scratch"]}}
        variants["scratch"] = {"init": "random", "train": "all", **(own if made else {})}
    if made:
        decay = float(f"{HEAD_DECAY / num_train:.1g}")
        variants["frozen"] = {
            "init": "backbone",
            "train": "head",
            # photos of another size: on flowers 72% of the validation photos, not 65
            **({} if crop == made.crop else {"frozen_batchnorm": "adapt"}),
            "views": 2,  # each mirrored at random; boxes of the image did worse
            "optimizer": {"lr": LR["frozen"], "weight_decay": decay},
            "schedule": {"name": "cosine"},
            "augment": {"crop": "center"},
        }
        variants["finetune"] = {"init": "backbone", "train": "all"}
    lines = [f"  {name}: {_flow(values)}" for name, values in variants.items()]
    return {"epochs": epochs[main], "lr": LR[main], "variants": "\n".join(lines)}


def _block(names: list[str]) -> str:
    """Write a list of names with a line each."""
    lines = [f"\n      - {json.dumps(name, ensure_ascii=False)}" for name in names]
    return "".join(lines) or " []"


def _flow(values: dict[str, Any]) -> str:
    """Write a section of plain words and numbers on one line of YAML."""
    return re.sub(r'"(\w+)"', r"\1", json.dumps(values))
