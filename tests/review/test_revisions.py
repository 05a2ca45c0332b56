"""Find stale results in clones without data, on the disk and in commits; DVC wrote the lock."""

import subprocess
import sys

import pytest

from resnets.review.gates import GateError
from resnets.review.page import review
from resnets.review.revisions import read_revision
from resnets.system.errors import ArtefactError, ParamsError
from tests.projects import Project, simulated_logits

PIPELINE = """\
stages:
  prepare:
    cmd: python code/prepare.py
    deps: [raw.txt, code, ../photos.zip]
    params: [size]
    outs: [store/packed.bin]
    metrics: [{counts.json: {cache: false}}]
  train:
    foreach: ${nets}
    do:
      cmd: python train.py ${key}
      deps: [store]
      params: ["nets.${key}"]
      outs: ["models/${key}.bin"]
  evaluate:
    foreach: ${nets}
    do:
      cmd: python evaluate.py ${key}
      deps: ["models/${key}.bin"]
      outs: ["plots/${key}": {cache: false}]
      metrics: ["metrics/${key}.json": {cache: false}]
"""
LABELS = [0, 1, 0, 1, 1, 0]
OF_NET = {"plots/net", "metrics/net.json"}
OF_OTHER = {"plots/other", "metrics/other.json"}
ALL = {"store/packed.bin", "counts.json", "models/net.bin", "models/other.bin", *OF_NET, *OF_OTHER}


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A finished run: its lock is written by `dvc commit`, as `dvc repro` writes it."""
    project = Project(tmp_path_factory.mktemp("origin") / "project")
    (project.root.parent / "photos.zip").write_bytes(b"photos")
    for path, text in {
        "dvc.yaml": PIPELINE,
        "params.yaml": "size: 28\nnets: {net: {lr: 0.1}, other: {lr: 0.1}}\n",
        ".dvcignore": "__pycache__\n*.pyc\n",
        ".gitignore": "__pycache__\n/store\n/models\n",
        "raw.txt": "pixels",
        "code/prepare.py": "print(3)\n",
        "code/deep/er.py": "",
        "code/__pycache__/prepare.pyc": "of one machine",
        "store/packed.bin": "pixels",
        "counts.json": '{"images": 3}',
        "models/net.bin": "net",
        "models/other.bin": "other",
        "gates.yaml": "[]",
    }.items():
        project.write(path, text)
    for seed, name in enumerate(("net", "other")):
        logits = simulated_logits(LABELS, 2, 0.8, seed=seed)
        project.write_model(name, [logits], LABELS, ["ants", "bees"])
    command = [sys.executable, "-m", "dvc", "commit", "-q", "-f"]
    done = subprocess.run(command, cwd=project.root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    project.commit("base")
    return project


@pytest.fixture
def clone(origin, tmp_path):
    """A clone that has no data: no store, no models, no cache, no photos."""
    origin.git("clone", "-q", str(origin.root), str(tmp_path / "clone"))
    return Project(tmp_path / "clone")


def test_clone_without_data_is_not_stale(clone):
    assert not (clone.root / "store").exists()
    for name in (None, "main"):
        assert read_revision(name, clone.root).stale == {}


@pytest.mark.parametrize(
    ("path", "old", "new", "why", "outputs"),
    [
        (
            "params.yaml",
            "net: {lr: 0.1}",
            "net: {lr: 0.5}",
            "train@net: params.yaml nets.net is modified",
            {"models/net.bin", *OF_NET},
        ),
        ("params.yaml", "size: 28", "", "prepare: params.yaml size is deleted", ALL),
        ("code/prepare.py", "3", "4", "prepare: code is modified", ALL),
        ("raw.txt", "pixels", "other", "prepare: raw.txt is modified", ALL),
        (
            "dvc.yaml",
            "evaluate.py",
            "evaluate.py -v",
            "evaluate@net: changed command",
            {*OF_NET, *OF_OTHER},
        ),
        ("counts.json", "3", "4", "prepare: counts.json is modified", ALL),
        (
            "plots/other/predictions.csv",
            "bees",
            "ants",
            "evaluate@other: plots/other is modified",
            OF_OTHER,
        ),
        (
            "params.yaml",
            "other:",
            "new: {}, other:",
            "train@new: models/new.bin was never made",
            {"models/new.bin", "plots/new", "metrics/new.json"},
        ),
    ],
)
def test_change_without_repro_makes_what_follows_stale(clone, path, old, new, why, outputs):
    text = (clone.root / path).read_text()
    assert old in text
    clone.write(path, text.replace(old, new, 1))
    stale = read_revision(None, clone.root).stale
    assert set(stale) == outputs
    assert why in {line for lines in stale.values() for line in lines}
    clone.commit()
    assert read_revision("HEAD", clone.root).stale == stale
    assert read_revision("HEAD~1", clone.root).stale == {}


def test_results_older_than_their_parameters_are_not_judged(clone):
    text = (clone.root / "params.yaml").read_text()
    clone.write("params.yaml", text.replace("lr: 0.1", "lr: 0.5", 1))
    with pytest.raises(GateError, match=r"train@net: params\.yaml nets\.net is modified") as error:
        list(review("main", None, gate=True, report=None, root=clone.root))
    assert "dvc repro" in error.value.fix
    page = "\n".join(review("main", None, gate=False, report=None, root=clone.root))
    assert "**Not comparable**: `net`: head is out of date" in page
    assert "the same answers as before from `other`" in page
    assert "Changed since the results of head were made: `params.yaml nets.net`." in page
    assert "**Advice**: run `dvc repro` and commit its results." in page
    clone.commit()
    page = "\n".join(review("HEAD", "main", gate=False, report=None, root=clone.root))
    assert "**Not comparable**: `net`: base is out of date" in page


def test_pipeline_that_dvc_cannot_read_is_named(clone):
    clone.write("dvc.yaml", "stages: [")
    with pytest.raises(ArtefactError, match=r"workspace: .*dvc\.yaml"):
        read_revision(None, clone.root)


def test_subfolders_of_the_project_and_of_the_repository_are_understood(clone):
    for name in (None, "main"):
        inside, above = (read_revision(name, clone.root / x) for x in ("code/deep", "."))
        assert inside == above
    (clone.root / "sub").mkdir()
    clone.git("mv", *clone.git("ls-tree", "--name-only", "HEAD").split(), "sub")
    clone.commit()
    for name in (None, "HEAD"):
        moved = read_revision(name, clone.root / "sub/code")
        assert moved.files == above.files
        assert moved.root == clone.root / "sub"
        assert moved.stale == {}


def test_shallow_clone_names_the_cure(clone, tmp_path):
    clone.commit("second")
    clone.git("clone", "-q", "--depth=1", clone.root.as_uri(), str(tmp_path / "shallow"))
    assert read_revision("HEAD", tmp_path / "shallow").stale == {}
    with pytest.raises(ParamsError, match="HEAD~1: Git knows no such revision here") as error:
        read_revision("HEAD~1", tmp_path / "shallow")
    assert "git fetch --unshallow" in error.value.fix
