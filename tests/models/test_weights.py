"""Check the import of weights: what is taken, what is refused, and that nothing of it is run."""

import functools
import hashlib
import io
import os
import pickle
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from resnets.models import build_model
from resnets.models.resnet import ResNet
from resnets.models.weights import (
    PUBLISHED,
    import_weights,
    load_weights,
)
from resnets.params.architecture import IMAGENET, USUAL, network_of
from resnets.system.errors import ArtefactError, EnvironmentFault, NumericalError, ResNetsError

NAME = "resnet8"


@pytest.fixture
def weights() -> dict[str, Tensor]:
    torch.manual_seed(7)
    return build_model(NAME, num_classes=5).state_dict()


@pytest.fixture
def model() -> ResNet:
    torch.manual_seed(8)
    return build_model(NAME, num_classes=5)


def write(content: object, file: Path, **options: object) -> Path:
    if file.suffix == ".safetensors":
        safetensors.torch.save_file(content, file)
    else:
        torch.save(content, file, **options)
    return file


def is_loaded(model: nn.Module, weights: dict[str, Tensor], but: tuple[str, ...] = ()) -> bool:
    own = model.state_dict()
    return all(torch.equal(own[key], weights[key]) for key in own if not key.endswith(but or "/"))


def shapes(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in weights.items()}


# What is taken


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".th", ".safetensors"])
def test_all_keys_are_loaded_and_reported(model, weights, tmp_path, suffix):
    file = write(weights, tmp_path / f"w{suffix}")
    report = import_weights(model, file)
    assert is_loaded(model, weights)
    assert report.keys["loaded"] == sorted(weights)
    assert not [kind for kind in report.keys if kind != "loaded" and report.keys[kind]]
    assert report.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert report.published is None
    assert str(report).startswith(f"{len(weights)} loaded (bn1.bias, bn1.num_batches_tracked,")


def test_pytorchs_old_format_without_counters_is_taken_as_the_first_published_files_are(
    model, weights, tmp_path
):
    old = {key: value for key, value in weights.items() if "num_batches" not in key}
    file = write(old, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(file)
    report = import_weights(model, file)
    assert is_loaded(model, weights, ("num_batches_tracked",))
    assert report.keys["missing"] == sorted(weights.keys() - old.keys())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {f"module.{k}": v for k, v in w.items()},
        lambda w: {f"_orig_mod.{k}": v for k, v in w.items()},
        lambda w: {f"module._orig_mod.{k}": v for k, v in w.items()},
        lambda w: {k.replace("layer1.", "layer1._orig_mod."): v for k, v in w.items()},
        lambda w: {"state_dict": w, "epoch": 3, "arch": "resnet8"},
        lambda w: {"model": {f"module.{k}": v for k, v in w.items()}, "optimizer": {"state": {}}},
        lambda w: {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in w.items()},
        lambda w: {f"module.{k.replace('fc.', 'linear.')}": v for k, v in w.items()},
        lambda w: {k: v.double() if v.is_floating_point() else v for k, v in w.items()},
    ],
)
def test_wrapped_and_prefixed_weights_are_unwrapped(model, weights, tmp_path, wrap):
    report = import_weights(model, write(wrap(weights), tmp_path / "w.pth"))
    assert is_loaded(model, weights)
    assert len(report.keys["loaded"]) == len(weights)


def test_weights_saved_by_data_parallel_and_compile_are_taken(model, tmp_path):
    theirs = build_model(NAME, num_classes=5)
    wrapped = nn.DataParallel(torch.compile(theirs))
    import_weights(model, write(wrapped.state_dict(), tmp_path / "w.pth"))
    assert is_loaded(model, theirs.state_dict())


def test_half_precision_is_loaded_as_float32(model, weights, tmp_path):
    half = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    import_weights(model, write(half, tmp_path / "w.safetensors"))
    assert {v.dtype for v in model.state_dict().values()} == {torch.float32, torch.int64}
    assert torch.equal(model.fc.weight, half["fc.weight"].float())


