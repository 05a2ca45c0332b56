"""Train one model on one task: put batches, plan, optimiser, loss and state together."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.backends.cpu import get_cpu_capability

from resnets.models.inference import infer, normalise
from resnets.models.resnet import ResNet, layer_groups
from resnets.params.schema import Gradual, Preprocess, Runtime
from resnets.params.training import Training, lr_schedule
from resnets.system.runtime import (
    make_repeatable,
    process_number,
    resolve_device,
    resolve_precision,
)
from resnets.tasks.task import Side
from resnets.training.batches import FeatureBatches, ImageBatches
from resnets.training.features import EVAL_BATCH, Features
from resnets.training.loop import Course, Work, fit
from resnets.training.optim import build_optimizer
from resnets.training.plan import class_weights, train_plan
from resnets.training.processes import check_alike, join, num_processes
from resnets.training.show import EpochLog
from resnets.training.state import FEATURES, Progress, StateFolder


@dataclass(frozen=True)
class Trained:
    """Hold the outcome: the model with the weights of its best epoch, and how it got there."""

    model: ResNet
    history: list[dict[str, Any]]
    summary: dict[str, Any]  # epochs, best epoch, parameters, precision: for metrics and bundle
    inputs: dict[str, Any]  # what the caller has named as such


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
        model.to(device).to(memory_format=torch.channels_last)
        groups = layer_groups(model)
        plan = train_plan(train, list(groups), self.section.epochs)
        trained_groups = frozenset().union(*plan)
        machine = machine_of(device, precision)
        identity = {
            "seed": seed,
            **inputs,
            "images of train": self.train.packed_digest(),
            "images of val": self.val.packed_digest(),
            **machine,
            "runtime.processes": num_processes(),
        }
        check_alike(identity, min(self.section.batch_size, len(self.train.ids)))
        log = EpochLog(title, epochs=self.section.epochs, images_per_epoch=len(self.train.ids))
        if trained_groups == {"head"} and freeze_batchnorm:
            work = self._cached(model, seed, min(views, len(plan)), machine)
        else:
            work = self._whole(model, seed, machine)
        progress = Progress(work.module, build_optimizer(groups, self.section.optimizer))
        course = self._course(groups, plan, machine, len(work.batches), freeze=freeze_batchnorm)
        with log:
            state = self._resume(progress, identity, log)
            fit(progress, work, course, state, log, checkpoint_steps=self.runtime.checkpoint_steps)
            log.end(progress.history)
        work.module.load_state_dict(progress.best)
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

    def _resume(self, progress: Progress, identity: dict[str, Any], log: EpochLog) -> StateFolder:
        """Fill the progress with what a stopped run of this identity has saved, and say so."""
        state = StateFolder(self.state / f"seed-{identity['seed']}", identity)
        where = state.load(progress)
        if state.reason:
            log.console.print(f"{log.title}: starting fresh ({state.reason})")
        if where:
            if progress.epoch == self.section.epochs:
                where = "its end, all epochs are done"
            done = progress.epoch * len(self.train.ids) + int(progress.sums.get("images", 0))
            log.resume(where, done)
        return state

    def _course(
        self,
        groups: dict[str, list[nn.Module]],
        plan: list[frozenset[str]],
        machine: dict[str, Any],
        steps_per_epoch: int,
        *,
        freeze: bool,
    ) -> Course:
        """Say how to train, the same for a whole network and for a head."""
        section, device = self.section, machine["runtime.device"]
        counts = np.bincount(self.train.labels, minlength=len(self.train.classes)).tolist()
        weights = torch.tensor(class_weights(counts, section.loss.class_weights))
        loss = nn.CrossEntropyLoss(
            weight=None if section.loss.class_weights == "none" else weights,
            label_smoothing=section.loss.label_smoothing,
            reduction="sum",
        )
        return Course(
            ids=self.train.ids,
            val_labels=torch.from_numpy(self.val.labels),
            groups=groups,
            plan=plan,
            freeze_batchnorm=freeze,
            lr_at=lr_schedule(
                section.schedule,
                lr=section.optimizer.lr,
                steps_per_epoch=steps_per_epoch,
                epochs=section.epochs,
            ),
            loss=loss.to(device),
            weights=weights.double()[torch.from_numpy(self.train.labels)].numpy(),
            clip_norm=section.optimizer.clip_norm,
            device=device,
            precision=machine["runtime.precision"],
        )

    def _images(self, seed: int, views: int | None) -> ImageBatches:
        return ImageBatches(
            self.train,
            self.section.augment,
            batch_size=self.section.batch_size,
            crop=self.preprocess.crop,
            mean=self.preprocess.mean,
            seed=seed,
            views=views,
            part=(process_number(), num_processes()),
        )

    def _whole(self, model: ResNet, seed: int, machine: dict[str, Any]) -> Work:
        """Run every image through the whole network in every epoch."""
        if not process_number():
            shutil.rmtree(self._features, ignore_errors=True)

        def prepare(inputs: Tensor) -> Tensor:
            inputs = inputs.to(machine["runtime.device"], non_blocking=True)
            return normalise(inputs, self.preprocess.mean, self.preprocess.std)

        def val_logits() -> Tensor:
            logits = infer(
                model,
                self.val.images,
                preprocess=self.preprocess,
                batch_size=EVAL_BATCH,
                device=machine["runtime.device"],
                precision=machine["runtime.precision"],
            )
            return torch.from_numpy(logits)

        return Work(model, self._images(seed, None), prepare, val_logits)

    def _cached(self, model: ResNet, seed: int, views: int, machine: dict[str, Any]) -> Work:
        """Run the frozen backbone once per view, or never; only the head sees every epoch.

        The views repeat after `views` epochs, which is the only difference to the long way.
        """
        device, head = machine["runtime.device"], model.fc
        assert head is not None  # a network that is trained has a head
        images = self._images(seed, views)
        features = Features(self._features, model, self.preprocess, machine)
        batches = FeatureBatches(
            features.of_views(images, views),
            images.labels,
            batch_size=self.section.batch_size,
            seed=seed,
            part=(process_number(), num_processes()),
        )
        val_features = features.of_side(self.val).to(device)

        def val_logits() -> Tensor:
            head.eval()
            bf16 = machine["runtime.precision"] == "bf16"
            with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=bf16):
                logits: Tensor = head(val_features)
            return logits.float().cpu()

        return Work(head, batches, lambda inputs: inputs.to(device), val_logits)

    @property
    def _features(self) -> Path:
        return self.state.parent / FEATURES / self.state.name


def machine_of(device: str, precision: str) -> dict[str, Any]:
    """Return what of the machine and its libraries changes the last bits."""
    return {
        "runtime.device": device,
        "runtime.precision": precision,
        "runtime.threads": torch.get_num_threads(),
        "processor": torch.cuda.get_device_name() if device == "cuda" else get_cpu_capability(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
