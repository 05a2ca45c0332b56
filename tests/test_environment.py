"""Take away disk, rights, memory and open files by the system's own limits; see what is said."""

import ctypes
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnets.system.errors import OUT_OF_MEMORY
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


def picture(folder: Path) -> None:
    from resnets.tasks.sheet import plot_sheet

    plot_sheet([np.zeros((8, 8, 3), np.uint8)], ["black"], folder / "samples.png")


def answers(folder: Path) -> None:
    from resnets.predict.answers import Answer, Reports, open_writers

    with open_writers(Reports(output=folder / "answers.csv"), ["a", "b"], 0) as [write]:
        for number in range(1000):
            write(Answer(f"{number}.png", probabilities=np.array([0.25, 0.75])))


def hunger(folder: Path) -> None:
    import torch

    torch.empty(10**13)


ACTIONS: dict[str, Callable[[Path], None]] = {
    "prepare": prepare, "training": training, "bundle": bundle, "picture": picture,
    "answers": answers, "hunger": hunger,
}  # fmt: skip


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
    found, rest = [], done.stderr
    for step in steps:
        words, mark, rest = rest.partition(f"<{step}|")
        assert mark, done.stderr
        code, _, rest = rest.partition(">")
        found.append((code, words))
    return found


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
    ("picture", (0, 10, 100), "samples.png"),
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
        assert f"{size:,} are allowed (ulimit -f)" in what
        assert "needs at least" in what
        if size:
            assert named in what
        assert "make room and run the same command again" in fix
    assert not list(photos.rglob("*.part"))
    assert (photos / "bits").read_bytes() == bits(train(photos / "undisturbed"))
    manifest = (photos / "task/manifest.csv").read_bytes()
    run_child(photos, "prepare size -1")
    assert (photos / "task/manifest.csv").read_bytes() == manifest


@pytest.mark.slow
def test_a_device_without_room_says_how_much_is_free(photos):
    (photos / "state").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=700k", "none", photos / "state"], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no rights to mount a small file system")
    try:
        [(code, words)] = run_child(photos, "training size -1")
        assert code == "5"
        assert "No space left on device: needs at least" in words
        assert "are free" in words
        subprocess.run(["mount", "-o", "remount,size=50m", photos / "state"], check=True)
        assert run_child(photos, "training size -1")[0][0] == "0"
    finally:
        subprocess.run(["umount", photos / "state"], check=True)
    assert (photos / "bits").read_bytes() == bits(train(photos / "undisturbed"))


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
        assert "that you may write there" in fix


def test_too_many_open_files_say_how_many_are_allowed(photos):
    (first, _), (code, words) = run_child(photos, "bundle size -1", "bundle files 0")
    assert (first, code) == ("0", "5")
    assert "model.safetensors" in words
    assert "open files that are allowed (ulimit -n)" in words


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "any_of"),
    [
        ("hunger size -1", ("you tried to allocate 40000000000000 bytes",)),
        # what is missing first depends on the machine: torch's memory, numpy's, Python's own
        ("training memory 2000000", (*OUT_OF_MEMORY, "Unable to allocate", "a small piece")),
    ],
)
def test_missing_memory_is_said_with_need_and_have(photos, step, any_of):
    [(code, said)] = run_child(photos, step)
    assert code == "5"
    assert "error: out of memory: " in said
    assert any(words in said for words in any_of)
    assert "bytes of this machine are free" in said
    assert "lower batch_size" in said
