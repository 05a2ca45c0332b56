"""Train one model on one task: put batches, plan, optimiser, loss and state together."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.backends.cpu import get_cpu_capability
from torch.nn import functional as F

from resnets.inference import infer, normalise
from resnets.models.resnet import ResNet, layer_groups
from resnets.params import Gradual, Preprocess, Runtime, Training
from resnets.runtime import make_repeatable, process_number, resolve_device, resolve_precision
from resnets.tasks.task import Side
from resnets.training.batches import FeatureBatches, ImageBatches
from resnets.training.features import EVAL_BATCH, Features
from resnets.training.loop import Batches, Run, fit
from resnets.training.optim import build_optimizer, lr_factor
from resnets.training.plan import class_weights, train_plan
from resnets.training.processes import check_alike, join, num_processes
from resnets.training.show import EpochLog
from resnets.training.state import FEATURES, Progress, StateFolder

Prepare = Callable[[Tensor], Tensor]
Validate = Callable[[nn.Module], tuple[float, float]]


@dataclass(frozen=True)
class Trained:
    """Hold the outcome: the model with the weights of its best epoch, and how it got there."""

    model: ResNet
    history: list[dict[str, Any]]
    summary: dict[str, Any]  # epochs, best epoch, parameters, precision: for metrics and bundle
    inputs: dict[str, Any]  # what the caller has named as such


@dataclass(frozen=True)
class Setup:
    """Hold the arguments of one run, resolved for this machine."""

    model: ResNet
    groups: dict[str, list[nn.Module]]
    plan: list[frozenset[str]]
    freeze_batchnorm: bool
    seed: int
    views: int
    device: str
    precision: str

    def autocast(self) -> torch.autocast:
        """Return the context that computes in this precision."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")


