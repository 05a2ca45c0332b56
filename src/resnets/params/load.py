"""Read params.yaml; nothing else in the project reads that file."""

import json
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from resnets.params.schema import Params
from resnets.params.wording import explain
from resnets.system.errors import ParamsError

MAX_BYTES = 1_000_000  # a params file is small; a huge one is a mistake or an attack

Entry = TypeVar("Entry")
Other = TypeVar("Other", bound=BaseModel)


def choose(section: dict[str, Entry], key: str, name: str) -> Entry:
    """Return the entry of a section that a command line names; raise ParamsError for another."""
    if name not in section:
        raise ParamsError(f"{key} has no {name!r}", f"it has {', '.join(section)}")
    return section[name]


def load_params(path: Path | str, changes: Mapping[str, object] = MappingProxyType({})) -> Params:
    """Read and check a params file, with these values by their dotted keys instead of its own.

    Raises ParamsError with the key, its value and what is allowed.
    """
    values, plain = _read(Path(path))
    # names are words: a class `0123` must not become the number 123
    if isinstance(tasks := values.get("tasks"), dict):
        for task, written in zip(tasks.values(), plain["tasks"].values(), strict=True):
            for key in ("classes", "exclude"):
                if isinstance(task, dict) and isinstance(task.get(key), list):
                    task[key] = written[key]
    for dotted, value in changes.items():
        *sections, last = dotted.split(".")
        reduce(lambda section, key: section.setdefault(key, {}), sections, values)[last] = value
    return _checked(Params, values, Path(path))


def load_section(path: Path, schema: type[Other]) -> Other:
    """Read and check another YAML file, which one section describes; raises ParamsError."""
    return _checked(schema, _read(path)[0], path)


def _checked(schema: type[Other], values: dict[str, Any], path: Path) -> Other:
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise explain(error, schema, values, path) from None


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the values of a YAML file, and the same with every value as it is written."""
    if not path.is_file():
        raise ParamsError(f"{path}: no such file", "run from the project's folder, or restore it")
    if path.stat().st_size > MAX_BYTES:
        raise ParamsError(f"{path}: larger than {MAX_BYTES} bytes", "this is no params file")
    try:
        text = path.read_text(encoding="utf-8")
        if "&" in text and "*" in text and any("<<" in x or "*" in x for x in text.split("\n")):
            _refuse_aliases(text, path)
        values = YAML(typ="safe", pure=True).load(text)
        plain = YAML(typ="base", pure=True).load(text)
    except ParamsError:
        raise
    except (ValueError, YAMLError, RecursionError) as error:
        mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
        line = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = error.problem if isinstance(error, MarkedYAMLError) else error
        raise ParamsError(f"{path}{line}: {problem}", "correct the YAML there") from error
    if not isinstance(values, dict):
        raise ParamsError(f"{path}: not a mapping of sections", "restore it from Git")
    return values, plain


def print_params(path: Path, section: str = "") -> None:
    """Print each value below a dotted key, with shared ones and defaults, as `-S` would set it."""
    from dvc.utils.flatten import flatten

    values = flatten(load_params(path).model_dump(mode="json"))
    keys = [key for key in values if f"{key}.".startswith(f"{section}." if section else "")]
    if not keys:
        raise ParamsError(f"{path}: {section} is no key", "see `resnets params` for all")
    for key in keys:
        print(f"{key}={json.dumps(values[key], ensure_ascii=False)}")


def _refuse_aliases(text: str, path: Path) -> None:
    """Refuse YAML aliases: they can grow without bound, and a sweep would change every copy."""
    for event in YAML(typ="safe", pure=True).parse(text):
        if type(event).__name__ == "AliasEvent":
            raise ParamsError(f"{path}: uses the YAML alias *{event.anchor}", "write the value out")
