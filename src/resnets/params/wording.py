"""Word what pydantic finds wrong with a file: the key, its value, what is allowed."""

import difflib
from pathlib import Path
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from resnets.system.errors import ParamsError


def _allowed(model: type[BaseModel], where: tuple[int | str, ...]) -> list[str]:
    """Return the keys that the section at this place may have, for "did you mean"."""
    sections: list[type[BaseModel]] = [model]
    for part in where:
        inner: list[type[BaseModel]] = []
        for section in sections:
            field = section.model_fields.get(str(part))
            inner += _models_in(field.annotation) if field else [section]  # a dict key: stay
        sections = inner
    return sorted({key for section in sections for key in section.model_fields})


def _models_in(annotation: object) -> list[type[BaseModel]]:
    """Return the section classes inside a type such as `dict[str, Split]` or a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _key_of(fault: ErrorDetails, values: object) -> tuple[str, ...]:
    """Return where in the file a fault is; pydantic adds the names of types, which go."""
    where: list[str] = []
    for part in fault["loc"]:
        if isinstance(values, dict) and part in values:  # noqa: SIM114  (for mypy)
            values = values[part]
        elif isinstance(values, list) and isinstance(part, int):
            values = values[part]
        else:
            continue
        where.append(str(part))
    if fault["type"] == "missing":
        where.append(str(fault["loc"][-1]))
    return tuple(where)


def explain(
    error: ValidationError, schema: type[BaseModel], values: object, path: Path
) -> ParamsError:
    """Word the first fault of a params file, as key, value and what is allowed."""
    # a misspelt key is reported as missing too; its own fault says more
    faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    fault, where = faults[0], _key_of(faults[0], values)
    key = ".".join(where) or "the file"
    start = f"{path}: {key}"
    match fault["type"]:
        case "extra_forbidden":
            allowed = _allowed(schema, where[:-1])
            close = difflib.get_close_matches(where[-1], allowed, 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            return ParamsError(f"{path}: unknown key {key}", f"{hint}known: {', '.join(allowed)}")
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
    words = ["at least one entry" if x["type"] == "too_short" else x["msg"] for x in same]
    fix = " or ".join(dict.fromkeys(word.replace("Input should be ", "") for word in words))
    return ParamsError(f"{start} is {fault['input']!r}", f"allowed: {fix} (change {path.name})")
