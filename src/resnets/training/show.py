"""Show the progress of training: a bar on a terminal, a plain line per epoch everywhere."""

from datetime import timedelta
from types import TracebackType
from typing import Any

from rich.console import Console

from resnets.system.progress import Pace, start_task
from resnets.system.runtime import process_number


class EpochLog:
    """Print one line per epoch, with rate and time left, and on a terminal a bar in between."""

    def __init__(self, title: str, *, epochs: int, images_per_epoch: int) -> None:
        self.title, self.epochs = title, epochs
        # process 0 speaks for all
        self.console = Console(highlight=False, soft_wrap=True, quiet=process_number() > 0)
        self.bar, self.task = start_task(self.console, title, "images", epochs * images_per_epoch)

    def __enter__(self) -> "EpochLog":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.bar.stop()

    def resume(self, where: str, num_images_done: int) -> None:
        """Say where a resumed run goes on; its rate counts only what is still to do."""
        self.console.print(f"{self.title}: continuing at {where}")
        self.bar.reset(self.task.id, completed=num_images_done)

    def step(self, num_images: int) -> None:
        """Count the images of a step."""
        self.bar.advance(self.task.id, num_images)

    def epoch(self, row: dict[str, Any]) -> None:
        """Print the line of an epoch; a star marks the best so far."""
        self.console.print(
            f"{self.title}  epoch {row['epoch']:>3}/{self.epochs}"
            f"  train loss {row['train_loss']:.4f} acc {row['train_accuracy']:.4f}"
            f"  val loss {row['val_loss']:.4f} acc {row['val_accuracy']:.4f}"
            f"  lr {row['lr']:.5f}  {Pace().render(self.task)}"
            f"{'  *' if row['is_best'] else ''}"
        )

    def end(self, history: list[dict[str, Any]]) -> None:
        """Print the best epoch and the time since this log was made."""
        best = [row for row in history if row["is_best"]][-1]
        spent = timedelta(seconds=round(self.task.elapsed or 0))
        self.console.print(
            f"{self.title}: best epoch {best['epoch']} with val acc {best['val_accuracy']:.4f}, "
            f"{spent} in all"
        )
