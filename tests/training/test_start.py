"""What a training starts from."""

import hashlib
from pathlib import Path

import pytest
import torch

from resnets.models import build_model
from resnets.models.bundle import save_bundle
from resnets.params.architecture import PUBLISHED
from resnets.params.schema import Model
from resnets.system.errors import ArtefactError
from resnets.training.publish import publish_given
from resnets.training.start import import_backbone
from tests.bundles import PREPROCESS, make_model


@pytest.mark.parametrize("shape", [(1, 64), (0, 64), (64,), ()])
def test_a_head_that_tells_no_classes_apart_is_refused(tmp_path, shape):
    file = Path(tmp_path, "w.pth")
    torch.save({"fc.weight": torch.zeros(shape), "conv1.weight": torch.zeros(1)}, file)
    network = Model(name="resnet8", in_channels=3)
    with pytest.raises(ArtefactError, match=r"has no head .* of two classes or more"):
        import_backbone(file, network, PREPROCESS)


@pytest.mark.parametrize(("channels", "mean"), [(3, [0.485, 0.456, 0.406]), (1, [0.449])])
def test_published_weights_bring_the_preprocessing_they_were_trained_with(
    tmp_path, monkeypatch, channels, mean
):
    file = tmp_path / "w.pth"
    torch.save(build_model("resnet8", num_classes=5, in_channels=3).state_dict(), file)
    prefix = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(PUBLISHED, f"resnet8-{prefix}.pth", ("x", 232, 224))
    network = Model(name="resnet8", in_channels=channels)
    made = import_backbone(file, network, PREPROCESS)[1].preprocess
    assert (made.resize, made.crop, made.fit, made.channels) == (232, 224, "shorter_side", channels)
    assert made.mean == mean


def test_a_bundle_says_itself_which_network_it_is_and_what_it_was_trained_with(tmp_path, capsys):
    """Its weights would fit the look-alike, which computes something else."""
    model, meta = make_model("resnet8", in_channels=3, stem="imagenet")
    file = tmp_path / "own.safetensors"
    save_bundle(file, model, meta)
    other = PREPROCESS.model_copy(update={"crop": PREPROCESS.crop - 4})
    options = {"name": "resnet8", "in_channels": 3, "stem": "imagenet", "shortcut": "pad"}
    publish_given(file, tmp_path / "backbone", Model(**options), other)
    assert "warning" not in capsys.readouterr().err
    assert import_backbone(file, Model(**options), other)[1].preprocess == meta.preprocess
    with pytest.raises(ArtefactError, match="another network: stem is imagenet, not pad2"):
        import_backbone(file, Model(**options | {"stem": "pad2"}), other)
