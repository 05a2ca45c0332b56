"""Time `prepare`, with all its checks, hashes and packing, against decoding alone.

    python benchmarks/prepare.py            all ants and bees, to 256 px
    python benchmarks/prepare.py --quick    every fourth of them

The ceiling is what the machine can do with these photos: threads on all cores decode each file,
read beforehand, to all of its pixels, and do nothing else. The same with photos of 12 megapixels,
exact and with data.scaled_decoding. Then follows where one core's time goes in preparing.
"""

import cProfile
import io
import os
import pstats
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
from _timing import compare, describe_machine, options, photos, prepare, rate, unpack
from PIL import Image
from scaled_decoding import enlarge

from resnets.data.pack import Packing, judge
from resnets.data.sources import open_source


def decode(data: bytes) -> None:
    """Decode one file to all of its pixels."""
    with Image.open(io.BytesIO(data)) as image:
        image.convert("RGB")


def decode_all(files: list[bytes]) -> None:
    """Decode all files on all cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(decode, files))


def write_large(files: list[bytes], folder: Path, num: int) -> list[bytes]:
    """Write photos of 12 megapixels with a camera's noise; return their bytes."""
    rng, large = np.random.default_rng(0), []
    for number, data in enumerate(files[:num]):
        with Image.open(io.BytesIO(data)) as image:
            large.append(enlarge(np.asarray(image.convert("RGB")), rng))
        path = folder / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(large[-1])
    return large


def prepare_large(
    folder: Path, large: list[bytes], turns: Iterator[int], *, scaled_decoding: bool
) -> float:
    """Prepare the large photos; return how many per second."""
    options = {"channels": 3, "resize": 256, "scaled_decoding": scaled_decoding}
    place = folder / f"task{next(turns)}"
    return rate(len(large), lambda: prepare(folder / "large", place, **options))


def profile(folder: Path) -> None:
    """Print which functions take the time of judging, one photo after the other."""
    source = open_source(folder)
    packing = Packing(3, 256, "shorter_side", 64.0)
    contents = list(source.read(source.members))[:50]
    profiler = cProfile.Profile()
    profiler.runcall(lambda: [judge(member, data, packing) for member, data in contents])
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(9)
    print("\n".join(line for line in text.getvalue().splitlines()[6:] if line.strip()))


def main() -> None:
    """Measure, and say where the time goes."""
    quick = options(__doc__).quick
    archive = photos()
    describe_machine()
    with tempfile.TemporaryDirectory() as name:
        folder, turns = Path(name), count()
        paths = unpack(archive, folder / "photos", 100 if quick else None)
        files = [path.read_bytes() for path in paths]
        place = folder / "photos/hymenoptera_data"
        compare(
            f"{len(files)} photos",
            {
                "decode only": lambda: rate(len(files), lambda: decode_all(files)),
                "prepare": lambda: rate(
                    len(files),
                    lambda: prepare(place, folder / f"task{next(turns)}", channels=3, resize=256),
                ),
            },
            unit="images/s",
            rounds=2 if quick else 9,
            target="at least 0.6",
        )
        large = write_large(files, folder / "large", 8 if quick else 24)
        compare(
            f"{len(large)} photos of 12 megapixels",
            {
                "exact": partial(prepare_large, folder, large, turns, scaled_decoding=False),
                "decode only": lambda: rate(len(large), lambda: decode_all(large)),
                "prepare, scaled_decoding": partial(
                    prepare_large, folder, large, turns, scaled_decoding=True
                ),
            },
            unit="images/s",
            rounds=1 if quick else 3,
            limits={"exact": "at least 3"},
        )
        profile(place)


if __name__ == "__main__":
    main()
