"""Go through many items: some ahead in threads, and with progress that the user sees."""

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from resnets.system.errors import printable

LINE_SECONDS = 10.0
MAX_WAITING = 2**28  # bytes: as much as one file may have

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    ahead: int = 0,
    size: Callable[[Item], int] = lambda _: 0,
) -> Iterator[Result]:
    """Yield what `work` makes of each item, in their order, computed in threads ahead of time.

    At most `ahead` results wait, by default two for each thread, and of items that bring their
    bytes along, as `size` says, no more than MAX_WAITING bytes: memory stays bounded.
    """
    waiting: deque[tuple[Future[Result], int]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            waiting.append((pool.submit(work, item), size(item)))
            while len(waiting) > (ahead or 2 * workers) or sum(n for _, n in waiting) > MAX_WAITING:
                yield waiting.popleft()[0].result()
        while waiting:
            yield waiting.popleft()[0].result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a worker may be what collects this


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


def follow(
    items: Iterable[Item],
    title: str,
    unit: str,
    total: int,
    size: Callable[[Item], int] = lambda _: 1,
) -> Iterator[Item]:
    """Yield the items and show how many of `total` units they make up, the rate, the time left.

    That is a bar on a terminal, and plain lines otherwise.
    """
    title, due = printable(title), LINE_SECONDS
    bar, task = start_task(Console(stderr=True), title, unit, total)
    with bar:
        for item in items:
            yield item
            bar.advance(task.id, size(item))
            if bar.disable and (task.elapsed or 0) > due:
                due += LINE_SECONDS
                done = f"{title}: {task.completed} of {total} {unit}"
                print(f"{done}, {Pace().render(task)}", file=sys.stderr)
    spent = timedelta(seconds=round(task.elapsed or 0))
    print(f"{title}: {task.completed} {unit} in {spent}", file=sys.stderr)
