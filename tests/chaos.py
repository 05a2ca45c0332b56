"""Kill every stage of the pipeline at seeded instants, run it again, and count what was lost.

    python -m tests.chaos --kills 200 --seed 0 --out tests/chaos_result.txt

A trial takes a stage, removes its outs (or lets `dvc repro` do so), and starts it as a process of
its own. The process dies by SIGKILL, at an instant of its work, at a failpoint of
`resnets.system.files`, or while DVC writes one of its own files, once or several times in a row;
in some trials parameters and inputs are those of another world for some of the deaths. Then the
same command runs to its end. All outs must have the bytes of an undisturbed run of the same
parameters, and what lies under a final name at any time those of an undisturbed run too; learning
curves, which are written as they grow, the first lines of one.
"""

import argparse
import os
import platform
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from dvc.repo import Repo

from tests.copies import ROOT, edit_params, make_copy

WRITING = "prepare split backbone transfer evaluate labels leaderboard export"
FAILPOINTS = {  # each with the stages that pass it, and how often one of them does at least
    "prepare.flushed": ("prepare", 1),
    "engine.step": ("backbone transfer", 9),
    "engine.epoch": ("backbone transfer", 2),
    "publish.done": ("backbone transfer", 1),
    "write.half": (f"{WRITING} yardsticks report", 1),
    "write.before_rename": (WRITING, 2),
    "write.after_rename": (WRITING, 2),
}
DVC_FILES = {"dvc.lock": 1, "rwlock": 8}  # and how often `dvc repro -s -f` writes them at least
# opening a file to write empties it: dies then, and leaves so many bytes as if it had begun
DYING_DVC = """
import os, signal, sys
name, passage, length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sys.argv = ["dvc", *sys.argv[4:]]
passages = iter(range(passage - 1))
def die(event, given):
    if event == "open" and str(given[0]).endswith(name) and "w" in (given[1] or ""):
        if next(passages, None) is None:
            os.close(os.open(given[0], os.O_WRONLY | os.O_CREAT))
            os.truncate(given[0], min(length, os.path.getsize(given[0])))
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(die)
from dvc.cli import main
sys.exit(main())
"""
# the worlds beside the first one: the first stage that can notice, and what is changed
World = dict[Path, bytes]  # all outs and the parameters
Changes = list[tuple[str, dict[str, object]]]
CHANGES: Changes = [
    ("backbone", {"model.shortcut": "none"}),
    ("prepare@target", {"data.fit": "stretch"}),
]
ATTEMPTS = 5  # to finish after the last kill; an orphan may hold the lock for some
POLL = 0.002  # seconds between two looks at a process


@dataclass(frozen=True)
class Stage:
    """Name a stage, its command and its outs."""

    name: str
    command: list[str]
    outs: list[Path]

    @property
    def lock(self) -> Path:
        """Return the file that appears when the imports are done and the work begins."""
        return Path(".state") / re.sub("[@_]", "-", self.name) / "lock"

    def has(self, file: Path) -> bool:
        """Tell whether a file is an out, or in one."""
        return any(file == out or out in file.parents for out in self.outs)


@dataclass(frozen=True)
class Kill:
    """Say when to kill: at a failpoint, or at a fraction of the work or of the whole run."""

    failpoint: str = ""
    fraction: float = 0.0
    from_start: bool = False
    only_dvc: bool = False  # leaves the stage an orphan
    dvc_file: str = ""  # "rwlock 3 20": as DVC writes it for the third time; 20 bytes stay
    world: int = 0  # whose parameters and inputs are there

    @property
    def place(self) -> str:
        """Return where it kills, without numbers."""
        return re.split("@| [0-9]", self.failpoint or self.dvc_file or "an instant")[0]


