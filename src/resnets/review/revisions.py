"""Read the small reviewed files of the project as they are at a Git revision, or on the disk."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from resnets.review.stale import stale_outputs
from resnets.system.errors import ArtefactError, EnvironmentFault, ParamsError

if TYPE_CHECKING:
    from dvc.repo import Repo

REVIEWED = (
    "params.yaml",
    "gates.yaml",
    "metrics/*.json",
    "plots/*/predictions.csv",
    "plots/*/seeds.csv",
)


def is_of_model(record: Mapping[str, Any]) -> bool:
    """Say whether a metrics file tells of a model, and not of data or of the export."""
    return {"test", "measured_on"} <= set(record)


@dataclass(frozen=True)
class Revision:
    """Hold the reviewed files of one state of the project, by path.

    `root` is the project's folder. `stale` says why outputs are no results of this state.
    """

    name: str
    root: Path
    files: Mapping[str, bytes] = field(repr=False)
    stale: Mapping[str, Sequence[str]]

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
        """Return the files of the folder metrics, by name; raises ArtefactError.

        What was measured of a variant that params.yaml no longer has is left out.
        """
        params = self.yaml("params.yaml")
        variants = params.get("transfer") if isinstance(params, dict) else None
        records = {
            path.removeprefix("metrics/").removesuffix(".json"): self.json(path)
            for path in sorted(self.files)
            if path.startswith("metrics/")
        }
        return {
            name: record
            for name, record in records.items()
            if variants is None or name in {"backbone", *variants} or not is_of_model(record)
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
    """Read a commit, branch, tag or experiment; None is what lies on the disk.

    `root` is the project's folder or one inside it. Raises ParamsError for a revision that Git
    does not know, ArtefactError for a dvc.yaml that DVC cannot read, and EnvironmentFault where
    there is no project.
    """
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.repo import Repo
    from dvc.repo.brancher import switch
    from dvc.scm import RevError, SCMError

    shown = name or "workspace"
    try:
        with Repo(str(root)) as repo:
            folder = Path(repo.root_dir)
            if ":" in shown:
                raise RevError("a file, not a commit")
            with switch(repo, shown):
                files = dict(_reviewed(repo))
                stale = stale_outputs(repo)
    except RevError:
        fix = "see `git branch -a`; a shallow clone lacks commits until `git fetch --unshallow`"
        raise ParamsError(f"{shown}: Git knows no such revision here", fix) from None
    except (NotDvcRepoError, SCMError):
        raise EnvironmentFault(
            f"{root.resolve()}: not a Git repository with a DVC project",
            "run it in a clone of the project",
        ) from None
    except DvcException as error:
        problem = str(error).replace("\n", " ")
        raise ArtefactError(f"{shown}: {problem}", "see `dvc status` there") from None
    shown = shown[:10] if re.fullmatch("[0-9a-f]{40}", shown) else shown
    return Revision(shown, folder, files, stale)


def _reviewed(repo: "Repo") -> Iterator[tuple[str, bytes]]:
    """Yield path and content of the reviewed files, as the repository is switched."""
    fs, root = repo.fs, repo.root_dir
    for folder in sorted({pattern.split("/")[0] for pattern in REVIEWED}):
        top = fs.join(root, folder)
        for file in [top] if fs.isfile(top) else sorted(fs.find(top)):
            path = fs.relpath(file, root)
            if any(fnmatch(path, pattern) for pattern in REVIEWED):
                yield path, fs.read_bytes(file)


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
