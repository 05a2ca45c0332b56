"""Test the split as a pure function: stratified, grouped, nearly stable, seeded."""

import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from resnets.data.split import fold_rows, split_rows, split_task
from resnets.stages.split import main
from resnets.system.errors import ArtefactError, DataError, ParamsError
from resnets.tasks.manifest import (
    ManifestRow,
    SplitRow,
    assign,
    read_manifest,
    read_split,
    read_table,
    write_table,
)
from resnets.tasks.task import Task
from tests.data.photos import split_options


def make_row(
    name: str, label: str, picture: object, near: object = None, side: str = ""
) -> ManifestRow:
    pixels = hashlib.sha256(str(picture).encode()).hexdigest()
    near_word = pixels if near is None else hashlib.sha256(str(near).encode()).hexdigest()
    return ManifestRow(
        id=name, label=label, side=side, sha256=pixels, pixel_sha256=pixels, phash="",
        near=near_word[:16], format="PNG", width=4, height=4, channels=3, offset=0,
        packed_height=4, packed_width=4, crc32=0, note="",
    )  # fmt: skip


def many(num: int = 200, labels: str = "ab") -> list[ManifestRow]:
    return [make_row(f"{x}/{i}.png", x, f"{x}{i}") for x in labels for i in range(num)]


def sides(rows: list[ManifestRow], **options: object) -> dict[str, str]:
    found, _, _ = split_rows(rows, split_options(**options))
    return {row.id: side for row, side in zip(rows, found, strict=True)}


pictures = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 60), st.integers(0, 9)),
    min_size=30,
    max_size=120,
)


@settings(max_examples=60, deadline=None)
@given(pictures, st.integers(0, 99), st.booleans(), st.booleans())
def test_no_group_is_ever_on_two_sides(drawn, seed, near, burst):
    rows = many(40) + [
        make_row(f"{label}/burst{number}-{index}.png", label, picture, near=f"near {picture // 3}")
        for index, (label, picture, number) in enumerate(drawn)
    ]
    regex = r"burst(\d+)-" if burst else None
    options = split_options(seed=seed, group_near=near, group_regex=regex)
    found, _, metrics = split_rows(rows, options)
    homes: dict[str, set[str]] = {}
    for row, side in zip(rows, found, strict=True):
        words = [row.group] + [row.near] * near
        if burst and "burst" in row.id:
            words.append(row.id.split("burst")[1].split("-")[0])
        for word in words:
            homes.setdefault(word, set()).add(side)
    assert all(len(home) == 1 for home in homes.values())
    assert metrics["leakage"] == 0


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(0, 99))
def test_adding_or_removing_an_image_moves_few_others_and_renaming_none(data, seed):
    rows = many()
    before = sides(rows, seed=seed)
    number = data.draw(st.integers(0, len(rows) - 1))
    what = data.draw(st.sampled_from(["add", "remove", "rename"]))
    changed = list(rows)
    if what == "add":
        changed.insert(number, make_row("a/new.png", "a", data.draw(st.text())))
    elif what == "remove":
        del changed[number]
    else:
        changed[number] = replace(rows[number], id="a/renamed.png")
    after = sides(changed, seed=seed)
    moved = [name for name, side in before.items() if after.get(name, side) != side]
    # one at the border of test, and for it and its like two at the border of val
    assert len(moved) <= (0 if what == "rename" else 3)
    assert all(name[0] == rows[number].label or what == "add" for name in moved)
    if what == "rename":
        assert after["a/renamed.png"] == before[rows[number].id]


@pytest.mark.parametrize(("size", "most"), [(20, 0.1), (200, 0.02), (1000, 0.01)])
def test_a_tenth_more_images_moves_hardly_any(size, most):
    shares = []
    for seed in range(4):
        old = many(size)
        before, after = sides(old, seed=seed), sides(many(size + size // 10), seed=seed)
        shares.append(sum(after[name] != side for name, side in before.items()) / len(old))
    assert sum(shares) / len(shares) < most


@settings(max_examples=30, deadline=None)
@given(st.randoms(), st.sampled_from([0.2, 15]), st.sampled_from(["rest", 20]))
def test_the_order_of_the_rows_does_not_matter(random, size, train):
    rows = many(100)
    expected = sides(rows, val=size, test=size, train=train)
    random.shuffle(rows)
    assert sides(rows, val=size, test=size, train=train) == expected


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 30), st.integers(0, 9))
def test_counts_are_met_exactly_and_fewer_are_a_subset_of_more(val, test, train, seed):
    rows = many(100) + [make_row(f"a/copy{i}.png", "a", f"a{i}") for i in range(20)]
    options = {"val": val, "test": test, "seed": seed}
    few = sides(rows, train=train, **options)
    counts = Counter((name[0], side) for name, side in few.items())
    for label in "ab":
        assert counts[label, "val"] == val
        assert counts[label, "test"] == test
        assert counts[label, "train"] == train
    more = sides(rows, train=train + 7, **options)
    assert {n for n in few if few[n] == "train"} < {n for n in more if more[n] == "train"}


