"""What DVC has recorded of the seeds of a variant is kept, and only new seeds train."""

import re
import shutil
from pathlib import Path

import pytest
from dvc.repo import Repo

from resnets.models.bundle import SHIPPED, save_bundle
from resnets.training.recorded import keep, recorded_bundles
from resnets.training.show import History
from tests.bundles import make_model
from tests.copies import edit_params, make_copy, run

LR = "transfer.scratch.optimizer.lr"


def save_seeds(folder: Path, seeds: list[int]) -> None:
    model, meta = make_model()
    names = [SHIPPED, *(f"repeat-{seed}.safetensors" for seed in seeds[1:])]
    for seed, name in zip(seeds, names, strict=True):
        changes = {"training": {"seed": seed}, "hashes": {"training": f"of seed {seed}"}}
        history = [{"epoch": 1, "val_accuracy": seed / 10}]
        changed = meta.model_copy(update={**changes, "history": history})
        save_bundle(folder / name, model, changed)


def test_bundles_that_dvc_has_recorded_are_found_by_their_origin(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out, path = Path("out"), Path("new/model.safetensors")
    save_seeds(out, [0, 1, 2])
    bytes_of_1 = (out / "repeat-1.safetensors").read_bytes()
    (out / "notes.txt").write_text("no bundle")
    Repo.init(no_scm=True).close()
    Path("dvc.yaml").write_text("stages: {train: {cmd: unused, outs: [out]}}")
    with Repo() as repo:
        repo.commit("train", force=True)
    shutil.rmtree(out)  # as DVC does before it runs the stage
    assert recorded_bundles(out, [1]) == {}, "by hand nothing is kept"
    monkeypatch.setenv("DVC_STAGE", "train")
    assert recorded_bundles(out, [0, 2, 1]) == {}, "all of them are to be trained again"
    assert len(recorded_bundles(out, [1, 0, 2])) == 3, "another one is to be shipped"
    found = recorded_bundles(out, [0, 1, 2, 3])
    assert len(found) == 3
    written: list[History] = []
    assert not keep(found, {"training": "of seed 3"}, path, "seed 3", written.append)
    assert not path.exists()
    assert not written
    assert keep(found, {"training": "of seed 1"}, path, "seed 1", written.append)
    ((row,),) = written
    assert row == {"epoch": 1, "val_accuracy": 0.1}
    assert path.read_bytes() == bytes_of_1
    assert capsys.readouterr().out == "seed 1: kept, it was trained before\n"

    torn = next(file for file, meta in found.items() if meta.training["seed"] == 2)
    torn.chmod(0o644)
    torn.write_bytes(torn.read_bytes()[:-1])
    assert recorded_bundles(out, [1]).keys() == found.keys() - {torn}
    shutil.rmtree(".dvc/cache")  # as in a clone that pulled nothing
    assert recorded_bundles(out, [1]) == {}


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
def test_only_new_seeds_train_and_all_files_are_those_of_a_fresh_run(project):
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
