"""List the trainings of a variant: one per entry of `repeat`, or one per fold of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnets.models.bundle import SHIPPED, bundle_names
from resnets.tasks.task import Side, Task
from resnets.training.show import Curves, History


@dataclass(frozen=True)
class Part:
    """Describe one training by its entry of `repeat`, its seed, its images, and its bundle's name.

    `fold` is a number, "all" for the model of all images, None for a task without folds; `folds`
    are the bundles of the models which measure that of all images.
    """

    repeat: int
    seed: int
    task: Task
    file: str
    fold: int | str | None = None
    folds: Sequence[str] = ()

    @property
    def place(self) -> dict[str, Any]:
        """Return what tells it from the others of its repeat, as bundle and history say it."""
        return {} if self.fold is None else {"fold": self.fold}

    @property
    def word(self) -> str:
        """Return the same as a word that ends names."""
        return "".join(f"-fold-{fold}" for fold in self.place.values())

    def __str__(self) -> str:
        """Return what messages call it: its seed, its fold, and whether val is train."""
        return f"{self.seed}{self.word.replace('-', ' ')}{' (val is train)' * bool(self.folds)}"

    def start(self, folder: Path, *, is_variant: bool) -> Path:
        """Return the bundle that it may start from, the backbone's or another variant's.

        With folds, the variant's of the same fold: all others had seen some of its test images.
        """
        return folder / (self.file if is_variant and self.place else SHIPPED)

    def curve(self, curves: Curves) -> Callable[[History], None]:
        """Return what writes its learning curve; a model of all images has none of validation."""
        return (lambda _: None) if self.folds else curves.of(self.repeat, **self.place)

    def sides(self) -> tuple[Side, Side]:
        """Return train and val; where all images are trained on, they are validated on as well."""
        train = self.task.side("train")
        return train, train if self.folds else self.task.side("val")


def parts_of(task: Task, repeats: Sequence[int], seed: int) -> list[Part]:
    """Return all trainings; with folds, the last is that of all images, which is shipped."""
    names = bundle_names(repeats, task.num_folds)
    parts = [
        Part(repeat, seed + repeat, view, name, fold if task.num_folds else None)
        for repeat in repeats
        for fold, (view, name) in enumerate(zip(task.folds(repeat), names[repeat], strict=True))
    ]
    if task.num_folds:
        first = repeats[0]
        parts.append(Part(first, seed + first, task.pooled(), SHIPPED, "all", names[first]))
    return parts
