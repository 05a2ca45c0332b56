"""Change every key of params.yaml, one at a time, and see which stopped training goes on."""

import contextlib
import inspect
import shutil
import signal
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from ruamel.yaml import YAML

from resnets.data.split import split_task
from resnets.params import load_params
from resnets.params.schema import Params
from resnets.params.section import Section
from resnets.stages import transfer
from resnets.system.errors import StoppedBySignal
from resnets.training.identity import SRC, closure, difference, training_inputs
from tests.copies import write_params, write_photos
from tests.data.photos import prepare
from tests.training.test_state import interrupt_after_steps

ROOT = Path(__file__).parents[2]
BASE = load_params(ROOT / "params.yaml").model_dump()
for variant in BASE["transfer"].values():
    variant["model"] = {}  # all take that of `model`
NAMES = {"tasks": "target", "split": "target", "transfer": "scratch"}  # what stands for `*`

# the keys, or whole sections, that stop no training from going on, each with its reason
WITHOUT_INFLUENCE = {
    "seed": "a training counts its own, which is seed plus an entry of repeat",
    "repeat": "each entry has a state of its own",
    "runtime.checkpoint_steps": "says how often a state is saved, not which",
    "checks": "the images count by their bytes",
    "tasks": "the images of train and val count by names, labels and bytes",
    "split": "the images of train and val count by names, labels and bytes",
    "training": "a training counts its own section, which has all values",
    "backbone.input": "its images count by their bytes, its weights by their hash",
    "export": "comes after training",
}
# how a key is changed where the rule of `other` has no answer: its value, what is changed along
# with it, and what is set before, so that the key exists and every value is allowed
COSINE = {"name": "cosine", "warmup_epochs": 0.0}
STEP = {"name": "step", "warmup_epochs": 0.0, "epochs": 2, "gamma": 0.1}
RANDOM = {"crop": "random_resized", "scale": [0.5, 1.0], "ratio": [0.75, 1.25], "flip": True}
TRAINING: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "optimizer.name": ("adam", {}, {"optimizer.momentum": 0.0, "optimizer.nesterov": False}),
    "optimizer.clip_norm": (1.0, {}, {}),
    "ema_decay": (0.9, {}, {}),
    "schedule.name": ("constant", {}, {"schedule": COSINE}),
    "schedule.warmup_epochs": (1.5, {}, {"schedule": COSINE}),
    "schedule.epochs": (3, {}, {"schedule": STEP}),
    "schedule.gamma": (0.5, {}, {"schedule": STEP}),
    "augment.crop": ("center", {"augment": {"crop": "center", "flip": True}}, {}),
    "augment.scale": ([0.4, 1.0], {}, {"augment": RANDOM}),
    "augment.ratio": ([0.5, 1.25], {}, {"augment": RANDOM}),
    "augment.sides": ([20, 28], {}, {"augment": RANDOM}),
}
BOTTLENECKS = {"model.name": "resnet50", "model.shortcut": "projection"}
RGB = {"preprocess.mean": [0.5] * 3, "preprocess.std": [0.5] * 3}
CHANGES = {
    **{f"backbone.{key}": change for key, change in TRAINING.items()},
    **{f"training.{key}": change for key, change in TRAINING.items()},
    **{f"transfer.*.{key}": change for key, change in TRAINING.items()},
    "repeat": ([0, 1], {}, {}),
    "runtime.threads": (3, {}, {}),
    "model.name": ("resnet32", {}, {}),
    "model.in_channels": (3, RGB, {}),
    "model.stride_on": ("conv1x1", {}, BOTTLENECKS),
    "transfer.*.model.stride_on": ("conv1x1", {}, BOTTLENECKS),
    "transfer.*.model.name": ("resnet32", {}, {}),
    "transfer.*.model.init": ("xavier", {}, {}),
    "transfer.*.model.conv_bias": (True, {}, {}),
    "transfer.*.model.zero_init_residual": (True, {}, {}),
    "transfer.*.init": ("backbone", {}, {}),
    "transfer.*.train": ("head", {}, {}),
    "transfer.*.train.gradual": (2, {}, {"train": {"gradual": 1}}),
    "transfer.*.redraw_split": (3, {}, {"init": "finetune"}),
    "preprocess.crop": (24, {}, {}),
    "preprocess.mean": ([0.5], {}, {}),
    "preprocess.std": ([0.5], {}, {}),
    "tasks.*.path": ("photos.zip", {}, {}),
    "tasks.*.classes": (["Coat", "Dress"], {}, {}),
    "tasks.*.num_classes": (3, {"tasks.*.classes": None}, {}),
    "tasks.*.exclude": (["Coat/1.png"], {}, {}),
    "split.*.train": (50, {}, {}),
    "split.*.folds": (5, {}, {}),
    "split.*.group_regex": ("a|b", {}, {}),
    "backbone.input": ("data/tasks/target", {}, {}),
    "export.variant": ("frozen", {}, {}),
}