def test_another_val_moves_no_test_image_and_another_seed_does():
    rows = many()
    test = {name for name, side in sides(rows).items() if side == "test"}
    for val in (0.05, 0.4, 30):
        assert {name for name, side in sides(rows, val=val).items() if side == "test"} == test
    assert {name for name, side in sides(rows, seed=1).items() if side == "test"} != test


def test_fractions_give_the_exact_number_of_every_class():
    rows = many(1000, "a") + many(25, "b") + many(3, "c")
    for seed in range(5):
        counts = Counter((n[0], side) for n, side in sides(rows, seed=seed, val=0.1).items())
        assert [counts["a", side] for side in ("train", "val", "test")] == [700, 100, 200]
        assert [counts["b", side] for side in ("train", "val", "test")] == [17, 3, 5]
        assert [counts["c", side] for side in ("train", "val", "test")] == [1, 1, 1]


def test_twenty_photos_per_class_never_stop_whatever_the_seed():
    rows = many(20, "abcde")
    for seed in range(200):
        counts = Counter((n[0], side) for n, side in sides(rows, seed=seed, val=0.1).items())
        assert {number for (_, side), number in counts.items() if side == "val"} == {2}
        assert {number for (_, side), number in counts.items() if side == "test"} == {4}


@st.composite
def grouped_classes(draw: st.DrawFn) -> list[list[int]]:
    """Draw the sizes of the groups of each class: 3 to 30 groups, most of them of one image."""
    size = st.one_of(st.just(1), st.integers(1, 8))
    return draw(st.lists(st.lists(size, min_size=3, max_size=30), min_size=2, max_size=5))


def grouped(classes: list[list[int]]) -> list[ManifestRow]:
    return [
        make_row(f"{label}/{group}-{i}", label, f"{label}{group}-{i}", near=f"{label}{group}")
        for label, sizes in zip("abcde", classes, strict=False)
        for group, size in enumerate(sizes)
        for i in range(size)
    ]


@settings(max_examples=150, deadline=None)
@given(
    grouped_classes(), st.integers(0, 99), st.floats(0.05, 0.3), st.floats(0.05, 0.3), st.randoms()
)
def test_every_class_gets_its_number_up_to_one_group(classes, seed, val, test, random):
    rows = grouped(classes)
    options = split_options(seed=seed, val=val, test=test)
    found, _, metrics = split_rows(rows, options)
    assert metrics["leakage"] == 0
    for label, sizes in zip("abcde", classes, strict=False):
        for side, fraction in (("val", val), ("test", test)):
            number = metrics["classes"][side][label]
            off = number - max(1, int(fraction * sum(sizes) + 0.5))
            assert number >= 1
            assert metrics["off_quota"][side].get(label, 0) == off
            assert abs(off) <= (max(sizes) if max(sizes) > 1 else 0)
        assert metrics["classes"]["train"][label] >= 1
    order = list(range(len(rows)))
    random.shuffle(order)
    shuffled, _, _ = split_rows([rows[i] for i in order], options)
    assert shuffled == [found[i] for i in order]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=40), st.integers(0, 9))
def test_groups_that_span_classes_leave_every_class_on_every_side(patients, seed):
    """Some images of each class stand alone; patients have images of one, two or both classes."""
    rows = many(10)
    for number, (of_a, of_b) in enumerate(patients):
        rows += [make_row(f"a/p{number}-a{i}", "a", f"a{number}p{i}") for i in range(of_a)]
        rows += [make_row(f"b/p{number}-b{i}", "b", f"b{number}p{i}") for i in range(of_b)]
    rows.append(make_row("b/p999-x", "b", "x"))
    regex = r"p(\d+)-"
    _, _, metrics = split_rows(rows, split_options(seed=seed, group_regex=regex))
    assert metrics["leakage"] == 0
    for side in ("train", "val", "test"):
        assert min(metrics["classes"][side].get(label, 0) for label in "ab") >= 1
    for side in ("val", "test"):
        assert all(abs(number) <= 5 for number in metrics["off_quota"][side].values())


