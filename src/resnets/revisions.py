"""Read the small reviewed files of the project as they are at a Git revision, or on the disk."""

import json
import re
import subprocess
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
    commit = _git(
        root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"
    )
    if commit is None:
        if _git(root, "rev-parse", "--git-dir") is None:
            raise EnvironmentFault(
                f"{root.resolve()}: not a Git repository", "run it in a clone of the project"
            )
        raise ParamsError(
            f"{name}: Git knows no such revision here", "see `git log` and `git branch -a`"
        )
    listing = _git(root, "ls-tree", "-r", "-z", commit.decode().strip(), "--", *_folders()) or b""
    blobs = {}
    for entry in listing.decode("utf-8", "surrogateescape").split("\0")[:-1]:
        kind, path = entry.split("\t", 1)
        if any(fnmatch(path, pattern) for pattern in REVIEWED):
            blobs[path] = kind.split()[2]
    contents = _read_blobs(root, list(blobs.values()))
    shown = name[:10] if re.fullmatch("[0-9a-f]{40}", name) else name
    return Revision(shown, dict(zip(blobs, contents, strict=True)))


def _folders() -> list[str]:
    return sorted({pattern.split("/")[0] for pattern in REVIEWED})


def _git(root: Path, *arguments: str, given: bytes = b"") -> bytes | None:
    """Run Git; return what it prints, None where it fails."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, input=given, capture_output=True, check=False
        )
    except FileNotFoundError:
        raise EnvironmentFault(
            "git: not installed", "install Git; revisions are read with it"
        ) from None
    return done.stdout if done.returncode == 0 else None


def _read_blobs(root: Path, hashes: list[str]) -> list[bytes]:
    """Return the contents of blobs, all with one call of Git."""
    stream = _git(root, "cat-file", "--batch", given="\n".join(hashes).encode()) or b""
    contents, position = [], 0
    for _ in hashes:
        start = stream.index(b"\n", position) + 1
        size = int(stream[position:start].split()[2])
        contents.append(stream[start : start + size])
        position = start + size + 1
    return contents


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
