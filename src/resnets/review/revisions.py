"""Read the small reviewed files of the project as they are at a Git revision, or on the disk."""

import io
import json
import re
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from resnets.errors import ArtefactError, EnvironmentFault, ParamsError

REVIEWED = (
    "params.yaml",
    "gates.yaml",
    "metrics/*.json",
    "plots/*/predictions.csv",
    "plots/*/seeds.csv",
)


@dataclass(frozen=True)
class Revision:
    """Hold the reviewed files of one state of the project, by path."""

    name: str
    files: Mapping[str, bytes] = field(repr=False)

    def text(self, path: str) -> str | None:
        """Return a file as text, None where this revision has no such file."""
        content = self.files.get(path)
        return None if content is None else content.decode("utf-8", "surrogateescape")

    def json(self, path: str) -> dict[str, Any]:
        """Return a JSON file that must hold an object; raises ArtefactError."""
        try:
            values = json.loads(self.text(path) or "{}")
        except ValueError as error:
            raise self._broken(path, str(error)) from None
        if not isinstance(values, dict):
            raise self._broken(path, "not an object")
        return values

    def metrics(self) -> dict[str, dict[str, Any]]:
        """Return all files of the folder metrics, by name; raises ArtefactError."""
        paths = sorted(path for path in self.files if path.startswith("metrics/"))
        return {
            path.removeprefix("metrics/").removesuffix(".json"): self.json(path) for path in paths
        }

    def yaml(self, path: str) -> object:
        """Return a YAML file, None where there is none; raises ArtefactError."""
        try:
            return YAML(typ="safe", pure=True).load(self.text(path) or "")
        except YAMLError as error:
            raise self._broken(path, str(error).replace("\n", " ")) from None

    def _broken(self, path: str, problem: str) -> ArtefactError:
        return ArtefactError(f"{path} at {self.name}: {problem}", "restore it from Git, or rerun")


def read_revision(name: str | None, root: Path) -> Revision:
    """Read a commit, branch or tag; None is what lies on the disk.

    Raises ParamsError for a revision that Git does not know, EnvironmentFault without Git.
    """
    if name is None:
        found = [path for pattern in REVIEWED for path in sorted(root.glob(pattern))]
        files = {path.relative_to(root).as_posix(): path.read_bytes() for path in found}
        return Revision("workspace", files)
    parse = ("rev-parse", "--verify", "-q", "--end-of-options", f"{name}^{{commit}}")
    commit = _git(root, *parse).decode().strip()
    if not commit:
        if not _git(root, "rev-parse", "--git-dir"):
            raise EnvironmentFault(
                f"{root.resolve()}: not a Git repository", "run it in a clone of the project"
            )
        raise ParamsError(
            f"{name}: Git knows no such revision here", "see `git log` and `git branch -a`"
        )
    folders = {pattern.split("/")[0] for pattern in REVIEWED}
    present = folders & set(_git(root, "ls-tree", "--name-only", commit).decode().split("\n"))
    archive = io.BytesIO(_git(root, "archive", commit, "--", *sorted(present)))
    with tarfile.open(fileobj=archive) as tree:
        members = (x for x in tree if x.isfile() and any(fnmatch(x.name, p) for p in REVIEWED))
        opened = {member.name: tree.extractfile(member) for member in members}
        files = {path: file.read() for path, file in opened.items() if file}
    return Revision(name[:10] if re.fullmatch("[0-9a-f]{40}", name) else name, files)


def _git(root: Path, *arguments: str) -> bytes:
    """Run Git; return what it prints, nothing where it fails."""
    try:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=root, capture_output=True, check=False).stdout
    except FileNotFoundError:
        fix = "install Git; revisions are read with it"
        raise EnvironmentFault("git: not installed", fix) from None


def flatten(values: object, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted keys; lists and scalars stay."""
    if not isinstance(values, dict):
        return {prefix: values} if prefix else {}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def changes(base: object, head: object) -> list[tuple[str, object, object]]:
    """Return (key, base, head) of all that differs; what one side lacks is None."""
    before, after = flatten(base), flatten(head)
    return [
        (key, before.get(key), after.get(key))
        for key in sorted(before | after)
        if before.get(key) != after.get(key)
    ]
