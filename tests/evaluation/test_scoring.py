"""Score a bundle, and hold what is said of it to statsmodels."""

import json
from pathlib import Path

import pytest
from statsmodels.stats.proportion import proportion_confint

from resnets.evaluation.scoring import score_models
from resnets.models.bundle import SHIPPED, load_bundle, save_bundle
from tests.bundles import make_trained

TRAINING = {"seed": 0, "epochs": 3, "chosen_epoch": 3, "precision": "fp32"}
TRAINING |= {"parameters": 9, "parameters_trained": 9}


def test_intervals_of_test_and_validation_count_groups_of_images(tmp_path: Path) -> None:
    """Answers that are all right could be so by as many chances as there are groups."""
    trained, model = make_trained(tmp_path), tmp_path / "model"
    bundle, task = load_bundle(trained.bundle), trained.task
    meta = bundle.meta.model_copy(update={"training": TRAINING})
    save_bundle(model / SHIPPED, bundle.model, meta)
    task._groups = [f"photo {number // 3}" for number in range(len(task._groups))]
    score_models(model, [0], task, "cpu", metrics=tmp_path / "m.json", plots=tmp_path / "plots")
    details = json.loads((tmp_path / "plots/details.json").read_text())
    for side in ("test", "val"):
        num_groups = len(set(task.groups(side)))
        assert num_groups < len(task.side(side).ids)
        expected = proportion_confint(num_groups, num_groups, method="wilson")
        found = details[side]["accuracy_low"], details[side]["accuracy_high"]
        assert found == pytest.approx(expected, abs=1e-6)
