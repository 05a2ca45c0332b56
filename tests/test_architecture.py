"""Hold the design: who may import whom, and that dvc.yaml tells the truth about the code."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from dvc.repo import Repo

from resnets.params.schema import Params
from resnets.training.identity import SRC
from resnets.training.identity import closure as closure_by_bytecode

ROOT = SRC.parent
PACKAGE = SRC / "resnets"
STAGES = sorted(path.stem for path in (PACKAGE / "stages").glob("*.py") if path.stem != "__init__")
# the floors, from the top down; a module imports from its own package or from a floor below
FLOORS = [
    {"stages", "cli", "mend"},
    {"serve"},
    {"predict", "report", "review", "setup", "sweep"},
    {"export"},
    {"training", "evaluation", "data"},
    {"models"},
    {"tasks"},
    {"params"},
    {"system"},
]
NO_TORCH = ["stages/prepare", "stages/split", "stages/leaderboard", "data/check", "data/fetch"]
# read by training, and no result depends on it: tests/training show that
WITHOUT_INFLUENCE = {"runtime.checkpoint_steps"}
# what checks, scores, shows and ships changes no model
# the sections that give a training what it does not name itself
INHERITED = {"backbone": {"training"}, "transfer": {"training", "model"}}
NEVER_TRAINS = {
    "cli",
    "mend",
    "data",
    "evaluation",
    "export",
    "predict",
    "report",
    "review",
    "serve",
    "setup",
    "sweep",
}
BANNED_NAMES = {"utils", "helpers", "common", "base", "misc"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@cache
def imports_of(file: Path) -> frozenset[str]:
    """Return the modules, of any package, that a file imports when it runs."""
    names: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(file.read_bytes())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def file_of(module: str) -> Path | None:
    path = SRC / Path(*module.split("."))
    files = (path.with_suffix(".py"), path / "__init__.py")
    return next((f for f in files if module.startswith("resnets") and f.is_file()), None)


def closure(file: Path) -> set[Path]:
    """Return the files of this package that a file can import, itself included, by its syntax."""
    reached: set[Path] = set()
    waiting = [file]
    while waiting:
        current = waiting.pop()
        if current not in reached:
            reached.add(current)
            for target in filter(None, map(file_of, imports_of(current))):
                packages = target.parents[: len(target.relative_to(SRC).parts) - 1]
                waiting += [target, *(package / "__init__.py" for package in packages)]
    return reached


@pytest.mark.parametrize("script", ["stages/transfer", "stages/report", "training/features"])
def test_what_a_state_counts_as_its_code_is_all_that_the_syntax_reaches(script):
    file = PACKAGE / f"{script}.py"
    assert closure_by_bytecode(file) == closure(file)


def floor_of(module: str) -> int:
    """Return the number of a module's floor; fails for a module that the plan does not know."""
    part = module.split(".")[1]
    (floor,) = [depth for depth, names in enumerate(FLOORS) if part in names]
    return floor


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("file", modules(), ids=name_of)
def test_imports_go_down_only(file):
    name = name_of(file)
    if name == "resnets":
        return
    package = name.split(".")[1]
    for module in imports_of(file):
        if module.startswith("resnets.") and module.split(".")[1] != package:
            assert floor_of(module) > floor_of(name), f"{name} imports {module}"


def test_nobody_imports_a_stage():
    for file in modules():
        assert not [m for m in imports_of(file) if m.startswith("resnets.stages.")], file


def test_only_one_module_reads_the_parameters():
    readers = [name_of(file) for file in modules() if "ruamel.yaml" in imports_of(file)]
    others = {"resnets.review.revisions", "resnets.review.gates"}  # of other commits, of gates.yaml
    others |= {"resnets.predict.run"}  # of dvc.lock
    assert set(readers) <= {"resnets.params.load", *others}


def test_no_drawer_modules():
    assert not [f for f in modules() if f.stem in BANNED_NAMES]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_script_is_small(stage):
    assert len((PACKAGE / f"stages/{stage}.py").read_text().splitlines()) <= 75