def test_groups_that_fit_no_quota_are_reported():
    rows = grouped([[6, 6, 6, 6], [1] * 20])
    _, _, metrics = split_rows(rows, split_options(val=0.1, test=5))
    assert metrics["off_quota"] == {"test": {"a": 1}, "val": {"a": 4}}
    assert metrics["classes"]["val"] == {"a": 6, "b": 2}
    _, _, metrics = split_rows(rows, split_options(val=0.1, train=13))
    assert metrics["off_quota"] == {"test": {"a": 1}, "val": {"a": 4}, "train": {"a": -1}}


def test_given_sides_are_respected_and_only_missing_ones_drawn():
    given = {0: "train", 1: "train", 2: "val"}
    rows = [replace(row, side=given[i % 3]) for i, row in enumerate(many())]
    found = sides(rows)
    for row in rows:
        assert found[row.id] in ({"val"} if row.side == "val" else {"train", "test"})
    whole = [replace(row, side="test" if i % 5 == 0 else row.side) for i, row in enumerate(rows)]
    assert sides(whole) == {row.id: row.side for row in whole}


def test_copies_across_given_sides_leave_training_and_are_counted():
    rows = [replace(row, side="train") for row in many(50)]
    rows += [make_row(f"{x}/v{i}.png", x, f"v{x}{i}", side="val") for x in "ab" for i in range(5)]
    rows += [make_row(f"{x}/t{i}.png", x, f"t{x}{i}", side="test") for x in "ab" for i in range(5)]
    leaks = [
        make_row("a/leak1.png", "a", "ta0", side="train"),
        make_row("a/leak2.png", "a", "ta1", side="val"),
        make_row("b/leak3.png", "b", "vb1", side="train"),
    ]
    found, _, metrics = split_rows([*rows, *leaks], split_options())
    assert found[: len(rows)] == [row.side for row in rows]
    assert found[len(rows) :] == ["unused"] * 3
    assert metrics["copies_across_given_sides"] == 3
    assert metrics["leakage"] == 0
    assert metrics["images"] == {"train": 100, "val": 10, "test": 10, "unused": 3}
    assert metrics["classes"]["test"] == {"a": 5, "b": 5}


def test_the_stage_says_by_how_much_groups_miss_a_number(tmp_path, monkeypatch, capsys):
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load(Path(__file__).parents[2] / "params.yaml")
    values["split"]["target"] |= {"train": "rest", "val": 0.1, "test": 5}
    with (tmp_path / "params.yaml").open("w") as file:
        yaml.dump(values, file)
    write_table(tmp_path / "manifest.csv", ManifestRow, grouped([[6, 6, 6, 6], [1] * 20]))
    monkeypatch.chdir(tmp_path)
    main("target", tmp_path, tmp_path / "m.json", tmp_path / "params.yaml")
    assert capsys.readouterr().out.splitlines() == [
        "test misses its size, as groups stay together: +1 of a",
        "val misses its size, as groups stay together: +4 of a",
    ]
    assert json.loads((tmp_path / "m.json").read_text())["off_quota"]["val"] == {"a": 4}


@pytest.mark.parametrize(
    ("sizes", "options", "needed"),
    [
        ([1] * 9, {"test": 9}, "9 images; at least 11 different ones are needed: 9 on test, 1"),
        ([1] * 9, {"test": 2, "train": 8}, "9 images; at least 12 .*: 2 on test, 2 on val, 8"),
        (
            [5, 4],
            {},
            r"9 images in 2 groups \(copies .*\); at least 3 groups are needed: 1 on test",
        ),
        ([2], {}, r"2 images in 1 group \(.*\); at least 3 different ones are needed: 1 on test"),
        ([1, 1], {"val": 0.001}, "2 images; at least 3 different ones are needed: 1 on test"),
        ([1], {}, "1 image; at least 3 different ones are needed: .* 1 on val, 1 on train$"),
    ],
)
def test_a_class_too_small_stops_with_its_counts(sizes, options, needed):
    rows = grouped([[1] * 100, sizes])
    with pytest.raises(DataError, match=f"class 'b' is too small: it has {needed}") as caught:
        split_rows(rows, split_options(**options))
    assert "split.*.val" in caught.value.fix