def parts(annotation: Any) -> Iterator[tuple[str, Any]]:
    """Yield the types that a field can have; `.*` stands for the keys of a mapping of sections."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is dict:
        yield from ((f".*{rest}", inner) for rest, inner in parts(arguments[1]))
    elif origin is Annotated:
        yield from parts(arguments[0])
    elif origin in (Union, UnionType):
        for argument in arguments:
            yield from parts(argument)
    else:
        yield "", annotation


def keys(section: type[Section], where: str = "") -> dict[str, Any]:
    """Return the dotted keys of a schema with the last annotation that has them."""
    known: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        for rest, kind in parts(field.annotation):
            if inspect.isclass(kind) and issubclass(kind, Section):
                known |= keys(kind, f"{where}{name}{rest}.")
            elif kind is not type(None):
                known[f"{where}{name}"] = kind
    return known


KEYS = keys(Params)
del KEYS["transfer.*.model.in_channels"]  # may not differ from that of `model`


def place(values: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """Return the section that holds a key, and the key's last part."""
    *sections, last = key.split(".")
    for number, name in enumerate(sections):
        values = values[NAMES[sections[number - 1]] if name == "*" else name]
    return values, last


def edited(values: dict[str, Any], edits: dict[str, Any], key: str) -> dict[str, Any]:
    """Return a copy with other values; keys that are no top-level ones are beside `key`."""
    values = deepcopy(values)
    for name, value in edits.items():
        is_whole = name.split(".")[0] in Params.model_fields
        training = key.split(".")[0] + (".*" if key.startswith("transfer") else "")
        section, last = place(values, name if is_whole else f"{training}.{name}")
        section[last] = value
    return values


def other(value: Any, kind: Any) -> Any:
    """Return another value that a key may have, by its type."""
    if get_origin(kind) is Literal:
        return next(choice for choice in get_args(kind) if choice != value)
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return value * 0.9 or 0.1
    raise AssertionError(f"a new kind of key: say in CHANGES how {value!r} is changed")


def change(key: str) -> tuple[Params, Params]:
    """Return parameters that differ in one key, and in what must change along with it."""
    value, along, before = CHANGES.get(key, (..., {}, {}))
    base = edited(BASE, before, key)
    section, last = place(base, key)
    value = other(section.get(last), KEYS[key]) if value is ... else value
    after = edited(base, {key: value, **along}, key)
    return Params.model_validate(base), Params.model_validate(after)


def bound_to(values: Params, name: str) -> dict[str, Any]:
    return training_inputs(transfer.__file__, values, name, "a hash")


def test_the_tables_name_no_key_that_does_not_exist():
    sections = {".".join(key.split(".")[:depth]) for key in KEYS for depth in range(1, 6)}
    assert not WITHOUT_INFLUENCE.keys() - sections
    assert not CHANGES.keys() - KEYS.keys()


@pytest.mark.parametrize("key", KEYS)
def test_a_changed_key_stops_exactly_the_trainings_that_depend_on_it(key):
    before, after = change(key)
    trainings = ["backbone", "scratch", "finetune"]
    stopped = {"backbone": ["backbone"], "transfer": ["scratch"]}.get(key.split(".")[0], trainings)
    if any(f"{key}.".startswith(f"{known}.") for known in WITHOUT_INFLUENCE):
        stopped = []
    shown = key.replace("transfer.*.model", "model").replace("*", "scratch")
    for name in trainings:
        reason = difference(bound_to(before, name), bound_to(after, name))
        assert bool(reason) == (f"{shown}: " in reason) == (name in stopped), (name, reason)


def test_a_training_is_bound_to_all_code_that_it_can_reach_and_to_no_other():
    reached = {str(file.relative_to(SRC / "resnets")) for file in closure(Path(transfer.__file__))}
    needed = {"params/architecture.py", "system/runtime.py", "tasks/task.py", "models/resnet.py"}
    assert needed | {"training/loop.py", "stages/transfer.py", "__init__.py"} <= reached
    assert not {"cli.py", "review/compare.py", "predict/run.py", "stages/backbone.py"} & reached