class Chaos:
    """Hold a project in which every stage ran once, undisturbed."""

    def __init__(self, folder: Path, seed: int, changes: Changes = CHANGES) -> None:
        self.project, self.rng = folder / "project", random.Random(seed)
        self.counts, self.faults = Counter[str](), list[str]()
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.project / "src"),
            "SHELL": "/bin/sh",
        }
        make_project(self.project)
        self.stages = [  # in the order of dvc.yaml, which works
            Stage(
                stage.name, shlex.split(stage.cmd), [self.project / x.def_path for x in stage.outs]
            )
            for stage in Repo(str(self.project)).index.stages
        ]
        self.seconds: dict[str, float] = {}
        self.worlds, self.world = [self._undisturbed(self.stages)], 0
        for first, edits in changes:
            edit_params(self.project / "params.yaml", edits)
            names = [stage.name for stage in self.stages]
            self.worlds.append(self._undisturbed(self.stages[names.index(first) :]))
            self.enter(0)

    def _undisturbed(self, stages: list[Stage]) -> World:
        """Run stages once, and return the world that follows."""
        for stage in stages:
            process = self.start(stage.command)
            started = self._await_work(process, self.project / stage.lock, 0)
            assert process.wait() == 0, stage.command
            self.seconds.setdefault(stage.name, time.monotonic() - started)
            self.forget(stage)
        files = [self.project / "params.yaml", *self._files(self.stages)]
        return {path: path.read_bytes() for path in files}

    def _files(self, stages: list[Stage]) -> Iterator[Path]:
        for stage in stages:
            for out in stage.outs:
                files = out.rglob("*") if out.is_dir() else [out] if out.is_file() else []
                yield from (f for f in files if f.is_file() and f.suffix != ".part")

    def enter(self, world: int, stage: Stage | None = None) -> None:
        """Put the parameters and files of a world in place, but not what a stage has left."""
        for file, content in self.worlds[world].items():
            is_left = stage is not None and stage.has(file)
            if not is_left and not (file.is_file() and file.read_bytes() == content):
                file.parent.mkdir(parents=True, exist_ok=True)
                file.unlink(missing_ok=True)
                file.write_bytes(content)
        self.world = world

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

    def trial(self, stage: Stage, kills: list[Kill], *, under_dvc: bool, ends_in: int = 0) -> None:
        """Kill a stage as often as asked, run it to its end, and compare all that it wrote."""
        command = ["dvc", "repro", "-s", "-f", stage.name] if under_dvc else stage.command
        if not under_dvc:
            for out in stage.outs:
                shutil.rmtree(out) if out.is_dir() else out.unlink()
        counts, is_done, groups = self.counts, False, list[int]()
        changes = counts["changes"]
        for number, kill in enumerate(kills):
            self._change(kill.world, stage, groups)
            process, is_hit = self.kill(stage, command, kill)
            groups.append(process.pid)
            is_done = process.returncode == 0 and kill.world == ends_in
            if not is_hit:
                counts["hit nothing"] += 1
                continue
            counts.update(["kills", f"of {stage.name}", f"at {kill.place}"])
            counts.update(["under DVC"] * under_dvc + ["orphans"] * kill.only_dvc)
            counts["while resuming"] += number > 0
            if not kill.only_dvc:
                self.compare(stage, "torn", kill, self.worlds)
        self._change(ends_in, stage, groups)
        if not is_done and not any(
            self.start(self._mend(command)).wait() == 0 for _ in range(ATTEMPTS)
        ):
            self._count(stage, "lost", (self.project / "log").read_text()[-2000:])
        await_end(groups)
        for file in self.worlds[ends_in]:
            if stage.has(file) and not file.is_file():
                self._count(stage, "torn", f"{file} is missing")
        word = "wrongly continued" if counts["changes"] > changes else "differing"
        self.compare(stage, word, kills, [self.worlds[ends_in]])
        self.forget(stage)
        self.enter(0)

    def _change(self, world: int, stage: Stage, groups: list[int]) -> None:
        """Enter a world when nothing runs any more, unless it is the one that is there."""
        if world != self.world:
            await_end(groups)
            self.counts["changes"] += 1
            self.enter(world, stage)

    def forget(self, stage: Stage) -> None:
        """Remove the state of a stage, which DVC may not have recorded."""
        shutil.rmtree((self.project / stage.lock).parent)

    def _mend(self, command: list[str]) -> list[str]:
        """Mend DVC's files before a command of DVC, as `make repro` does; return the command."""
        if command[0] == "dvc":
            self.start([sys.executable, "-m", "resnets.mend"]).wait()
            self.counts["mended"] += (self.project / "log").read_text().count("mended: ")
        return command

    def kill(
        self, stage: Stage, command: list[str], kill: Kill
    ) -> tuple[subprocess.Popen[bytes], bool]:
        """Start a command and kill it with all its children; return it, and whether that hit."""
        self._mend(command)
        if kill.dvc_file:
            command = [sys.executable, "-c", DYING_DVC, *kill.dvc_file.split(), *command[1:]]
        lock = self.project / stage.lock
        before, started = modified(lock), time.monotonic()
        process = self.start(command, kill.failpoint)
        if kill.failpoint or kill.dvc_file:  # its own death; DVC words a stage's, and ends with 255
            return process, process.wait() in (-signal.SIGKILL, 255)
        if not kill.from_start:
            started = self._await_work(process, lock, before)
        while process.poll() is None and (
            time.monotonic() < started + kill.fraction * self.seconds[stage.name]
        ):
            time.sleep(POLL)
        if process.poll() is None:
            (os.kill if kill.only_dvc else os.killpg)(process.pid, signal.SIGKILL)
        return process, process.wait() == -signal.SIGKILL

    def compare(self, stage: Stage, word: str, where: object, worlds: list[World]) -> None:
        """Count the files of a stage whose bytes are those of none of some worlds."""
        for file in self._files([stage]):
            content = file.read_bytes()
            whole = [world.get(file, b"") for world in worlds]
            grows = word == "torn" and file.name == "history.csv" and content.endswith(b"\n")
            if content not in whole and not (grows and any(x.startswith(content) for x in whole)):
                self._count(stage, word, f"{file} ({len(content)} bytes) {where}")

    def _count(self, stage: Stage, word: str, what: str) -> None:
        self.counts[word] += 1
        self.faults.append(f"{word}: {stage.name}: {what}")

    def draw_kill(self, stage: Stage, *, under_dvc: bool) -> Kill:
        """Draw a failpoint, an instant of the work or of the whole run, or a death of DVC's."""
        draw = self.rng.random()
        if under_dvc and self.rng.random() < 0.5:
            name = self.rng.choice(sorted(DVC_FILES))
            passage, length = self.rng.randint(1, DVC_FILES[name]), self.rng.choice([0, 1, 20, 400])
            return Kill(dvc_file=f"{name} {passage} {length}")
        if draw < 0.25:
            kind = re.split("[@_]", stage.name)[0]
            passed = {k: n for k, (stages, n) in FAILPOINTS.items() if kind in stages.split()}
            name = self.rng.choice(sorted(passed))
            return Kill(failpoint=f"{name}@{self.rng.randint(1, passed[name])}")
        if draw < 0.4:
            return Kill(fraction=self.rng.uniform(0, 2), from_start=True)
        only_dvc = under_dvc and draw < 0.55
        return Kill(fraction=self.rng.uniform(0, 1), only_dvc=only_dvc)

    def run(self, kills: int) -> Iterator[str]:
        """Try the stages in turn until so many kills hit; every fifth trial is under DVC.

        In every third trial each start is in the first world or in another one.
        """
        trial = 0
        while self.counts["kills"] < kills:
            stage = self.stages[trial % len(self.stages)]
            under_dvc = trial % 5 == 4
            number = min(self.rng.choice([1, 2, 3, 4, 5]), kills - self.counts["kills"])
            drawn = [self.draw_kill(stage, under_dvc=under_dvc) for _ in range(number)]
            worlds = [0, self.rng.randint(1, len(CHANGES)) if trial % 3 == 2 else 0]
            drawn = [replace(kill, world=self.rng.choice(worlds)) for kill in drawn]
            self.trial(stage, drawn, under_dvc=under_dvc, ends_in=self.rng.choice(worlds))
            trial += 1
            yield self.report()

    def report(self) -> str:
        """Return the faults, and the counts in one line."""
        places = sorted(
            f"{key}: {n}" for key, n in self.counts.items() if key[:3] in ("of ", "at ")
        )
        line = (
            "{kills} kills ({under DVC} under dvc repro, {orphans} of DVC alone, {while resuming} "
            "while resuming), {lost} lost, {torn} torn, {differing} differing bytes, "
            "{wrongly continued} wrongly continued after {changes} changes of parameters; {mended} "
            "files of DVC mended; {hit nothing} more hit nothing"
        )
        counts = re.sub("{(.*?)}", lambda key: str(self.counts[key[1]]), line)
        return "\n".join([f"kills {', '.join(places)}", *self.faults, counts])


