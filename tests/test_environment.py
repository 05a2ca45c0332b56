"""Take away disk, rights, memory and open files by the system's own limits; see what is said."""

import ctypes
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnets.system.errors import OUT_OF_MEMORY, EnvironmentFault
from resnets.system.files import room_for
from tests.training.runs import bits, train

ROOT = Path(__file__).parents[1]
ENDLESS = resource.RLIM_INFINITY
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1

CHILD = """
import resource, sys, tempfile
from pathlib import Path
from resnets.system.errors import run_app
from tests.test_environment import ACTIONS, LIMITS
folder, steps = Path(sys.argv[1]), sys.argv[2:]
sys.argv = ["child"]
tempfile.gettempdir()  # torch asks where it is when it is imported; the answer is kept
for step in steps:
    action, limit, number = step.split()
    LIMITS[limit](int(number))
    try:
        run_app(lambda: ACTIONS[action](folder))
    except SystemExit as ended:
        LIMITS["size"](-1)
        LIMITS["files"](-1)
        print(f"<{step}|{ended.code}>", file=sys.stderr, flush=True)
"""


def prepare(folder: Path) -> None:
    from resnets.data.split import split_task
    from tests.data import photos

    photos.prepare(folder / "photos", folder / "task", fit="stretch")
    split_task(folder / "task", photos.split_options(val=2, test=2, group_near=False))


def training(folder: Path) -> None:
    from resnets.system.files import write_bytes

    write_bytes(folder / "bits", bits(train(folder / "state")))


def bundle(folder: Path) -> None:
    from resnets.models.bundle import save_bundle
    from tests.bundles import make_model

    save_bundle(folder / "model.safetensors", *make_model())


def answers(folder: Path) -> None:
    from resnets.predict.answers import Answer, Reports, open_writers

    with open_writers(Reports(output=folder / "answers.csv"), ["a", "b"], 0) as [write]:
        for number in range(1000):
            write(Answer(f"{number}.png", probabilities=np.array([0.25, 0.75])))


def hunger(folder: Path) -> None:
    import torch

    torch.empty(10**13)


ACTIONS: dict[str, Callable[[Path], None]] = {
    action.__name__: action for action in (prepare, training, bundle, answers, hunger)
}


def limit_memory(num_bytes: int) -> None:
    """Allow so much more than what is in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + num_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, ENDLESS))


def limit_files(number: int) -> None:
    """Allow so many more open files than there are; -1 for what the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if number >= 0:
        number += len(list(Path("/proc/self/fd").iterdir())) - 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (number if number >= 0 else hard, hard))


LIMITS: dict[str, Callable[[int], None]] = {
    "size": lambda n: resource.setrlimit(resource.RLIMIT_FSIZE, (n if n >= 0 else ENDLESS, -1)),
    "files": limit_files,
    "memory": limit_memory,
}


def forget_rights() -> None:
    """Let the rights of folders count for root too."""
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


def run_child(folder: Path, *steps: str) -> list[tuple[str, str]]:
    """Run steps (action, limit, number) in a process of its own; return exit codes and words."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), *steps], cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
        preexec_fn=forget_rights, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    said, *_ = pieces = re.split(r"<(.+)\|(\d+)>\n", done.stderr)
    assert pieces[1::3] == list(steps), said
    return list(zip(pieces[2::3], pieces[::3], strict=False))


@pytest.fixture
def photos(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(40):
            pixels = rng.integers(0, 256, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"photos/{name}/{number}.png")
    return tmp_path


FULL = [
    ("prepare", (0, 10, 2_000, 100_000), "images.bin"),
    ("training", (0, 100, 100_000, 700_000), "/state/"),
    ("bundle", (0, 10, 200_000), "model.safetensors"),
    ("answers", (0, 10, 10_000), "answers.csv"),
]


@pytest.mark.slow
def test_a_full_disk_is_named_with_need_and_have_and_loses_nothing(photos):
    steps = [(action, size, named) for action, sizes, named in FULL for size in (*sizes, -1)]
    found = run_child(photos, *(f"{action} size {size}" for action, size, _ in steps))
    for (action, size, named), (code, words) in zip(steps, found, strict=True):
        if size == -1:
            assert code == "0", (action, words)
            continue
        assert code == "5", (action, size)
        what, fix = words.strip().splitlines()[-2:]
        assert what.startswith("error: ")
        assert re.search("File too large: needs at least [0-9,]+ bytes, [0-9,]+ are free$", what)
        assert named in what or not size
        assert "make room (or raise ulimit -f) and run the same command again" in fix
    assert not list(photos.rglob("*.part"))
    assert (photos / "bits").read_bytes() == bits(train(photos / "undisturbed"))
    manifest = (photos / "task/manifest.csv").read_bytes()
    run_child(photos, "prepare size -1")
    assert (photos / "task/manifest.csv").read_bytes() == manifest


def test_a_device_without_room_is_named_with_what_is_needed():
    with (
        pytest.raises(EnvironmentFault, match="No space left on device: needs at least 7,000 b"),
        room_for(Path("/dev/full"), 7000),
    ):
        Path("/dev/full").write_text("more than fits")


@pytest.mark.slow
def test_a_folder_without_the_right_to_write_is_named(photos):
    photos.chmod(0o555)
    try:
        found = run_child(photos, *(f"{action} size -1" for action, *_ in FULL))
    finally:
        photos.chmod(0o755)
    for code, words in found:
        what, fix = words.strip().splitlines()[-2:]
        assert code == "5"
        assert what.startswith(f"error: {photos}")
        assert "Permission denied" in what
        assert "that you may read or write there" in fix


def test_too_many_open_files_say_how_many_are_allowed(photos):
    (first, _), (code, words) = run_child(photos, "bundle size -1", "bundle files 0")
    assert (first, code) == ("0", "5")
    assert "model.safetensors" in words
    assert "fix: raise the number of open files that are allowed (ulimit -n)" in words


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("hunger size -1", "you tried to allocate 40000000000000 bytes"),
        # what is missing first depends on the machine: torch's memory, numpy's, Python's own
        ("training memory 2000000", f"{OUT_OF_MEMORY}|Unable to allocate|a small piece"),
    ],
)
def test_missing_memory_is_said_with_need_and_have(photos, step, words):
    [(code, said)] = run_child(photos, step)
    assert code == "5"
    assert re.search(f"error: out of memory: .*({words})", said)
    assert "this machine has" in said
    assert "lower batch_size" in said
