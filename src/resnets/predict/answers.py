"""Write down the answers of `resnets predict` as they come: table, CSV, JSON, features, pictures.

Every writer holds one row at a time, and a file takes its name only when it is complete.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len, set_cell_size

from resnets.system.errors import ParamsError, printable
from resnets.system.files import atomic_path

COLUMNS = ("path", "predicted", "confidence", "error")
UNREAD = "unreadable"
UNSURE = "unsure"  # the prediction below the threshold; the probabilities stay
MOST_BYTES = 200  # of a photo's name in that of its picture: file systems allow 255
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # the latter for spreadsheets in East Asia


@dataclass(frozen=True)
class Answer:
    """Hold what is known about one input: why it is bad, or what the model made of it."""

    path: str
    error: str = ""
    fix: str = ""  # what to do about the error
    is_no_image: bool = False  # by name and content
    crop: NDArray[np.uint8] | None = None
    picture: NDArray[np.uint8] | None = None  # (H, W, C), what the crop is cut from
    probabilities: NDArray[np.float64] | None = None  # (K,)
    features: NDArray[np.float32] | None = None  # (F,)
    heat: NDArray[np.float32] | None = None  # (h, w), of the most probable class


Write = Callable[[Answer], None]


@dataclass(frozen=True)
class Reports:
    """Say what to write: None is not written, and without any table it goes to the terminal.

    Raises ParamsError for a kind of file that is not known.
    """

    output: Path | None = None  # .csv or .json
    features: Path | None = None  # .npy; a table with the paths lies beside it
    plot: Path | None = None
    explain: Path | None = None
    top: int = 3
    threshold: float = 0.0
    raw: bool = False  # names in a CSV file as they are

    def __post_init__(self) -> None:
        for path, kinds in ((self.output, (".csv", ".json")), (self.features, (".npy",))):
            if path and path.suffix.lower() not in kinds:
                fix = f"call it {path.stem or 'answers'}{kinds[0]}"
                raise ParamsError(f"{path}: not a {' or '.join(kinds)} file", fix)
        if not 0 <= self.threshold <= 1:  # nan, which the command line lets pass
            raise ParamsError(f"--threshold is {self.threshold}", "give a number from 0 to 1")

    @property
    def table(self) -> Path | None:
        """Return the file for the table, None for the terminal."""
        return self.output or (self.features and self.features.with_suffix(".csv"))


@contextmanager
def open_writers(
    reports: Reports, classes: Sequence[str], num_features: int, shard: tuple[int, int] = (1, 1)
) -> Iterator[list[Write]]:
    """Yield what writes the reports; an error on the way leaves no file behind.

    Pictures of the shards k of n are numbered k, k + n, …, so that none has the name of another.
    """
    with ExitStack() as stack:
        if reports.table:
            writers = [stack.enter_context(_table(reports.table, reports, classes))]
        else:
            writers = [_print_table(reports, classes)]
        if reports.features:
            writers.append(stack.enter_context(_npy(reports.features, num_features)))
        if reports.plot or reports.explain:
            writers.append(_pictures(reports, classes, count(*shard)))
        yield writers


def name_columns(classes: Sequence[str]) -> list[str]:
    """Name the columns; a class that is called as a fixed one says what it is."""
    return [*COLUMNS, *(f"{name} (class)" if name in COLUMNS else name for name in classes)]


def to_object(
    answer: Answer, classes: Sequence[str], threshold: float = 0.0
) -> dict[str, str | float | None]:
    """Return an answer as JSON has it: its values by the names of their columns."""
    values = [answer.path, "", None, answer.error, *[None] * len(classes)]
    if answer.probabilities is not None:
        rounded = answer.probabilities.round(6).tolist()
        predicted = name_answer(answer, classes, threshold)
        values = [answer.path, predicted, max(rounded), "", *rounded]
    return dict(zip(name_columns(classes), values, strict=True))


def name_answer(answer: Answer, classes: Sequence[str], threshold: float) -> str:
    """Return the most probable class, or why there is none."""
    if answer.probabilities is None:
        return UNREAD
    best = int(answer.probabilities.argmax())
    return classes[best] if answer.probabilities[best] >= threshold else UNSURE


def summarise(reports: Reports, counts: Counter[str], num_skipped: int) -> str:
    """Say how many answers there are of each class, what was skipped, and what was written."""
    shown = ", ".join(f"{number:,} {printable(name)}" for name, number in counts.most_common())
    skipped = f"; skipped {num_skipped:,} that are no images" if num_skipped else ""
    tables = dict.fromkeys([reports.table, reports.features, reports.plot, reports.explain])
    files = ", ".join(printable(str(path)) for path in tables if path)
    return f"{counts.total():,} images: {shown}{skipped}" + (f"; wrote {files}" if files else "")


@contextmanager
def _table(path: Path, reports: Reports, classes: Sequence[str]) -> Iterator[Write]:
    """Yield what adds a row to a CSV file, or an object to a list in a JSON file."""
    is_json, between = path.suffix.lower() == ".json", "\n"
    with (
        atomic_path(path) as part,
        part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):

        def add(answer: Answer) -> None:
            nonlocal between
            row = to_object(answer, classes, reports.threshold)
            line = json.dumps(row) if is_json else _csv(row.values(), raw=reports.raw)
            file.write(between + line)
            between = ",\n" if is_json else "\n"

        file.write("[" if is_json else _csv(name_columns(classes), raw=reports.raw))
        yield add
        file.write("\n]\n" if is_json else "\n")


def _csv(values: Iterable[object], *, raw: bool) -> str:
    """Write a line, harmless for spreadsheets (OWASP, CSV injection) and terminals unless raw.

    Python's own writer leaves a lone carriage return unquoted.
    """
    cells = []
    for value in values:
        text = "" if value is None else str(value)
        if isinstance(value, str) and not raw:
            text = CONTROL.sub(lambda control: repr(control[0])[1:-1], text)
            text = f"'{text}" if text.startswith(FORMULA) else text
        quoted = f'"{text.replace(chr(34), 2 * chr(34))}"'
        cells.append(quoted if set(text) & set(',"\r\n') else text)
    return ",".join(cells)


@contextmanager
def _npy(path: Path, width: int) -> Iterator[Write]:
    """Yield what adds a row to a matrix (inputs, width) in a file; a bad input is a row of NaN."""
    with atomic_path(path) as part, part.open("wb") as file:

        def write_header(num_rows: int) -> int:  # numpy leaves room in it to grow in place
            header = {"descr": "<f4", "fortran_order": False, "shape": (num_rows, width)}
            np.lib.format.write_array_header_1_0(file, header)
            return file.tell()

        def add(answer: Answer) -> None:
            row = np.full(width, np.nan) if answer.features is None else answer.features
            file.write(row.astype("<f4").tobytes())

        start = write_header(0)
        yield add
        num_bytes = file.tell() - start
        file.seek(0)
        write_header(num_bytes // (4 * width))


def _pictures(reports: Reports, classes: Sequence[str], numbers: Iterator[int]) -> Write:
    """Return what draws each answer into the folders asked for, under its number and its name."""
    from resnets.evaluation.gradcam import overlay
    from resnets.tasks.sheet import draw_prediction

    def add(answer: Answer) -> None:
        photo = Path(answer.path).name
        word = re.sub(r"[^\w.-]", "_", photo).encode()[:MOST_BYTES].decode(errors="ignore")
        name = f"{next(numbers):05d}_{word}"
        if answer.crop is None or answer.picture is None or answer.probabilities is None:
            return
        shown = answer.picture, classes, answer.probabilities
        if reports.plot:
            draw_prediction(reports.plot / f"{name}.png", *shown, name=photo)
        if reports.explain and answer.heat is not None:
            heat = overlay(answer.crop, answer.heat)
            draw_prediction(reports.explain / f"{name}_explained.png", *shown, heat, name=photo)

    return add


def _print_table(reports: Reports, classes: Sequence[str]) -> Write:
    """Return what prints each answer; the path, which may be long, comes last."""
    top, names = min(reports.top, len(classes)), [printable(name) for name in classes]
    width = max(map(cell_len, names))
    first, likely = max(width, len(UNREAD)), f"top {top}".ljust(top * (width + 9) - 2)
    header = f"{'predicted':<{first}}  confidence  {likely}  path"

    def add(answer: Answer) -> None:
        nonlocal header
        if header:  # with the first answer: there may be none
            print(header)
            header = ""
        name = printable(name_answer(answer, classes, reports.threshold))
        start, path = set_cell_size(name, first), printable(answer.path)
        if answer.probabilities is None:
            fix = answer.fix.replace(", or raise checks.max_megapixels", "")  # of training alone
            why = printable(f"{answer.error}; {fix}" if fix else answer.error)
            print(f"{start}  {'':10}  {'':{len(likely)}}  {path}: {why}")
            return
        shares = answer.probabilities
        best = np.argsort(-shares, kind="stable")[:top]
        cells = [f"{set_cell_size(names[k], width)} {shares[k]:6.1%}" for k in best]
        print(f"{start}  {shares.max():>10.1%}  {'  '.join(cells)}  {path}")

    return add
