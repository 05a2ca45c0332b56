"""Time 25 epochs of a frozen ResNet-18 on photos: cached features, and the backbone every epoch.

    python benchmarks/frozen.py            all ants and bees at 224 px
    python benchmarks/frozen.py --quick    every eighth of them

Both run in the same precision and without augmentation, so that the cache is all that differs, and
their predictions must be the same. The third side changes the learning rate of the second, whose
features it finds. The weights are random: they change no time.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from _timing import PARAMS, compare, describe_machine, options, pack, photos, rate, unpack

from resnets.models import build_model
from resnets.models.inference import infer
from resnets.models.resnet import ResNet
from resnets.params.section import Preprocess
from resnets.params.training import CenterCrop
from resnets.tasks.task import Side
from resnets.training.features import EVAL_BATCH
from resnets.training.identity import flatten
from resnets.training.loop import fit
from resnets.training.optim import build_optimizer
from resnets.training.show import EpochLog
from resnets.training.state import Progress, StateFolder
from resnets.training.trainer import Trainer

EPOCHS = 25
PREPROCESS = Preprocess(crop=224, mean=[0.5] * 3, std=[0.25] * 3)
LR, OTHER_LR = 0.001, 0.002
SECTION = PARAMS.transfer["frozen"].model_copy(
    update={"epochs": EPOCHS, "batch_size": 4, "augment": CenterCrop(crop="center", flip=False)}
)


class Bench:
    """Train the same frozen network in one way or the other."""

    def __init__(self, train: Side, val: Side, folder: Path) -> None:
        self.sides, self.folder = (train, val), folder
        self.places: list[Path] = []  # where the turns so far kept their features
        self.models: dict[str, ResNet] = {}

    def trainer(self, place: Path, lr: float = LR) -> tuple[Trainer, ResNet]:
        """Return a trainer and the network to train."""
        optimizer = SECTION.optimizer.model_copy(update={"lr": lr})
        section = SECTION.model_copy(update={"optimizer": optimizer})
        torch.manual_seed(0)
        model = build_model("resnet18", num_classes=len(self.sides[0].classes))
        return Trainer(*self.sides, section, PREPROCESS, PARAMS.runtime, place / "state"), model

    def every_epoch(self) -> float:
        """Run every image through the whole network in every epoch."""
        place = Path(tempfile.mkdtemp(dir=self.folder))
        trainer, model = self.trainer(place)
        course = trainer.course(model, 0)
        progress = Progress(model, build_optimizer(course.groups, trainer.section.optimizer))
        log = EpochLog("every epoch", epochs=EPOCHS, images_per_epoch=len(self.sides[0].ids))
        state = StateFolder(place / "state", {})
        value = rate(EPOCHS, lambda: fit(progress, course, state, log))
        model.load_state_dict(progress.chosen)
        self.models["every epoch"] = model.cpu()
        return value

    def cached(self) -> float:
        """Run every image through the backbone once."""
        self.places.append(Path(tempfile.mkdtemp(dir=self.folder)))
        trainer, model = self.trainer(self.places[-1])
        return rate(EPOCHS, lambda: self._keep("cached", trainer, model))

    def again(self) -> float:
        """Train once more with another learning rate."""
        trainer, model = self.trainer(self.places[-1], lr=OTHER_LR)
        return rate(EPOCHS, lambda: self._keep("again", trainer, model))

    def _keep(self, name: str, trainer: Trainer, model: ResNet) -> None:
        inputs = flatten(trainer.section)
        trained = trainer.run(model, title=name, identity=trainer.identity(0, inputs))
        self.models[name] = trained.model

    def logits(self, name: str) -> np.ndarray:
        """Return the logits of the validation photos, in fp32."""
        return infer(
            self.models[name], self.sides[1].images, preprocess=PREPROCESS,
            batch_size=EVAL_BATCH, device="cpu", precision="fp32",
        )  # fmt: skip


def main() -> None:
    """Measure, and compare the predictions."""
    quick = options(__doc__).quick
    archive = photos()
    describe_machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        unpack(archive, folder / "photos", 50 if quick else None)
        task = pack(folder / "photos/hymenoptera_data", folder / "task", channels=3, resize=256)
        bench = Bench(task.side("train"), task.side("val"), folder)
        counts = " + ".join(str(len(side.ids)) for side in bench.sides)
        compare(
            f"{EPOCHS} epochs over {counts} photos, ResNet-18, backbone frozen",
            {
                "backbone every epoch": bench.every_epoch,
                "cached features": bench.cached,
                "another lr, features kept": bench.again,
            },
            unit="epochs/s", rounds=1 if quick else 3, target="cached at least 20",
        )  # fmt: skip
        ours, theirs = bench.logits("cached"), bench.logits("every epoch")
        same = np.mean(ours.argmax(1) == theirs.argmax(1))
        apart = np.abs(ours - theirs).max()
        print(f"\nsame predictions: {same:.1%}; largest difference of a logit: {apart:.2g}")


if __name__ == "__main__":
    main()
