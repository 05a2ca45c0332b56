"""Show the progress of training: a bar on a terminal, a plain line per epoch everywhere."""

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from resnets.system.runtime import Clock, process_number


class EpochLog:
    """Print one line per epoch, with rate and time left, and on a terminal a bar in between."""

    def __init__(self, title: str, *, epochs: int, images_per_epoch: int) -> None:
        self.title, self.epochs = title, epochs
        self.whole = Clock(epochs * images_per_epoch)  # with the features of a frozen backbone
        self.num_images = 0
        is_quiet = process_number() > 0  # process 0 speaks for all
        self.console = Console(highlight=False, soft_wrap=True, quiet=is_quiet)
        self.bar = Progress(
            TextColumn(title), BarColumn(), TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(), console=self.console, transient=True,
            disable=is_quiet or not self.console.is_terminal,
        )  # fmt: skip
        self.task = self.bar.add_task(title, total=epochs * images_per_epoch, rate="")

    def __enter__(self) -> "EpochLog":
        self.clock = Clock(self.whole.total)
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
        self.clock.total -= num_images_done
        self.bar.update(self.task, completed=num_images_done)

    def step(self, num_images: int) -> None:
        """Count the images of a step."""
        self.num_images += num_images
        rate = f"{self.clock.rate(self.num_images):.0f} images/s"
        self.bar.update(self.task, advance=num_images, rate=rate)

    def epoch(self, row: dict[str, Any]) -> None:
        """Print the line of an epoch; a star marks the best so far."""
        self.console.print(
            f"{self.title}  epoch {row['epoch']:>3}/{self.epochs}"
            f"  train loss {row['train_loss']:.4f} acc {row['train_accuracy']:.4f}"
            f"  val loss {row['val_loss']:.4f} acc {row['val_accuracy']:.4f}"
            f"  lr {row['lr']:.5f}"
            f"  {self.clock.rate(self.num_images):.0f} images/s"
            f"  {self.clock.left(self.num_images)} left"
            f"{'  *' if row['is_best'] else ''}"
        )

    def end(self, history: list[dict[str, Any]]) -> None:
        """Print the best epoch and the time since this log was made."""
        best = [row for row in history if row["is_best"]][-1]
        self.console.print(
            f"{self.title}: best epoch {best['epoch']} with val acc {best['val_accuracy']:.4f}, "
            f"{self.whole.spent()} in all"
        )
