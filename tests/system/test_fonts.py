"""Test that names of any script can be read in pictures, whatever fonts a machine has."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image

from resnets.system.fonts import legible

RARE = "\U00014400"  # an Anatolian hieroglyph, which hardly any machine has
DRAW = """
import sys
import numpy as np
from resnets.evaluation.plots import plot_confusion
from resnets.tasks.sheet import draw_prediction, plot_sheet
from pathlib import Path

image = np.full((20, 20, 1), 255, np.uint8)
for number, name in enumerate(sys.argv[2:]):
    path = Path(sys.argv[1], str(number))
    plot_sheet([image], [name], path / "sheet.png")
    draw_prediction(path / "plot.png", image, [name, "b"], np.array([0.5, 0.5]), name=name)
    plot_confusion(np.eye(2, dtype=int), [name, "b"], path / "confusion.png")
"""


def draw(folder: Path, *names: str, **environment: str) -> list[dict[str, bytes]]:
    """Return the pictures of each name, drawn in a process of its own; a warning is an error."""
    command = [sys.executable, "-W", "error::UserWarning", "-c", DRAW, str(folder), *names]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | environment, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    paths = [folder / str(number) for number in range(len(names))]
    return [{file.name: file.read_bytes() for file in path.iterdir()} for path in paths]


@pytest.fixture
def a_machine(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a machine with a font of one character, a black square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 700), (700, 700), (700, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square, empty = pen.glyph(), TTGlyphPen(None).glyph()
    font = FontBuilder(1000)
    font.setupGlyphOrder([".notdef", "square"])
    font.setupCharacterMap({ord(RARE): "square"})
    font.setupGlyf({".notdef": empty, "square": square})
    font.setupHorizontalMetrics({".notdef": (700, 0), "square": (700, 0)})
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Square", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    (tmp_path / "home/fonts").mkdir(parents=True)
    font.save(tmp_path / "home/fonts/Square-Regular.ttf")
    (tmp_path / "home/fonts/damaged.ttf").write_bytes(b"no font")
    return {"XDG_DATA_HOME": str(tmp_path / "home"), "MPLCONFIGDIR": str(tmp_path / "cache")}


def test_a_name_that_no_font_has_is_drawn_as_its_escapes(tmp_path):
    names = ["猫 1.jpg", "แม", "बि"]
    escaped = [name.encode("ascii", "backslashreplace").decode() for name in names]
    drawn = draw(tmp_path, *names, *escaped, MPL_IGNORE_SYSTEM_FONTS="1")
    assert drawn[:3] == drawn[3:]
    assert len({pictures["sheet.png"] for pictures in drawn}) == 3


def test_a_name_is_drawn_with_a_font_of_the_machine(tmp_path, a_machine):
    drawn, escaped = draw(tmp_path, RARE, "\\U00014400", **a_machine)
    assert not any(drawn[name] == escaped[name] for name in drawn)
    inked = np.argwhere(np.asarray(Image.open(tmp_path / "0/sheet.png").convert("L")) < 128)
    height, width = np.ptp(inked, axis=0) + 1
    assert 3 <= height <= 12
    assert 3 <= width <= 20  # one character, where the escapes have ten


def test_what_the_own_font_has_does_not_depend_on_the_machine(tmp_path, a_machine):
    names = ["Grüße → Ж λ", "قطة", "می\u200cخواهم"]
    there = draw(tmp_path / "there", *names, RARE, **a_machine)
    assert draw(tmp_path / "bare", *names, MPL_IGNORE_SYSTEM_FONTS="1") == there[:3]


def test_names_are_cut_in_the_middle_and_decomposed_ones_are_composed():
    assert legible("IMG_20240101_123456_0001.jpg", lambda text: len(text) <= 13) == "IMG_20…01.jpg"
    assert legible("e\u0301te\u0301", lambda _: True) == "\xe9t\xe9"
    assert legible("a\nb\u202e", lambda _: True) == "a\\nb\\u202e"
    assert legible("x" * 300, lambda text: len(text) <= 1) == "…"
