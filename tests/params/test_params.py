import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.utils.serialize import load_yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from ruamel.yaml import YAML

from resnets.params import load_params
from resnets.params.load import explain, print_params
from resnets.params.schema import Params
from resnets.params.training import Optimizer
from resnets.system.errors import ParamsError
from tests.copies import edit_params

ROOT = Path(__file__).parents[2]
PARAMS = ROOT / "params.yaml"


def leaves(values: object, where: tuple = ()) -> list[tuple]:
    """Return the path of every value that is not a section."""
    if isinstance(values, dict) and values:
        return [leaf for key, value in values.items() for leaf in leaves(value, (*where, key))]
    return [where]


DEFAULTS = YAML(typ="safe", pure=True).load(PARAMS.read_text())


def read() -> dict:
    return copy.deepcopy(DEFAULTS)


LEAVES = leaves(read())


def changed(tmp_path: Path, where: tuple, value: object, *, new_key: str | None = None) -> Path:
    """Write the default parameters with one value replaced, or one key renamed."""
    values = replaced(where, value)
    if new_key:
        section = at(values, where[:-1])
        section[new_key] = section.pop(where[-1])
    path = tmp_path / "params.yaml"
    with path.open("w") as file:
        YAML(typ="safe").dump(values, file)
    return path


def at(values: dict, where: tuple) -> object:
    for key in where:
        values = values[key]
    return values


def replaced(where: tuple, value: object) -> dict:
    """Return the default parameters with one value replaced."""
    values = read()
    at(values, where[:-1])[where[-1]] = value
    return values


def test_default_parameters_are_valid():
    values = load_params(PARAMS)
    assert values.transfer["frozen"].train == "head"
    assert values.tasks["target"].classes == ["Pullover", "Coat"]


@pytest.mark.parametrize("where", LEAVES, ids=lambda where: ".".join(map(str, where)))
def test_every_misspelt_key_is_named_with_what_was_meant(tmp_path, where):
    misspelt = f"{where[-1]}x"
    path = changed(tmp_path, where, None, new_key=misspelt)
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    assert caught.value.exit_code == 2
    assert ".".join([*where[:-1], misspelt]) in caught.value.what or where[-1] in caught.value.what


BAD = {"a mapping": {"x": 1}, "minus one": -1, "nan": float("nan"), "infinity": float("inf"),
       "a list": [[]], "a bool for a number": True, "an odd word": "\x00bad"}  # fmt: skip
FREE_TEXT = {"path", "input", "group_regex"}  # any word is allowed, or a later stage judges


@pytest.mark.parametrize("where", LEAVES, ids=lambda where: ".".join(map(str, where)))
def test_no_senseless_value_of_any_key_passes(where):
    for name, value in BAD.items():
        is_fine = isinstance(value, str) and where[-1] in FREE_TEXT
        is_bool_key = isinstance(value, bool) and isinstance(at(DEFAULTS, where), bool)
        if is_fine or is_bool_key:
            continue
        values = replaced(where, value)
        with pytest.raises(ValidationError) as caught:
            pytest.fail(f"{where} accepts {name}: {Params.model_validate(values)}")
        assert where[-1] in str(explain(caught.value, values, PARAMS)), name


def test_message_names_key_value_and_what_is_allowed(tmp_path):
    path = changed(tmp_path, ("transfer", "finetune", "optimizer", "name"), "adamm")
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    assert "transfer.finetune.optimizer.name is 'adamm'" in caught.value.what
    assert "'sgd', 'adam' or 'adamw'" in caught.value.fix


def test_unknown_key_comes_with_did_you_mean(tmp_path):
    path = changed(tmp_path, ("backbone", "batch_size"), 0, new_key="batchsize")
    with pytest.raises(ParamsError, match=r"unknown key backbone\.batchsize") as caught:
        load_params(path)
    assert "did you mean 'batch_size'?" in caught.value.fix


ADAM = {"name": "adam", "lr": 0.001}
STEP = {"name": "step", "gamma": 0.1}
BOXES = {"crop": "random_resized", "scale": [0.5, 1.0]}


