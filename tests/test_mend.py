"""What a killed DVC leaves half written is mended once, and what is whole is left alone."""

import subprocess
from pathlib import Path

import pytest
from dvc.repo import Repo

from resnets import mend
from resnets.system.errors import EnvironmentFault

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
