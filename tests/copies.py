"""Copy the project into a folder of its own, with generated photos and reduced parameters."""

import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
CLASSES = {"no": 40, "0123": 120, "with space & $(touch x)": 200}  # names that break careless code


def write_photos(path: Path, per_class: int = 24) -> None:
    """Write a zip of class folders with noisy colour photos of different sizes."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for name, level in CLASSES.items():
            for number in range(per_class):
                size = (int(rng.integers(16, 24)), int(rng.integers(16, 24)), 3)
                pixels = np.clip(rng.normal(level, 25, size), 0, 255).astype(np.uint8)
                content = io.BytesIO()
                Image.fromarray(pixels).save(content, "PNG")
                archive.writestr(f"photos/{name}/{number}.png", content.getvalue())


def write_params(path: Path) -> None:
    """Write the default parameters, reduced: own photos, tiny networks, one or two epochs."""
    values = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text())
    values["repeat"] = [0, 1]
    for task in values["tasks"].values():
        task.update(path="photos.zip", classes=None, num_classes=None)
    values["data"]["resize"] = 14
    values["preprocess"] = {"crop": 12, "mean": [0.5] * 3, "std": [0.25] * 3}
    for split in values["split"].values():
        split.update(train="rest", val=0.25, test=0.25, group_near=False)
    values["model"].update(name="resnet8", in_channels=3)
    for training in (values["backbone"], *values["transfer"].values()):
        training.update(epochs=2, batch_size=8)
        training["optimizer"]["lr"] = 0.02
    with path.open("w") as file:
        YAML(typ="safe", pure=True).dump(values, file)


def edit_params(path: Path, edits: dict[str, object]) -> None:
    """Set values of a params file by dotted keys; a value of `...` removes the key."""
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load(path)
    for key, value in edits.items():
        section, (*sections, last) = values, key.split(".")
        for name in sections:
            section = section[name]
        section[last] = value
        if value is ...:
            del section[last]
    yaml.dump(values, path)


def environment() -> dict[str, str]:
    """Return what finds this Python's tools and this project's code first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    found = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT / "src")}
    for who in ("AUTHOR", "COMMITTER"):
        found |= {f"GIT_{who}_NAME": "t", f"GIT_{who}_EMAIL": "t@example.org"}
    return found


def run(*command: str, cwd: Path, code: int = 0) -> str:
    """Run a command; return what it printed."""
    done = subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def refusal(*arguments: str, cwd: Path, code: int) -> tuple[str, str]:
    """Run a `resnets` command that ends with this code; return its two lines, what and fix."""
    command = (sys.executable, "-m", "resnets.cli", *arguments)
    what, fix = run(*command, cwd=cwd, code=code).splitlines()
    return what, fix


def make_copy(folder: Path) -> None:
    """Make a Git and DVC repository of the project's code, in which nothing ran yet."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", folder / "src", ignore=ignored)
    (folder / "artifacts").mkdir()
    for name in ("dvc.yaml", ".dvcignore", "artifacts/random", "gates.yaml"):
        shutil.copy(ROOT / name, folder / name)
    write_photos(folder / "photos.zip")
    write_params(folder / "params.yaml")
    run("git", "init", "-q", cwd=folder)
    run("dvc", "init", "-q", cwd=folder)
    shutil.copytree(ROOT / ".dvc/plots", folder / ".dvc/plots")
