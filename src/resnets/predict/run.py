"""Classify image files with a model file, and give one answer for every input.

Images are decoded in threads while the model computes, and nothing grows with their number.
"""

import glob
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from resnets.data.layout import NO_PHOTO, looks_like_image
from resnets.evaluation.gradcam import grad_cam
from resnets.export.classifier import Classifier, open_classifier
from resnets.models.bundle import FullPreprocess
from resnets.models.inference import Output
from resnets.predict.answers import Answer, Reports, name_answer, open_writers, summarise
from resnets.predict.inputs import ALL, Input, InputContent, Shard, find_inputs
from resnets.system.errors import DataError, EnvironmentFault, ParamsError, list_kinds, printable
from resnets.system.progress import follow, map_ahead
from resnets.system.runtime import Engine, allowed_cpus
from resnets.tasks.decode import FORMATS, BadImageError, Crops, center_crop, decode, resize

MAX_MEGAPIXELS = 200.0  # of one input: keeps memory in bounds, and belongs to no model
# how a CSV or JSON file of answers begins
ANSWERS = re.compile(
    r'path,predicted,confidence,error|\[\s*(\]|\{\s*"path":.*"predicted":)', re.DOTALL
)
EXACT, INT8 = Path("artifacts/export/model.onnx"), Path("artifacts/export/model_int8.onnx")


def predict(
    arguments: list[str],
    lines: Iterable[bytes],
    *,
    model: Path | None,
    reports: Reports,
    batch_size: int,
    device: str = "auto",
    engine: Engine = "auto",
    precision: str = "auto",
    shard: Shard = ALL,
) -> None:
    """Classify all inputs and write the reports; `find_inputs` explains where they come from.

    Raises DataError, after everything is written, where an input was bad or there was none.
    """
    _check_places(reports, arguments)
    output: Output = "logits"
    if reports.explain or reports.features:
        output = "feature_map" if reports.explain else "features"
    path = model or default_model()
    classifier = open_classifier(
        path, output=output, device=device, engine=engine, precision=precision
    )
    if model is None:
        _warn_of_other_photos(path, classifier.meta.classes)
    has_pictures = bool(reports.plot or reports.explain)
    _refuse_missing(arguments)
    inputs = find_inputs(arguments, lines, shard=shard)
    answers = classify(inputs, classifier, batch_size=batch_size, has_pictures=has_pictures)
    if "-" not in arguments and (reports.table or not sys.stdout.isatty()):
        total = sum(1 for _ in find_inputs(arguments, (), read=False, shard=shard))
        answers = follow(answers, f"predicting with {path}", "images", total)
    _write(answers, classifier, reports, arguments, shard)


def _write(
    answers: Iterable[Answer],
    classifier: Classifier,
    reports: Reports,
    arguments: list[str],
    shard: Shard,
) -> None:
    """Write the reports and sum them up; raises the errors of `predict`."""
    num_bad, counts, skipped = 0, Counter[str](), Counter[str]()
    classes, width = classifier.meta.classes, classifier.head[0].shape[1]
    with open_writers(reports, classes, width, shard) as writers:
        for answer in answers:
            if answer.is_no_image and answer.path not in arguments and "-" not in arguments:
                skipped[Path(answer.path).suffix] += 1  # in a folder or archive: not asked for
                continue
            counts[name_answer(answer, classes, reports.threshold)] += 1
            num_bad += bool(answer.error)
            for write in writers:
                write(answer)
        # of few inputs, other shards than the first may get none, and that one what is no image
        if not counts and (shard == ALL or (shard[0] == 1 and not skipped)):
            raise _no_photos(arguments, skipped)
    print(summarise(reports, counts, skipped.total()), file=sys.stderr)
    if num_bad:
        fix = "their rows say why" + "; the other answers are complete" * (num_bad < counts.total())
        raise DataError(f"{num_bad} of {counts.total()} inputs could not be read", fix)


def _check_places(reports: Reports, arguments: list[str]) -> None:
    """Raise ParamsError for a table over what holds no answers, or pictures among photos."""
    photos = [Path(text).resolve() for text in arguments if os.path.isdir(text)]  # noqa: PTH112
    for folder in filter(None, (reports.plot, reports.explain)):
        for path in (folder, *folder.parents):
            if path.is_file():
                raise ParamsError(f"{path}: is a file", "name a folder")
        if any(folder.resolve().is_relative_to(inputs) for inputs in photos):
            what = f"{folder}: lies among the photos, as one of which its pictures would count"
            raise ParamsError(what, "name a folder outside of the photos")
    if (table := reports.table) and table.is_file():
        with table.open(encoding="utf-8-sig", errors="replace") as file:
            text = file.read(2**16)
        if text and not ANSWERS.match(text):
            what = f"{table}: exists, and holds no answers"
            raise ParamsError(what, "name another file, or remove it")


