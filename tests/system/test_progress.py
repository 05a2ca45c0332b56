"""Work done ahead in threads keeps its order and its bounds; progress shows rate and time left."""

import os
import pty
import random
import re
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from resnets.system import progress
from resnets.system.progress import MAX_WAITING, follow, map_ahead
from resnets.system.runtime import Room


@pytest.mark.parametrize(("size", "most"), [(0, 41), (MAX_WAITING // 2, 3), (2 * MAX_WAITING, 1)])
def test_items_wait_up_to_a_number_and_up_to_a_number_of_bytes(size, most):
    pulled = 0

    def items() -> Iterator[int]:
        nonlocal pulled
        for number in range(100):
            pulled += 1
            yield number

    waiting = []
    results = map_ahead(lambda x: 2 * x, items(), workers=4, ahead=40, size=lambda _: size)
    for number, result in enumerate(results):
        assert result == 2 * number
        waiting.append(pulled - number)
    assert max(waiting) == most


def test_threads_share_a_room_up_to_its_limit_and_what_is_larger_goes_alone():
    room, taken = Room(100), []
    amounts = random.Random(0).choices([1, 30, 60, 100, 5000], k=300)

    def work(amount: int) -> None:
        with room.hold(amount), lock:
            taken.append(room.taken)

    lock = threading.Lock()
    assert list(map_ahead(work, amounts, workers=16)) == [None] * 300
    assert max(taken) <= 100
    assert room.taken == 0


def test_without_a_terminal_progress_is_plain_lines_with_rate_and_time_left(monkeypatch, capfd):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    assert list(follow("abc", "reading [a]", "bytes", 6, size=lambda _: 2)) == ["a", "b", "c"]
    out, err = capfd.readouterr()
    *lines, last = err.splitlines()
    line = r"reading \[a\]: \d of 6 bytes, \d+ bytes/s, [\d:]+ left"
    assert len(lines) == 3
    assert all(re.fullmatch(line, shown) for shown in lines)
    assert (out, last) == ("", "reading [a]: 6 bytes in 0:00:00")


def test_on_a_terminal_progress_is_a_bar_with_rate_and_time_left():
    code = (
        "from resnets.system.progress import follow\n"
        "list(follow('abc', 'reading [a]', 'bytes', 6, size=lambda _: 2))"
    )
    terminal, stderr = pty.openpty()
    here = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    subprocess.run([sys.executable, "-c", code], stderr=stderr, env=here, check=True)
    shown = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", os.read(terminal, 2**16).decode())
    assert re.search(r"reading \[a\] \S+ \d+ bytes/s, [\d:]+ left", shown)
    assert re.search(r"reading \[a\]: 6 bytes in [\d:]+\r\n$", shown)
