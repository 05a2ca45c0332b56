"""Let DVC run one variant with lists of repeats, and see which seeds it trains."""

import re
from pathlib import Path

import pytest

from resnets.training.recorded import recorded_bundles
from tests.copies import edit_params, make_copy, run

LR = "transfer.scratch.optimizer.lr"


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """Return a project in which the variant `scratch` was trained with seed 1."""
    folder = tmp_path_factory.mktemp("seeds")
    make_copy(folder)
    (folder / ".gitignore").write_text("/.state/\n__pycache__/\n")
    edits = {"tasks.source": ..., "split.source": ..., "backbone.input": "artifacts/random"}
    edits |= {"transfer.frozen": ..., "transfer.finetune": ...}
    edit_params(folder / "params.yaml", {**edits, "runtime.threads": 1})
    assert trained(folder, [1]) == {1}
    run("git", "add", "-A", cwd=folder)
    run("git", "commit", "-qm", "one seed", cwd=folder)
    return folder


def seeds_that_trained(said: str) -> set[int]:
    return {int(seed) for seed in re.findall(r"scratch (\d+)  epoch +1/", said)}


def trained(project: Path, repeat: list[int], *options: str, **edits: object) -> set[int]:
    """Run the variant with these repeats; return the seeds that trained."""
    edit_params(project / "params.yaml", {"repeat": repeat, **edits})
    said = run("dvc", "repro", *options, "transfer@scratch", cwd=project)
    return seeds_that_trained(said)


def outs(project: Path) -> dict[str, bytes]:
    files = [project / "plots/scratch/history.csv", *(project / "artifacts/scratch").iterdir()]
    return {file.name: file.read_bytes() for file in files}


@pytest.mark.slow
def test_only_new_seeds_train_and_all_files_are_those_of_a_fresh_run(project, monkeypatch):
    assert trained(project, [1, 0, 2]) == {0, 2}
    kept = outs(project)
    assert trained(project, [1, 0, 2], "-f", "-s") == {0, 1, 2}, "-f trains all again"
    assert outs(project) == kept

    assert trained(project, [2, 1]) == set()  # fewer, and another one is shipped
    fewer = outs(project)
    assert fewer.keys() == {"history.csv", "model.safetensors", "repeat-1.safetensors"}
    assert fewer["model.safetensors"] == kept["repeat-2.safetensors"]
    assert fewer["repeat-1.safetensors"] == kept["model.safetensors"]

    assert trained(project, [2], **{LR: 0.01}) == {2}, "a bundle of other parameters is not kept"
    assert trained(project, [1, 0, 2], **{LR: 0.02}) == set(), "DVC has the run in its cache"
    assert outs(project) == kept

    queued = run("dvc", "exp", "run", "--temp", "-S", "repeat=[1,3]", "transfer@scratch",
                 cwd=project)  # fmt: skip
    assert seeds_that_trained(queued) == {3}

    monkeypatch.chdir(project)
    assert recorded_bundles(Path("artifacts/scratch"), [0]) == {}, "by hand nothing is kept"
    monkeypatch.setenv("DVC_STAGE", "transfer@scratch")
    found = recorded_bundles(Path("artifacts/scratch"), [0])
    assert sorted(meta.training["seed"] for meta in found.values()) == [0, 1, 2]
    torn = next(file for file, meta in found.items() if meta.training["seed"] == 2)
    torn.chmod(0o644)
    torn.write_bytes(torn.read_bytes()[:-1])
    assert recorded_bundles(Path("artifacts/scratch"), [0]).keys() == found.keys() - {torn}
