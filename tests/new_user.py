"""Try the project as a new user would: three commands from a collection of photos to the answers.

    python -m tests.new_user flowers.zip hymenoptera.zip
    python -m tests.new_user flowers.zip --only table scripts --keep tried

Each given folder or archive of class folders is tried as it is. Of the photos in the first one,
five more are made as people have them: a phone's zip, a table with groups, grey scans, classes of
very different size, names in other scripts among broken files. For each, `resnets init`, `dvc
repro` and `resnets predict` run in a copy of the project, with nothing edited. Prints a row per
collection.
"""

import argparse
import json
import re
import subprocess
import tempfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image
from pillow_heif import register_heif_opener

from resnets.data.sources import open_source
from resnets.evaluation.markdown import points, table
from resnets.tasks.decode import BadImageError, decode, to_pixels
from tests.copies import environment, make_copy, run
from tests.data.photos import encode

Photos = dict[str, list[Image.Image]]  # by class
LARGE = (4000, 3000)  # 12 megapixels, as phones have them
TURNED = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}  # by EXIF's number
NAMES = ("菊", "одуванчик", "وردة", "सूरज मुखी", "tulipán & ñ", "rose 🌹")
HEADER = "collection|images|accuracy|majority|minutes|estimate|real / estimate|exit codes|traceback"


def read_photos(path: Path, most: int) -> Photos:
    """Return the first photos of each class."""
    source, photos = open_source(path), defaultdict[str, list[Image.Image]](list)
    for member, content in source.read(source.members):
        if len(photos[member.label]) < most and not isinstance(content, BadImageError):
            pixels = to_pixels(decode(content, channels=3, max_megapixels=64).picture)
            photos[member.label].append(Image.fromarray(pixels))
    return dict(photos)


def numbered(photos: Photos, per_class: int) -> Iterator[tuple[int, str, Image.Image]]:
    """Yield so many photos of each class with their number among all."""
    pairs = [(label, photo) for label, own in photos.items() for photo in own[:per_class]]
    yield from ((number, *pair) for number, pair in enumerate(pairs))


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def phone(photos: Photos, folder: Path) -> tuple[Path, Path]:
    """Write a zip of 12-megapixel photos with turns, some HEIC, and what phones and Macs add."""
    path = folder / "IMG export (1).zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("Takeout/.DS_Store", b"\0")
        for (number, label, photo), turn in zip(numbered(photos, 20), cycle(TURNED), strict=False):
            large, exif = photo.resize(LARGE, Image.Resampling.BICUBIC), Image.Exif()
            is_heic = number % 5 == 0
            if TURNED[turn] is not None and not is_heic:
                large, exif[0x0112] = large.transpose(TURNED[turn]), turn
            week, kind = f"week {number % 3}/" * (number % 3 > 0), "HEIC" if is_heic else "JPG"
            name = f"{label}/{week}IMG_{number:04}.{kind}"
            data = encode(large, "HEIF") if is_heic else encode(large, "JPEG", exif=exif)
            archive.writestr(f"Takeout/Photos/{name}", data)
            archive.writestr(f"__MACOSX/Takeout/Photos/{Path(name).with_name(f'._{number}')}", b"x")
    return path, path


def spreadsheet(photos: Photos, folder: Path) -> tuple[Path, Path]:
    """Write a flat folder and a table as Excel saves it, with who took each photo."""
    lines = ["path;label;group"]
    for number, label, photo in numbered(photos, 40):
        write(folder / f"Bilder/IMG_{number:04}.JPG", encode(photo, "JPEG", quality=92))
        lines.append(f"Bilder\\IMG_{number:04}.JPG;{label};person {number % 40 // 4}")
    path = folder / "Labels.csv"
    path.write_text("\r\n".join(lines) + "\r\n", encoding="utf-8-sig")
    return path, folder / "Bilder"


def scans(photos: Photos, folder: Path) -> tuple[Path, Path]:
    """Write grey scans: PNG and TIFF, some of 16 bits, on white paper."""
    for number, label, photo in numbered(photos, 60):
        page = Image.new("L", (photo.width + 60, photo.height + 80), 250)
        page.paste(photo.convert("L"), (30, 40))
        if number % 3 == 0:
            page = Image.fromarray(np.asarray(page).astype(np.uint16) * 257)
        kind = "TIFF" if number % 2 else "PNG"
        write(folder / f"scans/{label}/scan{number:03}.{kind.lower()}", encode(page, kind))
    return folder / "scans", folder / "scans"


