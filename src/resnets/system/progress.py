"""Go through many items: some ahead in threads, and with progress that the user sees."""

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from resnets.system.errors import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, Task

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


def pace(speed: float, unit: str, seconds: float) -> str:
    """Return for example 75 images/s, 0:00:12 left."""
    return f"{speed:.0f} {unit}/s, {timedelta(seconds=round(seconds))} left"


def start_bar(console: "Console", title: str, unit: str, total: int) -> "Progress":
    """Return a bar of one task, which shows on a terminal only and counts everywhere."""
    # late: who shows lines need not wait for rich
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
    from rich.text import Text

    class Pace(ProgressColumn):
        def render(self, task: "Task") -> Text:
            return Text(pace(task.speed or 0, unit, task.time_remaining or 0))

    columns = (TextColumn("{task.description}"), BarColumn(), Pace())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    bar.add_task(escape(title), total=total)
    return bar


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
    title, due, done, start = printable(title), LINE_SECONDS, 0, monotonic()
    with ExitStack() as stack:
        if is_terminal := sys.stderr.isatty():
            from rich.console import Console

            bar = stack.enter_context(start_bar(Console(stderr=True), title, unit, total))
        for item in items:
            yield item
            done, spent = done + size(item), monotonic() - start
            if is_terminal:
                bar.advance(bar.task_ids[0], size(item))
            elif spent > due:
                due += LINE_SECONDS
                shown = pace(done / spent, unit, spent * max(0, total - done) / max(1, done))
                print(f"{title}: {done} of {total} {unit}, {shown}", file=sys.stderr)
    whole = timedelta(seconds=round(monotonic() - start))
    print(f"{title}: {done} {unit} in {whole}", file=sys.stderr)