@pytest.mark.parametrize(
    ("where", "value", "words"),
    [
        (("preprocess", "crop"), 32, "larger than data.resize"),
        (("preprocess", "mean"), [0.1, 0.2], "model.in_channels is 1"),
        (("tasks", "target", "num_classes"), 3, "2 classes are listed"),
        (("tasks", "target", "classes"), ["a", "a"], "listed twice"),
        (("split", "target", "val"), 0.9, "leave nothing to train on"),
        (("transfer", "finetune", "init"), "finetun", "allowed are random, backbone"),
        (("transfer", "finetune", "init"), "finetune", "allowed are random, backbone"),
        (("export", "variant"), "finetun", "allowed are best"),
        (("backbone", "schedule"), {"name": "cosine", "warmup_epochs": 99.0}, "but there are only"),
        (("training", "optimizer", "momentum"), 0.0, "nesterov needs a momentum"),
        (("transfer", "scratch", "optimizer"), ADAM | {"momentum": 0.9}, "belong to sgd"),
        (("repeat",), [0, 0], "listed twice"),
        (("model", "name"), "resnet19", "unknown network"),
        (("model", "stride_on"), "conv1x1", "no 1×1 convolution"),
        (("transfer", "scratch", "model"), {"name": "resnet51"}, "unknown network"),
        (("split",), {}, "but split has"),
        (("transfer", "scratch", "redraw_split"), 1, "for variants that start from one"),
        (("split", "source", "folds"), 5, "only split.target can have folds"),
        (("split", "target", "folds"), 1, "split.target.folds is 1"),
        (("backbone",), {"input": "artifacts/random"}, "backbone.input is artifacts/random: none"),
        (("transfer", "scratch", "model"), {"in_channels": 3}, "in_channels is not that of model"),
        (("backbone", "schedule"), {"name": "step"}, " backbone.schedule.epochs is missing"),
        (("backbone", "schedule"), STEP | {"epochs": [3, 2]}, "each be after the one before"),
        (("backbone", "schedule"), STEP | {"epochs": [2, 2]}, "each be after the one before"),
        (("backbone", "schedule"), STEP | {"epochs": []}, "backbone.schedule.epochs"),
        (("training", "augment"), BOXES | {"sides": []}, "training.augment.sides"),
        (("transfer", "finetune", "train"), ["layer4", "head"], "transfer.finetune.train is ['la"),
        (("transfer", "finetune", "train"), [], "transfer.finetune.train is []"),
        (("transfer", "lr0.1"), {}, "transfer.lr0.1: 'lr0.1' is no name"),
        (("tasks", "a b"), {"path": "a"}, "tasks.a b: 'a b' is no name"),
        (("tasks",), ["target"], "tasks is ['target']"),
        (("tasks",), "target", "tasks is 'target'"),
    ],
)
def test_contradictions_are_refused_with_their_reason(tmp_path, where, value, words):
    with pytest.raises(ParamsError) as caught:
        load_params(changed(tmp_path, where, value))
    assert words in caught.value.what


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"redraw_split": 1, "init": "scratch"}, "finetune.redraw_split contradicts split.target"),
        ({"select": "best"}, "transfer.finetune.select is 'best', but with split.target.folds"),
    ],
)
def test_folds_refuse_what_needs_a_validation_of_the_shipped_model(tmp_path, own, words):
    path = changed(tmp_path, ("split", "target", "folds"), 5)
    assert load_params(path).split["target"].folds == 5
    edit_params(path, {f"transfer.finetune.{key}": value for key, value in own.items()})
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    assert words in caught.value.what


def test_with_folds_the_target_cannot_teach_the_backbone(tmp_path):
    path = changed(tmp_path, ("split", "target", "folds"), 5)
    edit_params(path, {"backbone.input": "data/tasks/target/"})
    with pytest.raises(ParamsError, match=r"backbone\.input is .*, but with split\.target\.folds"):
        load_params(path)


def test_groups_that_can_train_are_those_of_the_variants_own_network(tmp_path):
    path = changed(tmp_path, ("transfer", "scratch", "train"), ["layer4", "head"])
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    assert caught.value.fix.endswith("stem, layer1, layer2, layer3, head")
    edit_params(path, {"transfer.scratch.model": {"name": "resnet18"}})
    assert load_params(path).transfer["scratch"].train == ["layer4", "head"]