def test_a_class_too_small_beside_a_given_test_is_counted_on_train():
    rows = [replace(row, side="test" if row.label == "a" and i % 2 else "train")
            for i, row in enumerate(many())]  # fmt: skip
    rows = [row for row in rows if row.label == "a"] + [
        replace(row, side="test" if i else "train")
        for i, row in enumerate([row for row in rows if row.label == "b"])
    ]
    words = "it has 1 image on train; at least 2 different ones are needed: 1 on val, 1 on train$"
    with pytest.raises(DataError, match=words):
        sides(rows)


def test_a_class_that_a_given_side_lacks_stops():
    rows = [replace(row, side="val" if row.label == "a" and i < 9 else "train")
            for i, row in enumerate(many())]  # fmt: skip
    with pytest.raises(
        DataError, match="class 'b' is missing on a side: 160 train, 0 val, 40 test"
    ):
        sides(rows)


def test_group_regex_must_be_one_and_match_something():
    with pytest.raises(ParamsError, match="group_regex: '\\('"):
        sides(many(), group_regex="(")
    with pytest.raises(DataError, match=r"matches no name, such as 'a/0\.png'"):
        sides(many(), group_regex="patient")


def test_groups_join_across_regex_and_near_duplicates():
    chain = [
        make_row("a/p1-x.png", "a", 1, near="n"),
        make_row("a/p2-x.png", "a", 2, near="n"),
        make_row("a/p2-y.png", "a", 3),
    ]
    for seed in range(20):
        found = sides(chain + many(), seed=seed, group_regex=r"p\d-")
        assert len({found[row.id] for row in chain}) == 1


def test_the_split_is_the_same_in_another_process_and_locale(tmp_path):
    code = (
        "from tests.data.test_split import *\n"
        "print(hashlib.sha256(repr(sides(many())).encode()).hexdigest())"
    )
    expected = hashlib.sha256(repr(sides(many())).encode()).hexdigest()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env={**os.environ, "PYTHONHASHSEED": "77", "LC_ALL": "tr_TR.UTF-8"},
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout.strip() == expected, done.stderr


def test_a_split_file_that_was_edited_or_cut_is_refused(tmp_path):
    rows, path = many(20), tmp_path / "split.csv"
    triples = zip(rows, *split_rows(rows, split_options())[:2], strict=True)
    split = [assign(*triple, "0123456789abcdef") for triple in triples]
    write_table(path, SplitRow, split)
    assert read_split(path, rows, "0123456789abcdef") == split
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    edits = {
        "a side": text.replace(",train,", ",test,", 1),
        "a name": text.replace("a/3.png", "a/99.png"),
        "two rows": "".join([lines[0], lines[2], lines[1], *lines[3:]]),
        "a row less": "".join(lines[:-1]),
        "a row more": text + lines[-1],
        "half a row": text[:-20],
        "nothing": "",
        "no text": "\x00\x01",
    }
    for edit, changed in edits.items():
        path.write_text(changed)
        with pytest.raises(ArtefactError) as caught:
            read_split(path, rows, "0123456789abcdef")
        assert "split.csv" in caught.value.what, edit
    path.write_text(text)
    with pytest.raises(ArtefactError, match="belongs to other data"):
        read_split(path, rows, "ffffffffffffffff")


def task_of(folder: Path, rows: list[ManifestRow], letters: str) -> Task:
    """Return a task of black images whose rows stand on these sides, by their first letters."""
    sides = [{"n": "train", "v": "val", "t": "test"}[letter] for letter in letters]
    write_table(folder / "manifest.csv", ManifestRow, rows)
    _, data = read_manifest(folder / "manifest.csv")
    pairs = zip(rows, sides, strict=True)
    split = [assign(row, side, row.group, data) for row, side in pairs]
    write_table(folder / "split.csv", SplitRow, split)
    (folder / "images.bin").write_bytes(bytes(rows[0].num_bytes))
    return Task(folder)


def test_a_redrawn_split_permutes_train_and_val(tmp_path):
    """The four of val are the first of NumPy's permutation of the ten: 10 0 8 1, 4 7 3 5 6 11."""
    task = task_of(tmp_path, many(6), "nvtnnnvnntvv")
    redrawn = task.redrawn(7)
    assert redrawn.side("val").ids == ["a/0.png", "a/1.png", "b/2.png", "b/4.png"]
    assert redrawn.side("test").ids == task.side("test").ids == ["a/2.png", "b/3.png"]
    assert task.side("val").ids == ["a/1.png", "b/0.png", "b/4.png", "b/5.png"]  # as it was