def _refuse_missing(arguments: list[str]) -> None:
    """Raise DataError where nothing is there that is named; a table written before stays."""
    paths = [text for text in arguments if text != "-" and "://" not in text]
    found = (os.path.lexists(text) or any(glob.iglob(text, recursive=True)) for text in paths)  # noqa: PTH207
    missing = [text for text, is_there in zip(paths, found, strict=True) if not is_there]
    if missing and len(missing) == len(arguments):
        what = "no such file or folder, and no file matches"
        raise DataError(f"{missing[0]}: {what}", "correct the path")


def _no_photos(arguments: list[str], skipped: Counter[str]) -> DataError:
    """Say which files were found instead, by their suffixes."""
    kinds = ", ".join(suffix for suffix, _ in skipped.most_common(5) if suffix)
    others = f", {skipped.total():,} other files{kinds and f' ({kinds})'} skipped"
    what = f"{', '.join(arguments)}: no photos{others if skipped else ''}"
    return DataError(what, f"name a folder with {', '.join(FORMATS)} or HEIC files")


def _warn_of_other_photos(model: Path, classes: list[str]) -> None:
    """Say so where params.yaml names other photos than those of the last `dvc repro` here."""
    from ruamel.yaml import YAML  # late: a model from elsewhere waits for neither of these
    from ruamel.yaml.error import YAMLError

    from resnets.params import load_params

    try:
        photos = load_params("params.yaml").tasks["target"].path
        stages = YAML(typ="safe").load(Path("dvc.lock"))["stages"]
        recorded = stages["prepare@target"]["params"]["params.yaml"]["tasks.target"]["path"]
    except (OSError, KeyError, TypeError, ValueError, YAMLError):
        return  # no project here, or one that `dvc repro` will complain about
    if Path(photos) != Path(recorded):
        known = printable(list_kinds({"classes": classes}))
        words = f"{model} knows {known}; params.yaml names other photos since: dvc repro"
        print(words, file=sys.stderr)


def default_model() -> Path:
    """Return what the export stage made: the int8 model if it was good enough to be kept."""
    if not EXACT.is_file():
        raise EnvironmentFault(f"{EXACT}: no such file", "run `dvc repro`, or give --model")
    return INT8 if INT8.is_file() else EXACT


def classify(
    inputs: Iterable[Input], classifier: Classifier, *, batch_size: int, has_pictures: bool = False
) -> Iterator[Answer]:
    """Yield an answer for every input, in order; `has_pictures` keeps the whole photos."""
    prepared = map_ahead(
        lambda named: prepare(*named, classifier.meta.preprocess, has_picture=has_pictures),
        inputs,
        workers=len(allowed_cpus()),
        ahead=2 * batch_size,
        size=lambda named: len(named[1]) if isinstance(named[1], bytes) else 0,
    )
    while batch := list(islice(prepared, batch_size)):
        crops = [answer.crop for answer in batch if answer.crop is not None]
        scored = score(np.stack(crops), classifier) if crops else iter(())
        yield from (answer if answer.error else replace(answer, **next(scored)) for answer in batch)


def prepare(
    path: str,
    content: InputContent,
    preprocess: FullPreprocess,
    max_megapixels: float = MAX_MEGAPIXELS,
    *,
    has_picture: bool = False,
) -> Answer:
    """Return what the model sees of a file, as the training's store does it, or the error."""
    try:
        if isinstance(content, BadImageError):
            raise content
        decoded = decode(
            content,
            channels=preprocess.channels,
            max_megapixels=max_megapixels,
            size=preprocess.resize if preprocess.scaled_decoding else None,
        )
        small = resize(decoded.picture, preprocess.resize, preprocess.fit)
        crop = np.array(center_crop(small, preprocess.crop))  # a copy: the picture is let go
        return Answer(path, crop=crop, picture=small if has_picture else None)
    except BadImageError as error:
        is_no_image = error.reason in NO_PHOTO and not looks_like_image(path)
        fix = "" if error.reason == "unreadable" else error.fix  # "No such file" says enough
        return Answer(path, error.what, fix, is_no_image)
    except MemoryError:
        return Answer(path, "not enough memory to decode it", "scale it down")


def score(crops: Crops, classifier: Classifier) -> Iterator[dict[str, Any]]:
    """Run the model once; yield what each answer gets of it."""
    scores = classifier.score(crops)
    columns = {"probabilities": scores.probabilities, "features": scores.features}
    if scores.feature_map is not None:
        predicted = scores.probabilities.argmax(axis=1)
        columns["heat"] = grad_cam(scores.feature_map, classifier.head[0], predicted)
    for row in range(len(crops)):
        yield {name: values[row] for name, values in columns.items() if values is not None}
