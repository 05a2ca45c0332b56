"""Check dvc.lock in clones without data, with DVC itself."""

import subprocess
import sys

import pytest

PIPELINE = """\
stages:
  prepare:
    cmd: python code/prepare.py
    deps: [raw.txt, code/prepare.py]
    params: [size]
    outs: [store/packed.bin]
    metrics: [{counts.json: {cache: false}}]
  train:
    cmd: python -c "import shutil; shutil.copy('store/packed.bin', 'model.bin')"
    deps: [store]
    params: [lr]
    outs: [model.bin]
"""
SCRIPT = """\
from pathlib import Path
Path("store").mkdir(exist_ok=True)
Path("store/packed.bin").write_bytes(Path("raw.txt").read_bytes())
Path("counts.json").write_text('{"images": 3}')
"""


def run(folder, *command):
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def check(folder):
    return run(folder, sys.executable, "-m", "resnets.review.stale")


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    folder = tmp_path_factory.mktemp("origin")
    (folder / "code").mkdir()
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / "code/prepare.py").write_text(SCRIPT)
    (folder / "params.yaml").write_text("size: 28\nlr: 0.1\n")
    (folder / "raw.txt").write_text("pixels")
    dvc = [sys.executable, "-m", "dvc"]
    path = f"PATH={sys.exec_prefix}/bin:/usr/bin:/bin"
    assert run(folder, "git", "init", "-q").returncode == 0
    for command in (["init", "-q"], ["repro", "-q"]):
        done = run(folder, "env", path, *dvc, *command)
        assert done.returncode == 0, done.stderr
    run(folder, "git", "add", "-A")
    identity = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    run(folder, "git", *identity, "commit", "-q", "-m", "all")
    return folder


@pytest.fixture
def clone(origin, tmp_path):
    """A clone that has no data: neither the store nor the cache."""
    run(tmp_path, "git", "clone", "-q", str(origin), "clone")
    assert [path.name for path in (tmp_path / "clone/store").iterdir()] == [".gitignore"]
    return tmp_path / "clone"


def test_clone_without_data_passes(clone):
    done = check(clone)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("path", "old", "new", "named"),
    [
        ("params.yaml", "lr: 0.1", "lr: 0.2", "train: params.yaml lr is modified"),
        ("params.yaml", "lr: 0.1", "", "train: params.yaml lr is deleted"),
        ("code/prepare.py", "3", "4", "prepare: code/prepare.py is modified"),
        ("dvc.yaml", "import shutil;", "import shutil ;", "train: changed command"),
        ("counts.json", "3", "4", "prepare: counts.json is modified"),
        ("raw.txt", "pixels", "other", "prepare: raw.txt is modified"),
        ("dvc.yaml", "stages:", "stages:\n  new: {cmd: x, outs: [y]}", "new: y is deleted"),
    ],
)
def test_change_without_repro_is_named(clone, path, old, new, named):
    text = (clone / path).read_text()
    assert old in text
    (clone / path).write_text(text.replace(old, new, 1))
    done = check(clone)
    assert done.returncode == 4
    assert named in done.stderr
    assert "dvc repro" in done.stderr


def test_outside_of_a_dvc_project_is_an_environment_fault(tmp_path):
    assert check(tmp_path).returncode == 5
