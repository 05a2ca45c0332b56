"""Write the report from small files with hostile names, and hold every sentence to its numbers."""

import base64
import csv
import io
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from statsmodels.stats.proportion import proportion_confint
from typer import Typer
from typer.testing import CliRunner

from resnets.report.advice import advise, enumerate_words, number, percent
from resnets.report.page import write_page
from resnets.report.results import PICTURES, Results, read_results
from resnets.stages.report import main

HOSTILE, PLAIN = "<script>alert('$best & $x')</script>", "`rm` id"
VOID = {"meta", "img"}


def png() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (2, 2)).save(content, "PNG")
    return content.getvalue()


def ranked(accuracy: float, **values) -> dict:
    low, high = proportion_confint(round(accuracy * 100), 100, method="wilson")
    row = {"val_accuracy": 0.9, "test_accuracy": accuracy, "test_low": low, "test_high": high}
    row |= {"images": 100, "seeds": 1, "seeds_mean": accuracy, "seeds_std": None}
    return row | {"is_like_best": False, "val_leaked": 0.0, "folds": 0} | values


def write_results(root: Path, names: tuple[str, str] = (HOSTILE, PLAIN)) -> None:
    """Write what the stages write: of 100 test images 60 and 40; 54 of the first are found."""
    first, second = names
    worse = {"difference": -0.2, "low": -0.3, "high": -0.1}
    records = {
        "data_target": {
            "images": 300,
            "classes": dict.fromkeys(names, 150),
            "duplicates": {"exact": 2, "same_pixels": 0, "near": 1},
            "formats": {"JPEG": 300},
            "width": {"min": 20, "max": 40},
            "height": {"min": 10, "max": 30},
            "ignored": 2,
            "findings": {"dark": 3, "pale": 0, "small": 1},
        },
        "split_target": {
            "images": {"train": 150, "val": 50, "test": 100, "unused": 0},
            "classes": {s: dict.fromkeys(names, 75) for s in ("train", "val", "test")},
        },
        "labels": {"suspected": {}, "agrees": 0.75, "near_source": 0},
        "leaderboard": {
            "best": "net",
            "variants": {"net": ranked(0.94), "small": ranked(0.8, **worse)},
            "yardsticks": {"majority": ranked(0.6, **worse), "svm": ranked(0.7, **worse)},
        },
    }
    for name, record in records.items():
        write(root / f"metrics/{name}.json", json.dumps(record))
    answers = [(first, first)] * 54 + [(first, second)] * 6 + [(second, second)] * 40
    sure = [[0.9, 0.1]] * 54 + [[0.45, 0.55]] * 6 + [[0.2, 0.8]] * 40
    rows = [(k, *pair, *shares) for k, (pair, shares) in enumerate(zip(answers, sure, strict=True))]
    table(
        root / "artifacts/candidates/net/predictions.csv",
        ["id", "label", "predicted", *names],
        rows,
    )
    columns = ["class", "support", "precision", "recall", "recall_high"]
    table(
        root / "artifacts/candidates/net/per_class.csv",
        columns,
        [(first, 60, 1, 0.9, 0.95), (second, 40, 40 / 46, 1, 1)],
    )
    columns = ["repeat", "epoch", "train_accuracy", "val_accuracy", "is_chosen"]
    epochs = [(0, 1, 0.5, 0.6, True), (0, 2, 0.99, 0.8, True), (1, 1, 0.1, 0.1, True)]
    table(root / "artifacts/candidates/net/history.csv", columns, epochs)
    columns = ["id", "side", "label", "suggested", "confidence", "suspected"]
    suspects = [(f"{first}/1.jpg", "val", first, second, 0.01, True), ("x", "", "", "", 0.5, False)]
    table(root / "plots/labels/labels.csv", columns, suspects)
    rejected = [(f"{second}/b.jpg", second, "not_an_image", "no image", "remove it")]
    table(
        root / "data/tasks/target/rejected.csv",
        ["id", "label", "reason", "detail", "fix"],
        rejected,
    )
    for path in PICTURES.values():
        (root / path.format(best="net")).parent.mkdir(parents=True, exist_ok=True)
        (root / path.format(best="net")).write_bytes(png())


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def table(path: Path, header: list[str], rows: list[tuple]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    write(path, text.getvalue())


@pytest.fixture
def results(tmp_path) -> Results:
    write_results(tmp_path)
    return read_results(tmp_path)


class Page(HTMLParser):
    """Read a page as a browser does: its words, its tags, and whatever it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words, self.open, self.tags, self.links = "", [], set(), []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.links += [value for key, value in attributes if key in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words += data


def steps(results: Results) -> dict[str, str]:
    return {advice.step: advice.why for advice in advise(results)}


def test_page_is_whole_and_its_names_are_words(results):
    page = Page(write_page(results))
    assert not {"script", "link", "iframe"} & page.tags
    assert len(page.links) == len(PICTURES)
    assert {
        base64.b64decode(link.removeprefix("data:image/png;base64,")) for link in page.links
    } == {png()}
    for words in (HOSTILE, PLAIN, f"{HOSTILE}/1.jpg", f"{PLAIN}/b.jpg", "remove it", "94%"):
        assert words in page.words
    assert "url(" not in write_page(results)
    assert "resnets predict" in page.words


def test_stage_writes_the_same_bytes_again(tmp_path):
    write_results(tmp_path)
    app, pages = Typer(), []
    app.command()(main)
    for name in "ab":
        out = tmp_path / f"{name}.html"
        done = CliRunner().invoke(app, ["--root", str(tmp_path), "--out", str(out)])
        assert done.exit_code == 0, done.output
        pages.append(out.read_bytes())
    assert pages[0] == pages[1]


def test_long_tables_are_cut_and_say_so(results):
    many = [{**results.rejected[0], "id": f"{k}.jpg"} for k in range(45)]
    words = Page(write_page(replace(results, rejected=many))).words
    assert "39.jpg" in words
    assert "40.jpg" not in words
    assert "5 more are not shown" in words


def test_weakest_class_is_named_with_what_it_is_taken_for(results):
    why = steps(results)[f"Add images of {HOSTILE}, above all such that could pass for {PLAIN}"]
    assert "54 of 60 test images (90%)" in why
    assert "All 6 missed are taken for" in why
    assert "75 images of it were there to learn from" in why
    assert "With 60 test images of it, this may be chance" in why  # up to 95%, and 94% of all


def test_without_a_mistake_no_class_is_weak(results):
    right = [(label, label, share) for label, _, share in results.answers]
    perfect = [{**row, "recall": "1.0"} for row in results.classes]
    found = steps(replace(results, answers=right, classes=perfect))
    assert not [step for step in found if step.startswith("Add")]


def test_with_folds_all_images_are_tested_and_no_side_is_named(results):
    split = results.split | {"folds": 5, "counts_of": "fold 0 of repeat 0"}
    board = {"net": ranked(0.5, folds=5)}
    epochs = [
        {"fold": str(fold), "is_chosen": "True", "train_accuracy": share, "val_accuracy": "0.6"}
        for fold, share in enumerate(("1.0", "0.9"))
    ]
    folded = replace(results, split=split, variants=board, epochs=epochs)
    words, found = Page(write_page(folded)).words, steps(folded)
    for text in ("The images were cut into 5 folds", "by 5-fold cross-validation, 1 repetition"):
        assert text in words
    for text in ("to learn from", "to test", "side", " in train", "split.target.test"):
        assert text not in words.replace("there to learn from", "")
    why = found[f"Add images of {HOSTILE}, above all such that could pass for {PLAIN}"]
    assert "150 images of it were there to learn from" in why
    assert "95% right of the images it learns from" in "".join(found.values())  # mean of the folds
    assert "side" in Page(write_page(results)).words


def test_suspects_are_counted_and_a_weak_search_is_called_weak(results):
    why = steps(results)["Look at 1 label that may be wrong"]
    assert "0 in train, 1 in val, 0 in test" in why
    assert "agrees with only 75% of all labels" in why
    strong = steps(replace(results, labels=results.labels | {"agrees": 0.9}))
    assert "agrees" not in strong["Look at 1 label that may be wrong"]
    assert not [step for step in steps(replace(results, suspects=[])) if "label" in step]


def test_files_and_odd_images_are_counted_by_kind(results):
    found = steps(results)
    assert "1 not an image" in found["Repair or replace 1 file"]
    assert "3 dark, 1 small" in found["Look at 4 odd images"]


@pytest.mark.parametrize(
    ("train", "val", "step"),
    [
        (0.99, 0.80, "More images will help more than longer training"),
        (0.80, 0.79, "Try a longer training"),
        (0.72, 0.66, "Try a longer training"),
        (0.95, 0.93, None),
    ],
)
def test_gap_between_training_and_validation_says_what_helps(results, train, val, step):
    last = {"train_accuracy": str(train), "val_accuracy": str(val), "is_chosen": "True"}
    found = steps(replace(results, epochs=[last]))
    both = {"More images will help more than longer training", "Try a longer training"}
    assert both & set(found) == ({step} - {None})
    if step:
        assert f"{percent(train)} right of the images it learns from" in found[step]
        assert f"{percent(val)} of others" in found[step]


def test_simple_methods_that_are_as_good_come_first(results):
    rows = results.yardsticks | {"svm": ranked(0.93, is_like_best=True, difference=-0.01)}
    first = advise(replace(results, yardsticks=rows))[0]
    assert first.step == "Do not rely on the network yet"
    assert "support-vector machine on the pixels 93%, net 94%" in first.why
    assert "most frequent" not in first.why


def test_images_that_the_backbone_knows_cast_doubt(results):
    near = steps(replace(results, labels=results.labels | {"near_source": 7}))
    assert "7 images of this task" in near["Take the score with care"]


def test_groups_show_what_a_random_split_would_pretend(results):
    scores = {"apart": 0.84, "mixed": 0.931}
    found = steps(replace(results, labels=results.labels | {"groups": scores}))
    why = found["Keep groups together wherever you measure"]
    assert "gets 84% that way" in why
    assert "would pretend 93.1%" in why
    assert not [step for step in steps(results) if "groups" in step]


def test_few_validation_images_are_said_with_what_would_do(results):
    power = {"images": 50, "gap": 0.041, "detectable": 0.092, "needed": 244}
    alike = results.variants | {"small": ranked(0.93, is_like_best=True, difference=-0.01)}
    few = replace(results, ranking=power, variants=alike)
    why = steps(few)["Do not read much into net being ahead of small"]
    for words in ("50 validation images", "9.2 points or more", "differ by 4.1", "about 244"):
        assert words in why
    enough = steps(replace(few, ranking=power | {"images": 300}))
    told_apart = steps(replace(results, ranking=power))  # by the test
    assert not [step for step in (*enough, *told_apart) if "read much" in step]


def test_small_classes_are_to_grow(results):
    sizes = {HOSTILE: 90, PLAIN: 20}
    split = results.split | {"classes": {"train": sizes}}
    assert (
        "It has 20 to learn from" in steps(replace(results, split=split))[f"Add images of {PLAIN}"]
    )
    sizes = {HOSTILE: 20, PLAIN: 90}  # the one that is recognised least: said once
    found = steps(replace(results, split=results.split | {"classes": {"train": sizes}}))
    [step] = [step for step in found if step.startswith("Add images of")]
    assert "20 images of it were there to learn from" in found[step]
    assert f"{PLAIN} has 90. Until {HOSTILE} has more" in found[step]


def test_small_test_says_how_many_images_would_do(results):
    """At 50% of 100 images: 0.404 to 0.596; for 3 points 1.96² · 0.25 / 0.03² = 1,067.07."""
    found = steps(replace(results, variants={"net": ranked(0.5)}))
    assert "from 40.4% to 59.6%. About 1,068 would" in found["Test on more images"]
    assert "Test on more images" not in steps(results)  # 87.5% to 97.2%


def test_threshold_is_the_first_with_enough_right_answers(results):
    """Of all 94 are right; from 60% on, 94 answers are left and all are right."""
    why = steps(results)["Let people look at what the network is unsure of"]
    assert "at least 60% sure, 100% are right on the test; 6% of the images are below" in why
    wrong = [(label, "other", share) for label, _, share in results.answers]
    assert "Have every answer checked" in steps(replace(results, answers=wrong))


def test_words_for_numbers():
    assert [percent(x) for x in (0.9, 0.8875, 1)] == ["90%", "88.8%", "100%"]
    assert [number(1, "image"), number(1200, "image")] == ["1 image", "1,200 images"]
    assert enumerate_words(["a"]) == "a"
    assert enumerate_words(["a", "b", "c"]) == "a, b and c"
    assert enumerate_words([*"abcdefghijkl"]) == "a, b, c, d, e, f, g, h, i, j and 2 more"
    assert enumerate_words([*"abcdefghijk"]).endswith(" i, j and k")