def imbalanced(photos: Photos, folder: Path) -> tuple[Path, Path]:
    """Write classes of which each has half as many photos as the one before, and no less than 8."""
    for rank, (label, own) in enumerate(photos.items()):
        for number, photo in enumerate(own[: max(8, 120 >> rank)]):
            write(folder / f"photos/{label}/{number}.jpg", encode(photo, "JPEG", quality=90))
    return folder / "photos", folder / "photos"


def scripts(photos: Photos, folder: Path) -> tuple[Path, Path]:
    """Write names of many scripts, screenshots with transparency, and files that are no photos."""
    words = dict(zip(photos, NAMES, strict=False))
    for number, label, photo in numbered(photos, 30):
        if number % 4 == 0:
            photo = photo.convert("RGBA")
            photo.putalpha(230)
        kind = "PNG" if number % 4 == 0 else ("WEBP" if number % 4 == 1 else "JPEG")
        home = folder / "фото" / words.get(label, label)
        write(home / f"{label} é {number}.{kind.lower()}", encode(photo, kind))
        write(home / "notes.txt", b"mine")
        write(home / ".DS_Store", b"\0")
    write(home / "broken.heic", encode(photo, "HEIF")[:200])
    write(home / "empty.jpg", b"")
    return folder / "фото", folder / "фото"


MADE = {
    "phone": phone,
    "table": spreadsheet,
    "scans": scans,
    "imbalanced": imbalanced,
    "scripts": scripts,
}


def try_out(name: str, photos: Path, new: Path, folder: Path, options: list[str]) -> list[str]:
    """Run the three commands in a copy of the project; return the row of the table."""
    project = folder / "project"
    project.mkdir()
    make_copy(project)
    run("git", "add", ".", cwd=project)
    run("git", "commit", "-qm", "before", cwd=project)
    resnets, start, codes = ["python", "-m", "resnets.cli"], time.monotonic(), []
    log, seconds, env = folder / "log.txt", [], environment()
    for command in (
        [*resnets, "init", str(photos), *options],
        ["dvc", "repro"],
        [*resnets, "predict", str(new), "-o", "answers.csv"],
    ):
        with log.open("a", encoding="utf-8") as file:
            done = subprocess.run(
                command, cwd=project, env=env, stdout=file, stderr=file, check=False
            )
        codes.append(str(done.returncode))
        seconds.append(time.monotonic() - start)
    said = log.read_text(encoding="utf-8")
    ends = {"exit codes": " ".join(codes), "traceback": "yes" if "Traceback" in said else "no"}
    if codes[1] != "0":
        return [name, *["–"] * 6, *ends.values()]
    board = json.loads((project / "metrics/leaderboard.json").read_text())
    best = board["variants"][board["best"]]
    images = json.loads((project / "metrics/data_target.json").read_text())["images"]
    hours, minutes = map(int, re.findall(r"about (\d+):(\d\d) \(hours", said)[-1])
    estimate, real = 60 * hours + minutes, (seconds[1] - seconds[0]) / 60
    interval = f"{points(best['test_low'])} to {points(best['test_high'])}"
    return [
        name,
        f"{images:,}",
        f"{points(best['seeds_mean'])} ({interval})",
        points(board["yardsticks"]["majority"]["seeds_mean"]),
        f"{seconds[2] / 60:.1f}",
        str(estimate),
        f"{real / estimate:.2f}",
        *ends.values(),
    ]


def main() -> None:
    """Try all collections, or those asked for, and print a row for each when it is done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("photos", nargs="+", type=Path, help="folders or archives of class folders")
    parser.add_argument("--only", nargs="+", help=f"names among these, {', '.join(MADE)}")
    parser.add_argument("--keep", type=Path, help="folder for all that is made; else removed")
    parser.add_argument("--fast", action="store_true", help="as `resnets init --fast`")
    parser.add_argument("--weights", type=Path, help="for --backbone; else none, and --offline")
    given = parser.parse_args()
    options = ["--backbone", str(given.weights.resolve())] if given.weights else ["--offline"]
    options += ["--fast"] * given.fast
    register_heif_opener()  # for writing
    with tempfile.TemporaryDirectory() as temporary:
        root = (given.keep or Path(temporary)).resolve()
        rows, collections = [], {path.stem: path.resolve() for path in given.photos}
        for name in given.only or [*collections, *MADE]:
            folder = root / name
            folder.mkdir(parents=True)
            both = (collections[name],) * 2 if name in collections else None
            if not both:
                both = MADE[name](read_photos(given.photos[0], 120), folder)
            rows.append(try_out(name, *both, folder, options))
            print(table(HEADER.split("|"), rows[-1:]), flush=True)
        print(table(HEADER.split("|"), rows))


if __name__ == "__main__":
    main()