def test_redrawing_seventy_thousand_images_counts_them_once(tmp_path):
    task = task_of(tmp_path, many(35_000), "nnnnnvt" * 10_000)
    redrawn = task.redrawn(1)
    ids = {name: set(redrawn.side(name).ids) for name in ("train", "val", "test")}
    assert {name: len(side) for name, side in ids.items()} == {
        "train": 50_000, "val": 10_000, "test": 10_000,
    }  # fmt: skip
    assert ids["test"] == set(task.side("test").ids)
    assert 1000 < len(ids["val"] & set(task.side("val").ids)) < 3000


def folds_of(rows: list[ManifestRow], repeats: tuple[int, ...] = (0,), **options: object):
    """Return per repeat and fold the side of each image, by name; and the metrics."""
    words, _, metrics = fold_rows(rows, split_options(**{"folds": 5, **options}), repeats)
    letters = {"-": "train", "v": "val", "t": "test", "u": "unused"}
    found: dict[int, list[dict[str, str]]] = {}
    for row, word in zip(rows, words, strict=True):
        for part in word.split(" "):
            repeat, own = part.split(":")
            folds = found.setdefault(int(repeat), [{} for _ in own])
            for fold, letter in zip(folds, own, strict=True):
                fold[row.id] = letters[letter]
    return found, metrics