@dataclass(frozen=True)
class Trainer:
    """Hold what every training run of a stage shares."""

    train: Side
    val: Side
    section: Training
    preprocess: Preprocess
    runtime: Runtime
    state: Path  # the folder under which each seed keeps its state

    def run(
        self,
        model: ResNet,
        *,
        title: str,
        seed: int,
        inputs: dict[str, Any],
        train: str | Gradual | list[str] = "all",
        freeze_batchnorm: bool = True,
        views: int = 1,
    ) -> Trained:
        """Train the model, or continue where a killed run of the same inputs stopped.

        `inputs` names by hash or value all that the result depends on and that is not known here:
        the parameters, the code, the initial weights. The state stays until the caller has
        published the result and removes it. Raises the errors of `fit`.
        """
        make_repeatable(self.runtime.threads)
        device = resolve_device(self.runtime.device)
        precision = resolve_precision(self.runtime.precision, device)
        join(device)
        groups = layer_groups(model)
        plan = train_plan(train, list(groups), self.section.epochs)
        trained_groups = frozenset().union(*plan)
        model.to(device).to(memory_format=torch.channels_last)
        setup = Setup(model, groups, plan, freeze_batchnorm, seed, views, device, precision)
        log = EpochLog(title, epochs=self.section.epochs, images_per_epoch=len(self.train.ids))
        is_cached = trained_groups == {"head"} and freeze_batchnorm
        if not is_cached and not process_number():
            shutil.rmtree(self._features, ignore_errors=True)
        part, run = self._cached(setup) if is_cached else self._whole(setup)
        progress = Progress(part, build_optimizer(groups, self.section.optimizer))
        identity = {
            "seed": seed,
            **inputs,
            "images of train": self.train.packed_digest(),
            "images of val": self.val.packed_digest(),
            **self._machine(setup),
            "runtime.processes": num_processes(),
        }
        check_alike(identity, min(self.section.batch_size, len(self.train.ids)))
        self._fit(progress, run, StateFolder(self.state / f"seed-{seed}", identity), log)
        part.load_state_dict(progress.best)
        best = [row for row in progress.history if row["is_best"]][-1]
        counts = {k: sum(p.numel() for m in groups[k] for p in m.parameters()) for k in groups}
        summary = {
            "epochs": len(progress.history),
            "best_epoch": best["epoch"],
            "parameters": sum(counts.values()),
            "parameters_trained": sum(counts[name] for name in trained_groups),
            "precision": precision,
            "device": device,
            "threads": torch.get_num_threads(),
            "processes": num_processes(),
        }
        return Trained(model.cpu().eval(), progress.history, summary, inputs)

    @property
    def _features(self) -> Path:
        return self.state.parent / FEATURES / self.state.name

    def _machine(self, setup: Setup) -> dict[str, Any]:
        """Return what of the machine and its libraries changes the last bits."""
        is_gpu = setup.device == "cuda"
        return {
            "runtime.device": setup.device,
            "runtime.precision": setup.precision,
            "runtime.threads": torch.get_num_threads(),
            "processor": torch.cuda.get_device_name() if is_gpu else get_cpu_capability(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        }

    def _fit(self, progress: Progress, run: Run, state: StateFolder, log: EpochLog) -> None:
        with log:
            where = state.load(progress)
            if state.reason:
                log.console.print(f"{log.title}: starting fresh ({state.reason})")
            if where:
                if progress.epoch == self.section.epochs:
                    where = "its end, all epochs are done"
                done = progress.epoch * len(self.train.ids)
                done += int(progress.sums.get("images", 0))
                log.resume(where, done)
            fit(progress, run, state, log, checkpoint_steps=self.runtime.checkpoint_steps)
            log.end(progress.history)

    def _run(self, setup: Setup, batches: Batches, prepare: Prepare, validate: Validate) -> Run:
        """Put together what the whole and the cached way have in common."""
        counts = np.bincount(self.train.labels, minlength=len(self.train.classes)).tolist()
        weights = class_weights(counts, self.section.loss.class_weights)
        per_class = torch.tensor(weights or [1.0] * len(counts))
        loss = nn.CrossEntropyLoss(
            weight=None if weights is None else per_class,
            label_smoothing=self.section.loss.label_smoothing,
            reduction="sum",
        )
        return Run(
            batches=batches,
            groups=setup.groups,
            plan=setup.plan,
            freeze_batchnorm=setup.freeze_batchnorm,
            lr_at=lambda step: self._lr(step, len(batches)),
            loss=loss.to(setup.device),
            weights=per_class.double()[torch.from_numpy(self.train.labels)].numpy(),
            prepare=prepare,
            validate=validate,
            name_rows=lambda rows: [self.train.ids[row] for row in rows],
            device=setup.device,
            bf16=setup.precision == "bf16",
            clip_norm=self.section.optimizer.clip_norm,
        )

    def _lr(self, step: int, steps_per_epoch: int) -> float:
        schedule, epochs = self.section.schedule, self.section.epochs
        factor = lr_factor(schedule, step=step, steps_per_epoch=steps_per_epoch, epochs=epochs)
        return self.section.optimizer.lr * factor

    def _batches(self, setup: Setup, views: int | None) -> ImageBatches:
        return ImageBatches(
            self.train, self.section.augment, batch_size=self.section.batch_size,
            crop=self.preprocess.crop, mean=self.preprocess.mean, seed=setup.seed, views=views,
            part=(process_number(), num_processes()),
        )  # fmt: skip

    def _whole(self, setup: Setup) -> tuple[nn.Module, Run]:
        """Run every image through the whole network in every epoch."""

        def prepare(inputs: Tensor) -> Tensor:
            inputs = inputs.to(setup.device, non_blocking=True)
            return normalise(inputs, self.preprocess.mean, self.preprocess.std)

        def validate(_: nn.Module) -> tuple[float, float]:
            logits = infer(
                setup.model, self.val.images, preprocess=self.preprocess, batch_size=EVAL_BATCH,
                device=setup.device, precision=setup.precision,
            )  # fmt: skip
            return self._score(torch.from_numpy(logits))

        return setup.model, self._run(setup, self._batches(setup, None), prepare, validate)

    def _cached(self, setup: Setup) -> tuple[nn.Module, Run]:
        """Run the frozen backbone once per view, or never; only the head sees every epoch.

        The views repeat after `views` epochs, which is the only difference to the long way.
        """
        images = self._batches(setup, setup.views)
        features = Features(self._features, setup.model, self.preprocess, self._machine(setup))
        views = features.of_views(images, min(setup.views, len(setup.plan)))
        val_features = features.of_side(self.val).to(setup.device)
        batches = FeatureBatches(
            views, images.labels, batch_size=self.section.batch_size, seed=setup.seed,
            part=(process_number(), num_processes()),
        )  # fmt: skip

        def validate(head: nn.Module) -> tuple[float, float]:
            head.eval()
            with torch.inference_mode(), setup.autocast():
                return self._score(head(val_features).float().cpu())

        run = self._run(setup, batches, lambda inputs: inputs.to(setup.device), validate)
        assert setup.model.fc is not None  # a network that is trained has a head
        return setup.model.fc, run

    def _score(self, logits: Tensor) -> tuple[float, float]:
        """Return loss and accuracy on the validation side."""
        labels = torch.from_numpy(self.val.labels)
        loss = F.cross_entropy(logits.double(), labels).item()
        return loss, int((logits.argmax(1) == labels).sum()) / len(labels)
