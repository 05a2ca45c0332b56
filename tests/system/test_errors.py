"""The one place that starts and ends command lines."""

import errno
import os
import shutil
import subprocess
import sys

import pytest

from resnets.stages import split
from resnets.system.errors import DataError, about_task, run_app
from tests.copies import ROOT


def test_under_dvc_the_code_of_the_copy_runs_and_not_that_of_the_install(tmp_path):
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    stage = tmp_path / "src/resnets/stages/split.py"
    stage.write_text(stage.read_text().replace("Split one task.", "Split one task of the copy."))
    for root, is_copy in ((ROOT, False), (tmp_path, True)):
        command = [sys.executable, "-m", "resnets.stages.split", "--help"]
        here = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "DVC_ROOT": str(root)}
        done = subprocess.run(command, env=here, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert ("of the copy" in done.stdout) == is_copy


def test_windows_itself_is_told_of_wsl(monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setattr(sys, "argv", ["split", "target"])
    with pytest.raises(SystemExit, match="5"):
        run_app(split.main)
    what, fix = capfd.readouterr().err.splitlines()
    assert what == "error: Windows itself is not supported: it has no fcntl, which locks files"
    assert fix == "fix: run the same command inside WSL (wsl --install)"


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOMEM, "Cannot allocate memory"), RuntimeError("can't allocate memory")],
)
def test_missing_memory_is_told_whoever_misses_it(monkeypatch, capfd, error):
    def fail() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["fail"])
    with pytest.raises(SystemExit, match="5"):
        run_app(fail)
    what, fix = capfd.readouterr().err.splitlines()
    assert what.startswith("error: out of memory: ")
    assert fix.startswith("fix: lower batch_size")


def test_a_file_that_may_not_be_read_is_said_to_be_one(monkeypatch, capfd):
    def fail() -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "model.onnx")

    monkeypatch.setattr(sys, "argv", ["fail"])
    with pytest.raises(SystemExit, match="5"):
        run_app(fail)
    what, fix = capfd.readouterr().err.splitlines()
    assert what == "error: model.onnx: Permission denied"
    assert fix == "fix: check that the path exists and that you may read or write there"


def test_keys_of_an_error_name_the_task_and_patterns_stay():
    @about_task("pets")
    def refuse() -> None:
        what = "split.*.group_regex: '.*.png' matches no name"
        raise DataError(what, "correct tasks.*.exclude or split.*.val")

    with pytest.raises(DataError, match=r"split\.pets\.group_regex: '\.\*\.png'") as caught:
        refuse()
    assert caught.value.fix == "correct tasks.pets.exclude or split.pets.val"


def test_help_wraps_at_the_terminal_and_not_where_the_source_does():
    command = [sys.executable, "-m", "resnets.cli", "check", "--help"]
    wide = {**os.environ, "COLUMNS": "160"}
    done = subprocess.run(command, env=wide, capture_output=True, text=True, check=True)
    assert "Ends with exit code 3 if something would stop `prepare`." in done.stdout