def fold_testing(folds: list[dict[str, str]], name: str) -> int:
    (fold,) = [number for number, sides in enumerate(folds) if sides[name] == "test"]
    return fold


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(8, 60), min_size=2),
    st.integers(2, 6),
    st.sampled_from([0.1, 0.25, 2]),
    st.integers(0, 99),
)
def test_folds_test_each_image_once_with_exact_quotas(sizes, num_folds, val, seed):
    rows = [row for label, size in sizes.items() for row in many(size, label)]
    found, metrics = folds_of(rows, (0, 3), folds=num_folds, val=val, seed=seed)
    assert metrics["folds"] == num_folds
    assert metrics["off_quota"] == {}
    for folds in found.values():
        assert len(folds) == num_folds
        home = {
            row.id: fold_testing(folds, row.id) for row in rows
        }  # fails if tested more than once
        totals = Counter(home.values())
        assert max(totals.values()) - min(totals.values()) <= 1
        for label, size in sizes.items():
            tested = Counter(fold for name, fold in home.items() if name[0] == label)
            assert set(tested.values()) <= {size // num_folds, -(-size // num_folds)}
            for number, sides_of in enumerate(folds):
                rest = size - tested[number]
                wanted = val if isinstance(val, int) else max(1, int(val * rest + 0.5))
                drawn = Counter(side for name, side in sides_of.items() if name[0] == label)
                expected = {"test": tested[number], "val": wanted, "train": rest - wanted}
                assert drawn == expected


@settings(max_examples=30, deadline=None)
@given(pictures, st.integers(0, 99))
def test_a_group_is_on_one_side_of_every_fold(drawn, seed):
    rows = many(40) + [
        make_row(f"{label}/burst{number}-{index}.png", label, picture, near=f"near {picture // 3}")
        for index, (label, picture, number) in enumerate(drawn)
    ]
    regex = r"burst(\d+)-"
    found, metrics = folds_of(rows, (0, 1), seed=seed, group_regex=regex)
    assert metrics["leakage"] == 0
    for sides_of in (fold for folds in found.values() for fold in folds):
        homes: dict[str, set[str]] = {}
        for row in rows:
            burst = [row.id.split("burst")[1].split("-")[0]] if "burst" in row.id else []
            for word in (row.group, row.near, *burst):
                homes.setdefault(word, set()).add(sides_of[row.id])
        assert all(len(home) == 1 for home in homes.values())


def test_another_repeat_or_seed_is_another_partition_and_an_added_repeat_moves_nothing():
    rows = many(50)
    found, _ = folds_of(rows, (0, 1, 7))
    other, _ = folds_of(rows, (0,), seed=1)
    homes = [[fold_testing(folds, row.id) for row in rows] for folds in (*found.values(), other[0])]
    for first, second in itertools.combinations(homes, 2):
        same = sum(one == two for one, two in zip(first, second, strict=True))
        assert 5 < same < 40  # of 100 images, 20 by chance
    assert folds_of(rows, (7,))[0][7] == found[7]


@pytest.mark.parametrize(("size", "most"), [(20, 0.15), (200, 0.05)])
def test_a_tenth_more_images_moves_few_to_another_fold(size, most):
    shares = []
    for seed in range(8):
        old = many(size)
        before, after = (folds_of(x, seed=seed)[0][0] for x in (old, many(size + size // 10)))
        moved = [
            row.id for row in old if fold_testing(before, row.id) != fold_testing(after, row.id)
        ]
        shares.append(len(moved) / len(old))
    assert sum(shares) / len(shares) < most  # 0.8 where all are drawn anew


def test_the_order_of_the_rows_changes_no_fold():
    rows = many(30, "abc")
    assert folds_of(rows)[0] == folds_of(rows[::-1])[0]


def test_few_shot_folds_leave_the_rest_unused():
    found, _ = folds_of(many(50), train=7, val=3)
    for sides_of in found[0]:
        assert Counter(sides_of.values()) == {"test": 20, "val": 6, "train": 14, "unused": 60}


def test_folds_pool_the_sides_that_the_dataset_brings_and_count_them():
    rows = [replace(row, side="val" if k % 3 else "train") for k, row in enumerate(many(30))]
    found, metrics = folds_of(rows)
    assert metrics["pooled"] == {"train": 20, "val": 40}
    assert found == folds_of(many(30))[0]


def test_a_class_of_too_few_groups_for_the_folds_is_refused():
    rows = many(30, "a") + [make_row(f"b/{i}.png", "b", f"b{i % 5}") for i in range(30)]
    with pytest.raises(DataError, match="'b' is too small: it has 30 images in 5 groups") as caught:
        folds_of(rows)
    assert caught.value.what.endswith("at least 6 groups are needed for 5 folds")
    assert "split.*.folds" in caught.value.fix


def test_a_task_gives_the_sides_of_each_fold_and_all_images_to_the_shipped_model(tmp_path):
    rows = many(12)
    (tmp_path / "images.bin").write_bytes(bytes(rows[0].num_bytes))
    write_table(tmp_path / "manifest.csv", ManifestRow, rows)
    split_task(tmp_path, split_options(folds=3, val=2), (0, 4))
    task, (found, _) = Task(tmp_path), folds_of(rows, (0, 4), folds=3, val=2)
    names = [row.id for row in rows]
    assert task.num_folds == 3
    assert task.side("test").ids == names
    assert task.pooled().side("train").ids == names
    for repeat, folds in found.items():
        for view, sides_of in zip(task.folds(repeat), folds, strict=True):
            for side in ("train", "val", "test"):
                expected = [name for name in names if sides_of[name] == side]
                assert view.side(side).ids == expected
                assert [names[row] for row in view.rows(side)] == expected
    splits = [view.hashes()["split"] for k in (0, 4) for view in task.folds(k)]
    assert len({*splits, task.hashes()["split"], task.pooled().hashes()["split"]}) == 8
    before = task.folds(4)[1].hashes()
    split_task(tmp_path, split_options(folds=3, val=2), (4, 5, 6))
    assert Task(tmp_path).folds(4)[1].hashes() == before
    with pytest.raises(ArtefactError, match="no folds for 0"):
        Task(tmp_path).folds(0)


def test_a_task_without_folds_is_its_own_only_fold(tmp_path):
    task = task_of(tmp_path, many(3), "nvtnvt")
    assert task.num_folds == 0
    assert task.folds(9) == [task]
    assert task.pooled() is task


names = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(names, names), min_size=1, max_size=20, unique_by=lambda x: x[0]))
def test_any_names_survive_the_tables(tmp_path_factory, pairs):
    folder = tmp_path_factory.mktemp("tables")
    rows = [make_row(name, label, index) for index, (name, label) in enumerate(pairs)]
    write_table(folder / "manifest.csv", ManifestRow, rows)
    assert read_table(folder / "manifest.csv", ManifestRow) == rows


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_mutated_manifest_is_read_or_refused(tmp_path_factory, where, value):
    path = tmp_path_factory.mktemp("tables") / "manifest.csv"
    write_table(path, ManifestRow, many(5))
    data = bytearray(path.read_bytes())
    data[where % len(data)] = value
    path.write_bytes(data)
    try:
        read_table(path, ManifestRow)
    except ArtefactError as error:
        assert "manifest.csv" in error.what  # noqa: PT017
