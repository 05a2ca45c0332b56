import copy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from resnets.system.errors import ParamsError
from resnets.training.processes import check_alike, synchronise
from tests.training.runs import (
    SECTION,
    make_side,
    make_trainer,
    plain_batches,
    plain_optimizer,
    start_model,
    train,
)  # fmt: skip

ROOT = Path(__file__).parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]


def start(way: str, folder: Path, *launcher: str) -> subprocess.Popen[str]:
    command = [sys.executable, *launcher, "-m", "tests.training.several", way]
    return subprocess.Popen(
        [*command, str(folder / "state"), str(folder / "out")],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Return exit code, output and errors."""
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def run(way: str, folder: Path, *launcher: str) -> bytes:
    code, output, errors = end(start(way, folder, *launcher))
    assert code == 0, errors
    assert output.count(" in all") == (way != "float64"), "one process speaks for both"
    return (folder / "out").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> bytes:
    return run("plain", tmp_path_factory.mktemp("undisturbed"))


def train_on_three_parts() -> dict[str, torch.Tensor]:
    """Train with torch alone, in one process, on the three parts of every batch.

    BatchNorm sees the parts, and has the mean of their statistics after each epoch; the loss sees
    the whole batch, in which classes have their weights.
    """
    model, side = start_model().double(), make_side(33, 0, skewed=True)
    balanced = 33 / (3 * torch.bincount(torch.from_numpy(side.labels)).double())
    balanced = balanced.float().double()  # training has them in float32
    optimizer, scheduler = plain_optimizer(model)
    losses = []
    for epoch in range(3):
        whole, view = plain_batches(side, epoch)
        losses.append(0.0)
        parts = [model, copy.deepcopy(model), copy.deepcopy(model)]
        for batch in whole:  # of 8 images, in parts of 3, 3 and 2; the last one has 9
            logits, order = [], []
            for number, part in enumerate(parts):
                rows = batch[number::3]
                images = ((view.take(rows).float() / 255 - 0.4) / 0.3).double()
                logits.append(functional_call(part, dict(model.named_parameters()), images))
                order.extend(rows)
            labels = torch.from_numpy(side.labels[order])
            loss = F.cross_entropy(torch.cat(logits), labels, balanced, label_smoothing=0.1)
            losses[-1] += loss.item() * len(batch) / 33
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
        scheduler.step()
        for buffers in zip(*(part.buffers() for part in parts), strict=True):
            mean = sum(buffers) / 3
            for buffer in buffers:
                buffer.copy_(mean)
    return {**model.state_dict(), "losses": torch.tensor(losses)}


@pytest.mark.slow
def test_three_processes_equal_one_that_takes_the_same_three_parts(tmp_path):
    run("float64", tmp_path)
    ours, theirs = load_file(tmp_path / "out"), train_on_three_parts()
    torch.testing.assert_close(ours.pop("losses"), theirs.pop("losses"), rtol=0, atol=2e-6)
    start = start_model().double().state_dict()
    for key, value in theirs.items():
        if value.is_floating_point():
            assert not torch.allclose(value, start[key], rtol=1e-5), key
            torch.testing.assert_close(ours[key], value, rtol=1e-10, atol=1e-12, msg=key)


@pytest.mark.slow
def test_torchrun_gives_the_same_bits_and_continues_no_state_of_one_process(tmp_path, undisturbed):
    train(tmp_path / "state")
    assert run("plain", tmp_path, *TORCHRUN) == undisturbed


@pytest.mark.slow
def test_a_killed_and_a_stopped_run_continue_to_the_same_bits(tmp_path, undisturbed):
    code, _, errors = end(start("kill", tmp_path))
    assert (code, errors.count("error:")) == (5, 1)
    assert "process 1 of 3 was killed by SIGKILL" in errors
    process = start("plain", tmp_path)
    assert "continuing at epoch 1, batch 4" in process.stdout.readline()
    assert "epoch   1/3" in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    code, _, errors = end(process)
    assert (code, errors.count("error:"), errors.count("state saved")) == (143, 1, 1)
    assert run("plain", tmp_path) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "code", "words"),
    [
        ("raise", 3, "photo 7 is damaged"),
        ("wild", 6, "the loss is"),
        ("differ", 4, "process 1 differs from process 0 in seed"),
    ],
)
def test_an_error_ends_all_with_its_own_words_once_and_its_own_exit_code(
    tmp_path, way, code, words
):
    found, _, errors = end(start(way, tmp_path))
    assert (found, errors.count("error:")) == (code, 1), errors
    assert words in errors
    assert "Traceback" not in errors


def test_batchnorm_is_synchronised_on_gpus_and_refused_on_cpus(monkeypatch, tmp_path):
    section = SECTION.model_copy(update={"sync_batchnorm": True})
    alone = make_trainer(tmp_path, section=section).course(start_model(), 0).module
    assert not any(isinstance(x, torch.nn.SyncBatchNorm) for x in alone.modules())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ParamsError, match="synchronises BatchNorm only on GPUs") as refusal:
        synchronise(start_model(), "cpu")
    assert "training.sync_batchnorm" in refusal.value.fix
    model, plain = start_model(), start_model()
    synchronise(model, "cuda")
    kinds = {type(x) for x in model.modules() if isinstance(x, _BatchNorm)}
    assert kinds == {torch.nn.SyncBatchNorm}
    assert model.state_dict().keys() == plain.state_dict().keys()
    images = torch.randn(4, 1, 12, 12)
    assert torch.equal(model.eval()(images), plain.eval()(images))


def test_a_batch_too_small_to_share_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ParamsError, match="3 images cannot be shared by 2 processes"):
        check_alike({}, 3)


@pytest.mark.slow
def test_a_head_on_cached_features_becomes_that_of_one_process(tmp_path):
    run("head", tmp_path)
    ours = load_file(tmp_path / "out")
    options = {"train": "head", "views": 2, "frozen_batchnorm": "adapt"}
    theirs = train(tmp_path / "alone", **options).model.state_dict()
    for key, value in theirs.items():
        if key.startswith("fc."):
            torch.testing.assert_close(ours[key], value, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(ours[key], value), key