def test_a_name_that_is_refused_comes_with_what_is_allowed(tmp_path):
    with pytest.raises(ParamsError) as caught:
        load_params(changed(tmp_path, ("transfer", "lr0.1"), {}))
    assert caught.value.fix.startswith("take at most 64 letters, digits, - and _")


def test_numbers_are_read_as_dvc_reads_them(tmp_path):
    text = PARAMS.read_text().replace("lr: 0.1}", "lr: 1e-3}", 1)
    path = tmp_path / "params.yaml"
    path.write_text(text)
    assert load_params(path).backbone.optimizer.lr == 0.001
    assert load_yaml(str(path))["backbone"]["optimizer"]["lr"] == 0.001


@pytest.mark.parametrize(
    "name", ["no", "on", "0123", "1e3", "12:30", "null", "true", "1_000", "0x1F", "~"]
)
def test_names_that_look_like_values_stay_words(tmp_path, name):
    path = tmp_path / "params.yaml"
    text = PARAMS.read_text().replace("classes: [Pullover, Coat]", f"classes: [{name}, Coat]")
    path.write_text(text.replace("exclude: [] ", f"exclude: [{name}] "))
    task = load_params(path).tasks["target"]
    assert (task.classes, task.exclude) == ([name, "Coat"], [name])


def test_a_task_that_is_called_by_a_number_is_refused(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS.read_text().replace("  source:", "  01:", 1))
    with pytest.raises(ParamsError, match=r"tasks\.1 is 1") as caught:
        load_params(path)
    assert "text" in caught.value.fix


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 0\nseed: 1\n", "line 2"),
        ("seed: [0\n", "line 2"),
        ("\tseed: 0\n", "line 1"),
        ("- a\n", "not a mapping"),
        ("", "not a mapping"),
        ("a: &x [1]\nb: *x\n", "alias"),
        ("seed: !!python/object:os.system [x]\n", "line 1"),
        ("seed: 2024-13-45\n", "month must be in 1..12"),
    ],
)
def test_broken_yaml_is_refused_with_its_place(tmp_path, text, words):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    assert words in caught.value.what


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ParamsError, match="no such file"):
        load_params(tmp_path / "params.yaml")


@given(st.binary(max_size=300))
def test_any_bytes_give_parameters_or_our_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(ParamsError):
        load_params(path)


def test_variant_changes_only_what_it_names():
    values = load_params(PARAMS).model_dump()
    values["transfer"]["scratch"]["model"] = {"name": "resnet32", "shortcut": "none"}
    params = Params.model_validate(values)
    network = params.transfer["scratch"].model
    assert (network.name, network.shortcut, network.stem) == ("resnet32", "none", "small")
    assert params.transfer["finetune"].model == params.model


def test_what_a_training_does_not_name_it_takes_from_the_shared_section():
    values = read()
    values["training"] |= {"schedule": {"name": "cosine", "warmup_epochs": 2.0}, "epochs": 30}
    values["training"]["optimizer"]["weight_decay"] = 0.25
    values["transfer"] = {
        "plain": {"init": "random", "train": "all"},
        "own": {"init": "random", "train": "all", "epochs": 3, "optimizer": {"lr": 0.5}},
        "other": {"init": "random", "train": "all", "optimizer": ADAM,
                  "schedule": {"name": "constant"}, "augment": {"flip": False}},
    }  # fmt: skip
    params = Params.model_validate(values)
    plain, own, other = params.transfer.values()
    assert (plain.epochs, own.epochs) == (30, 3)
    assert plain.model_dump(include={*params.training.model_dump()}) == params.training.model_dump()
    assert own.optimizer == plain.optimizer.model_copy(update={"lr": 0.5})
    # another kind inherits nothing: neither the weight decay nor the warm-up
    assert other.optimizer == Optimizer.model_validate(ADAM)
    assert (other.optimizer.weight_decay, other.schedule.warmup_epochs) == (0.0005, 0)
    assert other.augment == params.training.augment.model_copy(update={"flip": False})


