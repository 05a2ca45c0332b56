"""Build the wheel and use it where there is no checkout; keep what stands beside the code true."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.copies import ROOT, run, write_photos

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a copy of what it is made of; setuptools leaves files beside it."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", folder / "src", ignore=ignored)
    for name in ("pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", "dist"]
    run(sys.executable, "-m", "pip", "wheel", "--quiet", *options, ".", cwd=folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def make_environment(folder: Path, wheel: Path) -> Path:
    """Install the wheel alone into a new environment that sees this one's packages; its tools."""
    run(sys.executable, "-m", "venv", "--without-pip", str(folder), cwd=folder.parent)
    python = folder / "bin/python"
    # an editable install leaves its name beside the sources: pip would find all there already
    options = ["--no-deps", "--no-index", "--quiet", "--ignore-installed"]
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", *options]
    run(*pip, str(wheel), cwd=folder.parent)
    (packages,) = folder.glob("lib/python*/site-packages")
    # their .pth files are not read there, so that an editable install is not seen
    others = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "others.pth").write_text("\n".join(others))
    return folder / "bin"


@pytest.mark.slow
def test_the_wheel_holds_its_data_and_works_outside_of_a_checkout(tmp_path):
    wheel = build_wheel(tmp_path / "source")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    files = [path for path in (ROOT / "src").rglob("*") if path.is_file()]
    wanted = {str(path.relative_to(ROOT / "src")) for path in files}
    wanted = {name for name in wanted if "__pycache__" not in name and ".egg-info" not in name}
    assert wanted <= inside
    assert {name.split("/")[0] for name in inside - wanted} == {
        f"resnets-{PROJECT['version']}.dist-info"
    }
    tools = make_environment(tmp_path / "environment", wheel)
    place = tmp_path / "elsewhere"
    place.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def resnets(*arguments: str) -> str:
        return subprocess.run(
            [tools / "resnets", *arguments], cwd=place, env=environment, check=True, text=True,
            capture_output=True,
        ).stdout  # fmt: skip

    where = [tools / "python", "-c", "import resnets; print(resnets.__file__)"]
    found = subprocess.run(
        where, cwd=place, env=environment, capture_output=True, text=True, check=True
    )
    assert Path(found.stdout.strip()).is_relative_to(tmp_path / "environment")
    assert resnets("--version") == f"resnets {PROJECT['version']}\n"
    assert "11,689,512" in resnets("summary", "resnet18")
    write_photos(place / "photos.zip")
    shutil.copy(ROOT / "dvc.yaml", place)
    assert "72: 3 classes of 24" in resnets("init", "photos.zip", "--offline")
    assert YAML(typ="safe").load(place / "params.yaml")["tasks"]["target"]["path"] == "photos.zip"


def test_completion_offers_the_commands():
    words = {"_RESNETS_COMPLETE": "complete_bash", "COMP_WORDS": "resnets pre", "COMP_CWORD": "1"}
    done = subprocess.run(
        Path(sys.executable).with_name("resnets"), env={**os.environ, **words}, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == ["predict"]
