"""Find copies of one picture: the same bytes, the same pixels, or nearly the same picture.

The perceptual hash is the sign pattern of the 16×16 lowest cosine frequencies of the picture,
reduced to 32×32 grey (Zauner, "Implementation and Benchmarking of Perceptual Image Hash
Functions", 2010, with 256 bits in place of 64). Two pictures are near-duplicates when at most
NEAR of the 256 bits differ, and at most NEAR_LOW of the 64 lowest.

benchmarks/duplicates.py finds 100% of the copies of 944 photos as JPEG of quality 30, at half and
double size, squeezed or brighter by 10%, or with 2% cut off each side; with 4% cut off 65%. Of the
9.3 million pairs of 4,317 flowers 42 are that close: copies, or two shots of one scene. Pictures of
a few pixels are close too often, so those below MIN_SIDE have no hash.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from networkx import Graph, connected_components
from PIL import Image

from resnets.tasks.decode import BadImageError
from resnets.tasks.manifest import ManifestRow, Rejected, copies, refuse

NEAR = 64
NEAR_LOW = 18
MIN_SIDE = 64
FLAT_SHARE = 0.92  # of the pixels within FLAT_BAND grey levels: next to no content
FLAT_BAND = 5  # placeholders reach 0.94; of photos and Fashion-MNIST none is above 0.91

_WAVES = np.cos(np.pi / 64 * np.arange(16)[:, None] * (2 * np.arange(32)[None] + 1))
_LOW = (np.arange(16)[:, None] < 8) & (np.arange(16)[None] < 8)
_ORDER = np.concatenate([np.flatnonzero(_LOW), np.flatnonzero(~_LOW)])


def is_flat(grey: Image.Image) -> bool:
    """Tell whether a grey picture has next to no content, as placeholders have."""
    counts = np.convolve(grey.histogram(), np.ones(FLAT_BAND))
    return bool(counts.max() >= FLAT_SHARE * grey.width * grey.height)


def perceptual_hash(grey: Image.Image) -> str:
    """Return the hash of a grey picture as 64 hex digits, the lowest frequencies first."""
    small = np.asarray(grey.resize((32, 32), Image.Resampling.BOX), np.float64)
    waves = (_WAVES @ small @ _WAVES.T).ravel()[_ORDER]
    median = np.partition(waves[1:], 127)[127]  # of 255: the mean brightness does not count
    return np.packbits(waves > median).tobytes().hex()


def near_pairs(
    hashes: npt.NDArray[np.uint64], first: int | None = None
) -> Iterable[tuple[int, int]]:
    """Yield the pairs of near-duplicates among hashes (N, 4), the lowest frequencies in column 0.

    Compares all pairs, or those with one of the `first` rows, one row with all later ones at a
    time: memory grows with N only.
    """
    low = np.ascontiguousarray(hashes[:, 0])
    for row in range(len(low) - 1 if first is None else first):
        close = np.flatnonzero(np.bitwise_count(low[row + 1 :] ^ low[row]) <= NEAR_LOW) + row + 1
        if close.size:
            bits = np.bitwise_count(hashes[close] ^ hashes[row]).sum(axis=1)
            yield from ((row, int(other)) for other in close[bits <= NEAR])


def join(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return for each word the smallest word that it is joined to, directly or through others."""
    graph = Graph()
    graph.add_edges_from(pairs)
    smallest: dict[str, str] = {}
    for group in connected_components(graph):
        smallest |= dict.fromkeys(group, min(group))
    return smallest


def _numbers(words: list[str]) -> npt.NDArray[np.uint64]:
    """Return perceptual hashes as rows of four numbers."""
    hashes = [np.frombuffer(bytes.fromhex(word), ">u8") for word in words]
    return np.array(hashes).reshape(-1, 4).astype(np.uint64)


def near_between(rows: list[ManifestRow], others: list[ManifestRow]) -> dict[str, str]:
    """Return, of the images that have a copy or near-duplicate in another task, its name there."""
    same = {other.pixel_sha256: other.id for other in others}
    found = {row.id: same[row.pixel_sha256] for row in rows if row.pixel_sha256 in same}
    own, foreign = ([row for row in task if row.phash] for task in (rows, others))
    both = own + foreign
    for one, other in near_pairs(_numbers([row.phash for row in both]), len(own)):
        if other >= len(own):
            found.setdefault(both[one].id, both[other].id)
    return found


def mark_near(rows: list[ManifestRow]) -> list[ManifestRow]:
    """Give near-duplicates one word in `near`, and note where they have two labels."""
    by_hash = {row.phash: row.group for row in reversed(rows) if row.phash}
    words = sorted(by_hash)
    pairs = [(row.group, by_hash[row.phash]) for row in rows if row.phash]
    for one, other in near_pairs(_numbers(words)):
        pairs.append((by_hash[words[one]], by_hash[words[other]]))
    near = join(pairs)
    noted: dict[str, ManifestRow] = {}
    rows = [replace(row, near=near.get(row.group, row.near)) for row in rows]
    for group in copies(rows, "near"):
        if len({row.label for row in group}) > 1:
            for row in group:
                note = f"{row.note}; near-duplicate has another label".removeprefix("; ")
                noted[row.id] = replace(row, note=note)
    return [noted.get(row.id, row) for row in rows]


def label_conflicts(rows: list[ManifestRow]) -> list[Rejected]:
    """Return the images whose very pixels stand under another label as well."""
    conflicts = []
    for group in copies(rows, "group"):
        for row in group if len({row.label for row in group}) > 1 else ():
            others = [other for other in group if other.label != row.label]
            detail = f"the same picture is labelled {others[0].label!r}: {others[0].id}"
            conflicts.append(refuse(row.id, row.label, BadImageError("label_conflict", detail)))
    return sorted(conflicts, key=lambda conflict: conflict.id)
