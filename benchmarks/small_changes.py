"""Time what should cost next to nothing: help, a run with nothing to do, and small changes.

    python benchmarks/small_changes.py [--quick]

A copy of the project runs its whole pipeline on a few generated photos first (minutes).
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from _timing import ROOT, describe_machine, options, spread
from ruamel.yaml import YAML

from resnets.evaluation.markdown import table

sys.path.insert(0, str(ROOT))
from tests.copies import make_copy, run

STAGES = ("prepare", "split", "backbone", "transfer", "evaluate", "leaderboard", "export")


def change(project: Path, value: object, *keys: str) -> None:
    """Change one value of params.yaml."""
    yaml = YAML(typ="safe", pure=True)
    values = inner = yaml.load((project / "params.yaml").read_text())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    with (project / "params.yaml").open("w") as file:
        yaml.dump(values, file)


def row(name: str, target: str, action: Callable[[], object], rounds: int) -> list[str]:
    """Return the table's row of an action: its name, its seconds, and what they should be."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return [name, target, spread(seconds, 2)]


def repro(project: Path, stage: str, *, runs: str, leaves: str) -> None:
    """Run up to a stage; hold that it runs, and that what it should not touch stays."""
    before = {file: file.stat().st_mtime_ns for file in project.glob(leaves)}
    assert before, leaves
    text = run("dvc", "repro", stage, cwd=project)
    assert text.count("Running stage") == 1, text
    assert f"Running stage '{runs}'" in text, text
    assert {file: file.stat().st_mtime_ns for file in project.glob(leaves)} == before


def main() -> None:
    """Measure."""
    rounds = 2 if options(__doc__).quick else 7
    describe_machine()
    with tempfile.TemporaryDirectory() as name:
        project = Path(name) / "project"
        make_copy(project)
        run("dvc", "repro", cwd=project)
        commands = [("-m", "resnets.cli"), *(("-m", f"resnets.stages.{s}") for s in STAGES)]
        rows = [
            row(f"{command[1]} --help", "0.5", lambda c=command: run(
                sys.executable, *c, "--help", cwd=project), rounds)
            for command in commands
        ]  # fmt: skip
        rows.append(
            row("dvc repro, no change", "2", lambda: run("dvc", "repro", cwd=project), rounds)
        )
        change(project, 7, "split", "target", "seed")
        rows.append(
            row("another split.target.seed, up to the split: nothing is decoded", "-",
                lambda: repro(project, "split@target", runs="split@target",
                              leaves="data/tasks/target/images.bin"), 1)
        )  # fmt: skip
        run("dvc", "repro", "transfer@frozen", cwd=project)
        change(project, 0.003, "transfer", "frozen", "optimizer", "lr")
        rows.append(
            row("another lr of the frozen variant: the backbone does not run", "-",
                lambda: repro(project, "transfer@frozen", runs="transfer@frozen",
                              leaves=".state/transfer-frozen/*.features"), 1)
        )  # fmt: skip
        print(table(["", "target", "seconds"], rows))


if __name__ == "__main__":
    main()