# ---- the stage itself, stopped after three of its four steps ------------------------------------


def run_stage(folder: Path) -> bytes:
    """Train the variant `scratch` in this process; return its bundle and learning curve."""
    out, history = folder / "artifacts/scratch", folder / "history.csv"
    transfer.main("scratch", folder / "task", folder / "artifacts/random", out, history)
    return (out / "model.safetensors").read_bytes() + history.read_bytes()


def edit_params(file: Path, edits: dict[str, Any]) -> None:
    values = YAML(typ="safe", pure=True).load(file.read_text())
    with file.open("w") as target:
        YAML(typ="safe", pure=True).dump(edited(values, edits, "transfer.*."), target)


def make_task(folder: Path, **options: Any) -> None:
    """Pack and split the photos."""
    values = load_params(folder / "params.yaml")
    prepare(folder / "photos.zip", folder / "task", **{**values.data.model_dump(), **options})
    split_task(folder / "task", values.split["target"])


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """Return a folder with a small task and the state of the variant `scratch` on it."""
    folder = tmp_path_factory.mktemp("stopped")
    write_photos(folder / "photos.zip", per_class=8)
    write_params(folder / "params.yaml")
    small = {"split.*.train": 4, "split.*.val": 2, "split.*.test": 2, "repeat": [0]}
    runtime = {"threads": 1, "precision": "fp32", "checkpoint_steps": 2}
    runtime = {f"runtime.{key}": value for key, value in runtime.items()}
    edit_params(folder / "params.yaml", small | runtime)
    make_task(folder)
    with contextlib.chdir(folder), pytest.raises(StoppedBySignal):
        interrupt_after_steps(3, signal.SIGTERM, lambda: run_stage(folder))
    return folder


@pytest.fixture
def project(stopped, tmp_path, monkeypatch) -> Path:
    """Return a copy of the folder, in which the test runs."""
    shutil.copytree(stopped, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def test_a_stopped_stage_has_written_the_epochs_so_far_as_they_are_in_the_end(project):
    so_far = (project / "history.csv").read_text()
    assert [line[:4] for line in so_far.splitlines()] == ["repe", "0,1,"]
    (project / "history.csv").unlink()  # as DVC does before it runs the stage
    run_stage(project)
    whole = (project / "history.csv").read_text()
    assert whole.startswith(so_far)
    assert [line[:4] for line in whole.splitlines()] == ["repe", "0,1,", "0,2,"]


FRESH = {
    "model.shortcut: pad -> none": {"model.shortcut": "none"},
    "model.init: kaiming -> xavier": {"model.init": "xavier"},
    "model.name: resnet8 -> resnet14": {"model.name": "resnet14"},
    "model.shortcut: pad -> projection": {"transfer.*.model": {"shortcut": "projection"}},
    "transfer.scratch.optimizer.lr: 0.02 -> 0.5": {"optimizer.lr": 0.5},
    "runtime.precision: fp32 -> bf16": {"runtime.precision": "bf16"},
}


@pytest.mark.parametrize("reason", FRESH)
def test_a_changed_stage_starts_afresh_says_why_and_gives_what_a_first_run_gives(
    project, capsys, reason
):
    edit_params(project / "params.yaml", FRESH[reason])
    resumed = run_stage(project)
    assert f"scratch 0: starting fresh ({reason})" in capsys.readouterr().out
    shutil.rmtree(project / ".state")
    assert run_stage(project) == resumed


CONTINUED = [
    {},
    {"runtime.checkpoint_steps": 1},
    {"runtime.device": "cpu"},
    {"transfer.*.model": {"name": "resnet8"}},
]


@pytest.mark.parametrize("edits", CONTINUED, ids=str)
def test_a_change_without_influence_continues_to_the_same_bytes(project, capsys, edits):
    edit_params(project / "params.yaml", edits)
    resumed = run_stage(project)
    assert "scratch 0: continuing at epoch 2, batch 1" in capsys.readouterr().out
    shutil.rmtree(project / ".state")
    assert run_stage(project) == resumed


def test_a_task_that_was_packed_in_another_way_starts_afresh(project, capsys):
    """The decoded pixels are the same, as with another Pillow; the packed ones are not."""
    shutil.rmtree("task")
    make_task(project, resize=13)
    run_stage(project)
    assert "starting fresh (images of train: " in capsys.readouterr().out
