"""Write down the answers of `resnets predict` as they come: table, CSV, JSON, features, pictures.

Every writer holds one row at a time, and a file takes its name only when it is complete.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnets.system.errors import ParamsError, printable
from resnets.system.files import atomic_path

COLUMNS = ("path", "predicted", "confidence", "error")
UNSURE = "unsure"  # the prediction below the threshold; the probabilities stay
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # the latter for spreadsheets in East Asia


@dataclass(frozen=True)
class Answer:
    """Hold what is known about one input: why it is bad, or what the model made of it."""

    path: str
    error: str = ""
    crop: NDArray[np.uint8] | None = None
    probabilities: NDArray[np.float64] | None = None  # (K,)
    features: NDArray[np.float32] | None = None  # (F,)
    heat: NDArray[np.float32] | None = None  # (h, w), of the most probable class


Write = Callable[[Answer], None]


@dataclass(frozen=True)
class Reports:
    """Say what to write: None is not written, and without any table it goes to the terminal."""

    output: Path | None = None  # .csv or .json
    features: Path | None = None  # .npy; a table with the paths lies beside it
    plot: Path | None = None
    explain: Path | None = None
    top: int = 3
    threshold: float = 0.0
    raw: bool = False  # names in a CSV file as they are

    def table(self) -> Path | None:
        """Return the file for the table, None for the terminal.

        Raises ParamsError for a kind of file that is not known.
        """
        for path, kinds in ((self.output, (".csv", ".json")), (self.features, (".npy",))):
            if path and path.suffix not in kinds:
                raise ParamsError(f"{path}: not a {' or '.join(kinds)} file", "rename the output")
        if self.output is None and self.features:
            return self.features.with_suffix(".csv")
        return self.output


@contextmanager
def open_writers(
    reports: Reports, classes: Sequence[str], num_features: int
) -> Iterator[list[Write]]:
    """Yield what writes the reports; an error on the way leaves no file behind."""
    writers: list[Write] = []
    with ExitStack() as stack:
        if path := reports.table():
            # a class that is called as a fixed column says what it is
            names = [f"{name} (class)" if name in COLUMNS else name for name in classes]
            add = stack.enter_context(_rows(path, [*COLUMNS, *names], raw=reports.raw))
            writers.append(lambda answer: add(_row(answer, classes, reports.threshold)))
        else:
            writers.append(_print_table(reports, classes))
        if reports.features:
            writers.append(stack.enter_context(_npy(reports.features, num_features)))
        for folder, heat in ((reports.plot, False), (reports.explain, True)):
            if folder:
                writers.append(_pictures(folder, classes, with_heat=heat))
        yield writers


def _row(answer: Answer, classes: Sequence[str], threshold: float) -> list[str | float | None]:
    """Return the values of an answer in the order of the columns."""
    if answer.probabilities is None:
        return [answer.path, "", None, answer.error, *[None] * len(classes)]
    best = int(answer.probabilities.argmax())
    rounded = answer.probabilities.round(6).tolist()
    predicted = classes[best] if answer.probabilities[best] >= threshold else UNSURE
    return [answer.path, predicted, rounded[best], "", *rounded]


@contextmanager
def _rows(
    path: Path, columns: list[str], *, raw: bool
) -> Iterator[Callable[[Sequence[object]], None]]:
    """Yield what adds a row to a CSV file, or an object to a list in a JSON file."""
    is_json, between = path.suffix == ".json", "\n"
    with (
        atomic_path(path) as part,
        part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):

        def add(row: Sequence[object]) -> None:
            nonlocal between
            if is_json:
                file.write(between + json.dumps(dict(zip(columns, row, strict=True))))
                between = ",\n"
            else:
                file.write(",".join(_cell(x if raw else _guard(x)) for x in row) + "\n")

        if is_json:
            file.write("[")
        else:
            add(columns)
        yield add
        file.write("\n]\n" if is_json else "")


def _guard(value: object) -> object:
    """Make text harmless for spreadsheets (OWASP, CSV injection) and terminals."""
    if not isinstance(value, str):
        return value
    text = CONTROL.sub(lambda control: repr(control[0])[1:-1], value)
    return f"'{text}" if text.startswith(FORMULA) else text


def _cell(value: object) -> str:
    """Write one CSV cell; Python's own writer leaves a lone carriage return unquoted."""
    text = "" if value is None else str(value)
    return f'"{text.replace(chr(34), 2 * chr(34))}"' if set(text) & set(',"\r\n') else text


@contextmanager
def _npy(path: Path, width: int) -> Iterator[Write]:
    """Yield what adds a row to a matrix (inputs, width) in a file; a bad input is a row of NaN."""
    with atomic_path(path) as part, part.open("wb") as file:
        num_rows = 0

        def write_header() -> None:  # numpy leaves room in it, so that a file can grow in place
            shape = (num_rows, width)
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)

        def add(answer: Answer) -> None:
            nonlocal num_rows
            row = np.full(width, np.nan) if answer.features is None else answer.features
            file.write(row.astype("<f4").tobytes())
            num_rows += 1

        write_header()
        yield add
        file.seek(0)
        write_header()


def _pictures(folder: Path, classes: Sequence[str], *, with_heat: bool) -> Write:
    """Return what draws each answer into a folder, under its number and its name."""
    from resnets.evaluation.gradcam import overlay
    from resnets.tasks.sheet import draw_prediction

    folder.mkdir(parents=True, exist_ok=True)
    number = 0

    def add(answer: Answer) -> None:
        nonlocal number
        number += 1
        if answer.crop is None or answer.probabilities is None:
            return
        name = re.sub(r"[^\w.-]", "_", Path(answer.path).name, flags=re.ASCII)[:100]
        path = folder / f"{number:05d}_{name}{'_explained' if with_heat else ''}.png"
        explained = None
        if with_heat and answer.heat is not None:
            explained = overlay(answer.crop, answer.heat)
        draw_prediction(path, answer.crop, classes, answer.probabilities, explained)

    return add


def _print_table(reports: Reports, classes: Sequence[str]) -> Write:
    """Return what prints each answer; columns are as wide as what came so far."""
    top = min(reports.top, len(classes))
    width, name_width = 24, max(map(len, (*classes, "predicted")))
    print(f"{'path':<{width}}  {'predicted':<{name_width}}  confidence  top {top}")

    def add(answer: Answer) -> None:
        nonlocal width
        path = printable(answer.path)
        width = max(width, len(path))
        if answer.probabilities is None:
            print(f"{path:<{width}}  error: {printable(answer.error)}")
            return
        best = np.argsort(-answer.probabilities, kind="stable")[:top]
        likely = ", ".join(f"{printable(classes[k])} {answer.probabilities[k]:.1%}" for k in best)
        _, predicted, confidence, *_ = _row(answer, classes, reports.threshold)
        shown = printable(str(predicted))
        print(f"{path:<{width}}  {shown:<{name_width}}  {confidence:>10.1%}  {likely}")

    return add