def modified(file: Path) -> int:
    """Return when a file was last written, 0 where it is not there."""
    return file.stat().st_mtime_ns if file.exists() else 0


def await_end(groups: list[int]) -> None:
    """Wait for the end of process groups, in which an orphan may still be at work."""
    while any(is_alive(process, groups) for process in Path("/proc").glob("[0-9]*")):
        time.sleep(POLL)


def is_alive(process: Path, groups: list[int]) -> bool:
    """Tell whether a process of /proc belongs to a group and is more than a zombie."""
    try:
        state, _, group = (process / "stat").read_text().rpartition(")")[2].split()[:3]
    except OSError:  # it ended just now
        return False
    return int(group) in groups and state != "Z"


def make_project(folder: Path) -> None:
    """Make a project with one task of 72 photos, a backbone and a variant of two epochs each."""
    make_copy(folder)
    gone = ("tasks.source", "split.source", "transfer.scratch", "transfer.frozen")
    edits = {"backbone.input": "data/tasks/target", "runtime.checkpoint_steps": 2}
    edit_params(folder / "params.yaml", edits | dict.fromkeys(gone, ...))


def headline(seed: int, seconds: float) -> str:
    """Return what a result belongs to."""
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "dvc", "numpy"))
    return (
        f"date: {datetime.now(UTC):%Y-%m-%d}\ncommit: {commit}\n"
        f"versions: Python {platform.python_version()}, {versions}\n"
        f"seed: {seed}\nseconds: {seconds:.0f}\n"
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
        chaos = Chaos(Path(folder), arguments.seed)
        for report in chaos.run(arguments.kills):
            text = headline(arguments.seed, time.monotonic() - begun) + report
            if arguments.out:  # after each trial, so that a stopped run has a result too
                arguments.out.write_text(text + "\n")
    print(text)
    sys.exit(bool(chaos.faults))


if __name__ == "__main__":
    main()
