"""Hold the metrics to scikit-learn, to hand-computed tables, and to the awkward cases."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from dvc.utils.flatten import flatten
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize_scalar
from sklearn import metrics as sk

from resnets.evaluation.evaluate import evaluate
from resnets.evaluation.metrics import METRICS, metrics_for, reliability
from resnets.evaluation.predictions import Predictions, prediction_tables, predictions_of
from resnets.evaluation.scoring import mean_scores
from resnets.models.calibration import fit_temperature, log_softmax
from resnets.system.errors import DataError
from tests.copies import ROOT
from tests.projects import run_row


def some_logits(num_images, num_classes, *, seed=0, strength=2.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num_images)
    logits = rng.normal(size=(num_images, num_classes)).astype(np.float32)
    logits[np.arange(num_images), labels] += strength
    return logits, labels


def names(num_classes):
    return [f"class {k}" for k in range(num_classes)]


@pytest.mark.parametrize("num_classes", [2, 3, 12])
def test_scores_equal_scikit_learn(num_classes):
    logits, labels = some_logits(300, num_classes)
    temperature = 1.7
    scores = evaluate(logits, labels, names(num_classes), temperature=temperature).scores
    predicted = logits.argmax(1)
    shares = {
        "_uncalibrated": np.exp(log_softmax(logits)),
        "": np.exp(log_softmax(logits / temperature)),
    }
    truth = np.eye(num_classes)[labels]
    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "macro_precision": sk.precision_score(labels, predicted, average="macro"),
        "macro_recall": sk.recall_score(labels, predicted, average="macro"),
        "macro_f1": sk.f1_score(labels, predicted, average="macro"),
        "weighted_precision": sk.precision_score(labels, predicted, average="weighted"),
        "weighted_recall": sk.recall_score(labels, predicted, average="weighted"),
        "weighted_f1": sk.f1_score(labels, predicted, average="weighted"),
        "loss": sk.log_loss(labels, shares["_uncalibrated"]),
        "nll": sk.log_loss(labels, shares[""]),
        "average_precision": sk.average_precision_score(truth, shares[""], average="macro"),
        "roc_auc": sk.roc_auc_score(truth, shares[""], average="macro"),
    }
    for suffix, share in shares.items():
        given_scores = share[:, 1] if num_classes == 2 else share
        expected[f"brier{suffix}"] = sk.brier_score_loss(labels, given_scores)
    if num_classes > 5:
        expected["top5"] = sk.top_k_accuracy_score(labels, logits, k=5)
    assert set(scores) == set(expected) | {"ece", "ece_uncalibrated"}
    for name, value in expected.items():
        assert scores[name].value == pytest.approx(value, abs=1e-6), name


def test_two_bins_of_calibration_error_by_hand():
    # confidence 0.9 four times, three right; 0.6 twice, none right
    confidence = np.array([0.9] * 4 + [0.6] * 2)
    logits = np.stack([np.log(confidence), np.log(1 - confidence)], 1)
    labels = np.array([0, 0, 0, 1, 1, 1])
    result = evaluate(logits, labels, names(2))
    by_hand = (4 * abs(0.9 - 0.75) + 2 * abs(0.6 - 0.0)) / 6
    assert result.scores["ece"].value == pytest.approx(by_hand)
    bins = reliability(log_softmax(logits), labels)
    assert (bins["images"].tolist(), bins["accuracy"].tolist()) == ([2, 4], [0.0, 0.75])


def test_per_class_numbers_by_hand():
    logits = np.eye(2)[[0, 0, 1, 1, 1]]
    first, second = evaluate(logits, np.array([0, 0, 0, 1, 1]), names(2)).per_class
    assert (first["support"], first["precision"], first["recall"]) == (3, 1.0, pytest.approx(2 / 3))
    assert first["f1"] == pytest.approx(0.8)
    assert (second["support"], second["precision"]) == (2, pytest.approx(2 / 3))
    # Wilson's interval of 2 of 3
    assert (first["recall_low"], first["recall_high"]) == (
        pytest.approx(0.2077, abs=1e-4),
        pytest.approx(0.9385, abs=1e-4),
    )


def test_class_without_images_is_left_out_of_averages():
    logits, labels = some_logits(80, 4)
    labels = labels % 3
    result = evaluate(logits, labels, names(4))
    absent = result.per_class[3]
    assert absent["support"] == 0
    assert absent["recall"] is absent["f1"] is absent["roc_auc"] is None
    predicted = logits.argmax(1)
    recalls = [(predicted[labels == k] == k).mean() for k in range(3)]
    assert result.scores["balanced_accuracy"].value == pytest.approx(np.mean(recalls))
    assert result.scores["roc_auc"].value == pytest.approx(
        np.mean([row["roc_auc"] for row in result.per_class[:3]])
    )


@pytest.mark.parametrize(("num_images", "num_classes"), [(1, 2), (1, 7), (2, 2), (5, 200)])
def test_few_images_give_finite_numbers_or_none(num_images, num_classes):
    logits, labels = some_logits(num_images, num_classes)
    result = evaluate(logits, labels, names(num_classes))
    scores = [asdict(score) for score in result.scores.values()]
    json.dumps([result.details(), result.per_class, scores], allow_nan=False)  # raises for NaN
    assert result.details()["accuracy_low"] < result.details()["accuracy_high"]
    assert result.scores["macro_f1"].low is None or num_images > 1


@settings(max_examples=30, deadline=None)
@given(
    num_images=st.integers(1, 40),
    num_classes=st.integers(2, 8),
    scale=st.sampled_from([0.0, 1.0, 1e3]),
    seed=st.integers(0, 1000),
)
@example(num_images=4, num_classes=3, scale=1.0, seed=3)  # few draws far from all others
def test_intervals_contain_their_value(num_images, num_classes, scale, seed):
    logits, labels = some_logits(num_images, num_classes, seed=seed)
    result = evaluate(logits * scale, labels, names(num_classes))
    for name, score in result.scores.items():
        assert np.isfinite(score.value), name
        if score.low is not None and score.high is not None:
            assert score.low <= score.value + 1e-9, name
            assert score.value <= score.high + 1e-9, name


def test_intervals_agree_with_a_bootstrap_of_scikit_learns_values_within_classes():
    logits, labels = some_logits(240, 3)
    labels = np.where((labels == 0) & (np.arange(240) % 4 > 0), 1, labels)  # the first is rare
    result = evaluate(logits, labels, names(3))
    rng, share = np.random.default_rng(5), np.exp(log_softmax(logits))
    members = [np.flatnonzero(labels == k) for k in range(3)]
    values = []
    for _ in range(300):
        rows = np.concatenate([rng.choice(rows, len(rows)) for rows in members])
        truth, predicted = labels[rows], logits[rows].argmax(1)
        values.append(
            {
                "macro_f1": sk.f1_score(truth, predicted, average="macro"),
                "balanced_accuracy": sk.balanced_accuracy_score(truth, predicted),
                "nll": sk.log_loss(truth, share[rows]),
                "brier": sk.brier_score_loss(truth, share[rows]),
            }
        )
    for name in values[0]:
        expected = np.quantile([value[name] for value in values], [0.025, 0.975])
        score = result.scores[name]
        assert score.high - score.low == pytest.approx(np.ptp(expected), rel=0.2), name


def test_interval_of_the_accuracy_is_wilsons():
    logits, labels = some_logits(90, 12)
    result, hits = evaluate(logits, labels, names(12)), (logits.argmax(1) == labels).sum()
    expected = stats.binomtest(hits, 90).proportion_ci(method="wilson")
    for name in ("accuracy", "weighted_recall"):
        score = result.scores[name]
        assert (score.low, score.high) == pytest.approx(tuple(expected))


def test_copies_in_groups_leave_every_interval_as_it_was():
    logits, labels = some_logits(60, 3, strength=1)
    groups = [f"photo {k % 60}" for k in range(300)]
    alone = evaluate(logits, labels, names(3))
    copies = (np.tile(logits, (5, 1)), np.tile(labels, 5), names(3))
    copied, naive = evaluate(*copies, groups=groups), evaluate(*copies)
    for name, score in alone.scores.items():
        same, other = copied.scores[name], naive.scores[name]
        assert same.value == pytest.approx(score.value, abs=1e-9), name
        bounds = [bound and pytest.approx(bound) for bound in (score.low, score.high)]
        assert [same.low, same.high] == bounds, name
        assert score.low is None or other.high - other.low < 0.6 * (same.high - same.low), name
    for row, other in zip(alone.per_class, copied.per_class, strict=True):
        assert other.pop("support") == 5 * row.pop("support")
        assert other == {k: v if k == "class" else pytest.approx(v) for k, v in row.items()}


def test_direction_of_a_metric_is_that_of_a_better_model():
    worse, better = (evaluate(*some_logits(300, 8, strength=x), names(8)).scores for x in (1, 3))
    for metric in METRICS:
        move = better[metric.name].value - worse[metric.name].value
        assert (move > 0) == metric.higher_is_better or "ece" in metric.name, metric.name


def test_compared_metrics_have_terms_of_every_run_without_all_probabilities():
    rng = np.random.default_rng(0)
    labels, runs = rng.integers(0, 3, 60), rng.integers(0, 3, (2, 60))
    for name, metric in metrics_for("compare").items():
        assert metric.terms(Predictions(labels, runs, rng.random((2, 60)))).shape == (2, 60), name


def test_order_of_the_images_does_not_matter():
    logits, labels = some_logits(100, 3)
    result, backwards = (evaluate(logits[::s], labels[::s], names(3)) for s in (1, -1))
    for name, score in result.scores.items():
        other = backwards.scores[name]
        numbers = [x or 0 for x in (other.value, other.low, other.high)]
        assert [score.value, score.low or 0, score.high or 0] == pytest.approx(numbers), name


def test_temperature_equals_an_independent_minimum():
    logits, labels = some_logits(4000, 5)
    best = minimize_scalar(
        lambda t: sk.log_loss(labels, np.exp(log_softmax(logits * 3 / t))),
        bounds=(0.1, 20),
        method="bounded",
    )
    assert fit_temperature(logits * 3, labels) == pytest.approx(best.x, rel=0.02)


def test_temperature_improves_an_overconfident_model():
    logits, labels = some_logits(2000, 5)
    temperature = fit_temperature(logits * 6, labels)
    scores = evaluate(logits * 6, labels, names(5), temperature=temperature).scores
    assert scores["nll"].value < scores["loss"].value
    assert scores["ece"].value < scores["ece_uncalibrated"].value


@pytest.mark.parametrize("num_images", [1, 5, 50])
def test_temperature_of_a_faultless_validation_is_not_zero(num_images):
    labels = np.arange(num_images) % 3
    logits = np.eye(3)[labels] * 10
    temperature = fit_temperature(logits, labels)
    assert temperature > 0.1
    assert np.exp(log_softmax(logits / temperature)).max() < 0.9999


def test_no_images_and_bad_logits_are_refused():
    with pytest.raises(DataError, match="no images"):
        evaluate(np.empty((0, 2)), np.empty(0, np.int64), names(2))


def test_predictions_table_keeps_awkward_class_names():
    logits, labels = some_logits(4, 3)
    words = {"classes": ["id", "label", 'x,"y"'], "ids": list("abcd"), "groups": list("abcd")}
    table = prediction_tables(predictions_of([logits], labels, **words), [0])["predictions"]
    assert table.columns.tolist() == ["id", "label", "predicted", "id", "label", 'x,"y"']
    assert table.iloc[:, 3:].sum(axis=1).to_numpy() == pytest.approx(1.0, abs=2e-6)
    text = table.to_csv(index=False)
    assert max(len(cell) for line in text.split("\n")[1:-1] for cell in line.split(",")[-3:]) <= 8


def test_metrics_are_four_means_over_the_runs():
    sides = [evaluate(*some_logits(50, 3, seed=seed), names(3)) for seed in range(6)]
    tests, vals = sides[:3], sides[3:]
    runs = [run_row(k, test, val) for k, (test, val) in enumerate(zip(tests, vals, strict=True))]
    means = mean_scores(runs)
    for name in ("accuracy", "macro_f1", "nll"):
        expected = np.mean([side.scores[name].value for side in tests])
        assert means["test"].pop(name) == pytest.approx(expected, abs=2e-6)
    expected = np.mean([side.scores["accuracy"].value for side in vals])
    assert means["val"].pop("accuracy") == pytest.approx(expected, abs=2e-6)
    assert means == {"test": {}, "val": {}}
    details = tests[0].details()
    assert details["accuracy"] == tests[0].value("accuracy")
    json.dumps([details, runs], allow_nan=False)


def test_details_have_one_list_which_dvc_draws():
    files = sorted((ROOT / "plots").glob("*/details.json"))
    assert files
    for file in files:  # of several lists DVC would join the rows
        values = flatten(json.loads(file.read_text()))
        assert [key for key, value in values.items() if isinstance(value, list)] == ["runs"]
