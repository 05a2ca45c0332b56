"""Kill every stage of the pipeline at seeded instants, run it again, and count what was lost.

    python -m tests.chaos --kills 200 --seed 0 --out tests/chaos_result.txt

A trial takes a stage, removes its outs (or lets `dvc repro` do so), and starts it as a process of
its own. The process dies by SIGKILL, at an instant of its work or at a failpoint of
`resnets.files`, once or several times in a row; then the same command runs to its end. All outs
must have the bytes of an undisturbed run, and what lies under a final name at any time too.
"""

import argparse
import os
import platform
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from dvc.repo import Repo
from ruamel.yaml import YAML

from tests.copies import ROOT, make_copy

FAILPOINTS = {  # each with the stages that pass it, and how often one of them does at least
    "prepare.flushed": ("prepare", 1),
    "engine.step": ("backbone transfer", 9),
    "engine.epoch": ("backbone transfer", 2),
    "publish.done": ("backbone transfer", 1),
    "write.half": ("prepare split backbone transfer evaluate leaderboard export", 1),
    "write.before_sync": ("prepare split backbone transfer evaluate leaderboard export", 2),
    "write.before_rename": ("prepare split backbone transfer evaluate leaderboard export", 2),
    "write.after_rename": ("prepare split backbone transfer evaluate leaderboard export", 2),
}
ATTEMPTS = 5  # to finish after the last kill; an orphan may hold the lock for some
POLL = 0.002  # seconds between two looks at a process


@dataclass(frozen=True)
class Stage:
    """Name a stage, its command, its outs, and how long its work takes when undisturbed."""

    name: str
    command: list[str]
    outs: list[Path]
    seconds: float

    @property
    def lock(self) -> Path:
        """Return the file that appears when the imports are done and the work begins."""
        return Path(".state") / self.name.replace("@", "-") / "lock"


@dataclass(frozen=True)
class Kill:
    """Say when to kill: at a failpoint, or at a fraction of the work or of the whole run."""

    failpoint: str = ""
    fraction: float = 0.0
    from_start: bool = False
    only_dvc: bool = False  # leaves the stage an orphan


@dataclass
class Counts:
    """Count what happened."""

    kills: int = 0
    under_dvc: int = 0
    orphans: int = 0  # of these, kills of DVC alone
    while_resuming: int = 0
    hit_nothing: int = 0  # the run had ended before its kill, or an orphan's lock refused it
    lost: int = 0  # stages that could not be finished with the same command
    torn: int = 0  # files under their final name that were not whole
    differing: int = 0  # files of a finished stage with other bytes
    by_stage: Counter[str] = field(default_factory=Counter)
    by_failpoint: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def line(self) -> str:
        """Return the counts in one line."""
        return (
            f"{self.kills} kills ({self.under_dvc} under dvc repro, {self.orphans} of DVC alone, "
            f"{self.while_resuming} while resuming), {self.lost} lost, {self.torn} torn, "
            f"{self.differing} differing bytes; {self.hit_nothing} more hit nothing"
        )


