"""Files are whole or absent, locks die with their process, and an orphan notices that it is one."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resnets.system.errors import EnvironmentFault
from resnets.system.files import atomic_path, locked, mark_published, write_json


def start(code: str) -> subprocess.Popen[str]:
    """Start Python that holds what the code says, prints a line, and waits for one."""
    program = f"from pathlib import Path\nfrom resnets.system.files import *\n{code}"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_second_process_is_refused_and_told_who_is_at_work(tmp_path):
    with (
        locked(tmp_path, "training of a"),
        pytest.raises(EnvironmentFault) as caught,
        locked(tmp_path, "training of b"),
    ):
        pytest.fail("two processes at once")
    assert f"in use by training of a (process {os.getpid()})" in caught.value.what


def test_lock_dies_with_its_process(tmp_path):
    other = start(
        f"with locked(Path({str(tmp_path)!r}), 'other'):\n print('held', flush=True); input()"
    )
    with pytest.raises(EnvironmentFault, match="in use by other"), locked(tmp_path, "we"):
        pass
    other.kill()
    other.wait()
    with locked(tmp_path, "we"):
        pass


@pytest.mark.parametrize("recorded", ["as published", "older", "half written"])
def test_state_is_kept_until_dvc_has_recorded_what_came_of_it(tmp_path, monkeypatch, recorded):
    """The lock is always the newer file: restored from Git, it knows nothing of the training."""
    monkeypatch.chdir(tmp_path)
    own, other, open_one = (Path(".state") / name for name in ("own", "other", "open"))
    for folder in (own, other, open_one):
        (folder / "seed-0").mkdir(parents=True)
    Path("history.csv").write_text("epoch\n1\n")
    for folder in (own, other):
        mark_published(folder, Path("history.csv"))
    md5 = hashlib.md5(b"epoch\n1\n" if recorded != "older" else b"epoch\n", usedforsecurity=False)
    lock = "stages:\n  train:\n    outs:\n    - path: history.csv\n      hash: md5\n      md5: "
    lock += f"{md5.hexdigest()}\n      size: 8\n"
    Path("dvc.lock").write_text(lock if recorded != "half written" else lock[:-40])
    with locked(own, "training"):
        is_kept = recorded != "as published"
        assert (own / "seed-0").exists() == (other / "seed-0").exists() == is_kept
        assert (open_one / "seed-0").exists()  # nothing was published: it is to be continued
        assert not (own / "published").exists()  # what is trained from here on is not


def write_half(path: Path) -> None:
    with atomic_path(path) as part:
        part.write_text("half")
        raise RuntimeError("full")


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(RuntimeError, match="full"):
        write_half(path)
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_of_two_writers_of_one_file_the_second_is_refused_at_once(tmp_path):
    path = tmp_path / "answers.csv"
    other = start(
        f"with atomic_path(Path({str(path)!r})) as part:\n"
        " part.write_text('first'); print('held', flush=True); input()"
    )
    with pytest.raises(EnvironmentFault, match=r"answers\.csv: another process is writing it"):
        write_json(path, {"second": 1})
    other.communicate("\n")
    assert path.read_text() == "first"
    write_json(path, {"third": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["answers.csv"]


def test_what_a_killed_writer_left_is_written_over(tmp_path):
    path = tmp_path / "x.json"
    (tmp_path / "x.json.part").write_text("half of a much longer file" * 100)
    write_json(path, {})
    assert path.read_text() == "{}\n"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_an_orphaned_stage_under_dvc_stops(tmp_path):
    """A shell starts a trainer under DVC's variable and is killed: the trainer must notice."""
    script = (
        "import os, time\n"
        "from resnets.system.runtime import StopRequest\n"
        "with StopRequest() as stop:\n"
        " print(os.getpid(), flush=True)\n"
        " end = time.monotonic() + 30\n"
        " while not stop.is_set() and time.monotonic() < end: time.sleep(0.01)\n"
        f"open({str(tmp_path / 'end')!r}, 'w').write(str(stop.received))\n"
    )
    command = f"{sys.executable} -c '{script.replace(chr(39), chr(34))}'; true"
    environment = {**os.environ, "DVC_STAGE": "transfer@x"}
    shell = subprocess.Popen(
        ["sh", "-c", command], stdout=subprocess.PIPE, text=True, env=environment
    )
    shell.stdout.readline()
    shell.kill()
    deadline = time.monotonic() + 20
    end = tmp_path / "end"
    while not (end.exists() and end.read_text()) and time.monotonic() < deadline:
        os.sched_yield()
    assert end.read_text() == str(int(signal.SIGTERM))


@pytest.mark.parametrize("path", ["/dev/null", "."])
def test_only_files_are_replaced(path):
    with pytest.raises(EnvironmentFault, match="not a file"):
        write_json(Path(path), {})
