"""Test the split as a pure function: grouped, stable, seeded, exact where counts are asked for."""

import hashlib
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnets.data.split import split_rows
from resnets.errors import ArtefactError, DataError, ParamsError
from resnets.tasks.manifest import Row, read_manifest, read_split, write_manifest, write_split
from tests.data.photos import SPLIT


def make_row(name: str, label: str, picture: object, near: object = None, side: str = "") -> Row:
    pixels = hashlib.sha256(str(picture).encode()).hexdigest()
    near_word = pixels if near is None else hashlib.sha256(str(near).encode()).hexdigest()
    return Row(
        id=name, label=label, side=side, sha256=pixels, pixel_sha256=pixels, phash="",
        near=near_word[:16], format="PNG", width=4, height=4, channels=3, offset=0,
        packed_height=4, packed_width=4, crc32=0, note="",
    )  # fmt: skip


def many(num: int = 200, labels: str = "ab") -> list[Row]:
    return [make_row(f"{x}/{i}.png", x, f"{x}{i}") for x in labels for i in range(num)]


def sides(rows: list[Row], **options: object) -> dict[str, str]:
    assigned = split_rows(rows, **{**SPLIT, **options})
    return {row.id: side for row, side in zip(rows, assigned.sides, strict=True)}


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
    options = {**SPLIT, "seed": seed, "group_near": near, "group_regex": regex}
    assigned = split_rows(rows, **options)
    homes: dict[str, set[str]] = {}
    for row, side in zip(rows, assigned.sides, strict=True):
        words = [row.group] + [row.near] * near
        if burst and "burst" in row.id:
            words.append(row.id.split("burst")[1].split("-")[0])
        for word in words:
            homes.setdefault(word, set()).add(side)
    assert all(len(found) == 1 for found in homes.values())
    assert assigned.metrics(rows)["leakage"] == 0


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(0, 99))
def test_adding_removing_or_renaming_moves_no_other_image(data, seed):
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
    assert all(after[name] == side for name, side in before.items() if name in after)
    if what == "rename":
        assert after["a/renamed.png"] == before[rows[number].id]


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


def test_fractions_are_met_closely_in_every_class():
    rows = many(2000)
    counts = Counter((name[0], side) for name, side in sides(rows, val=0.1, test=0.3).items())
    for label in "ab":
        assert counts[label, "val"] == pytest.approx(200, abs=50)
        assert counts[label, "test"] == pytest.approx(600, abs=70)


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
    assigned = split_rows([*rows, *leaks], **SPLIT)
    assert assigned.sides[: len(rows)] == [row.side for row in rows]
    assert assigned.sides[len(rows) :] == ["unused"] * 3
    metrics = assigned.metrics([*rows, *leaks])
    assert metrics["copies_across_given_sides"] == 3
    assert metrics["leakage"] == 0
    assert metrics["images"] == {"train": 100, "val": 10, "test": 10, "unused": 3}
    assert metrics["classes"]["test"] == {"a": 5, "b": 5}


@pytest.mark.parametrize("options", [{"val": 0.001}, {"test": 9}, {"train": 8, "test": 2}])
def test_a_class_too_small_stops_with_its_counts(options):
    rows = many(100, "a") + many(9, "b")
    with pytest.raises(DataError, match=r"class '[ab]' is too small for \d+ on \w+: \d+ train, "):
        sides(rows, **options)


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
        env={"PYTHONHASHSEED": "77", "LC_ALL": "tr_TR.UTF-8"}, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout.strip() == expected, done.stderr


def test_a_split_file_that_was_edited_or_cut_is_refused(tmp_path):
    rows, path = many(20), tmp_path / "split.csv"
    assigned = split_rows(rows, **SPLIT)
    write_split(path, rows, assigned.sides, assigned.groups, "0123456789abcdef")
    assert read_split(path, rows, "0123456789abcdef") == (assigned.sides, assigned.groups)
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


names = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(names, names), min_size=1, max_size=20, unique_by=lambda x: x[0]))
def test_any_names_survive_the_tables(tmp_path_factory, pairs):
    folder = tmp_path_factory.mktemp("tables")
    rows = [make_row(name, label, index) for index, (name, label) in enumerate(pairs)]
    write_manifest(folder / "manifest.csv", rows)
    assert read_manifest(folder / "manifest.csv") == rows


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_mutated_manifest_is_read_or_refused(tmp_path_factory, where, value):
    path = tmp_path_factory.mktemp("tables") / "manifest.csv"
    write_manifest(path, many(5))
    data = bytearray(path.read_bytes())
    data[where % len(data)] = value
    path.write_bytes(data)
    try:
        read_manifest(path)
    except ArtefactError as error:
        assert "manifest.csv" in error.what  # noqa: PT017