class Chaos:
    """Hold a project in which every stage ran once, undisturbed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.project, self.rng, self.counts = folder / "project", random.Random(seed), Counts()
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.project / "src"),
            "SHELL": "/bin/sh",
        }
        make_project(self.project)
        self.stages = [self._undisturbed(stage) for stage in Repo(str(self.project)).index.stages]
        self.expected = {path: path.read_bytes() for path in self._files()}

    def _undisturbed(self, stage) -> Stage:
        """Run a stage once; `index.stages` of this project are in an order that works."""
        outs = [self.project / out.def_path for out in stage.outs]
        found = Stage(stage.name, shlex.split(stage.cmd), outs, 0.0)
        process = self.start(found.command)
        started = self._await_work(process, self.project / found.lock, 0)
        assert process.wait() == 0, found.command
        return Stage(found.name, found.command, outs, time.monotonic() - started)

    def _files(self, stages: list[Stage] | None = None) -> Iterator[Path]:
        for stage in stages or self.stages:
            for out in stage.outs:
                files = out.rglob("*") if out.is_dir() else [out] if out.is_file() else []
                yield from (f for f in files if f.is_file() and f.suffix != ".part")

    def start(self, command: list[str], fault: str = "") -> subprocess.Popen[bytes]:
        """Start a command in the project, its output in the file `log`."""
        with (self.project / "log").open("wb") as log:
            return subprocess.Popen(
                command, cwd=self.project, env={**self.environment, "RESNETS_FAULT": fault},
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def _await_work(self, process: subprocess.Popen[bytes], lock: Path, before: int) -> float:
        """Wait until the lock is taken anew or the process ends; return when that was."""
        while process.poll() is None and modified(lock) == before:
            time.sleep(POLL)
        return time.monotonic()

    def trial(self, stage: Stage, kills: list[Kill], *, under_dvc: bool) -> None:
        """Kill a stage as often as asked, run it to its end, and compare all that it wrote."""
        command = ["dvc", "repro", "-s", "-f", stage.name] if under_dvc else stage.command
        self.forget(stage)
        if not under_dvc:
            for out in stage.outs:
                shutil.rmtree(out) if out.is_dir() else out.unlink()
        is_done, groups = False, []
        for number, kill in enumerate(kills):
            process, is_hit = self._kill(stage, command, kill)
            groups.append(process.pid)
            is_done = process.returncode == 0
            if not is_hit:
                self.counts.hit_nothing += 1
                continue
            self.counts.kills += 1
            self.counts.under_dvc += under_dvc
            self.counts.orphans += kill.only_dvc
            self.counts.while_resuming += number > 0
            self.counts.by_stage[stage.name] += 1
            self.counts.by_failpoint[kill.failpoint.partition("@")[0] or "an instant"] += 1
            if not kill.only_dvc:
                self.counts.torn += self.compare(stage, "torn", kill)
        if not is_done and not any(self.start(command).wait() == 0 for _ in range(ATTEMPTS)):
            self.counts.lost += 1
            self._note(stage, "lost", (self.project / "log").read_text()[-2000:])
        for group in groups:
            await_end(group)
        missing = [f for f in self._expected_of(stage) if not f.is_file()]
        self.counts.torn += len(missing)
        for file in missing:
            self._note(stage, "missing", file)
        self.counts.differing += self.compare(stage, "differing", kills)
        self._restore(stage)

    def forget(self, stage: Stage) -> None:
        """Remove the state of the last trial, which DVC has not recorded."""
        shutil.rmtree((self.project / stage.lock).parent)

    def _kill(
        self, stage: Stage, command: list[str], kill: Kill
    ) -> tuple[subprocess.Popen[bytes], bool]:
        """Start a command and kill it with all its children; return it, and whether that hit."""
        lock = self.project / stage.lock
        before, started = modified(lock), time.monotonic()
        process = self.start(command, kill.failpoint)
        if kill.failpoint:  # its own death; DVC words it, and ends with 255
            return process, process.wait() in (-signal.SIGKILL, 255)
        if not kill.from_start:
            started = self._await_work(process, lock, before)
        while process.poll() is None and (
            time.monotonic() < started + kill.fraction * stage.seconds
        ):
            time.sleep(POLL)
        if process.poll() is None:
            (os.kill if kill.only_dvc else os.killpg)(process.pid, signal.SIGKILL)
        return process, process.wait() == -signal.SIGKILL

    def _expected_of(self, stage: Stage) -> list[Path]:
        return [f for f in self.expected if any(f == o or o in f.parents for o in stage.outs)]

    def compare(self, stage: Stage, word: str, where: object) -> int:
        """Count the files of a stage that have other bytes than they should."""
        bad = [f for f in self._files([stage]) if f.read_bytes() != self.expected.get(f)]
        for file in bad:
            self._note(stage, word, f"{file} ({file.stat().st_size} bytes) {where}")
        return len(bad)

    def _note(self, stage: Stage, word: str, what: object) -> None:
        self.counts.faults.append(f"{stage.name}: {word}: {what}".replace(f"{self.project}/", ""))

    def _restore(self, stage: Stage) -> None:
        """Put the right files back, so that one fault is counted once."""
        for file in self._expected_of(stage):
            if not file.is_file() or file.read_bytes() != self.expected[file]:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.unlink(missing_ok=True)
                file.write_bytes(self.expected[file])

    def draw_kill(self, stage: Stage, *, under_dvc: bool) -> Kill:
        """Draw a failpoint, an instant of the work, one of the whole run, or DVC's death alone."""
        draw = self.rng.random()
        if draw < 0.25:
            kind = stage.name.partition("@")[0]
            passed = {k: n for k, (stages, n) in FAILPOINTS.items() if kind in stages.split()}
            name = self.rng.choice(sorted(passed))
            return Kill(failpoint=f"{name}@{self.rng.randint(1, passed[name])}")
        if draw < 0.4:
            return Kill(fraction=self.rng.uniform(0, 2), from_start=True)
        only_dvc = under_dvc and draw < 0.55
        return Kill(fraction=self.rng.uniform(0, 1), only_dvc=only_dvc)

    def run(self, kills: int) -> Iterator[Counts]:
        """Try the stages in turn until so many kills hit; every fifth trial is under DVC."""
        trial = 0
        while self.counts.kills < kills:
            stage = self.stages[trial % len(self.stages)]
            under_dvc = trial % 5 == 4
            number = min(self.rng.choice([1, 2, 3, 4, 5]), kills - self.counts.kills)
            drawn = [self.draw_kill(stage, under_dvc=under_dvc) for _ in range(number)]
            self.trial(stage, drawn, under_dvc=under_dvc)
            trial += 1
            yield self.counts


