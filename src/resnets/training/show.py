"""Show the progress of training: a bar on a terminal, a line per epoch, and learning curves."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console

from resnets.system.files import write_text
from resnets.system.progress import pace, start_bar
from resnets.system.runtime import process_number
from resnets.training.state import Progress

History = list[dict[str, Any]]  # a row per epoch, as `loop` notes it
COLUMNS = ["epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "is_chosen"]


@dataclass
class Curves:
    """Keep a CSV file with the curves of all repeats (and folds) so far, for DVC to show."""

    file: Path
    histories: dict[tuple[int, ...], History] = field(default_factory=dict)

    def of(self, repeat: int, **place: int) -> Callable[[History], None]:
        """Return what writes the history of a repeat, or a fold of it, after those before it."""

        def write(history: History) -> None:
            self.histories[repeat, *place.values()] = history
            rows = [(*k, *map(row.get, COLUMNS)) for k, of in self.histories.items() for row in of]
            lines = [",".join(map(str, row)) for row in (("repeat", *place, *COLUMNS), *rows)]
            if not process_number():
                write_text(self.file, "\n".join(lines) + "\n")

        return write


class EpochLog:
    """Print one line per epoch, with rate and time left; `bar` moves in between, on a terminal.

    `write_curve` is given the history after each epoch.
    """

    def __init__(
        self,
        title: str,
        *,
        epochs: int,
        images_per_epoch: int,
        write_curve: Callable[[History], None] = lambda _: None,
    ) -> None:
        self.title, self.epochs, self.images_per_epoch = title, epochs, images_per_epoch
        self.write_curve = write_curve
        # process 0 speaks for all
        self.console = Console(highlight=False, soft_wrap=True, quiet=process_number() > 0)
        self.bar = start_bar(self.console, title, "images", epochs * images_per_epoch)
        self.task = self.bar.tasks[0]  # it counts without a terminal too

    def start(self, progress: Progress, reason: str) -> None:
        """Say where a resumed run goes on, or why a run starts afresh; time what is to do."""
        done = progress.epoch * self.images_per_epoch + int(progress.sums.get("images", 0))
        if reason:
            self.console.print(f"{self.title}: starting fresh ({reason})")
        if progress.history:
            self.write_curve(progress.history)  # DVC has removed what a stopped run had written
        if done:
            is_at_end = progress.epoch == self.epochs
            place = "its end, all epochs are done" if is_at_end else progress.place()
            self.console.print(f"{self.title}: continuing at {place}")
            self.bar.reset(self.task.id, completed=done)

    def step(self, num_images: int) -> None:
        """Count the images of a step."""
        self.bar.advance(self.task.id, num_images)

    def epoch(self, history: History) -> None:
        """Print the line of the last epoch; a star marks what is shipped so far."""
        row, task = history[-1], self.task
        rate = pace(task.speed or 0, "images", task.time_remaining or 0)
        self.write_curve(history)
        self.console.print(
            f"{self.title}  epoch {row['epoch']:>3}/{self.epochs}"
            f"  train loss {row['train_loss']:.4f} acc {row['train_accuracy']:.4f}"
            f"  val loss {row['val_loss']:.4f} acc {row['val_accuracy']:.4f}"
            f"  lr {row['lr']:.5f}  {rate}{'  *' if row['is_chosen'] else ''}"
        )

    def end(self, chosen: dict[str, Any]) -> None:
        """Print the epoch and the time since this log was made."""
        spent = timedelta(seconds=round(self.task.elapsed or 0))
        self.console.print(
            f"{self.title}: epoch {chosen['epoch']} with val acc {chosen['val_accuracy']:.4f}, "
            f"{spent} in all"
        )
