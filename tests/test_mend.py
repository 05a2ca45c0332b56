"""What a killed DVC leaves half written is mended once, and what is whole is left alone."""

import subprocess
from pathlib import Path

import pytest
from dvc.repo import Repo

from resnets.mend import mend
from resnets.system.errors import EnvironmentFault

LOCK = "schema: '2.0'\nstages: {}\n"


@pytest.fixture
def project(tmp_path) -> Path:
    git = ("git", "-c", "user.name=t", "-c", "user.email=t@localhost")
    subprocess.run((*git, "init", "-q"), cwd=tmp_path, check=True)
    Repo.init(str(tmp_path)).close()
    (tmp_path / "dvc.lock").write_text(LOCK)
    subprocess.run((*git, "add", "-A"), cwd=tmp_path, check=True)
    subprocess.run((*git, "commit", "-qm", "lock"), cwd=tmp_path, check=True)
    return tmp_path


def test_a_whole_project_is_left_alone(project):
    assert list(mend(project)) == []
    assert (project / "dvc.lock").read_text() == LOCK


def test_a_torn_lock_file_comes_back_from_the_last_commit(project):
    (project / "dvc.lock").write_text(LOCK[:12])
    assert list(mend(project)) == ["dvc.lock was half written: restored from the last commit"]
    assert (project / "dvc.lock").read_text() == LOCK
    assert list(mend(project)) == []


def test_a_torn_table_of_paths_goes_unless_a_process_in_it_lives(project):
    torn = project / ".dvc/tmp/rwlock"
    torn.parent.mkdir(parents=True, exist_ok=True)
    torn.write_text('{"a": {"write": {"pid": 1, "cmd": "dvc rep')
    with pytest.raises(EnvironmentFault, match="process 1 in it still runs"):
        list(mend(project))
    torn.write_text('{"a": {"wri')
    assert [line.split(":")[0] for line in mend(project)] == ["rwlock was half written"]
    assert not torn.exists()
