"""Hold the advice on more seeds and images to simulated runs."""

from dataclasses import replace

import numpy as np
import pytest

from resnets.evaluation.significance import ALPHA, compare_runs, least_found
from resnets.review.advice import WANTED, plan


def simulate(rng, num_images, num_runs, gap, *, seed_spread=0.004):
    """Return right or wrong of base and head (runs, images): images and seeds differ."""
    easy = rng.normal(1.5, 1.5, num_images)
    shift = rng.normal(0, 0.5, num_images)  # what the change does to each image
    sides = []
    for place in (0, 1):
        chance = 1 / (1 + np.exp(-(easy + place * shift)))
        moved = chance + place * gap + rng.normal(0, seed_spread, (num_runs, 1))
        sides.append(rng.random((num_runs, num_images)) < moved)
    return sides


@pytest.mark.parametrize(
    ("images", "runs"), [(1.0, 1.0), (3.0, 1.0), (1.0, 3.0)], ids=["as it is", "images", "runs"]
)
def test_planned_difference_is_found_in_four_of_five_simulations(images, runs):
    rng = np.random.default_rng(0)
    pilots = [compare_runs(*simulate(rng, 500, 4, 0.0)) for _ in range(60)]
    variances = tuple(np.mean([pilot.variances for pilot in pilots], axis=0))
    planned = replace(pilots[0], variances=variances)
    size = (round(500 * images), round(4 * runs))
    gap = least_found(planned, ALPHA, images=images, runs=runs)
    effect = (
        np.mean([compare_runs(*simulate(rng, *size, gap)).value for _ in range(50)]) / gap
    )  # chances are cut at 0 and 1
    found = [compare_runs(*simulate(rng, *size, gap / effect)).p < ALPHA for _ in range(300)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.08)


def some_difference(num_images=400, num_runs=5):
    return compare_runs(*simulate(np.random.default_rng(1), num_images, num_runs, 0.0))


def test_advice_names_numbers_that_suffice():
    difference = some_difference()
    text = plan(difference, ALPHA)
    assert f"{100 * least_found(difference, ALPHA):.1f} points in four of five cases" in text
    images = int(text.split(" test images")[1].rsplit(" ", 1)[1].replace(",", ""))
    assert least_found(difference, ALPHA, images=images / 400) <= WANTED
    assert least_found(difference, ALPHA, images=images / 400 / 1.2) > WANTED
    assert "more seeds alone would not do" in text


def test_advice_is_seeds_where_only_they_are_noise():
    difference = replace(some_difference(), variances=(1e-7, 1e-7, 4e-5))
    assert "seeds of each (`repeat`)" in plan(difference, ALPHA)


def test_single_runs_want_seeds_first():
    assert "train at least 3 seeds (`repeat`)" in plan(some_difference(num_runs=1), ALPHA)


def test_many_images_need_no_more():
    assert "no more are needed" in plan(some_difference(num_images=60_000), ALPHA)
