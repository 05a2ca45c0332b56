"""Go through many items: some ahead in threads, and with progress that the user sees."""

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from math import inf
from time import monotonic
from typing import TypeVar

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
    if sys.stderr.isatty():
        from resnets.system.bar import draw_bar  # late: a start without a bar need not wait for it

        items, due = draw_bar(items, title, unit, total, size), inf
    for item in items:
        yield item
        done, spent = done + size(item), monotonic() - start
        if spent > due:
            due += LINE_SECONDS
            left = timedelta(seconds=round(spent * max(0, total - done) / max(1, done)))
            pace = f"{done / spent:.0f} {unit}/s, {left} left"
            print(f"{title}: {done} of {total} {unit}, {pace}", file=sys.stderr)
    whole = timedelta(seconds=round(monotonic() - start))
    print(f"{title}: {done} {unit} in {whole}", file=sys.stderr)
