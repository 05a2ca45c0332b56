"""Test the search for near-duplicates against the plain comparison of all pairs."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from resnets.data.duplicates import (
    NEAR,
    NEAR_LOW,
    is_flat,
    join,
    near_between,
    near_pairs,
    perceptual_hash,
)
from tests.data.photos import encode, make_photo, pets, prepare, write_folder

BITS = np.uint64(1) << np.arange(64, dtype=np.uint64)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 40), st.floats(0, 0.4))
def test_pairs_equal_those_of_the_plain_comparison(seed, num, noise):
    rng = np.random.default_rng(seed)
    bits = np.repeat(rng.random((1, 256)) < 0.5, num, 0) ^ (rng.random((num, 256)) < noise)
    hashes = (bits.reshape(num, 4, 64) * BITS).sum(2, dtype=np.uint64)
    expected = [
        (a, b)
        for a, b in itertools.combinations(range(num), 2)
        if (bits[a] != bits[b]).sum() <= NEAR and (bits[a] != bits[b])[:64].sum() <= NEAR_LOW
    ]
    assert sorted(near_pairs(hashes)) == expected


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("abcdefgh"))))
def test_joined_words_share_the_smallest(pairs):
    groups = [{word} for word in "abcdefgh"]
    for one, other in pairs:
        both = [group for group in groups if {one, other} & group]
        groups = [group for group in groups if group not in both] + [set().union(*both)]
    joined = join(pairs)
    assert all(joined[word] == min(group) for group in groups for word in group & set(joined))


def test_the_hash_does_not_depend_on_size_and_has_balanced_bits():
    big = make_photo(4, (400, 300)).convert("L")
    small = big.resize((200, 150), Image.Resampling.BOX)
    words = [int(perceptual_hash(picture), 16) for picture in (big, small)]
    assert (words[0] ^ words[1]).bit_count() <= 8
    assert 120 <= words[0].bit_count() <= 136


def test_pictures_with_next_to_no_content_are_flat():
    assert is_flat(Image.new("L", (50, 50), 255))
    assert is_flat(Image.new("L", (50, 50), 0))
    assert not is_flat(make_photo(1).convert("L"))
    half = Image.new("L", (50, 50), 0)
    half.paste(255, (0, 0, 50, 10))
    assert not is_flat(half)


def test_copies_in_another_task_are_named(tmp_path):
    photo = make_photo(5)
    files = {**pets(2), "cat/here.png": encode(photo)}
    others = {**pets(2, start=50), "dog/small.jpg": encode(photo.resize((88, 66)), "JPEG")}
    others["dog/same.png"] = files["cat/0.png"]
    own, foreign = (
        prepare(write_folder(tmp_path / name, images), tmp_path / f"task_{name}").rows
        for name, images in {"a": files, "b": others}.items()
    )
    expected = {"cat/here.png": "dog/small.jpg", "cat/0.png": "dog/same.png"}
    assert near_between(own, foreign) == expected
    assert near_between(own, []) == {}
