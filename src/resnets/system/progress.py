"""Go through many items: some ahead in threads, and with progress that the user sees."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from resnets.system.errors import printable
from resnets.system.runtime import Clock

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
    num_bytes = 0
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append((pool.submit(work, item), size(item)))
                num_bytes += waiting[-1][1]
                while len(waiting) > (ahead or 2 * workers) or num_bytes > MAX_WAITING:
                    future, freed = waiting.popleft()
                    num_bytes -= freed
                    yield future.result()
            while waiting:
                yield waiting.popleft()[0].result()
        finally:
            for future, _ in waiting:
                future.cancel()


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
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress, TextColumn

    clock, done, shown = Clock(total), 0, time.monotonic()
    title = printable(title)
    is_terminal = sys.stderr.isatty()
    columns = [*Progress.get_default_columns(), TextColumn("{task.fields[rate]}")]
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not is_terminal) as bar:
        task = bar.add_task(escape(title), total=total, rate="")
        for item in items:
            yield item
            done += size(item)
            if is_terminal:
                bar.update(task, completed=done, rate=f"{clock.rate(done):.0f} {unit}/s")
            elif time.monotonic() - shown > LINE_SECONDS:
                shown = time.monotonic()
                rate = f"{clock.rate(done):.0f} per second, {clock.left(done)} left"
                print(f"{title}: {done} of {total} {unit}, {rate}", file=sys.stderr)
    print(f"{title}: {done} {unit} in {clock.spent()}", file=sys.stderr)
