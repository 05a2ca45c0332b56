"""Hold the yardsticks to scikit-learn called plainly, and show that the leaderboard shows them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from resnets.evaluation import yardsticks
from resnets.evaluation.yardsticks import (
    STRENGTHS,
    backbone_features,
    measure_yardsticks,
    thumbnails,
)
from resnets.models.bundle import load_bundle
from resnets.models.inference import infer
from resnets.tasks.decode import resize
from tests.bundles import PREPROCESS, Trained, make_trained

SIDES = ("train", "val", "test")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return make_trained(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def table(trained: Trained) -> pd.DataFrame:
    features = backbone_features(trained.bundle.parent, PREPROCESS, "cpu")
    rows = measure_yardsticks(trained.task, [7, 8], features)
    assert rows["yardstick"].tolist() == ["majority", "linear", "svm", "probe"]
    return rows.set_index("yardstick")


def pixels(side):
    return np.stack([np.ravel(resize(image, 32, "stretch")) for image in side.images]) / 255


def features(trained, side):
    bundle = load_bundle(trained.bundle)
    return infer(
        bundle.model, side.images, preprocess=PREPROCESS, batch_size=7, device="cpu",
        precision="fp32", output="features",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["linear", "svm", "probe"])
def test_scores_are_those_of_scikit_learn(trained, table, name):
    sides = [trained.task.side(side) for side in SIDES]
    train, val, test = (features(trained, x) if name == "probe" else pixels(x) for x in sides)
    labels = [side.labels for side in sides]
    kind = SVC if name == "svm" else LogisticRegression
    more = {} if name == "svm" else {"max_iter": 300}
    models = [kind(C=c, **more).fit(train, labels[0]) for c in STRENGTHS]
    scores = [model.score(val, labels[1]) for model in models]
    best = models[scores.index(max(scores))]
    row = table.loc[name]
    assert row["C"] == best.C
    assert row["val_accuracy"] == pytest.approx(max(scores), abs=1e-6)
    assert row["test_accuracy"] == pytest.approx(best.score(test, labels[2]), abs=1e-6)
    right = best.predict(test) == labels[2]
    assert [digit == "1" for digit in row["right"]] == right.tolist()


def test_majority_is_the_most_frequent_class_of_training(trained, table):
    train, test = (trained.task.side(side).labels for side in ("train", "test"))
    expected = (test == np.bincount(train).argmax()).mean()
    assert table.loc["majority", "test_accuracy"] == pytest.approx(expected, abs=1e-6)


def test_each_seed_draws_its_own_images_where_there_are_many(trained, monkeypatch):
    monkeypatch.setattr(yardsticks, "MOST_IMAGES", 12)
    rows = measure_yardsticks(trained.task, [1, 2], None)
    again = measure_yardsticks(trained.task, [1, 2], None)
    assert rows["yardstick"].tolist() == ["majority", "linear", "svm"] * 2
    assert rows.to_csv() == again.to_csv()
    linear = rows[rows["yardstick"] == "linear"]["right"]
    assert linear.iloc[0] != linear.iloc[1]


def test_images_of_one_class_alone_teach_to_say_that_class(trained, monkeypatch):
    monkeypatch.setattr(yardsticks, "MOST_IMAGES", 1)
    rows = measure_yardsticks(trained.task, [1], None)
    test = trained.task.side("test").labels
    shares = np.bincount(test) / len(test)
    assert len(set(rows["right"])) == 1
    assert any(rows["test_accuracy"][0] == pytest.approx(share, abs=1e-6) for share in shares)
    assert rows["C"].isna().all()


def test_without_a_backbone_there_is_no_probe(tmp_path: Path):
    assert backbone_features(tmp_path, PREPROCESS, "cpu") is None


def test_thumbnails_are_small_and_between_0_and_1():
    values = thumbnails([np.full((40, 80, 3), 255, np.uint8), np.zeros((28, 28, 3), np.uint8)])
    assert values.shape == (2, 32 * 32 * 3)
    assert values[0].min() == 1
    assert values[1].max() == 0


@pytest.mark.filterwarnings("error")
def test_a_fit_without_end_is_taken_as_it_is():
    draw = np.random.default_rng(0)
    values = draw.random((300, 100))
    labels = (values[:, 0] + 0.3 * draw.random(300) > 0.65).astype(int)
    values[:, 0] /= 100
    sides, estimator = [100 * values] * 3, LogisticRegression(C=10, max_iter=300)
    with pytest.warns(ConvergenceWarning):
        estimator.fit(sides[0], labels)
    strength, _, right = yardsticks._score([estimator], sides, [labels] * 3)
    assert strength == 10
    assert right.mean() == estimator.score(sides[2], labels)
