"""Find fonts for names of any script: matplotlib's own, the same everywhere, where it will do."""

import re
import unicodedata
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from resnets.system.errors import JOINERS, printable

NO_SHAPES = re.compile("LastResort|Emoji|COLR")  # fonts of boxes, or of what has colours alone
KEPT = f" {JOINERS}"  # in the font of what is before: words and syllables stay whole


@cache
def _all_files(*, has_others: bool) -> dict[int, str]:
    """Return the file of a font for each character: matplotlib's own, else one of the machine."""
    import matplotlib as mpl
    from matplotlib.ft2font import FT2Font

    paths, files = [str(Path(mpl.get_data_path(), "fonts/ttf/DejaVuSans.ttf"))], dict[int, str]()
    if has_others:
        from matplotlib.font_manager import findSystemFonts

        others = [path for path in findSystemFonts() if not NO_SHAPES.search(path)]
        paths += sorted(others, key=lambda path: ("Regular" not in path, len(path), path))
    for path in reversed(paths):
        with suppress(OSError, RuntimeError):  # damaged, or made of pixels
            files |= dict.fromkeys(FT2Font(path).get_charmap(), path)
    return files


def _files(text: str) -> dict[int, str]:
    own = _all_files(has_others=False)
    return own if own.keys() >= set(map(ord, text)) else _all_files(has_others=True)


def split_by_font(text: str) -> list[tuple[str, str]]:
    """Return the parts of a legible text, each after the file of its font."""
    files, path = _files(text), ""
    paths = [path := path if path and char in KEPT else files[ord(char)] for char in text]
    parts = groupby(zip(paths, text, strict=True), key=itemgetter(0))
    return [(path, "".join(char for _, char in part)) for path, part in parts]


def legible(text: str, fits: Callable[[str], bool]) -> str:
    """Escape what no font has, and cut the middle out until it fits: names end with numbers."""
    text = unicodedata.normalize("NFC", printable(text))
    files = _files(text)
    cells = [char if ord(char) in files else ascii(char)[1:-1] for char in text]
    shown, kept = "".join(cells), min(len(cells), 200)
    while not fits(shown):
        kept -= 1
        shown = "".join([*cells[: (kept + 1) // 2], "…", *cells[len(cells) - kept // 2 :]])
    return shown


def families(texts: Iterable[str]) -> list[str]:
    """Return the names of the fonts of legible texts, which matplotlib knows from now on."""
    from matplotlib.font_manager import fontManager
    from matplotlib.ft2font import FT2Font

    paths = dict.fromkeys(path for text in texts for path, _ in split_by_font(text))
    for path in paths:
        fontManager.addfont(path)
    return ["DejaVu Sans", *(FT2Font(path).family_name for path in paths)]
