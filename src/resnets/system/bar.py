"""Draw a bar of progress on a terminal, with rate and time left."""

from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

Item = TypeVar("Item")


class Pace(ProgressColumn):
    """Show the rate of a task and the time left."""

    def render(self, task: Task) -> Text:
        """Return for example 75 images/s, 0:00:12 left."""
        left = timedelta(seconds=task.time_remaining or 0)
        return Text(f"{task.speed or 0:.0f} {task.fields['unit']}/s, {left} left")


def start_task(console: Console, title: str, unit: str, total: int) -> tuple[Progress, Task]:
    """Return a bar, which shows on a terminal only, and its task, which counts everywhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), Pace())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    bar.add_task(escape(title), total=total, unit=unit)
    return bar, bar.tasks[0]


def draw_bar(
    items: Iterable[Item], title: str, unit: str, total: int, size: Callable[[Item], int]
) -> Iterator[Item]:
    """Yield the items while a bar on stderr counts their sizes."""
    bar, task = start_task(Console(stderr=True), title, unit, total)
    with bar:
        for item in items:
            yield item
            bar.advance(task.id, size(item))
