"""Show progress with rate and time left: a bar on a terminal, plain lines otherwise."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from resnets.errors import printable
from resnets.runtime import Clock

LINE_SECONDS = 10.0

Item = TypeVar("Item")


def follow(
    items: Iterable[Item],
    title: str,
    unit: str,
    total: int,
    size: Callable[[Item], int] = lambda _: 1,
) -> Iterator[Item]:
    """Yield the items and show how many of `total` units they make up so far."""
    clock, done, shown = Clock(total), 0, time.monotonic()
    title = printable(title)
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=total)
            for item in items:
                yield item
                bar.advance(task, size(item))
                done += size(item)
    else:
        for item in items:
            yield item
            done += size(item)
            if time.monotonic() - shown > LINE_SECONDS:
                shown = time.monotonic()
                rate, left = clock.rate(done), clock.left(done)
                print(
                    f"{title}: {done} of {total} {unit}, {rate:.0f} per second, {left} left",
                    file=sys.stderr,
                )
    print(f"{title}: {done} {unit} in {clock.spent()}", file=sys.stderr)
