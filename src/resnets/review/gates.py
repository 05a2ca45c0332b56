"""Hold a revision to the rules of gates.yaml."""

from fnmatch import fnmatch
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from resnets.params.section import Section
from resnets.review.compare import METRICS, Comparison, ModelComparison
from resnets.review.revisions import Revision, flatten
from resnets.system.errors import ParamsError, ResNetsError


class GateError(ResNetsError):
    """Report a broken rule of gates.yaml."""

    exit_code = 1


class MetricRule(Section):
    """Forbid a metric to become significantly worse by more than `max_worse`, in any model."""

    name: str
    metric: Annotated[str, Field(pattern=f"^({'|'.join(METRICS)})$")]
    max_worse: Annotated[float, Field(ge=0)]


class NumberRule(Section):
    """Keep a number of the metrics files at head between two bounds."""

    name: str
    file: str  # may have wildcards
    key: str  # dotted
    min: float | None = None
    max: float | None = None


Rules = TypeAdapter(list[MetricRule | NumberRule])


def check_gates(
    base: Revision, head: Revision, comparison: Comparison
) -> list[tuple[str, list[str]]]:
    """Return each rule's name and how it is broken; an empty list where it holds.

    The rules are base's, if it has any, since a change may not choose what it is held to; the
    first rule is always there. What cannot be checked (a missing number, models that are not
    comparable) breaks a rule. Raises ParamsError for a gates.yaml that is no list of rules.
    """
    judge = base if "gates.yaml" in base.files else head
    try:
        rules = Rules.validate_python(judge.yaml("gates.yaml") or [])
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise ParamsError(
            f"gates.yaml at {judge.name}: {where}: {fault['msg']}",
            "a rule has name, metric, max_worse; or name, file, key, and min or max",
        ) from None
    stale = list(dict.fromkeys(line for why in head.stale.values() for line in why))
    faults = [(rule.name, _faults(rule, head, comparison.models)) for rule in rules]
    return [("every result belongs to its parameters and code", stale), *faults]


def _faults(
    rule: MetricRule | NumberRule, head: Revision, models: list[ModelComparison]
) -> list[str]:
    """Return the models that became worse, or the files whose number is missing or off limits."""
    faults = []
    if isinstance(rule, MetricRule):
        for model in models:
            found = model.differences.get(rule.metric)
            if found is None:
                faults.append(f"{model.name}: {rule.metric} is not comparable")
            elif model.verdict(rule.metric) == "worse" and abs(found.value) > rule.max_worse:
                faults.append(
                    f"{model.name}: {rule.metric} {found.base:.4f} -> {found.head:.4f} is worse "
                    f"by {abs(found.value):.4f}, allowed {rule.max_worse:g}"
                )
        return faults
    numbers = {f"metrics/{name}.json": record for name, record in head.metrics().items()}
    paths = [path for path in numbers if fnmatch(path, rule.file)]
    for path in paths:
        value = flatten(numbers[path]).get(rule.key)
        if not isinstance(value, int | float):
            faults.append(f"{path}: {rule.key} is missing")
        elif rule.max is not None and value > rule.max:
            faults.append(f"{path}: {rule.key} is {value:g}, allowed at most {rule.max:g}")
        elif rule.min is not None and value < rule.min:
            faults.append(f"{path}: {rule.key} is {value:g}, allowed at least {rule.min:g}")
    return faults if paths else [f"{rule.file}: no such file"]
