"""Measure how many altered copies of photos are found as near-duplicates, and how many strangers.

    python benchmarks/duplicates.py photos.zip more_photos/ ...

Found: every fifth photo is altered in each of several ways and compared with its original.
Strangers: all pairs of photos are compared. Within a dataset a near pair may well be two shots of
one scene: `resnets check` lists them for a look. Between unrelated datasets every one is false.
"""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from resnets.data.duplicates import NEAR, NEAR_LOW, near_pairs, perceptual_hash
from resnets.data.sources import open_source
from resnets.evaluation.markdown import table
from resnets.tasks.decode import BadImageError, decode

EVERY = 5
LONGEST = 512  # larger photos are reduced first: that is much faster and changes no hash


def crop(photo, share):
    """Cut this share of the width and height off each side."""
    dx, dy = round(photo.width * share), round(photo.height * share)
    return photo.crop((dx, dy, photo.width - dx, photo.height - dy))


def jpeg(photo, quality):
    """Encode and decode a photo."""
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=quality)
    return Image.open(file)


ALTERATIONS = {
    "JPEG, quality 30": lambda photo: jpeg(photo, 30),
    "half size": lambda photo: photo.resize((photo.width // 2, photo.height // 2)),
    "double size": lambda photo: photo.resize((photo.width * 2, photo.height * 2)),
    "squeezed by 10%": lambda photo: photo.resize((round(photo.width * 0.9), photo.height)),
    "10% brighter": lambda photo: ImageEnhance.Brightness(photo).enhance(1.1),
    **{
        f"{share:.0%} cut off each side": lambda photo, share=share: crop(photo, share)
        for share in (0.01, 0.02, 0.03, 0.04, 0.05)
    },
}


def words(photo):
    """Return the hash of a photo as four numbers."""
    return np.frombuffer(bytes.fromhex(perceptual_hash(photo.convert("L"))), ">u8")


def is_near(one, other):
    """Tell whether two hashes are near."""
    return bool([*near_pairs(np.array([one, other]).astype(np.uint64))])


def measure(path, found):
    """Return the names and hashes of a dataset's photos; add to `found` whether copies are."""
    source = open_source(path)
    names, hashes = [], []
    for number, (member, content) in enumerate(source.read(source.members)):
        try:
            decoded = decode(content, channels=3, max_megapixels=64)
        except BadImageError:
            continue
        photo = decoded.picture
        photo.thumbnail((LONGEST, LONGEST), Image.Resampling.BOX)
        names.append(member.name)
        hashes.append(words(photo))
        if number % EVERY == 0:
            for kind, alter in ALTERATIONS.items():
                found[kind].append(is_near(hashes[-1], words(alter(photo))))
    return names, np.array(hashes).astype(np.uint64)


def main():
    """Print both tables."""
    paths = [Path(argument) for argument in sys.argv[1:]]
    if not paths:
        print("no photos named: python benchmarks/duplicates.py photos.zip")
        return
    found = {kind: [] for kind in ALTERATIONS}
    sets = {path.name: measure(path, found) for path in paths}
    print(f"near: at most {NEAR} of 256 bits differ, and {NEAR_LOW} of the 64 lowest\n")
    rows = [[kind, len(hits), f"{np.mean(hits):.1%}"] for kind, hits in found.items()]
    print(table(["copies", "number", "found"], rows) + "\n")
    names = [(title, name) for title, (names, _) in sets.items() for name in names]
    hashes = np.concatenate([hashes for _, hashes in sets.values()])
    pairs = [(a, b, names[a][0], names[b][0]) for a, b in near_pairs(hashes)]
    rows = []
    for title, (inside, _) in sets.items():
        near = [(a, b) for a, b, one, other in pairs if one == other == title]
        equal = sum(bool((hashes[a] == hashes[b]).all()) for a, b in near)
        rows.append([title, len(inside) * (len(inside) - 1) // 2, len(near), equal])
    strangers = [(a, b) for a, b, one, other in pairs if one != other]
    number = len(names) * (len(names) - 1) // 2 - sum(row[1] for row in rows)
    rows.append(["between datasets", number, len(strangers), 0])
    print(table(["pairs", "number", "near", "equal hash"], rows))
    for a, b in strangers:
        print(f"  {names[a][1]}, {names[b][1]}")


if __name__ == "__main__":
    main()
