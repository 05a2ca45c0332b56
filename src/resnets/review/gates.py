"""Hold a revision to the rules of gates.yaml."""

import math
from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Annotated

from dvc.utils.flatten import flatten
from pydantic import Field, TypeAdapter, ValidationError

from resnets.evaluation.predictions import DETAILS
from resnets.params.section import Section
from resnets.review.compare import METRICS, ModelComparison
from resnets.review.revisions import Record, Revision
from resnets.system.errors import ParamsError, ResNetsError


class GateError(ResNetsError):
    """Report a broken rule of gates.yaml."""

    exit_code = 1


class MetricRule(Section):
    """Forbid a metric to become significantly worse by more than `max_worse`, in any model."""

    name: str
    metric: Annotated[str, Field(pattern=f"^({'|'.join(METRICS)})$")]
    max_worse: Annotated[float, Field(ge=0)]

    def faults(self, models: list[ModelComparison]) -> list[str]:
        """Return the models that became worse, or are not comparable."""
        faults = []
        for model in models:
            difference = model.differences.get(self.metric)
            if difference is None:
                faults.append(f"{model.name}: {self.metric} is not comparable")
            elif model.verdict(self.metric) == "worse" and abs(difference.value) > self.max_worse:
                faults.append(
                    f"{model.name}: {self.metric} {difference.base:.4f} -> {difference.head:.4f} "
                    f"is worse by {abs(difference.value):.4f}, allowed {self.max_worse:g}"
                )
        return faults


class NumberRule(Section):
    """Keep a number of the metrics or details at head between two bounds."""

    name: str
    file: str  # may have wildcards
    key: str  # dotted
    min: float = -math.inf
    max: float = math.inf

    def faults(self, files: Mapping[str, Record]) -> list[str]:
        """Return the files whose number is missing or off limits."""
        paths = [path for path in files if fnmatch(path, self.file)]
        faults = [] if paths else [f"{self.file}: no such file"]
        for path in paths:
            value = flatten(files[path]).get(self.key)
            if not isinstance(value, int | float):
                faults.append(f"{path}: {self.key} is missing")
            elif value > self.max:
                faults.append(f"{path}: {self.key} is {value:g}, allowed at most {self.max:g}")
            elif not value >= self.min:
                faults.append(f"{path}: {self.key} is {value:g}, allowed at least {self.min:g}")
        return faults


Faults = list[tuple[str, list[str]]]
Rules = TypeAdapter(list[MetricRule | NumberRule])


def check_gates(models: list[ModelComparison], base: Revision, head: Revision) -> Faults:
    """Return each rule's name and how it is broken; an empty list where it holds.

    The rules are base's, if it has any, since a change may not choose what it is held to; the
    first rule is always there. What cannot be checked (a missing number, models that are not
    comparable) breaks a rule. Raises ParamsError for a gates.yaml that is no list of rules.
    """
    judge = base if "gates.yaml" in base.files else head
    try:
        rules = Rules.validate_python(judge.files.get("gates.yaml") or [])
    except ValidationError as error:
        fault = error.errors()[0]
        what = f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
        fix = "a rule has name, metric, max_worse; or name, file, key, and min or max"
        raise ParamsError(f"gates.yaml at {judge.name}: {what}", fix) from None
    stale = list(dict.fromkeys(line for why in head.stale.values() for line in why))
    faults = [("every result belongs to its parameters and code", stale)]
    files = {f"metrics/{name}.json": record for name, record in head.metrics.items()}
    files |= {f"plots/{name}/{DETAILS}": record for name, record in head.models.items()}
    for rule in rules:
        if isinstance(rule, MetricRule):
            faults.append((rule.name, rule.faults(models)))
        else:
            faults.append((rule.name, rule.faults(files)))
    return faults
