"""Hold the container to the project: what it needs is in it, and nothing that Git lacks."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
IGNORED = (ROOT / ".dockerignore").read_text().splitlines()


def is_left_out(path: str) -> bool:
    """Tell whether `docker build` leaves a path out; of all patterns the last that fits counts."""
    left_out = False
    for line in (line for line in IGNORED if line and not line.startswith("#")):
        pattern = re.escape(line.removeprefix("!"))
        pattern = pattern.replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if re.fullmatch(f"{pattern}(/.*)?", path):
            left_out = not line.startswith("!")
    return left_out


def test_all_that_git_has_is_in_the_image():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    paths = listed.stdout.split("\0")[:-1]
    assert len(paths) > 100
    assert [path for path in paths if is_left_out(path)] == []


@pytest.mark.parametrize(
    "path",
    [
        ".venv/bin/python",
        ".dvc/cache/files/md5/00/1",
        ".dvc/tmp/lock",
        ".state/backbone/seed-0/a",
        "data/raw/photos.zip",
        "data/tasks/target/images.bin",
        "artifacts/finetune/model.safetensors",
        "src/resnets/__pycache__/cli.cpython-311.pyc",
    ],
)
def test_what_git_does_not_have_is_left_out(path):
    assert is_left_out(path)


def test_packages_are_installed_from_what_make_setup_depends_on():
    (names,) = re.findall(r"^COPY --chown=1000 (Makefile .*) \./$", DOCKERFILE, re.MULTILINE)
    (needed,) = re.findall(r"^\$\(STAMP\): (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    described = {project["readme"], *project["license-files"]}  # the build reads them
    assert set(names.split()) == {"Makefile", *needed.split(), *described}
    assert DOCKERFILE.splitlines()[-1] == 'CMD ["make", "repro"]'


def test_python_is_the_one_of_the_workflows():
    (version,) = re.findall(r"^FROM python:(\d+\.\d+)-", DOCKERFILE, re.MULTILINE)
    for name in ("tests", "review"):
        assert (
            f'python-version: "{version}"' in (ROOT / f".github/workflows/{name}.yml").read_text()
        )


def test_the_editors_container_is_a_stage_of_the_dockerfile():
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    build = container["build"]
    assert (ROOT / ".devcontainer" / build["dockerfile"]).resolve() == ROOT / "Dockerfile"
    assert f" AS {build['target']}\n" in DOCKERFILE
    assert all(f"ARG {name}=" in DOCKERFILE for name in build["args"])
    assert f"--create-home --shell /bin/bash {container['remoteUser']}\n" in DOCKERFILE
    assert container["postCreateCommand"] == "make setup"