def test_an_adapted_stem_sees_a_grey_image_as_its_three_equal_channels(weights, tmp_path):
    file = write(weights, tmp_path / "w.pth")
    colour, grey = build_model(NAME, num_classes=5), build_model(NAME, num_classes=5, in_channels=1)
    import_weights(colour, file)
    import_weights(grey, file)
    images = torch.randn(2, 1, 32, 32)
    expected = colour.eval()(images.expand(-1, 3, -1, -1))
    torch.testing.assert_close(grey.eval()(images), expected, rtol=1e-4, atol=1e-5)


def test_torchvisions_own_weights_give_torchvisions_logits(tmp_path):
    theirs = torchvision.models.resnet18(weights=None).eval()
    ours = build_model("resnet18").eval()
    import_weights(ours, write(theirs.state_dict(), tmp_path / "w.pth"))
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(ours(images), theirs(images))


# Published files


def test_the_table_of_published_files_is_torchvisions():
    found = {}
    for name, row in USUAL.items():
        for version in torchvision.models.get_model_weights(name) if len(row.blocks) == 4 else ():
            file = version.url.rpartition("/")[2]
            preset = version.transforms()
            found[file] = preset.resize_size
            assert PUBLISHED[file][1:] == (preset.resize_size[0], preset.crop_size[0])
            assert IMAGENET[3] == (preset.mean, preset.std)
    first = {"resnet18-5c106cde.pth", "resnet34-333f7ec4.pth", "resnet50-19c8e357.pth"}
    first |= {"resnet101-5d3b4d8f.pth", "resnet152-b121ed2d.pth"}  # not in torchvision any more
    ours = {file for file, (publisher, *_) in PUBLISHED.items() if publisher == "torchvision"}
    assert ours - found.keys() == first
    assert not found.keys() - ours
    assert {PUBLISHED[file][1:] for file in first} == {(256, 224)}


def test_a_published_name_on_other_content_is_refused(weights, model, tmp_path):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    file = write(weights, tmp_path / "resnet18-f37072fd.pth")
    with pytest.raises(ArtefactError, match="promises the SHA-256 f37072fd…, but it is"):
        import_weights(model, file)
    assert is_loaded(model, before)


def test_published_weights_are_known_by_their_content(weights, model, tmp_path, monkeypatch):
    file = write(weights, tmp_path / "renamed by a browser (1).pth")
    prefix = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(PUBLISHED, f"resnet8-{prefix}.pth", ("x", 232, 224))
    assert import_weights(model, file).published == f"resnet8-{prefix}.pth"
    file = file.rename(tmp_path / f"resnet8-{prefix}.pth")
    assert import_weights(model, file).published == file.name


# What is refused


def hollow(model: nn.Module) -> dict[str, Tensor]:
    """Return zeros of a network's shapes that take no space in a file."""
    return {
        key: torch.zeros((), dtype=value.dtype).expand(value.shape)
        for key, value in model.state_dict().items()
    }


@pytest.fixture(scope="module")
def hollow_files(tmp_path_factory) -> dict[str, Path]:
    folder, files = tmp_path_factory.mktemp("hollow"), {}
    for name in [*USUAL, "resnet8"]:
        with torch.device("meta"):
            model = build_model(name)
        files[name] = write(hollow(model), folder / f"{name}.pth")
    return files


@pytest.mark.parametrize("options", [{}, {"stem": "small", "shortcut": "pad", "conv_bias": True}])
@pytest.mark.parametrize("name", [*USUAL, "resnet8", "resnet1202"])
def test_a_network_is_known_by_its_weights(name, options):
    with torch.device("meta"):
        model = build_model(name, num_classes=3, in_channels=1, **options)
    assert network_of(shapes(model.state_dict())) == name


@pytest.mark.parametrize("name", USUAL)
def test_a_file_of_another_network_is_refused_with_both_names(name, hollow_files):
    with torch.device("meta"):
        model = build_model(name)
    others = [other for other in hollow_files if other != name]
    chance = random.Random(name)
    for other in chance.sample(others, 4):
        words = f"weights of {other}, but the network is {name}$"
        with pytest.raises(ArtefactError, match=words):
            import_weights(model, hollow_files[other])


