"""Tell one computation from another: all that a result depends on, by name and value.

Nothing here is a list that somebody must keep: parameters are found by walking the schema, code by
following the imports. What is new counts; only a key that the schema marks as CHANGES_NO_RESULT
does not.
"""

import hashlib
import json
from functools import cache
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

from resnets.params.schema import Params
from resnets.params.section import CHANGES_NO_RESULT, Section

SRC = Path(__file__).resolve().parents[2]
MOST_SHOWN = 8  # changed keys in one message


def flatten(value: object, key: str = "") -> dict[str, Any]:
    """Return the values below a section by their dotted keys, all but those that are marked."""
    if isinstance(value, Section):
        schema = type(value).model_fields
        kept = [name for name in schema if CHANGES_NO_RESULT not in schema[name].metadata]
        inner = {name: getattr(value, name) for name in kept}
    elif isinstance(value, dict):
        inner = value
    else:
        return {key: value}
    prefix = f"{key}." if key else ""
    return {k: v for name in inner for k, v in flatten(inner[name], f"{prefix}{name}").items()}


def training_inputs(script: str, values: Params, name: str, weights: str) -> dict[str, Any]:
    """Return the parameters, the code and the initial weights of a training, the last by hash.

    `name` is that of a variant, or "backbone"; `script` is the file of the stage.
    """
    own: dict[str, Section] = {"backbone": values.backbone}
    if name != "backbone":
        variant = values.transfer[name]
        own = {"model": variant.model, f"transfer.{name}": variant}
    inputs = flatten(values) | flatten(own)
    return {**inputs, "initial_weights": weights, "code": code_digest(Path(script))}


def difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Name the keys that differ with both values, as `model.shortcut: pad -> none`; else ""."""
    keys = [key for key in {**after, **before} if before.get(key, ...) != after.get(key, ...)]
    words = [f"{key}: {_show(before, key)} -> {_show(after, key)}" for key in keys[:MOST_SHOWN]]
    more = [f"{len(keys) - MOST_SHOWN} more"] if len(keys) > MOST_SHOWN else []
    return ", ".join(words + more)


def _show(values: dict[str, Any], key: str) -> str:
    if key not in values:
        return "absent"
    return values[key] if isinstance(values[key], str) else json.dumps(values[key])


@cache
def code_digest(script: Path) -> str:
    """Return 16 hex digits that stand for all code of this package that a file can reach."""
    digest = hashlib.sha256()
    for file in sorted(closure(script.resolve())):
        digest.update(str(file.relative_to(SRC)).encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def closure(file: Path) -> set[Path]:
    """Return the files of this package that a file can import, itself included.

    Imports within functions count too, and of a.b.c the __init__ of a and a.b.
    """
    others = {path.name.partition(".")[0] for path in SRC.iterdir()} - {"resnets"}
    finder = ModuleFinder([str(SRC)], excludes=others)
    finder.run_script(str(file))  # reads it and runs nothing
    paths = (vars(module)["__file__"] for module in finder.modules.values())
    return {Path(path) for path in paths if path}  # what is built into Python has none
