"""The one place that starts and ends command lines."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_under_dvc_the_code_of_the_copy_runs_and_not_that_of_the_install(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    stage = tmp_path / "src/resnets/stages/split.py"
    stage.write_text(stage.read_text().replace("Split one task.", "Split one task of the copy."))
    command = [sys.executable, "-m", "resnets.stages.split", "--help"]
    here = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    usual = subprocess.run(command, env=here, cwd=tmp_path, capture_output=True, text=True)
    copied = subprocess.run(
        command, env={**here, "DVC_ROOT": str(tmp_path)}, cwd=tmp_path, capture_output=True,
        text=True,
    )  # fmt: skip
    assert usual.returncode == copied.returncode == 0, copied.stderr
    assert "of the copy" not in usual.stdout
    assert "of the copy" in copied.stdout
