"""Compare revisions of small Git projects: verdicts, what cannot be compared, gates, the page."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnets.data.split import split_task
from resnets.evaluation.predictions import read_predictions
from resnets.review.compare import compare_revisions
from resnets.review.gates import GateError, check_gates
from resnets.review.page import MAX_BYTES, review
from resnets.review.revisions import read_revision
from resnets.system.errors import ArtefactError, ParamsError
from resnets.tasks.task import Task
from tests.data.photos import prepare, split_options
from tests.projects import Project, simulated_logits

CLASSES = ["ants", "bees", "wasps"]
NUM_CLASSES, NUM_IMAGES = len(CLASSES), 1500


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path / "project")


def labels_of(num_images=NUM_IMAGES, num_classes=NUM_CLASSES):
    return np.random.default_rng(9).integers(0, num_classes, num_images)


def runs(accuracy, *seeds, labels=None, num_classes=NUM_CLASSES):
    labels = labels_of() if labels is None else labels
    return [simulated_logits(labels, num_classes, accuracy, seed=seed) for seed in seeds]


def two_states(project, base, head, *, labels=None, **measured_on):
    """Commit a model `net` with the base's and then with the head's runs."""
    labels = labels_of() if labels is None else labels
    project.write_model("net", base, labels, CLASSES)
    project.commit("base")
    project.git("switch", "-q", "-c", "change")
    project.write_model("net", head, labels, CLASSES, measured_on=measured_on)
    project.commit("head")


def compared(project, base="main", head="change"):
    return compare_revisions(read_revision(base, project.root), read_revision(head, project.root))


def faults_of(project):
    revisions = [read_revision(name, project.root) for name in ("main", "change")]
    return dict(check_gates(compare_revisions(*revisions), *revisions))


def text_of(project, *, head="change", gate=False, report=None):
    return "\n\n".join(review("main", head, gate=gate, report=report, root=project.root))


@pytest.mark.parametrize(
    ("before", "after", "seeds", "verdict"),
    [
        (0.6, 0.9, (1, 2, 3), "better"),
        (0.9, 0.6, (1, 2, 3), "worse"),
        (0.8, 0.8, (1, 2, 3), "within noise"),
        (0.6, 0.9, (1,), "better"),
        (0.8, 0.8, (1,), "within noise"),
    ],
)
def test_verdict(project, before, after, seeds, verdict):
    two_states(project, runs(before, *seeds), runs(after, *(seed + 10 for seed in seeds)))
    model = compared(project)[0]
    assert model.verdict("accuracy") == model.verdict("macro_f1") == verdict
    found = model.differences["accuracy"]
    assert found.images == NUM_IMAGES
    assert ("3 + 3 runs" in found.test) == (len(seeds) == 3)


def test_metrics_of_all_runs_are_averaged(project):
    base, head = runs(0.6, 1, 2, 3), runs(0.7, 4, 5, 6)
    two_states(project, base, head)
    model = compared(project)[0]
    accuracies = [(logits.argmax(1) == labels_of()).mean() for logits in head]
    assert model.differences["accuracy"].head == pytest.approx(np.mean(accuracies))
    means = json.loads((project.root / "metrics/net.json").read_text())["test"]
    for metric, value in means.items():
        assert model.differences[metric].head == pytest.approx(value, abs=1e-5)


def test_images_of_one_group_count_as_one(project):
    labels = labels_of(150)
    sides = [runs(accuracy, seed, labels=labels) for accuracy, seed in ((0.6, 1), (0.75, 2))]
    two_states(project, *sides, labels=labels)
    alone = compared(project)[0]
    tenfold, groups = np.tile(labels, 10), [f"photo {k % 150}" for k in range(1500)]
    for state, (side,) in zip(("base", "head"), sides, strict=True):
        logits = [np.tile(side, (10, 1))]
        project.write_model("net", logits, tenfold, CLASSES, groups=groups)
        project.commit(state)
    copied = compared(project, base="HEAD~1", head="HEAD")[0]
    for metric, found in alone.differences.items():
        same = copied.differences[metric]
        assert (same.low, same.high, same.p) == pytest.approx((found.low, found.high, found.p))
    assert "150 groups of images" in copied.differences["accuracy"].test


def test_same_state_is_within_noise(project):
    two_states(project, runs(0.8, 1, 2), runs(0.8, 1, 2))
    model = compared(project)[0]
    assert {model.verdict(metric) for metric in model.differences} == {"within noise"}
    assert model.differences["accuracy"].decisive == 0
    said = "Nothing was changed that a result depends on. Result: the same answers as before from"
    assert f"{said} `net`.\n" in text_of(project)
    assert "| model" not in text_of(project)


def test_unchanged_models_are_no_looks(project):
    project.write_model("same", runs(0.8, 7), labels_of(), CLASSES)
    two_states(project, runs(0.75, 1), runs(0.8, 2))
    models = {model.name: model for model in compared(project)}
    alone = models["net"].differences["accuracy"].p / 0.6
    assert models["net"].p["accuracy"] == pytest.approx(min(1, alone))
    assert models["same"].is_unchanged


def test_workspace_is_the_default_head(project):
    two_states(project, runs(0.6, 1), runs(0.6, 1))
    project.write_model("net", runs(0.95, 5), labels_of(), CLASSES)
    assert "`net` became **better** by" in text_of(project, head=None)


def test_several_models_are_corrected_for_together(project):
    for state, seed in (("main", 0), ("change", 50)):
        for k in range(4):
            logits = runs(0.7 if state == "main" or k else 0.75, seed + k)
            project.write_model(f"net{k}", logits, labels_of(), CLASSES)
        project.commit(state)
        if state == "main":
            project.git("switch", "-q", "-c", "change")
    models = compared(project)
    raw = {model.name: model.differences["accuracy"].p for model in models}
    smallest = min(raw, key=raw.__getitem__)
    adjusted = {model.name: model.p["accuracy"] for model in models}
    assert adjusted[smallest] == pytest.approx(min(1, 4 * raw[smallest] / 0.6))


def test_other_preprocessing_gives_no_verdict(project):
    two_states(project, runs(0.6, 1), runs(0.9, 2), preprocess="p1")
    text = text_of(project)
    assert compared(project)[0].verdict("accuracy") == "not comparable"
    assert "Result: no verdict on `net`.\n\n" in text
    assert "**Not comparable**: `net`: the evaluation preprocessing differs." in text
    assert "better**" not in text
    assert "| model" not in text


def test_other_classes_give_no_verdict(project):
    labels = labels_of()
    two_states(project, runs(0.6, 1), runs(0.9, 2))
    project.write_model("net", runs(0.9, 2), labels, ["ants", "bees", "hornets"])
    project.commit()
    assert "the classes differ: −`wasps`, +`hornets`" in text_of(project)


def test_reordered_classes_are_the_same_classes(project):
    two_states(project, runs(0.8, 1), runs(0.8, 1))
    order = [2, 0, 1]
    logits = runs(0.8, 1)[0][:, order]
    ids = [f"{CLASSES[label]}/{k:05d}.png" for k, label in enumerate(labels_of())]
    relabelled = np.argsort(order)[labels_of()]
    names = [CLASSES[k] for k in order]
    project.write_model("net", [logits], relabelled, names, ids=ids, measured_on={"classes": "c1"})
    project.commit()
    assert compared(project)[0].differences["accuracy"].decisive == 0


def test_other_pixels_under_the_same_names_give_no_verdict(project):
    two_states(project, runs(0.6, 1), runs(0.9, 2), test_set="t1")
    assert "other pixels" in text_of(project)


def test_overlapping_tests_are_compared_on_common_images(project):
    labels = labels_of()
    two_states(project, runs(0.6, 1, 2, 3), runs(0.6, 1, 2, 3))
    keep = np.arange(300, NUM_IMAGES)[::-1]  # fewer images, in another order
    ids = [f"{CLASSES[labels[k]]}/{k:05d}.png" for k in keep]
    head = [logits[keep] for logits in runs(0.95, 4, 5, 6)]
    project.write_model("net", head, labels[keep], CLASSES, ids=ids, measured_on={"test_set": "t1"})
    project.commit()
    model = compared(project)[0]
    expected = np.mean([(x.argmax(1) == labels)[300:].mean() for x in runs(0.6, 1, 2, 3)])
    assert model.differences["accuracy"].base == pytest.approx(expected)
    assert model.verdict("accuracy") == "better"
    assert "compared on the 1,200 images that have the same name and label" in text_of(project)


def test_relabelled_images_are_left_out(project):
    labels = labels_of()
    two_states(project, runs(0.8, 1), runs(0.8, 1))
    ids = [f"{CLASSES[label]}/{k:05d}.png" for k, label in enumerate(labels)]
    changed = labels.copy()
    changed[:40] = (labels[:40] + 1) % 3
    project.write_model(
        "net", runs(0.8, 1), changed, CLASSES, ids=ids, measured_on={"test_set": "t1"}
    )
    project.commit()
    assert compared(project)[0].differences["accuracy"].images == NUM_IMAGES - 40
    assert "40 more have another label" in text_of(project)


def test_tests_without_a_common_image_give_no_verdict(project):
    two_states(project, runs(0.6, 1), runs(0.9, 2))
    ids = [f"new/{k}" for k in range(NUM_IMAGES)]
    project.write_model(
        "net", runs(0.9, 2), labels_of(), CLASSES, ids=ids, measured_on={"test_set": "t1"}
    )
    project.commit()
    assert "no image in common" in text_of(project)


def test_new_and_gone_models_are_named(project):
    two_states(project, runs(0.8, 1), runs(0.8, 1))
    for path in ("metrics/{}.json", "plots/{}"):
        (project.root / path.format("net")).rename(project.root / path.format("other"))
    project.commit()
    text = text_of(project)
    assert "nothing to compare the new `other` with; gone: `net`." in text


def test_missing_predictions_are_said(project):
    two_states(project, runs(0.8, 1), runs(0.8, 1))
    (project.root / "plots/net/predictions.csv").unlink()
    project.commit()
    assert "head has no `plots/net/predictions.csv`" in text_of(project)


def test_changed_parameters_and_data_are_listed(project):
    project.write("params.yaml", "transfer: {net: {lr: 0.1, epochs: 5, sizes: [1]}}\n")
    project.write("metrics/data_target.json", '{"images": 10, "rejected": {"empty": 0}}')
    two_states(project, runs(0.8, 1), runs(0.8, 1))
    project.write("params.yaml", "transfer: {net: {lr: 0.2, epochs: 5, sizes: [2]}}\n")
    project.write("metrics/data_target.json", '{"images": 9, "rejected": {"empty": 1}}')
    project.commit()
    text = text_of(project)
    assert (
        "Changed: `transfer.net.lr` 0.1 → 0.2, `transfer.net.sizes` `[1]` → `[2]`. Result" in text
    )
    assert re.search(r"`data_target\.rejected\.empty` +\| 0 +\| 1 ", text)
    assert "epochs" not in text
    assert "## Changed parameters" not in text


def test_many_changed_parameters_are_a_table(project):
    project.write("params.yaml", "{a: 1, b: x, c: true, d: null, e: 5}\n")
    two_states(project, runs(0.8, 1), runs(0.8, 1))
    project.write("params.yaml", "{a: 2, b: y, c: false, d: 4, e: 5}\n")
    project.commit()
    text = text_of(project)
    assert "Changed: 4 parameters (below). Result" in text
    for key, *values in (
        ("a", "1", "2"),
        ("b", "`x`", "`y`"),
        ("c", "true", "false"),
        ("d", "–", "4"),
    ):
        assert re.search(rf"`{key}` +\| {values[0]} +\| {values[1]} +\|", text)


def test_changed_code_and_data_are_named(project):
    def lock(code, photos, packed):
        deps = [{"path": "src/resnets/data", "md5": code}, {"path": "data/raw", "md5": photos}]
        outs = [{"path": "data/tasks/target/images.bin", "md5": packed}]
        train = {"cmd": "train", "deps": [{"path": "data/tasks/target", "md5": packed}]}
        stages = {"prepare": {"cmd": "prepare", "deps": deps, "outs": outs}, "train": train}
        project.write("dvc.lock", json.dumps({"schema": "2.0", "stages": stages}))

    lock("c1", "p1", "i1")
    two_states(project, runs(0.8, 1), runs(0.8, 1))
    lock("c2", "p2", "i2")
    project.commit()
    text = text_of(project)
    assert "Changed: code in `src/resnets/data`, data in `data/raw`. Result: the same" in text


def test_sentence_gives_the_size_of_what_was_decided(project):
    two_states(project, runs(0.9, 1, 2, 3), runs(0.6, 4, 5, 6))
    found = compared(project)[0].differences["accuracy"]
    low, high = -100 * found.high, -100 * found.low
    expected = f"became **worse** by {-100 * found.value:.1f} points of test accuracy "
    text = text_of(project)
    assert f"{expected}(95% interval {low:.1f} to {high:.1f})" in text
    assert (
        f"- Of 1,500 test images, base and head (3 and 3 seeds) disagree on {found.decisive}"
        in text
    )
    assert "**Advice**: no more seeds or test images are needed." in text


def test_what_was_not_measured_is_said_where_it_counts(project):
    two_states(project, runs(0.8, 1), runs(0.8, 4))
    assert "(1 and 1 seeds, whose spread is taken to be 0.5 points) disagree on" in text_of(project)


def test_a_spread_that_was_measured_is_not_said_to_be_assumed(project):
    two_states(project, runs(0.8, 1, 2), runs(0.8, 4, 5))
    assert "(2 and 2 seeds) disagree on" in text_of(project)


def test_report_lists_what_broke_and_what_was_fixed(project):
    labels = labels_of(60)
    base = np.eye(3)[labels] * 4
    head = base.copy()
    head[7], base[8] = np.roll(base[7], 1), np.roll(base[8], 1)
    project.write_model("net", [base], labels, CLASSES)
    project.commit()
    project.git("switch", "-q", "-c", "change")
    project.write_model("net", [head], labels, CLASSES)
    project.commit()
    path = project.root / "reports/review.md"
    text_of(project, report=path)
    page = path.read_text(encoding="utf-8")
    true, taken = CLASSES[labels[7]], CLASSES[(labels[7] + 1) % 3]
    broke = page.split("### Images that broke: 1")[1].split("###")[0]
    assert re.search(rf"`{true}/00007.png` +\| `{true}` +\| `{true}` +\| `{taken}`", broke)
    assert "### Images that were fixed: 1" in page
    assert re.search(rf"`{true}` +\| `{taken}` +\| +0 \| +1 \| +\+1", page)
    assert "No picture: the images are not here" in page
    assert "only base's is right on 1 test images (they broke), only head's on 1" in page
    assert "p 1.0000 by McNemar's exact test" in page


def test_report_stays_below_its_limit(project):
    names = [f"class with a long name number {k} " + "x" * 60 for k in range(40)]
    labels = labels_of(300, 40)
    for seed, branch in ((1, "main"), (2, "change")):
        if branch == "change":
            project.git("switch", "-q", "-c", "change")
        keys = "".join(f"key{k}: {seed}{'v' * 100}\n" for k in range(500))
        project.write("params.yaml", keys)
        for k in range(8):
            logits = runs(0.7, seed * 100 + k, labels=labels, num_classes=40)
            project.write_model(f"net{k}", logits, labels, names)
        project.commit()
    path = project.root / "review.md"
    text_of(project, report=path)
    page = path.read_bytes()
    assert 20_000 < len(page) <= MAX_BYTES
    assert page.decode().startswith("# `main` (base) → `change` (head)")
    assert page.decode().endswith("this page would be too long.\n")


NASTY = [
    "`tick`", "a|b", "<script>alert(1)</script>", "@everyone", "[x](http://evil)", "**bold** \\",
    "line\nbreak", "esc\x1b[31m", "rtl\u202eabc", "",
]  # fmt: skip


def test_names_cannot_break_the_page(project):
    labels = labels_of(400, len(NASTY))
    ids = [f"{NASTY[label]}/{k}" for k, label in enumerate(labels)]
    for seed, branch in ((1, "main"), (2, "change")):
        if branch == "change":
            project.git("switch", "-q", "-c", "change")
        project.write("params.yaml", json.dumps({NASTY[2]: f"{NASTY[0]}{seed}|{NASTY[6]}"}))
        logits = runs(0.5, seed, labels=labels, num_classes=len(NASTY))
        project.write_model("net", logits, labels, NASTY, ids=ids)
        project.commit()
    path = project.root / "review.md"
    text_of(project, report=path)
    page = path.read_text(encoding="utf-8")
    assert "\x1b" not in page
    assert "\u202e" not in page
    in_table = [line for line in page.splitlines() if line.startswith("|")]
    for line in in_table:  # the number of cells is that of the header: no name opened another one
        assert len(re.findall(r"(?<!\\)\|", line)) in (4, 5, 6, 7, 8, 9)
    outside = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", page)  # what is not code
    for danger in ("<script", "@everyone", "](http", "**bold**", "tick"):
        assert danger not in outside


GATES = """
- {name: accuracy holds, metric: accuracy, max_worse: 0.0}
- {name: F1 may fall a little, metric: macro_f1, max_worse: 0.5}
- {name: no leak, file: "metrics/split_*.json", key: images.leaked, max: 0}
"""


def test_gates_name_the_broken_rule(project):
    project.write("gates.yaml", GATES)
    project.write("metrics/split_target.json", '{"images": {"leaked": 2}}')
    two_states(project, runs(0.9, 1, 2, 3), runs(0.6, 4, 5, 6))
    faults = faults_of(project)
    assert "is worse by" in faults["accuracy holds"][0]
    assert faults["F1 may fall a little"] == []
    leak = "metrics/split_target.json: images.leaked is 2, allowed at most 0"
    assert faults["no leak"] == [leak]
    with pytest.raises(GateError, match=r"accuracy holds .*; no leak") as error:
        text_of(project, gate=True)
    assert error.value.exit_code == 1
    assert "**BROKEN**: `accuracy holds`" in text_of(project)


def test_gates_pass_when_nothing_is_worse(project):
    project.write("gates.yaml", GATES)
    project.write("metrics/split_target.json", '{"images": {"leaked": 0}}')
    two_states(project, runs(0.8, 1, 2, 3), runs(0.8, 4, 5, 6))
    assert "`accuracy holds`, `F1 may" in text_of(project, gate=True).split("- hold: ")[1]


def test_what_cannot_be_checked_breaks_a_gate(project):
    project.write("gates.yaml", GATES)
    two_states(project, runs(0.8, 1), runs(0.8, 4), preprocess="p1")
    faults = faults_of(project)
    assert faults["accuracy holds"] == ["net: accuracy is not comparable"]
    assert faults["no leak"] == ["metrics/split_*.json: no such file"]


@pytest.mark.parametrize(
    "text",
    [
        "- {name: x, metric: accuracy}",
        "- {name: x, metric: ece, max_worse: 0}",  # not one that is compared
        "rules: []",
        "- {name: x, file: a, key: b, max: many}",
    ],
)
def test_bad_gates_are_refused(project, text):
    two_states(project, runs(0.8, 1), runs(0.8, 4))
    project.write("gates.yaml", text)
    with pytest.raises(ParamsError, match=r"gates\.yaml"):
        text_of(project, head=None, gate=True)


def test_missing_gates_and_revisions_are_refused(project):
    two_states(project, runs(0.8, 1), runs(0.8, 4))
    with pytest.raises(ParamsError, match=r"no gates\.yaml in main nor change"):
        text_of(project, gate=True)
    for name in ("nothing", "--help", "main:params.yaml"):
        with pytest.raises(ParamsError, match="no such revision"):
            text_of(project, head=name)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("metrics/net.json", "{"),
        ("plots/net/predictions.csv", "id,label\n"),
        ("plots/net/seeds.csv", "id,label,0\nx,ants,ants\n"),
        ("params.yaml", "a: [\n"),
    ],
)
def test_damaged_files_are_named(project, path, text):
    two_states(project, runs(0.8, 1), runs(0.8, 4))
    project.write(path, text)
    with pytest.raises(ArtefactError, match=re.escape(path)):
        text_of(project, head=None)


def edited(path, edit):
    """Edit the cells of a table, or the values of a JSON file, in place."""
    if path.suffix == ".json":
        record = json.loads(path.read_text())
        edit(record)
        path.write_text(json.dumps(record))
        return
    table = [line.split(",") for line in path.read_text().splitlines()]
    edit(table)
    path.write_text("".join(f"{','.join(row)}\n" for row in table))


def other(name):
    return CLASSES[(CLASSES.index(name) + 1) % 3]


def relabel(rows, column):
    """Return an edit of these rows of one column; row 0 is the header."""

    def edit(table):
        for row in rows:
            table[row][column] = other(table[row][column])

    return edit


def tell(*keys, **values):
    """Return an edit of a record, in the mapping below these keys."""

    def edit(record):
        for key in keys:
            record = record[key]
        record.update(values)

    return edit


def repeat_a_run(table):
    for row in table:
        row += row[3:5]
    table[0][-2:] = ["2", "nll 2"]


def forget_groups(table):
    for row in table:
        del row[2]


PREDICTIONS, SEEDS = "plots/net/predictions.csv", "plots/net/seeds.csv"
DETAILS, METRICS = "plots/net/details.json", "metrics/net.json"
CONTRADICTIONS = [
    (
        PREDICTIONS,
        relabel(range(12, 72), 2),
        r"plots/net/predictions\.csv at workspace: predicted is not the class of the highest "
        r"probability, in row 12 \(\w+/00011\.png\) and 59 more of 1,500",
    ),
    (SEEDS, relabel([3], 3), r"net/seeds\.csv .*: the first run is .* row 3 \(\w+/00002\.png\)"),
    (SEEDS, relabel([5], 1), r"net/seeds\.csv .*: id or label .* row 5 "),
    (SEEDS, relabel([7], 5), r"net/predictions\.csv .*: test_accuracy of run 1 is 0"),
    (SEEDS, forget_groups, r"plots/net/seeds\.csv at workspace: "),
    (SEEDS, repeat_a_run, r": number of runs is 3 by the predictions, 2 in details\.json"),
    (DETAILS, tell("test", accuracy=0.99), r": test\.accuracy is .*, 0\.99 in details\.json"),
    (DETAILS, tell("test", images=9), r": test\.images is 1500 by the predictions, 9 in"),
    (DETAILS, tell("runs", 1, test_accuracy=0.5), r": test_accuracy of run 1 is .*, 0\.5 in det"),
    (DETAILS, tell("runs", 1, repeat=7), r": test_accuracy of run 7 is None by the predictions"),
    (METRICS, tell("test", accuracy=0.99), r": the mean accuracy is .*, 0\.99 in the metrics"),
    (METRICS, tell("test", macro_f1=0.99), r": the mean macro_f1 is .*, 0\.99 in the metrics"),
    (METRICS, tell("test", nll=0.1), r": the mean nll is .*, 0\.1 in the metrics"),
]


def drop(key):
    def edit(record):
        (record["runs"][1] if key == "test_accuracy" else record).pop(key)

    return edit


@pytest.mark.parametrize(
    ("path", "edit"),
    [
        (METRICS, drop("test")),
        (METRICS, tell("test", f2=1.0)),
        (METRICS, tell("test", accuracy=None)),
        (DETAILS, drop("test_accuracy")),
        (DETAILS, drop("runs")),
        (DETAILS, lambda record: record.update(test=None)),
    ],
)
def test_numbers_that_are_no_numbers_or_missing_are_refused(project, path, edit):
    two_states(project, runs(0.8, 1, 2), runs(0.8, 1, 2))
    edited(project.root / path, edit)
    with pytest.raises(ArtefactError, match="of net are not whole") as error:
        text_of(project, head=None)
    assert error.value.exit_code == 4


@pytest.mark.parametrize(("path", "edit", "message"), CONTRADICTIONS)
def test_files_that_contradict_each_other_are_refused(project, path, edit, message):
    two_states(project, runs(0.8, 1, 2), runs(0.8, 1, 2))
    edited(project.root / path, edit)
    with pytest.raises(ArtefactError, match=message) as error:
        text_of(project, head=None)
    assert error.value.exit_code == 4


def test_probabilities_that_are_equal_as_written_may_predict_either():
    header = "id,label,predicted,ants,bees\n"
    for predicted in ("ants", "bees"):
        predictions = f"{header}x,ants,{predicted},0.500000,0.500000\n"
        seeds, accuracy = (
            f"id,label,group,0,nll 0\nx,ants,,{predicted},0.69315\n",
            predicted == "ants",
        )
        runs = [{"repeat": 0, "test_accuracy": accuracy}]
        record = {"test": {"images": 1, "accuracy": accuracy}, "runs": runs}
        read = read_predictions(predictions, seeds, record, "p.csv")
        assert read.runs.tolist() == [[["ants", "bees"].index(predicted)]]


def test_variant_that_left_the_parameters_is_gone_though_its_files_lie_there(project):
    project.write("params.yaml", "transfer: {net: {}, kept: {}}\n")
    for name in ("backbone", "kept"):
        project.write_model(name, runs(0.8, 1), labels_of(), CLASSES)
    project.write(
        "gates.yaml", "- {name: good, file: 'plots/*/details.json', key: test.images, max: 1}"
    )
    two_states(project, runs(0.8, 1), runs(0.3, 1))
    project.write("params.yaml", "transfer: {kept: {}}\n")
    project.commit()
    assert [model.name for model in compared(project)] == ["backbone", "kept"]
    assert [fault.split(":")[0] for fault in faults_of(project)["good"]] == [
        "plots/backbone/details.json",
        "plots/kept/details.json",
    ]
    project.write("plots/net/predictions.csv", "what nobody measured")
    assert "gone: `net`." in text_of(project, head=None)


def test_rules_are_those_of_the_base(project):
    project.write("gates.yaml", GATES)
    project.write("metrics/split_target.json", '{"images": {"leaked": 0}}')
    two_states(project, runs(0.9, 1, 2, 3), runs(0.6, 4, 5, 6))
    project.write("gates.yaml", "[]")
    with pytest.raises(GateError, match="accuracy holds"):
        text_of(project, head=None, gate=True)
    (project.root / "gates.yaml").unlink()
    with pytest.raises(GateError, match="accuracy holds"):
        text_of(project, head=None, gate=True)
    page = "".join(review("change", "main", gate=True, report=None, root=project.root))
    assert "`accuracy holds`" in page.split("- hold: ")[1]


def test_advice_for_another_test_is_to_measure_the_base_again(project):
    project.write("gates.yaml", GATES)
    project.write("metrics/split_target.json", '{"images": {"leaked": 0}}')
    two_states(project, runs(0.8, 1), runs(0.8, 4), preprocess="p1")
    with pytest.raises(GateError) as error:
        text_of(project, gate=True)
    assert error.value.fix.startswith("measure the base again: `git switch -c remeasured main`")
    project.git("switch", "-q", "-c", "remeasured", "main")
    measured_on = {"preprocess": "p1"}
    project.write_model("net", runs(0.8, 1), labels_of(), CLASSES, measured_on=measured_on)
    project.commit()
    assert "within noise" in "".join(
        review("remeasured", "change", gate=True, report=None, root=project.root)
    )


def test_command_exits_with_one_on_a_broken_gate_and_imports_no_torch(project):
    project.write("gates.yaml", "- {name: accuracy holds, metric: accuracy, max_worse: 0.0}")
    two_states(project, runs(0.9, 1, 2, 3), runs(0.6, 4, 5, 6))
    script = (
        "import sys; sys.argv = ['resnets', 'compare', 'main', 'change', *sys.argv[1:]]\n"
        "from resnets.cli import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, 'pandas' in sys.modules)"
    )
    codes = {}
    for options in ((), ("--gate",)):
        done = subprocess.run(
            [sys.executable, "-c", script, *options],
            cwd=project.root,
            capture_output=True,
            text=True,
        )
        assert done.stdout.endswith("False False\n"), done.stderr
        codes[options] = done.returncode
    assert codes == {(): 0, ("--gate",): 1}
    assert done.stderr.startswith("error: gate broken: accuracy holds (net: accuracy 0.")
    assert "Traceback" not in done.stderr


def test_contact_sheet_shows_the_images_that_changed(project):
    folder = project.root / "data/tasks/target"
    folder.mkdir(parents=True)
    sample = Path(__file__).parents[2] / "data" / "sample"
    prepare(sample, folder, classes=["Coat", "Pullover"], num_classes=2, channels=1, resize=28)
    split_task(folder, split_options(val=0.1))
    test = Task(folder).side("test")
    for branch, seed in (("main", 1), ("change", 2)):
        if branch == "change":
            project.git("switch", "-q", "-c", branch)
        logits = runs(0.8, seed, labels=test.labels, num_classes=2)
        project.write_model(
            "net", logits, test.labels, test.classes, ids=test.ids,
            measured_on={"test_set": test.digest()},
        )  # fmt: skip
        project.write(".gitignore", "/data\n")
        project.commit()
    report = project.root / "reports" / "my review.md"
    text_of(project, report=report)
    for word in ("broke", "fixed"):
        link = f"![Images, and what base and head say of them](my%20review.net.{word}.png)"
        assert link in report.read_text(encoding="utf-8")
        assert Image.open(report.with_name(f"my review.net.{word}.png")).width > 600
    project.write_model("net", logits, test.labels, test.classes, ids=test.ids)
    project.commit()
    text_of(project, report=report)
    assert "not those that head was tested on" in report.read_text(encoding="utf-8")
    project.write("data/tasks/target/split.csv", "edited")
    text_of(project, report=report)
    page = report.read_text(encoding="utf-8")
    assert "### Images that broke" in page
    assert "No picture: the images are not here" in page
