"""Time `prepare`, with all its checks, hashes and packing, against decoding alone.

    python benchmarks/prepare.py            all ants and bees, to 256 px
    python benchmarks/prepare.py --quick    every fourth of them

The ceiling is what the machine can do with these photos: threads on all cores decode each file,
read beforehand, to all of its pixels, and do nothing else. Then follows where one core's time
goes in preparing.
"""

import cProfile
import io
import os
import pstats
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

from _timing import compare, describe_machine, options, photos, prepare, rate, unpack
from PIL import Image

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
            unit="images/s", rounds=2 if quick else 9, target="at least 0.75",
        )  # fmt: skip
        profile(place)


if __name__ == "__main__":
    main()
