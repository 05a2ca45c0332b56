"""Look at photos as `resnets check` does, and split them, so that parameters can be chosen."""

import os
import re
import shlex
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from resnets.data.check import STORE, examine
from resnets.data.findings import Finding
from resnets.data.prepare import check_classes, list_bad, select_members
from resnets.data.sources import open_source
from resnets.data.split import split_rows
from resnets.params.schema import Split
from resnets.system.errors import DataError
from resnets.tasks.decode import resize
from resnets.tasks.manifest import ManifestRow, Rejected
from resnets.tasks.task import PixelStore

MOST_CLASSES, MOST_BAD = 1000, 0.1
NOT_READ = (".git", ".hg", ".dvc")  # folders that DVC leaves out
SMALLEST = 4  # pixels, as data.resize
FOLDS, FOLDS_BELOW = 5, 100  # photos per class: a fifth of fewer says little as a test
FRACTION_FROM = 25  # photos of the largest class: a fraction of fewer is a handful
TEST, VAL, VAL_OF_MANY = 0.2, 0.2, 0.1
MANY = 2_000  # photos: a tenth of them tells variants apart, and more to learn from is worth more
GREY_LEVELS, MOSTLY = 8, 0.95  # between the channels of a grey photo after JPEG; of all photos
GROUP_PATTERNS = (  # what all photos of one patient have in common, or of one burst
    "(?i)((?:patient|subject|person|animal|plant|site|video|clip|scene|session)[-_ ]?[0-9]+)",
    "(?i)([^/]+?)[-_ ]*(?:burst|frame|(?<!screen)shot|tile|patch|slice|view)[-_ ]?[0-9]+",
)


@dataclass(frozen=True)
class Look:
    """Hold what photos are like, how they are split, and how long it took to see."""

    path: Path
    rows: list[ManifestRow]
    rejected: list[Rejected]
    odd: dict[str, Finding]  # by name
    excluded: list[str]  # names of odd photos that are to be left out, which no row has
    ignored: int  # files that are hidden, of a tool, or no images
    shorter_side: int  # pixels, the median
    is_grey: bool
    split: Split
    num_images: dict[str, int]  # per side, of the first fold if there are folds
    dropped_groups: str | None  # their pattern, where a class has too few to keep each on one side
    seconds: float


def look(path: Path, *, exclude_findings: bool = False) -> Look:
    """Judge every photo and split them; raise DataError for what no model can be trained on.

    With `exclude_findings` the odd ones are not among them.
    """
    if not _is_utf8(path):
        raise DataError(f"{path}: its name is not UTF-8, as params.yaml is", "rename it")
    _refuse_unreadable(path)
    start, source = time.monotonic(), open_source(path)
    if len(source.classes) > MOST_CLASSES:
        what = f"{path}: {len(source.classes)} classes; at most {MOST_CLASSES} are trained on"
        fix = "point it at the folder whose own folders are the classes"
        raise DataError(what, fix if path.is_dir() else "name few enough classes in its labels")
    with tempfile.TemporaryDirectory() as folder:
        rows, rejected, found = examine(source, select_members(source), Path(folder))
        if len(rejected) > MOST_BAD * (len(rows) + len(rejected)):
            what = f"{path}: {len(rejected)} images are bad, {len(rows)} good: {list_bad(rejected)}"
            command = f"resnets check {shlex.quote(str(path))}"
            raise DataError(what, f"see `{command}`, and repair or remove them")
        pixels = PixelStore(Path(folder) / STORE, rows)
        colours = [resize(pixels[row], 4, "stretch") for row in range(len(rows))]
        greys = [np.ptp(colour, axis=2).max() <= GREY_LEVELS for colour in colours]
    odd = {rows[finding.index].id: finding for finding in found}
    excluded = list(odd) if exclude_findings else []
    kept = [row for row in rows if row.id not in excluded]
    if gone := sorted({row.label for row in rows} - {row.label for row in kept}):
        what = f"{path}: all good images of class {gone[0]!r} look odd beside the others"
        raise DataError(what, "leave out --exclude-findings, and name images in `exclude` yourself")
    rows = kept
    check_classes(path, set(source.classes), rows)
    side = int(np.median([min(row.width, row.height) for row in rows]))
    if side < SMALLEST:
        raise DataError(f"{path}: photos of {side} pixels", f"take photos of {SMALLEST} or more")
    sides, is_grey = _split(path, rows), bool(np.mean(greys) > MOSTLY)
    return Look(
        path,
        rows,
        rejected,
        odd,
        excluded,
        len(source.ignored),
        side,
        is_grey,
        *sides,
        time.monotonic() - start,
    )


def _is_utf8(path: Path) -> bool:
    return str(path).encode(errors="ignore").decode() == str(path)


def _refuse_unreadable(folder: Path) -> None:
    """Raise DataError for what DVC stops at, or waits for: it reads each file of a folder."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in NOT_READ]
        for path in (Path(parent, name) for name in (*folders, *files)):
            is_read = (path.is_file() or path.is_dir()) and os.access(path, os.R_OK)
            if not (_is_utf8(path) and is_read):
                why = "it cannot be read" if _is_utf8(path) else "its name is not UTF-8"
                what = f"{path}: {why}, and DVC reads every file of the folder"
                raise DataError(what, "repair or rename it, or move it out of the folder")


def _split(path: Path, rows: list[ManifestRow]) -> tuple[Split, dict[str, int], str | None]:
    """Return how to split, the images of each side, and a pattern that some class does not allow.

    Raises DataError for a class that is too small.
    """
    counts = Counter(row.label for row in rows if row.side in ("", "train")).values()
    few = max(counts, default=0) < FRACTION_FROM
    handful = max(1, round(TEST * min(counts, default=0)))
    val, test = (handful, handful) if few else (VAL_OF_MANY if len(rows) >= MANY else VAL, TEST)
    patterns: list[str | None] = [None]
    for pattern in reversed(GROUP_PATTERNS):
        found = [(row.label, match[1]) for row in rows if (match := re.search(pattern, row.id))]
        words = {word for _, word in found}
        # "plant 1" may be what a class is called
        is_class = len(set(found)) == len({label for label, _ in found})
        if len(found) > MOSTLY * len(rows) and 2 * len(words) <= len(found) and not is_class:
            patterns.insert(0, pattern)
    is_large = len(rows) >= FOLDS_BELOW * len({row.label for row in rows})
    is_plain = is_large or any(row.side == "test" for row in rows)
    fault = DataError("", "")
    for regex, folds in product(patterns, [None] if is_plain else [FOLDS, None]):
        split = Split(val=val, test=test, group_regex=regex, folds=folds)
        try:
            return split, split_rows(rows, split, [0])[2]["images"], None if regex else patterns[0]
        except DataError as error:  # of a class with too few groups
            fault = error
    raise DataError(f"{path}: {fault.what}", "add photos of this class, or take it away")
