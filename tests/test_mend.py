"""What a killed DVC leaves half written is mended once, and what is whole is left alone.

So is what a stage makes or a user put there, where another stage is gone.
"""

import subprocess
from pathlib import Path

import pytest
from dvc.repo import Repo

from resnets import mend
from resnets.system.errors import EnvironmentFault
from resnets.system.files import locked

LOCK = "schema: '2.0'\nstages: {}\n"


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    git = ("git", "-c", "user.name=t", "-c", "user.email=t@localhost")
    subprocess.run((*git, "init", "-q"), check=True)
    Repo.init().close()
    Path("dvc.lock").write_text(LOCK)
    subprocess.run((*git, "add", "-A"), check=True)
    subprocess.run((*git, "commit", "-qm", "lock"), check=True)
    return tmp_path


def test_a_torn_lock_file_comes_back_from_the_last_commit_and_a_whole_one_stays(project, capsys):
    (project / "dvc.lock").write_text(LOCK[:12])
    for said in ("mended: dvc.lock was half written: restored from the last commit\n", ""):
        mend.main()
        assert capsys.readouterr().out == said
        assert (project / "dvc.lock").read_text() == LOCK


def test_a_lock_file_that_git_could_not_merge_is_left_to_the_user(project):
    conflict = f"<<<<<<< HEAD\n{LOCK}=======\n{LOCK}>>>>>>> other\n"
    (project / "dvc.lock").write_text(conflict)
    with pytest.raises(EnvironmentFault, match=r"dvc\.lock: has conflict markers of Git") as caught:
        mend.main()
    assert "git checkout --ours" in caught.value.fix
    assert (project / "dvc.lock").read_text() == conflict


def test_a_torn_table_of_paths_goes_unless_a_process_in_it_lives(project, capsys):
    torn = project / ".dvc/tmp/rwlock"
    torn.parent.mkdir(parents=True, exist_ok=True)
    torn.write_text('{"a": {"write": {"pid": 1, "cmd": "dvc rep')
    with pytest.raises(EnvironmentFault, match="process 1 in it still runs"):
        mend.main()
    torn.write_text('{"a": {"wri')
    mend.main()
    assert capsys.readouterr().out.startswith("mended: rwlock was half written")
    assert not torn.exists()


PIPELINE = """
stages:
  train:
    foreach: ${variants}
    do:
      cmd: mkdir -p m/${key} p/${key} && echo ${key} > m/${key}/w && echo ${key} > p/${key}/h.csv
      outs: ["m/${key}"]
      plots: ["p/${key}/h.csv": {cache: false}]
  score:
    foreach: ${scored}
    do:
      cmd: cp p/${item}/h.csv ${item}.json
      deps: ["p/${item}/h.csv"]
      metrics: ["${item}.json": {cache: false}]
"""


def reproduce(params: str) -> None:
    Path("params.yaml").write_text(params)
    with Repo() as repo:
        repo.reproduce()


def files(folder: Path) -> set[str]:
    """Return the files that no tool made for itself."""
    found = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    return {name for name in found if not name.startswith((".git/", ".dvc"))}


def test_what_a_renamed_stage_left_goes_and_nothing_else(project, capfd):
    Path("dvc.lock").unlink()
    Path("dvc.yaml").write_text(PIPELINE)
    reproduce("variants: {new: 1}\nscored: [new]\n")
    wanted = files(project) | {"p/old/notes.txt", "m/user.txt"}
    lock = Path("dvc.lock").read_text()
    Path("dvc.lock").unlink()
    reproduce("variants: {new: 1, old: 1}\nscored: [old, new]\n")
    Path("p/old/notes.txt").write_text("of the user")
    Path("m/user.txt").write_text("of the user")
    Path(".state/train-old").mkdir(parents=True)
    before = files(project)

    Path("params.yaml").write_text("variants: {new: 1}\nscored: [old\n")
    mend.main()  # DVC cannot read this
    assert files(project) == before
    reproduce("variants: {new: 1}\nscored: [new]\n")
    assert files(project) == before, "DVC has learnt to do it itself"
    Path(".gitignore").touch()
    capfd.readouterr()
    mend.main()
    said = capfd.readouterr().out
    assert "removed: m/old, which train@old made\n" in said
    assert said.count("removed: ") == 3
    assert files(project) - {".gitignore"} == wanted
    assert Path("m/.gitignore").read_text() == "/new\n"
    assert Path("dvc.lock").read_text() == lock
    assert not Path(".state/train-old").exists()
    mend.main()
    assert capfd.readouterr().out == ""


def test_what_another_stage_has_taken_over_stays(project, capfd):
    Path("dvc.yaml").write_text(PIPELINE)
    reproduce("variants: {old: 1}\nscored: []\n")
    Path("dvc.yaml").write_text(PIPELINE.replace("train", "learn"))
    reproduce("variants: {old: 1}\nscored: []\n")
    mend.main()
    assert "removed" not in capfd.readouterr().out
    assert Path("m/old/w").read_text() == "old\n"
    assert "train@old" not in Path("dvc.lock").read_text()


def test_a_running_variant_keeps_its_files_and_so_does_one_with_a_name_like_it(project):
    Path("dvc.yaml").write_text(PIPELINE)
    reproduce("variants: {my_old: 1}\nscored: []\n")
    reproduce("variants: {new: 1}\nscored: []\n")
    states = [Path(f".state/train-{name}") for name in ("my_old", "my-old")]
    states[1].mkdir(parents=True)
    with locked(states[0], "training of my_old"):
        mend.main()
        assert Path("m/my_old/w").exists()
    mend.main()
    assert not Path("m/my_old").exists()
    assert [state.exists() for state in states] == [False, True]
