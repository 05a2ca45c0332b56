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
    gap_to_tell,
    holm,
    images_to_tell,
    independent_images,
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


def test_wilson_of_images_that_stand_or_fall_together_covers_as_often_as_it_says():
    """Simulate 20 groups of 20 images at a true accuracy of 0.9."""
    groups, covered, naive = np.repeat(np.arange(20), 20), 0, 0
    for right in (np.random.default_rng(0).random((1000, 20)) < 0.9)[:, groups]:
        number = independent_images(right, groups)
        assert number == pytest.approx(20)
        low, high = wilson(right.mean() * number, number)
        covered += low <= 0.9 <= high
        low, high = wilson(right.sum(), 400)
        naive += low <= 0.9 <= high
    assert covered >= 900
    assert naive < 400


def test_images_count_as_one_each_unless_their_group_is_alike():
    rng = np.random.default_rng(0)
    right, groups = rng.random(400) < 0.9, [str(k // 20) for k in range(400)]
    assert independent_images(right, range(400)) == 400
    assert independent_images(right, groups) > 200  # chance alone makes some groups alike
    assert independent_images(right[:20], groups[:20]) == 1  # nothing tells how groups differ
    assert independent_images(np.ones(400, bool), groups) == 20


def test_images_to_tell_a_difference_have_the_power_of_a_simulation():
    """Draw images of which 7% are right on one side only and 3% on the other, and test each set."""
    gap, variance = 0.04, 0.10 - 0.04**2
    images = images_to_tell(gap, variance)
    assert images == 483  # (1.95996 + 0.84162)² · 0.0984 / 0.0016 = 482.7
    assert gap_to_tell(483, variance) == pytest.approx(0.04, abs=1e-4)
    wins, losses, _ = np.random.default_rng(0).multinomial(images, [0.07, 0.03, 0.9], 20_000).T
    z = (wins - losses) / np.sqrt(wins + losses - (wins - losses) ** 2 / images)
    assert (np.abs(z) > 1.96).mean() == pytest.approx(0.8, abs=0.02)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_equals_statsmodels(base_only, head_only):
    table = [[10, base_only], [head_only, 5]]
    expected = statsmodels_mcnemar(table, exact=True).pvalue
    assert mcnemar(base_only, head_only) == pytest.approx(expected, abs=1e-11)


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
    # 20 images, 6 won by head, 2 by base: Bonett and Price 2012 with 7 and 3 of 22, and Student's t
    base, head = np.zeros((1, 20), bool), np.zeros((1, 20), bool)
    head[0, :6], base[0, 6:8] = True, True
    found = compare_runs(base, head, spread=0.0)
    error = np.sqrt((7 / 22 + 3 / 22 - ((7 - 3) / 22) ** 2) / 22)
    assert found.value == pytest.approx(0.2)
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, 21) * error)
    assert (found.images, found.decisive) == (20, 8)
    assert found.p == pytest.approx(max(mcnemar(2, 6), 2 * stats.t.sf(0.2 / error, 21)))


@pytest.mark.parametrize(
    ("sides", "is_pooled"), [((3, 4), False), ((5, 5), False), ((2, 5), True), ((2, 2), True)]
)
def test_where_images_are_no_source_of_noise_it_is_the_test_over_runs(sides, is_pooled):
    rng = np.random.default_rng(sum(sides))
    base, head = rng.normal(0, 1, sides[0]), rng.normal(1, 4, sides[1])
    found = compare_runs(*(np.repeat(side[:, None], 100_000, 1) for side in (base, head)))
    expected = stats.ttest_ind(head, base, equal_var=is_pooled)
    interval = expected.confidence_interval()
    assert found.p == pytest.approx(expected.pvalue, rel=1e-4)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-4)
    assert "t over images and {} + {} runs".format(*sides) in found.test
    assert not found.is_spread_assumed


@pytest.mark.parametrize("sides", [(1, 1), (1, 2), (2, 1), (1, 3), (2, 2)])
def test_a_spread_is_assumed_where_the_test_says_so(sides):
    found = compare_runs(*(some_runs(size, 50, 3)[1] == 0 for size in sides))
    assert found.is_spread_assumed == ("with an assumed spread" in found.test) == (sum(sides) < 4)


def test_where_seeds_are_no_source_of_noise_it_is_the_paired_test_over_images():
    base, head = np.random.default_rng(0).normal(0, [[1], [2]], (2, 5000))
    found = compare_runs(base[None], head[None], spread=0.0)
    expected = stats.ttest_rel(head, base)
    interval = expected.confidence_interval()
    assert found.p == pytest.approx(expected.pvalue, rel=1e-3)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-3)


def numbers(found):
    return found.value, found.low, found.high, found.p


@given(
    sides=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    num_images=st.integers(1, 40),
    is_answer=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_interval_holds_its_value_and_has_two_sides(sides, num_images, is_answer, seed):
    rng = np.random.default_rng(seed)
    base, head = (rng.normal(rng.normal(), 1, (size, num_images)) for size in sides)
    groups, order = rng.integers(0, num_images, num_images), rng.permutation(num_images)
    if is_answer:
        base, head = base > 0, head > 0
    found = compare_runs(base, head, groups=groups)
    value, low, high, p = numbers(found)
    assert low <= value <= high
    if "McNemar" in found.test:
        assert p >= 0.05 or not low <= 0 <= high
    else:
        assert (p < 0.05) == (not low <= 0 <= high)
    swapped = compare_runs(head, base, groups=groups)
    assert numbers(swapped) == pytest.approx((-value, -high, -low, p), abs=1e-9)
    moved = compare_runs(base[:, order], head[:, order], groups=7 - 3 * groups[order])
    assert numbers(moved) == pytest.approx((value, low, high, p), abs=1e-9)
    copies = compare_runs(*(np.repeat(x, 3, 1) for x in (base, head)), groups=np.repeat(groups, 3))
    assert numbers(copies) == pytest.approx((value, low, high, p), abs=1e-9)


# What makes a term: standard deviations over images, over the seeds of base and head, of the rest
NORMAL_CASES = {
    "images and seeds alike": ((10, 10), 7.0, (2.0, 2.0), 7.0),
    "chance in single answers alone": ((10, 10), 1.0, (0.0, 0.0), 30.0),
    "unequal spreads": ((4, 12), 7.0, (3.0, 0.3), 7.0),
    "one run against five": ((1, 5), 10.0, (1.5, 1.5), 10.0),
    "two runs against two": ((2, 2), 10.0, (1.0, 1.0), 10.0),
    "groups of seven": ((6, 6), 7.0, (1.5, 1.5), 7.0),
}


@pytest.mark.parametrize("case", NORMAL_CASES)
def test_intervals_cover_as_often_as_they_say(case):
    sides, of_image, of_seed, of_rest = NORMAL_CASES[case]
    groups = np.repeat(np.arange(40), 7) if "groups" in case else np.arange(200)
    rng, num_trials, covered = np.random.default_rng(0), 1000, 0
    for _ in range(num_trials):
        terms = [
            of_image * rng.normal(size=groups[-1] + 1)[groups]
            + spread * rng.normal(size=(size, 1))
            + of_rest * rng.normal(size=(size, groups[-1] + 1))[:, groups]
            for size, spread in zip(sides, of_seed, strict=True)
        ]
        found = compare_runs(*terms, groups=groups if "groups" in case else None)
        covered += found.low <= 0 <= found.high
    low, high = stats.binom.ppf([1e-3, 1 - 1e-3], num_trials, [0.95, 0.96])
    assert low <= covered <= high


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