def test_a_kind_that_is_named_is_that_of_a_shared_section_by_default():
    values = read()
    values["training"]["optimizer"] = {"lr": 0.1, "momentum": 0.5}
    values["transfer"]["scratch"]["optimizer"] = {"name": "sgd", "lr": 0.05}
    values["transfer"]["finetune"]["optimizer"] = ADAM
    transfer = Params.model_validate(values).transfer
    assert transfer["scratch"].optimizer.momentum == 0.5
    assert transfer["finetune"].optimizer.momentum == 0


def test_a_network_of_another_name_has_its_own_form():
    values = read() | {"model": {"name": "resnet18", "in_channels": 1}}
    assert Params.model_validate(values).model.stem == "imagenet"
    assert load_params(PARAMS).model.stem == "small"


OTHER_RESULTS = {file.stem for file in (ROOT / "metrics").glob("*.json")} - {*read()["transfer"]}


@pytest.mark.parametrize(
    "name", [*sorted(OTHER_RESULTS), "candidates", "curves", "best", "random", "Export", "DATA_x"]
)
def test_no_variant_takes_the_name_of_another_result(name):
    values = read()
    values["transfer"][name] = values["transfer"]["scratch"]
    with pytest.raises(
        ValidationError, match=f"called '{name}': its files would replace"
    ) as caught:
        Params.model_validate(values)
    word = re.sub("_.*", "_*", name.lower())
    assert word in explain(caught.value, values, PARAMS).fix


def test_variants_whose_names_differ_in_case_only_are_refused():
    values = read()
    values["transfer"]["Frozen"] = values["transfer"]["frozen"]
    with pytest.raises(ValidationError, match="called 'frozen': its files would replace others"):
        Params.model_validate(values)


@pytest.mark.parametrize("given", ["artifacts/random", "data/weights/resnet18-f37072fd.pth"])
def test_backbone_that_is_not_trained_is_named_and_nothing_else(given):
    values = read() | {"backbone": {"input": given}}
    values["transfer"] = {"scratch": values["transfer"]["scratch"]}
    assert Params.model_validate(values).backbone.input == given


def test_a_stage_stops_before_any_work_with_two_lines_and_code_2(tmp_path):
    changed(tmp_path, ("backbone", "epochs"), 0)
    command = [sys.executable, "-m", "resnets.stages.backbone", "--out", "o", "--history", "h"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].startswith("error: params.yaml: backbone.epochs is 0")
    assert done.stderr.splitlines()[1].startswith("fix: ")
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["params.yaml"]


def test_resolved_values_are_printed_as_an_experiment_would_set_them(capsys):
    print_params(PARAMS, "transfer.finetune")
    printed = capsys.readouterr().out
    assert "transfer.finetune.optimizer.momentum=0.9\n" in printed  # shared
    assert "transfer.finetune.views=1\n" in printed  # by default
    with pytest.raises(ParamsError, match=r"transfer\.fine is no key"):
        print_params(PARAMS, "transfer.fine")


@pytest.mark.parametrize(
    ("old", "new", "what", "fix"),
    [
        ("seed: 0", "seed: yes", "seed is 'yes'", "a whole number"),
        ("seed: 0", "seed:", "seed is empty", "a whole number"),
        ("seed: 0", "seed: 0\nseed: 1", "duplicate key", "keep one of the two lines"),
        ("repeat: [", "repeat: 5 # [", "repeat is 5", "a list, as [a, b]"),
        ("\n  target:", "\n\ttarget:", "found character", "indent with blanks, not tabs"),
        ("tasks:", "tasks: {<<: {a: {path: x}, b: {path: y}}}\nx:", "uses the YAML merge", "write"),
    ],
)
def test_faults_are_worded_for_who_knows_no_python(tmp_path, old, new, what, fix):
    file, text = tmp_path / "params.yaml", PARAMS.read_text(encoding="utf-8")
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ParamsError, match=what) as caught:
        load_params(file)
    assert fix in caught.value.fix


def test_a_pair_with_one_number_lacks_the_other(tmp_path):
    box = {"crop": "random_resized", "scale": [0.5]}
    with pytest.raises(ParamsError, match=r"training\.augment\.scale\.1 is missing"):
        load_params(PARAMS, {"training.augment": box})


def test_a_key_inside_of_a_number_is_no_key():
    with pytest.raises(ParamsError, match=r"training\.epochs\.x is no key"):
        load_params(PARAMS, {"training.epochs.x": 1})
