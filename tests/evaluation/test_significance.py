"""Hold intervals and tests to statsmodels, scipy and published tables."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, f1_score
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from resnets.evaluation.significance import (
    SEED_SPREAD,
    balanced_terms,
    compare_runs,
    holm,
    judge,
    macro_f1_terms,
    mcnemar,
    wilson,
)


@given(total=st.integers(1, 5000), share=st.floats(0, 1))
def test_wilson_equals_statsmodels(total, share):
    successes = round(share * total)
    expected = proportion_confint(successes, total, method="wilson")
    assert wilson(successes, total) == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_equals_statsmodels(base_only, head_only):
    table = [[10, base_only], [head_only, 5]]
    expected = statsmodels_mcnemar(table, exact=True).pvalue
    assert mcnemar(base_only, head_only) == pytest.approx(expected, abs=1e-12)


def test_mcnemar_by_hand():
    # 1 against 5: 2 * (1 + 6) / 2**6
    assert mcnemar(1, 5) == pytest.approx(14 / 64)
    assert mcnemar(0, 0) == 1.0


@pytest.mark.parametrize(
    "p_values", [[0.2], [0.01, 0.04, 0.03], [0.5, 0.5, 0.9, 0.0001], [0.02, 0.001, 0.02, 1.0, 0.3]]
)
def test_holm_equals_statsmodels(p_values):
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


def some_runs(num_runs, num_images, num_classes, *, seed=0, accuracy=0.8):
    rng = np.random.default_rng(seed)
    labels = rng.choice(
        num_classes, num_images, p=np.arange(1, num_classes + 1) / sum(range(num_classes + 1))
    )
    right = rng.random((num_runs, num_images)) < accuracy
    return labels, np.where(right, labels, rng.integers(0, num_classes, right.shape))


@pytest.mark.parametrize(("num_images", "num_classes"), [(500, 4), (30, 10), (1, 3)])
def test_terms_average_to_the_metric(num_images, num_classes):
    labels, runs = some_runs(2, num_images, num_classes)
    present = np.unique(labels)
    f1 = [f1_score(labels, r, labels=present, average="macro", zero_division=0) for r in runs]
    assert macro_f1_terms(runs, labels).mean(1) == pytest.approx(f1)
    recalls = [np.mean([(r[labels == k] == k).mean() for k in present]) for r in runs]
    assert balanced_terms(runs == labels, labels).mean(1) == pytest.approx(recalls)
    if num_images == 500:
        assert recalls[0] == pytest.approx(balanced_accuracy_score(labels, runs[0]))


def test_interval_of_macro_f1_agrees_with_a_paired_bootstrap():
    labels, runs = some_runs(2, 1500, 5)
    found = compare_runs(*(macro_f1_terms(runs[k : k + 1], labels) for k in (0, 1)), spread=0.0)
    rng = np.random.default_rng(1)
    drawn = []
    for _ in range(400):
        rows = rng.integers(0, 1500, 1500)
        scores = [f1_score(labels[rows], run[rows], average="macro") for run in runs]
        drawn.append(scores[1] - scores[0])
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found.high - found.low == pytest.approx(high - low, rel=0.15)


def test_paired_interval_of_single_runs_by_hand():
    # 20 images, 6 won by head, 2 by base: Bonett and Price 2012 with 7 and 3 of 22
    base, head = np.zeros((1, 20), bool), np.zeros((1, 20), bool)
    head[0, :6], base[0, 6:8] = True, True
    found = compare_runs(base, head, spread=0.0)
    error = np.sqrt((7 / 22 + 3 / 22 - ((7 - 3) / 22) ** 2) / 22)
    assert found.value == pytest.approx(0.2)
    assert found.high - found.value == pytest.approx(1.959964 * error, rel=1e-5)
    assert (found.images, found.decisive) == (20, 8)
    assert found.p == pytest.approx(max(mcnemar(2, 6), 2 * stats.norm.sf(0.2 / error)))


def test_spread_between_seeds_equals_students_t():
    rng = np.random.default_rng(0)
    chances = np.array([[0.70], [0.75], [0.80]]), np.array([[0.78], [0.83], [0.84], [0.90]])
    rights = [rng.random((len(chance), 4000)) < chance for chance in chances]
    found = compare_runs(*rights)
    expected = stats.ttest_ind(rights[1].mean(1), rights[0].mean(1))
    assert found.p == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert "t over 3 + 4 runs" in found.test


def test_assumed_spread_stops_a_certain_but_small_difference():
    # 10,000 images: McNemar is certain of a point, but another seed may bring as much
    base, head = np.zeros((1, 10_000), bool), np.zeros((1, 10_000), bool)
    base[0, :8000], head[0, :8100] = True, True
    assert mcnemar(0, 100) < 1e-20
    found = compare_runs(base, head)
    assert judge(found, found.p, higher_is_better=True) == "within noise"
    assert found.p > 2 * stats.norm.sf(0.01 / np.sqrt(2) / SEED_SPREAD)


def test_equal_runs_are_within_noise():
    labels, runs = some_runs(3, 200, 3)
    for terms in (runs == labels, macro_f1_terms(runs, labels)):
        found = compare_runs(terms, terms)
        assert (found.value, found.p, found.decisive) == (0, 1, 0)
        assert judge(found, found.p, higher_is_better=True) == "within noise"


def test_direction_of_a_loss_is_turned():
    better = compare_runs(np.full((1, 500), 2.0), np.full((1, 500), 1.0), spread=0.1)
    assert judge(better, better.p, higher_is_better=False) == "better"
    assert judge(better, better.p, higher_is_better=True) == "worse"


def test_one_image_decides_nothing():
    found = compare_runs(np.array([[False]]), np.array([[True]]))
    assert found.p == 1.0
    assert found.low < 0 < found.high


def test_means_of_more_runs_than_terms_are_used():
    terms = np.linspace(0, 1, 100)[None]
    found = compare_runs(
        terms, terms + 0.5, base_means=[0.5, 0.52, 0.48], head_means=[1.0, 1.1, 0.9]
    )
    assert (found.base, found.head) == pytest.approx((0.5, 1.0))
    assert "3 + 3" in found.test