def modified(file: Path) -> int:
    """Return when a file was last written, 0 where it is not there."""
    return file.stat().st_mtime_ns if file.exists() else 0


def await_end(group: int) -> None:
    """Wait for the end of a process group, in which an orphan may still be at work."""
    while any(is_alive(process, group) for process in Path("/proc").glob("[0-9]*")):
        time.sleep(POLL)


def is_alive(process: Path, group: int) -> bool:
    """Tell whether a process of /proc belongs to a group and is more than a zombie."""
    try:
        state, _, its_group = (process / "stat").read_text().rpartition(")")[2].split()[:3]
    except OSError:  # it ended just now
        return False
    return int(its_group) == group and state != "Z"


def make_project(folder: Path) -> None:
    """Make a project with one task of 72 photos, a backbone and a variant of two epochs each."""
    make_copy(folder)
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load(folder / "params.yaml")
    del values["tasks"]["source"], values["split"]["source"]
    values["backbone"]["input"] = "data/tasks/target"
    values["runtime"]["checkpoint_steps"] = 2
    values["transfer"] = {"finetune": values["transfer"]["finetune"]}
    yaml.dump(values, folder / "params.yaml")


def report(counts: Counts, seed: int, seconds: float) -> str:
    """Return the result as text, the counts last."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "dvc", "numpy"))
    stages, places = (
        ", ".join(f"{name} {number}" for name, number in sorted(counter.items()))
        for counter in (counts.by_stage, counts.by_failpoint)
    )
    return "\n".join(
        [
            f"date: {datetime.now(UTC):%Y-%m-%d}",
            f"commit: {commit}",
            f"versions: Python {platform.python_version()}, {versions}",
            f"seed: {seed}",
            f"seconds: {seconds:.0f}",
            f"kills of each stage: {stages}",
            f"kills at each place: {places}",
            *counts.faults,
            counts.line(),
        ]
    )


def main() -> None:
    """Run as many kills as asked, print the result, and write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for counts in Chaos(Path(folder), arguments.seed).run(arguments.kills):
            text = report(counts, arguments.seed, time.monotonic() - begun)
            if arguments.out:  # after each trial, so that a stopped run has a result too
                arguments.out.write_text(text + "\n")
    print(text)
    sys.exit(bool(counts.lost or counts.torn or counts.differing))


if __name__ == "__main__":
    main()
