"""Read params.yaml, as nothing else in the project does, and word what pydantic finds wrong."""

import difflib
import json
from collections.abc import Mapping
from contextlib import suppress
from functools import reduce
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from resnets.params.schema import Params
from resnets.system.errors import ParamsError

MAX_BYTES = 1_000_000  # a params file is small; a huge one is a mistake or an attack

YAML_FIXES = (
    ("duplicate key", "keep one of the two lines"),
    (r"'\t'", "indent with blanks, not tabs"),
)
WORDS = {  # of pydantic's kinds of fault, where its own words are a programmer's
    "too_short": "at least one entry",
    "list_type": "a list, as [a, b]",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "dict_type": "a section of keys",
    "model_type": "a section of keys",
    "none_required": "null",
}

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
        try:
            reduce(lambda section, key: section.setdefault(key, {}), sections, values)[last] = value
        except (AttributeError, TypeError):
            raise ParamsError(f"{path}: {dotted} is no key", "see `resnets params`") from None
    return _checked(Params, values, Path(path))


def load_section(path: Path, schema: type[Other]) -> Other:
    """Read and check another YAML file, which one section describes; raises ParamsError."""
    return _checked(schema, _read(path)[0], path)


def _checked(schema: type[Other], values: dict[str, Any], path: Path) -> Other:
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise explain(error, values, path) from None


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the values of a YAML file, and the same with every value as it is written."""
    if not path.is_file():
        raise ParamsError(f"{path}: no such file", "run from the project's folder, or restore it")
    if path.stat().st_size > MAX_BYTES:
        raise ParamsError(f"{path}: larger than {MAX_BYTES} bytes", "this is no params file")
    try:
        text = path.read_text(encoding="utf-8")
        if "<<" in text or ("&" in text and "*" in text):
            _refuse_aliases(text, path)
        values = YAML(typ="safe", pure=True).load(text)
        plain = YAML(typ="base", pure=True).load(text)
    except ParamsError:
        raise
    except (ValueError, YAMLError, RecursionError) as error:
        mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
        line = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = error.problem if isinstance(error, MarkedYAMLError) else error
        fix = next(
            (fix for word, fix in YAML_FIXES if word in str(problem)), "correct the YAML there"
        )
        raise ParamsError(f"{path}{line}: {problem}", fix) from error
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
        is_merge = getattr(event, "value", "") == "<<"
        if is_merge or type(event).__name__ == "AliasEvent":
            used = "merge <<" if is_merge else f"alias *{event.anchor}"
            raise ParamsError(f"{path}: uses the YAML {used}", "write the value out")


def _key_of(fault: ErrorDetails, values: Any) -> tuple[str, ...]:  # noqa: ANN401
    """Return where in the file a fault is; pydantic adds the names of types, which go."""
    where: list[str] = []
    for part in fault["loc"]:
        with suppress(KeyError, IndexError, TypeError):
            values = values[part]
            where.append(str(part))
    if fault["type"] == "missing":
        where.append(str(fault["loc"][-1]))
    return tuple(where)


def explain(error: ValidationError, values: object, path: Path) -> ParamsError:
    """Word the first fault of a params file, as key, value and what is allowed."""
    # a misspelt key is reported as missing too; its own fault says more
    faults = sorted(error.errors(), key=lambda fault: fault["type"] != "unknown")
    fault, where = faults[0], _key_of(faults[0], values)
    key = ".".join(where) or "the file"
    start = f"{path}: {key}"
    match fault["type"]:
        case "unknown":
            name, known = str(fault["ctx"]["key"]), fault["ctx"]["known"]
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            what = f"{path}: unknown key {'.'.join([*where, name])}"
            return ParamsError(what, f"{hint}known: {', '.join(known)}")
        case "missing":
            return ParamsError(f"{start} is missing", f"add it to {path.name}")
        case "value_error":
            what = str(fault["ctx"]["error"])
            fix = getattr(fault["ctx"]["error"], "fix", f"change it in {path.name}")
            is_named = not where or what.startswith(key)
            return ParamsError(f"{path}: {what}" if is_named else f"{start}: {what}", fix)
        case "union_tag_invalid":
            tag = fault["ctx"]["discriminator"].strip("'")
            start, given = f"{start}.{tag}", fault["ctx"]["tag"]
            return ParamsError(f"{start} is {given!r}", f"allowed: {fault['ctx']['expected_tags']}")
    # a value that may be of several types has one fault for each
    same = [x for x in faults if _key_of(x, values) == where]
    words = [WORDS.get(x["type"], x["msg"].replace("Input should be ", "")) for x in same]
    given = "empty" if fault["input"] is None else repr(fault["input"])
    fix = " or ".join(dict.fromkeys(words))
    return ParamsError(f"{start} is {given}", f"allowed: {fix} (change {path.name})")
