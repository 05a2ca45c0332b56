"""Rank variants, and write pages and pictures."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from statsmodels.stats.proportion import proportion_confint

from resnets.evaluation.evaluate import evaluate
from resnets.evaluation.leaderboard import (
    Standing,
    leaderboard,
    leaderboard_markdown,
    ranking_power,
    read_standing,
    yardstick_rows,
)
from resnets.evaluation.markdown import code, points, table
from resnets.evaluation.metrics import reliability
from resnets.evaluation.plots import (
    plot_confusion,
    plot_curves,
    plot_reliability,
)
from resnets.evaluation.predictions import Predictions
from resnets.models.calibration import fit_temperature, log_softmax
from resnets.system.errors import ArtefactError
from resnets.tasks.sheet import plot_sheet
from tests.projects import TRAINING, Project, simulated_logits

CLASSES = ["ants", "bees", "wasps"]


def variant(
    accuracy, seed, *, val_accuracy=None, num_runs=3, num_images=2000, leaked=0.0, val_images=200
):
    """Return the standing of simulated runs."""
    labels = np.random.default_rng(5).integers(0, 3, num_images)
    logits = [simulated_logits(labels, 3, accuracy, seed=seed + k) for k in range(num_runs)]
    val = [
        simulated_logits(labels, 3, val_accuracy or accuracy, seed=50 + seed + k)
        for k in range(num_runs)
    ]
    scored = [[evaluate(x, labels, CLASSES) for x in side] for side in (logits, val)]
    runs = pd.DataFrame(
        {
            f"{side}_{metric}": [one.value(metric) for one in values]
            for side, values in zip(("test", "val"), scored, strict=True)
            for metric in ("accuracy", "nll")
        }
    ).assign(**TRAINING, model="m.safetensors", weights="0123", val_leaked=leaked)
    predicted = np.stack([x.argmax(1) for x in logits])
    ids = [str(k) for k in range(num_images)]
    losses = np.zeros(predicted.shape)
    predictions = Predictions(labels, predicted, losses, ids=ids, groups=ids)
    return Standing(runs, predictions, pd.DataFrame(), val_images)


def ranked(**variants):
    return leaderboard(variants)


def page_of(yardstick=0.6, **variants):
    """Return the page of variants beside yardsticks, one of which has this accuracy."""
    rows = leaderboard(variants)
    best = variants[rows[0]["variant"]].predictions
    beside = yardstick_rows(measured(majority=0.3, svm=yardstick), best)
    return leaderboard_markdown(rows, beside, ranking_power(rows, variants))


def measured(**accuracies):
    """Return the table of two simulated runs of each yardstick."""
    rows = []
    for name, accuracy in accuracies.items():
        for seed in (1, 2):
            right = np.random.default_rng([5, seed]).random(2000) < accuracy
            scores = {"val_accuracy": accuracy, "test_accuracy": round(right.mean(), 6)}
            digits = "".join(map(str, right.astype(int)))
            rows.append({"yardstick": name, "seed": seed, **scores, "right": digits})
    return pd.DataFrame(rows)


def test_yardsticks_stand_below_the_variants_without_a_rank():
    page = page_of(net=variant(0.9, 1), small=variant(0.7, 2))
    lines = [line.split("|")[1:4] for line in page.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line] for line in lines[2:]]
    assert [line[:2] for line in cells] == [
        ["1", "`net`"], ["2", "`small`"], ["–", "yardstick: svm"], ["–", "yardstick: majority"],
    ]  # fmt: skip
    assert cells[2][2] == "60.00"
    assert "does not show" not in page


def test_too_few_validation_images_are_said_with_what_would_do():
    """Of 100 test images the first has 90 right, the second 84 of these 90 and no other."""
    first, second = np.zeros((2, 1, 100), bool)
    first[:, :90], second[:, :84] = True, True
    rows, standings = [], {}
    for name, right, val in (("a", first, 0.90), ("b", second, 0.84)):
        labels = np.zeros(100, int)
        predictions = Predictions(labels, 1 - right.astype(int), right * 1.0, ids=[], groups=[])
        standings[name] = Standing(pd.DataFrame(), predictions, pd.DataFrame(), 50)
        rows.append({"variant": name, "val_accuracy": val, "val_leaked": 0})
    power = ranking_power(rows, standings)
    # d = 0.06, variance 0.06 - 0.06² = 0.0564; (1.96 + 0.8416)² · 0.0564 / 0.06² = 122.97
    assert (power["images"], power["gap"], power["needed"]) == (50, 0.06, 123)
    assert power["detectable"] == pytest.approx(2.8016 * (0.0564 / 50) ** 0.5, abs=1e-5)
    assert ranking_power(rows[:1], standings) == {}
    assert ranking_power([rows[0], rows[1] | {"val_leaked": 0.5}], standings) == {}
    few = page_of(net=variant(0.9, 1), other=variant(0.9, 2, val_accuracy=0.88))
    assert "**Too few validation images to rank the first two**: they differ by " in few
    many = page_of(net=variant(0.9, 1, val_images=10**6), small=variant(0.7, 2))
    assert "Too few" not in many


@pytest.mark.parametrize("accuracy", [0.899, 0.97])
def test_page_says_which_yardsticks_the_best_variant_does_not_beat(accuracy):
    page = page_of(accuracy, net=variant(0.9, 1))
    assert "\n\n**The test does not show that `net` (" in page
    assert ") beats these yardsticks**: svm (" in page


def test_rows_of_yardsticks_have_means_intervals_and_paired_differences():
    best = variant(0.9, 1).predictions
    table = measured(svm=0.6)
    [row] = yardstick_rows(table, best)
    right = np.array([[digit == "1" for digit in run] for run in table["right"]])
    assert row["test_accuracy"] == pytest.approx(right[0].mean(), abs=1e-6)
    assert row["seeds_mean"] == pytest.approx(right.mean(), abs=1e-6)
    interval = proportion_confint(right[0].sum(), 2000, method="wilson")
    assert (row["test_low"], row["test_high"]) == pytest.approx(interval, abs=1e-6)
    assert row["difference"] == pytest.approx(right.mean() - best.right().mean(), abs=1e-6)
    assert row["low"] < row["difference"] < row["high"] < 0
    assert row["p"] < 1e-4
    json.dumps(row, allow_nan=False)


def test_a_yardstick_of_one_run_is_compared_as_if_it_were_repeated():
    best, table = variant(0.9, 1, num_runs=5).predictions, measured(svm=0.6)[:1]
    [row] = yardstick_rows(table, best)
    assert "5 + 5 runs" in row["test"]
    assert "assumed" not in row["test"]
    assert (row["seeds"], row["seeds_std"]) == (1, None)
    [same] = yardstick_rows(pd.concat([table] * 5), best)
    assert {key: row[key] for key in ("difference", "low", "high", "p", "test")} == {
        key: same[key] for key in ("difference", "low", "high", "p", "test")
    }


def test_test_intervals_of_variants_and_yardsticks_count_groups():
    """Copy each of 200 images, and what is said of it, tenfold."""
    alone = variant(0.9, 1, num_images=200)
    one = alone.predictions
    groups = [f"photo {k % 200}" for k in range(2000)]
    copied = Predictions(
        np.tile(one.labels, 10), np.tile(one.runs, 10), np.tile(one.losses, 10),
        ids=[str(k) for k in range(2000)], groups=groups,
    )  # fmt: skip
    table = measured(svm=0.6)
    table["right"] = [digits[:200] for digits in table["right"]]
    table["test_accuracy"] = [digits.count("1") / 200 for digits in table["right"]]
    tables = table, table.assign(right=table["right"] * 10)
    for key in ("test_low", "test_high"):
        (first,), (second,) = (ranked(net=x) for x in (alone, replace(alone, predictions=copied)))
        assert first[key] == pytest.approx(second[key], abs=1e-5)
        beside = map(yardstick_rows, tables, (one, copied))
        assert len({round(row[key], 5) for (row,) in beside}) == 1


def test_validation_ranks_and_the_test_tells_apart():
    rows = ranked(
        low=variant(0.5, 1), lucky=variant(0.9, 2, val_accuracy=0.7),
        best=variant(0.9, 3, val_accuracy=0.92),
    )  # fmt: skip
    assert [row["variant"] for row in rows] == ["best", "lucky", "low"]
    assert [row["rank"] for row in rows] == [1, 2, 3]
    assert [row["is_like_best"] for row in rows] == [True, True, False]
    assert rows[2]["high"] < 0
    json.dumps(rows, allow_nan=False)


def test_leaderboard_refuses_a_table_that_its_runs_contradict(tmp_path):
    labels = np.random.default_rng(5).integers(0, 3, 60)
    logits = [simulated_logits(labels, 3, 0.8, seed=seed) for seed in (1, 2)]
    Project(tmp_path).write_model("net", logits, labels, CLASSES)
    accuracies = [round(float((x.argmax(1) == labels).mean()), 6) for x in logits]
    folder = tmp_path / "plots/net"
    pd.DataFrame({"repeat": [0], "epoch": [1]}).to_csv(folder / "history.csv")
    assert read_standing(folder).predictions.right().mean(1).round(6).tolist() == accuracies
    details = json.loads((folder / "details.json").read_text())
    details["runs"][1]["test_accuracy"] += 0.1
    (folder / "details.json").write_text(json.dumps(details))
    with pytest.raises(ArtefactError, match=r"net/predictions\.csv: test_accuracy of run 1 is 0"):
        read_standing(folder)


def test_equal_validation_is_told_apart_by_loss_then_size():
    first, second = variant(0.8, 1), variant(0.8, 1)
    second.runs["parameters_trained"] = 5
    assert [row["variant"] for row in ranked(a=first, b=second)] == ["b", "a"]


def test_a_leaked_validation_number_is_shown_and_never_wins():
    page = page_of(honest=variant(0.8, 1), redrawn=variant(0.8, 5, val_accuracy=0.99, leaked=0.75))
    assert page.startswith("# Leaderboard\n\n**`honest`** is best")
    assert re.search(r"\| –    \| `redrawn` +\| leaked: 9", page)
    assert "75.00% of the images that `redrawn` was validated on" in page


def test_leaderboard_reads_well():
    page = page_of(a=variant(0.9, 1), b=variant(0.9, 9), c=variant(0.5, 20))
    assert page.startswith(
        "# Leaderboard\n\n**`a`** is best on validation" if "`a`**" in page else "# Leaderboard"
    )
    assert "cannot tell" in page
    assert "(n = 3)" in page
    assert "±" in page
    assert "1.10" in page  # MB
    assert "7 of 10" in page


def test_one_variant_with_one_run_is_a_leaderboard_too():
    page = page_of(only=variant(0.9, 1, num_runs=1))
    assert "(n = 1)" in page
    assert "±" not in page.splitlines()[6]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ants", "`ants`"),
        ("a`b", "`` a`b ``"),
        ("`", "`` ` ``"),
        (" x", "`  x `"),
        ("a\nb\x1b", r"`a\nb\x1b`"),
        ("x" * 100, f"`{'x' * 30}…{'x' * 30}`"),
    ],
)
def test_names_become_code(name, expected):
    assert code(name) == expected


def test_tables_are_aligned_and_keep_pipes_in_their_cell():
    text = table(["name", "n"], [["a|b", 1], ["c", 22]])
    assert text.split("\n") == [
        "| name |   n |",
        "| ---- | --: |",
        r"| a\|b |   1 |",
        "| c    |  22 |",
    ]


def test_points_never_show_minus_zero():
    assert points(-0.00001, signed=True) == "+0.00"
    assert points(0.0123) == "1.23"


def history(num_epochs):
    epochs = np.arange(1, num_epochs + 1)
    falling = 1 / epochs
    return pd.DataFrame(
        {
            "epoch": epochs, "lr": 0.1, "train_loss": falling, "train_accuracy": 1 - falling / 2,
            "val_loss": falling + 0.1, "val_accuracy": 0.9 - falling / 2,
            "is_chosen": epochs == num_epochs,
        }
    )  # fmt: skip


def draw_all(folder):
    rng = np.random.default_rng(0)
    grey = [rng.integers(0, 255, (28, 28, 1), dtype=np.uint8) for _ in range(10)]
    colour = [rng.integers(0, 255, (20, 30, 3), dtype=np.uint8) for _ in range(3)]
    odd = ["$x$", "<b>", "a_very_long_name_of_a_class_that_goes_on"]
    plot_curves({"a": history(5), "$b$": history(1)}, folder / "curves.png")
    plot_confusion(np.array([[5, 1, 0], [0, 0, 0], [2, 2, 9]]), odd, folder / "confusion.png")
    plot_confusion(np.eye(60, dtype=int), [str(k) for k in range(60)], folder / "large.png")
    plot_sheet(grey, ["grey"] * 10, folder / "samples.png")
    plot_sheet(
        colour,
        [f"{a}\n→ {b}" for a, b in zip(odd, odd[::-1], strict=True)],
        folder / "mistakes.png",
    )
    plot_sheet([], [], folder / "no_mistakes.png")
    plot_sheet(grey[:4], ["x"] * 4, folder / "sheet.png")
    labels = rng.integers(0, 3, 200)
    logits = simulated_logits(labels, 3, 0.8, seed=0) * 3
    lines = {
        f"T = {t}": reliability(log_softmax(logits / t), labels)
        for t in (1, fit_temperature(logits, labels))
    }
    plot_reliability(lines, folder / "reliability.png")


@pytest.mark.filterwarnings("error")
def test_pictures_have_the_same_bytes_every_time(tmp_path):
    for name in ("first", "second"):
        draw_all(tmp_path / name)
    pictures = sorted((tmp_path / "first").iterdir())
    assert len(pictures) == 8
    for picture in pictures:
        assert picture.read_bytes() == (tmp_path / "second" / picture.name).read_bytes(), (
            picture.name
        )
        image = Image.open(picture)
        image.load()
        assert set(image.info) <= {"dpi"}  # no date, no version
        assert np.asarray(image).std() > 1  # something is drawn