def test_weights_of_an_unknown_network_are_refused_with_their_keys(model, tmp_path):
    theirs = torchvision.models.squeezenet1_0(weights=None).state_dict()
    assert network_of(shapes(theirs)) is None
    with pytest.raises(ArtefactError, match=r"into resnet8: [0-9]+ missing \(") as c:
        import_weights(model, write(theirs, tmp_path / "w.pth"))
    assert "52 unexpected (features.0.weight, " in c.value.what


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("layer2.0.conv1.weight"), r"1 missing \(layer2.0.conv1.weight\)"),
        (lambda w: w.update(extra=torch.ones(1)), r"1 unexpected \(extra\)"),
        (lambda w: w.update({"bn1.bias": torch.ones(15)}), "size mismatch for bn1.bias"),
        (lambda w: w.update({"fc.bias": torch.ones(6)}), "size mismatch for fc.bias"),
    ],
)
def test_a_partial_load_is_refused(model, weights, tmp_path, change, message):
    change(weights)
    with pytest.raises(ArtefactError, match=message) as caught:
        import_weights(model, write(weights, tmp_path / "w.pth"))
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    "options", [{"num_classes": 3}, {"shortcut": "projection"}, {"conv_bias": True}]
)
def test_the_fix_says_what_would_make_the_file_fit(weights, tmp_path, options):
    model = build_model(NAME, **{"num_classes": 5, **options})
    with pytest.raises(ArtefactError) as caught:
        import_weights(model, write(weights, tmp_path / "w.pth"))
    assert "the options that the weights were made with" in caught.value.fix


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(model, weights, tmp_path, value):
    weights["layer3.0.conv1.weight"][0, 0, 0, 0] = value
    with pytest.raises(NumericalError, match=r"1 not finite \(layer3.0.conv1.weight\)"):
        import_weights(model, write(weights, tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"holds 0 dicts of tensors \(\) instead of one"),
        ([torch.ones(1)], "holds 0 dicts of tensors"),
        (torch.ones(3), "holds 0 dicts of tensors"),
        ({"epoch": 3, "conv1.weight": torch.ones(1)}, "holds 0 dicts of tensors"),
        (
            {"model": {"a": torch.ones(1)}, "model_ema": {"a": torch.ones(1)}},
            r"holds 2 dicts of tensors \(model, model_ema\)",
        ),
        ({"module.a": torch.ones(1), "a": torch.ones(1)}, "holds a twice"),
        ({"a": torch.eye(3).to_sparse()}, "a is no plain tensor"),
        ({"a": torch.empty(3, device="meta")}, "a is no plain tensor"),
    ],
)
def test_content_that_is_not_one_set_of_weights_is_refused(tmp_path, content, message):
    with pytest.raises(ArtefactError, match=message):
        load_weights(write(content, tmp_path / "w.pt"))


def test_files_of_other_kinds_and_missing_ones_are_refused(tmp_path):
    with pytest.raises(EnvironmentFault, match=r"none\.pth: no such file"):
        load_weights(tmp_path / "none.pth")
    with pytest.raises(EnvironmentFault, match=f"{tmp_path}: a folder") as caught:
        load_weights(tmp_path)
    assert caught.value.fix == "name the .pth or .safetensors file in it"
    (tmp_path / "w.bin").write_bytes(b"1")
    with pytest.raises(ArtefactError, match="not a weights file"):
        load_weights(tmp_path / "w.bin")
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_text("<!doctype html><title>Sign in to the network</title>")
        with pytest.raises(ArtefactError, match="damaged, or no weights file"):
            load_weights(tmp_path / name)


