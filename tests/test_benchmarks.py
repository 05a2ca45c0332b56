"""Keep the scripts beside the package in step with it; what they measure takes too long here."""

import re
import runpy
import sys
from datetime import timedelta
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import typer
from dvc.utils.flatten import flatten
from ruamel.yaml import YAML

from resnets.params import load_params

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import calibration
import cost_curves
import learning_curve

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("size", [32, 128])
def test_parameters_of_the_cost_curves_can_be_loaded(tmp_path, size):
    cost_curves.write_params(tmp_path / "params.yaml", size)
    values = load_params(tmp_path / "params.yaml")
    assert (values.backbone.epochs, values.data.resize) == (1, size)


@pytest.mark.parametrize("line", cost_curves.STAGES.values())
def test_stages_take_the_options_of_the_cost_curves(line):
    name, *words = line.split()
    app = typer.Typer()
    app.command()(import_module(f"resnets.stages.{name}").main)
    typer.main.get_command(app).make_context(name, words)  # raises for what is missing or unknown


def test_verdicts_on_simulated_runs_are_those_of_a_comparison():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    base = np.where(rng.random((3, 200)) < 0.6, labels, (labels + 1) % 3)
    for head, wanted in ((base, (False, False, False)), (labels[None].repeat(3, 0), (True,) * 3)):
        accuracy, verdicts = calibration.verdicts(labels, base, head, None)
        assert accuracy.head == (head == labels).mean()
        assert tuple(map(bool, verdicts)) == wanted


def test_what_the_learning_curve_sets_stands_in_the_parameters():
    """DVC sets no key of params.yaml that is not there."""
    known = flatten(YAML(typ="safe", pure=True).load(ROOT / "params.yaml"))
    for count in learning_curve.COUNTS:
        options = learning_curve.changes(count, quick=True)
        keys = {option.partition("=")[0] for option in options[1::2]}
        assert options[::2] == ["-S"] * len(keys)
        assert keys <= known.keys()


def test_small_changes_looks_for_features_where_the_training_keeps_them():
    def text_in(file: str, pattern: str) -> str:
        (found,) = re.findall(pattern, (ROOT / file).read_text(encoding="utf-8"))
        return found

    leaves = text_in("benchmarks/small_changes.py", r'leaves="(\.state/[^"]+)"')
    folder = text_in("src/resnets/stages/transfer.py", r'Path\(f"(\.state/[^"]+)"\)')
    name = text_in("src/resnets/training/features.py", r'self\.folder / f"([^"]+)"')
    assert fnmatch(f"{folder}/{name}".format(variant="frozen", name="plain"), leaves)


def test_the_time_of_a_recipe_is_what_the_training_printed():
    ended = runpy.run_path(str(ROOT / "recipes/run.py"))["ENDED"]
    for word, seconds in (("finetune 10 fold 3", 93_784), ("net 7", 10**6), ("backbone 0", 61)):
        line = f"{word}: epoch 7 with val acc 0.9000, {timedelta(seconds=seconds)} in all"
        [(name, *parts)] = ended.findall(line)
        days, hours, minutes, rest = (int(part or 0) for part in parts)
        spent = timedelta(days=days, hours=hours, minutes=minutes, seconds=rest)
        assert (name, spent.total_seconds()) == (word.split()[0], seconds)
