"""Train one model on one task: put batches, plan, optimiser, loss and state together."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.backends.cpu import get_cpu_capability

from resnets.models.inference import normalise
from resnets.models.resnet import ResNet, layer_groups
from resnets.params.schema import Runtime, Variant
from resnets.params.section import Preprocess
from resnets.params.training import Training, lr_schedule
from resnets.system.runtime import make_repeatable, resolve_device, resolve_precision
from resnets.tasks.decode import crop_batch
from resnets.tasks.task import Side
from resnets.training.augment import View
from resnets.training.average import average_of, estimate_statistics
from resnets.training.batches import Batches
from resnets.training.features import EVAL_BATCH, Features, run_over
from resnets.training.loop import STATISTICS_IMAGES, Course, fit
from resnets.training.optim import build_loss, build_optimizer
from resnets.training.plan import train_plan
from resnets.training.processes import check_alike, join, num_processes, synchronise
from resnets.training.show import EpochLog, History
from resnets.training.state import Progress, StateFolder

LOOK_EVERY = 16  # steps of a GPU that computes while the next ones are prepared
MACHINE = ("precision", "device", "threads", "processes")  # what a summary says of it


@dataclass(frozen=True)
class Trained:
    """Hold the outcome: the model with the weights of its chosen epoch, and how it got there."""

    model: ResNet
    history: History
    summary: dict[str, Any]  # epochs, chosen epoch, parameters, precision: for metrics and bundle
    identity: dict[str, Any]
    machine: dict[str, Any]


@dataclass(frozen=True)
class Trainer:
    """Hold what every training run of a stage shares."""

    train: Side
    val: Side
    section: Training
    preprocess: Preprocess
    runtime: Runtime
    state: Path  # the folder under which each seed keeps its state
    part: str = ""  # which training of a seed it is, where there are several: -fold-2

    def run(
        self,
        model: ResNet,
        title: str,
        *,
        identity: dict[str, Any],
        write_curve: Callable[[History], None] = lambda _: None,
    ) -> Trained:
        """Train the model, or continue where a killed run of the same identity stopped.

        `write_curve` is given the history after each epoch. The state stays until the caller has
        published the result and removes it. Raises the errors of `fit`.
        """
        seed = identity["seed"]
        course = self.course(model, seed)
        trained_groups = frozenset[str]().union(*course.plan)
        check_alike(identity, min(self.section.batch_size, len(self.train.ids)))
        num_images, epochs = len(self.train.ids), len(course.plan)
        log = EpochLog(title, epochs=epochs, images_per_epoch=num_images, write_curve=write_curve)
        if isinstance(self.section, Variant) and self.section.frozen_batchnorm == "adapt":
            with course.autocast:
                estimate_statistics(model, map(course.prepare, self._plain_batches(course)))
        if trained_groups == {"head"} and course.freeze_batchnorm:
            course = self._on_features(course, model, seed)
        else:
            for file in self.state.glob("*.features"):
                file.unlink(missing_ok=True)  # another process may be as far
        optimizer = build_optimizer(course.groups, self.section.optimizer)
        progress = Progress(course.module, optimizer, average=course.average)
        state = StateFolder(self.state / f"seed-{seed}{self.part}", identity)
        with log.bar:
            log.start(progress, state.load(progress))
            fit(progress, course, state, log)
            log.end(progress.chosen_row())
        course.module.load_state_dict(progress.chosen)
        trained = [module for name in trained_groups for module in course.groups[name]]
        summary = {
            "epochs": len(progress.history),
            "chosen_epoch": progress.chosen_row()["epoch"],
            "parameters": num_parameters(model),
            "parameters_trained": sum(num_parameters(module) for module in trained),
            **{key: identity[f"runtime.{key}"] for key in MACHINE},
        }
        return Trained(model.cpu().eval(), progress.history, summary, identity, self.machine)

    def identity(self, seed: int, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return all that the result of a training depends on, by name and value or hash.

        `inputs` is what of it is not known here: the parameters, the code, the initial weights.
        """
        return {
            "seed": seed,
            **inputs,
            "images of train": self.train.packed_digest(),
            "images of val": self.val.packed_digest(),
            **self.machine,
            "runtime.processes": num_processes(),
        }

    @cached_property
    def machine(self) -> dict[str, Any]:
        """Make the machine ready; return what of it and its libraries changes the last bits."""
        make_repeatable(self.runtime.threads)
        device = resolve_device(self.runtime.device)
        join(device)
        return {
            "runtime.device": device,
            "runtime.precision": resolve_precision(self.runtime.precision, device),
            "runtime.threads": torch.get_num_threads(),
            "processor": torch.cuda.get_device_name() if device == "cuda" else get_cpu_capability(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        }

    def course(self, model: ResNet, seed: int) -> Course:
        """Say how to train a network that every image passes in every epoch."""
        section, device = self.section, self.machine["runtime.device"]
        model.to(device).to(memory_format=torch.channels_last)
        # before BatchNorm is synchronised: process 0 runs the average alone
        average = average_of(model, section.ema_decay)
        if section.sync_batchnorm and num_processes() > 1:
            synchronise(model, device)
        groups, labels = layer_groups(model), torch.from_numpy(self.train.labels)
        batches = Batches(
            labels,
            lambda epoch: self._view(seed, epoch, section.epochs).take,
            section.batch_size,
            seed,
            section.augment.mixup,
            is_pinned=device == "cuda",
        )
        variant = section if isinstance(section, Variant) else None  # a backbone trains whole
        loss, weights = build_loss(section.loss, self.train.labels, len(self.train.classes))
        constants = self.preprocess.mean, self.preprocess.std
        mean, std = (torch.tensor(values, device=device) for values in constants)
        lr, epochs = section.optimizer.lr, section.epochs
        plan = train_plan(variant.train if variant else "all", list(groups), epochs)
        is_bf16 = self.machine["runtime.precision"] == "bf16"
        return Course(
            module=model,
            groups=groups,
            plan=plan,
            freeze_batchnorm=not variant or variant.frozen_batchnorm != "update",
            batches=batches,
            ids=self.train.ids,
            prepare=lambda inputs: normalise(inputs.to(device, non_blocking=True), mean, std),
            loss=loss.to(device),
            weights=weights,
            lr_at=lr_schedule(section.schedule, lr=lr, steps_per_epoch=len(batches), epochs=epochs),
            clip_norm=section.optimizer.clip_norm,
            select=section.select,
            val_logits=self._val_logits,
            val_labels=torch.from_numpy(self.val.labels),
            device=device,
            autocast=torch.autocast(device, torch.bfloat16, enabled=is_bf16),
            checkpoint_steps=self.runtime.checkpoint_steps,
            is_blocked=wins_in_blocks(model, plan, self.machine),
            look_every=1 if device == "cpu" else LOOK_EVERY,
            ema_decay=section.ema_decay,
            average=average,
        )

    def _view(self, seed: int, epoch: int, epochs: int) -> View:
        images, augment = self.train.images, self.section.augment
        return View(images, augment, self.preprocess, seed=seed, epoch=epoch, epochs=epochs)

    def _val_logits(self, module: nn.Module) -> Tensor:
        assert isinstance(module, ResNet)  # the network, or its average
        return run_over(self.val.images, module, self.preprocess, self.machine)

    def _plain_batches(self, course: Course) -> Iterator[Tensor]:
        """Yield the evaluation crops of some training images, (N, C, crop, crop) uint8."""
        rows = course.batches.order(0)[:STATISTICS_IMAGES]
        for part in np.array_split(rows, -(-len(rows) // EVAL_BATCH)):
            crops = crop_batch(self.train.images, part, self.preprocess.crop)
            yield torch.from_numpy(crops).permute(0, 3, 1, 2)

    def _on_features(self, course: Course, model: ResNet, seed: int) -> Course:
        """Run the frozen backbone once per view, or never; only the head sees every epoch.

        Two differences to the long way: the views, of all `sides`, repeat after `views` epochs, and
        mixup mixes features, not pixels.
        """
        head, section = model.fc, self.section
        assert head is not None  # a network that is trained has a head
        assert isinstance(section, Variant)  # a backbone trains whole
        features = Features(self.state, model, self.preprocess, self.machine, seed, self.part)
        drawn = min(section.views, section.epochs)
        views = [features.of_view(self.train, self._view(seed, k, drawn)) for k in range(drawn)]
        val_features = features.of_side(self.val).to(course.device)

        def val_logits(module: nn.Module) -> Tensor:
            with torch.inference_mode(), course.autocast:
                logits: Tensor = module.eval()(val_features)
            return logits.float().cpu()

        return replace(
            course,
            module=head,
            average=average_of(head, section.ema_decay),
            batches=replace(course.batches, inputs_of=lambda e: views[e % len(views)].__getitem__),
            prepare=lambda inputs: inputs.to(course.device, non_blocking=True),
            val_logits=val_logits,
        )


def wins_in_blocks(model: ResNet, plan: list[frozenset[str]], machine: dict[str, Any]) -> bool:
    """Return whether oneDNN may lay out the images in blocks of 16 channels.

    A step of ResNet-18 takes 15% less so. oneDNN has no backward pass of a frozen BatchNorm, and
    its tensors cannot be sliced, as the shortcuts of the CIFAR form ask for.
    """
    is_whole = all(len(training) == len(layer_groups(model)) for training in plan)
    is_sliced = model.architecture.shortcut in ("pad", "pad_centered")
    is_fp32 = machine["runtime.precision"] == "fp32"
    is_x86 = machine["runtime.device"] == "cpu" and get_cpu_capability().startswith("AVX")
    return is_x86 and is_fp32 and is_whole and not is_sliced


def num_parameters(module: nn.Module) -> int:
    """Return how many numbers a module learns."""
    return sum(parameter.numel() for parameter in module.parameters())