@pytest.mark.parametrize(
    "options",
    [("w.pth", {}), ("w.pth", {"_use_new_zipfile_serialization": False}), ("w.safetensors", {})],
)
def test_damaged_files_load_or_are_refused_in_our_words(tmp_path, options):
    name, options = options
    small = {"conv1.weight": torch.ones(4, 3), "bn1.bias": torch.ones(7)}
    whole = write(small, tmp_path / name, **options).read_bytes()
    chance, file = random.Random(0), tmp_path / f"damaged-{name}"
    cuts = [whole[: len(whole) * i // 64] for i in range(64)]
    flips = []
    for _ in range(300):
        raw = bytearray(whole)
        for _ in range(chance.choice([1, 1, 8])):
            raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        flips.append(bytes(raw))
    for number, raw in enumerate(cuts + flips):
        file.write_bytes(raw)
        try:
            load_weights(file)
        except ResNetsError:
            continue
        assert number >= len(cuts), f"{len(raw)} of {len(whole)} bytes were taken for all"


# Nothing in a file is run


class Evil:
    """Run a call when it is unpickled."""

    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self.call = (call, arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


def _zipped(pickled: bytes) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        archive.writestr("w/data.pkl", pickled)
        archive.writestr("w/version", "3\n")
        archive.writestr("w/byteorder", "little")
    return raw.getvalue()


def _tarred(pickled: bytes) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name in ("storages", "tensors", "pickle", "sys_info"):
            member = tarfile.TarInfo(name)
            member.size = len(pickled)
            archive.addfile(member, io.BytesIO(pickled))
    return raw.getvalue()


def _saved(content: object, **options: object) -> bytes:
    raw = io.BytesIO()
    torch.save(content, raw, **options)
    return raw.getvalue()


def attacks(marker: Path) -> dict[str, bytes]:
    touch = f"touch '{marker}'"
    python = f"open({str(marker)!r}, 'w')"
    system = Evil(os.system, touch)
    partial = functools.partial(os.system, touch)
    tensors = {"conv1.weight": torch.ones(1)}
    return {
        "saved": _saved(system),
        "saved, old format": _saved(system, _use_new_zipfile_serialization=False),
        "beside weights": _saved({"state_dict": tensors, "args": system}),
        "as a weight": _saved({**tensors, "fc.weight": system}),
        "as a key": _saved({Evil(os.system, touch): tensors}),
        "eval": _saved(Evil(eval, python)),
        "exec": pickle.dumps(Evil(exec, python)),
        "plain pickle": pickle.dumps(system),
        "protocol 0": pickle.dumps(system, protocol=0),
        "open": pickle.dumps(Evil(open, str(marker), "w")),
        "import": pickle.dumps(Evil(__import__, "os")),
        "partial": _saved(partial),
        "map": _saved(Evil(map, partial, [()])),
        "zip": _zipped(pickle.dumps(system)),
        "tar": _tarred(pickle.dumps(system)),
        "whole network": _saved(nn.Linear(1, 1)),
        "handmade": b"cposix\nsystem\n(S" + repr(touch).encode() + b"\ntR.",
        "stacked": b"\x80\x02cbuiltins\nexec\nX"
        + len(python).to_bytes(4, "little")
        + python.encode()
        + b"\x85R.",
    }


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".th", ".safetensors"])
@pytest.mark.parametrize("attack", attacks(Path("marker")))
def test_a_crafted_pickle_is_refused_and_not_run(attack, suffix, tmp_path, model):
    marker = tmp_path / "marker"
    file = tmp_path / f"w{suffix}"
    file.write_bytes(attacks(marker)[attack])
    with pytest.raises(ArtefactError, match="nothing of it was run") as caught:
        import_weights(model, file)
    assert caught.value.exit_code == 4
    assert not marker.exists()


def test_the_attacks_would_work_on_an_unsafe_loader(tmp_path):
    marker = tmp_path / "marker"
    for attack in ("exec", "plain pickle", "protocol 0", "open", "handmade", "stacked"):
        pickle.loads(attacks(marker)[attack])
        assert marker.exists(), attack
        marker.unlink()


def test_the_refusal_names_what_the_file_would_run(tmp_path):
    file = tmp_path / "w.pth"
    file.write_bytes(attacks(tmp_path / "marker")["saved"])
    with pytest.raises(ArtefactError, match=r"holds posix\.system, not only tensors"):
        load_weights(file)