@pytest.mark.parametrize("file", modules(), ids=name_of)
def test_functions_fit_on_a_screen(file):
    nodes = ast.walk(ast.parse(file.read_text()))
    functions = [n for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert not [n.name for n in functions if (n.end_lineno or 0) - n.lineno >= 50]


@pytest.mark.parametrize("script", NO_TORCH)
def test_what_needs_no_torch_cannot_reach_it(script):
    # these import torch in functions that the scripts do not call
    late = {PACKAGE / "system/runtime.py", PACKAGE / "models/__init__.py"}
    reached = closure(PACKAGE / f"{script}.py") - late - {PACKAGE / "models/resnet.py"}
    imported = {module.split(".")[0] for file in reached for module in imports_of(file)}
    assert not {"torch", "torchvision"} & imported


COMMANDS = ("summary", "check", "import-check", "fetch", "sweep", "compare", "table", "predict")
COMMANDS += ("serve",)
HELPS = [f"resnets.stages.{stage}" for stage in STAGES] + [f"resnets.cli {c}" for c in COMMANDS]


@pytest.mark.parametrize("command", HELPS)
def test_help_has_an_example_and_loads_no_heavy_package(command):
    line = [sys.executable, "-X", "importtime", "-m", *command.split(), "--help"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert "example" in done.stdout.lower()
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "typer" in loaded
    assert not {"torch", "pandas", "sklearn", "scipy", "matplotlib", "onnx", "numpy"} & loaded


def is_quick(test: Path) -> bool:
    """Tell whether a file of tests has some that `make test` runs."""
    body = ast.parse(test.read_text()).body
    tests = [x for x in body if isinstance(x, ast.FunctionDef) and x.name.startswith("test_")]
    slow = [test for test in tests if "mark.slow" in "".join(map(ast.unparse, test.decorator_list))]
    return "pytestmark = pytest.mark.slow" not in map(ast.unparse, body) and len(slow) < len(tests)


def test_the_quick_tests_use_every_module():
    """A stage must be imported by a test; what it reaches counts only where a test imports that."""
    tests = set((ROOT / "tests").rglob("test_*.py"))
    waiting = {test for test in tests if is_quick(test)}
    assert 0 < len(waiting) < len(tests)
    imported, known = set(), set(waiting)
    while waiting:
        files = {ROOT.joinpath(*m.split(".")).with_suffix(".py") for m in imports_of(waiting.pop())}
        waiting |= {file for file in files - known if file.is_file()}  # what the tests share
        known |= files
        imported |= {SRC / file.relative_to(ROOT) for file in files}
    top = {file for file in imported if file.parent.name == "stages" or file.stem == "cli"}
    used = top.union(*(closure(file) for file in imported - top if file.is_file()))
    assert not sorted(name_of(f) for f in modules() if f.stem != "__init__" and f not in used)


# ---- dvc.yaml ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline() -> dict[str, list]:
    """Return the stages as DVC itself resolves them, by the name of their script."""
    stages: dict[str, list] = {}
    for stage in Repo(str(ROOT)).index.stages:
        if stage.cmd:
            stages.setdefault(stage.cmd.split()[2].removeprefix("resnets.stages."), []).append(
                stage
            )
    return stages


def code_deps(stage) -> set[Path]:
    """Return the source files that a stage depends on."""
    found: set[Path] = set()
    for dep in stage.deps:
        path = ROOT / str(dep)
        if path.is_relative_to(SRC):
            found |= set(path.rglob("*.py")) if path.is_dir() else {path}
    return found


def test_stages_and_scripts_have_the_same_names(pipeline):
    assert sorted(pipeline) == STAGES
    for name, stages in pipeline.items():
        assert {stage.name.split("@")[0] for stage in stages} <= {name, f"{name}_backbone"}


@pytest.mark.parametrize("name", STAGES)
def test_deps_cover_all_code_that_a_stage_can_reach(pipeline, name):
    reached = {f for f in closure(PACKAGE / f"stages/{name}.py") if f.stem != "__init__"}
    for stage in pipeline[name]:
        missing = sorted(str(f.relative_to(ROOT)) for f in reached - code_deps(stage))
        assert not missing, f"{stage.name} lacks the deps {missing}"


@pytest.mark.parametrize("name", STAGES)
def test_deps_name_no_code_that_a_stage_cannot_reach(pipeline, name):
    reached = closure(PACKAGE / f"stages/{name}.py")
    for stage in pipeline[name]:
        files = {ROOT / str(dep) for dep in stage.deps if str(dep).endswith(".py")}
        assert not sorted(map(str, files - reached)), stage.name


@pytest.mark.parametrize("name", ["backbone", "transfer"])
def test_no_training_depends_on_what_changes_no_training(pipeline, name):
    for stage in pipeline[name]:
        parts = {
            file.relative_to(PACKAGE).parts[0].removesuffix(".py") for file in code_deps(stage)
        }
        assert not NEVER_TRAINS & parts, stage.name


def sections_read(stage: str) -> set[str]:
    """Return the sections of params.yaml that a script reads, as `values.a` or `values.a.b`."""
    text = (PACKAGE / f"stages/{stage}.py").read_text()
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute):
            source = ast.unparse(node)
            match = re.match(r"(?:values|load_params\(params\))\.(\w+)", source)
            if match:
                found.add(match[1])
    return found | INHERITED.get(stage, set())


def keys_read(stage: str, section: str) -> set[str]:
    """Return what all code of a stage reads of a section, as `values.a.b`, `self.a.b` or `a.b`."""
    known = Params.model_fields[section].annotation.model_fields
    return {
        f"{section}.{node.attr}"
        for file in closure(PACKAGE / f"stages/{stage}.py") - set((PACKAGE / "params").glob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in known
        if re.fullmatch(rf"(?:.*\.)?{section}", ast.unparse(node.value))
    }


@pytest.mark.parametrize("name", STAGES)
def test_params_are_exactly_what_a_stage_reads(pipeline, name):
    """A section is listed as a whole, by the entry that the stage is about, or key by key."""
    for stage in pipeline[name]:
        params = [dep.params for dep in stage.deps if getattr(dep, "params", None)]
        listed = {str(key) for keys in params for key in keys}
        assert {key.split(".")[0] for key in listed} == sections_read(name), stage.name
        for section in {key.split(".")[0] for key in listed}:
            keys = {key for key in listed if key.startswith(f"{section}.")}
            if keys and keys != {f"{section}.{stage.name.partition('@')[2]}"}:
                assert keys == keys_read(name, section) - WITHOUT_INFLUENCE, stage.name


@pytest.mark.parametrize("name", STAGES)
def test_every_path_in_a_command_is_a_dep_or_an_out(pipeline, name):
    for stage in pipeline[name]:
        known = [Path(str(x)) for x in (*stage.deps, *stage.outs)]
        words = stage.cmd.split()[3:]
        for path in (Path(word) for word in words if "/" in word):
            is_known = any(k == path or k.is_relative_to(path) for k in known)
            assert is_known, f"{stage.name}: {path}"
