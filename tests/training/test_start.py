"""What a training starts from."""

from pathlib import Path

import pytest
import torch

from resnets.params.schema import Model
from resnets.system.errors import ArtefactError
from resnets.training.start import import_backbone
from tests.bundles import PREPROCESS


@pytest.mark.parametrize("shape", [(1, 64), (0, 64), (64,), ()])
def test_a_head_that_tells_no_classes_apart_is_refused(tmp_path, shape):
    file = Path(tmp_path, "w.pth")
    torch.save({"fc.weight": torch.zeros(shape), "conv1.weight": torch.zeros(1)}, file)
    network = Model(name="resnet8", in_channels=3)
    with pytest.raises(ArtefactError, match=r"has no head .* of two classes or more"):
        import_backbone(file, network, PREPROCESS)
