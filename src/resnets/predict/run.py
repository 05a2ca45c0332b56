"""Classify image files with a model file, and give one answer for every input.

Images are decoded in threads while the model computes, and nothing grows with their number.
"""

import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnets.evaluation.gradcam import grad_cam
from resnets.export.classifier import Classifier, open_classifier, read_onnx
from resnets.models.bundle import FullPreprocess
from resnets.models.inference import Output
from resnets.predict.answers import Answer, Reports, open_writers
from resnets.predict.inputs import Content, find_inputs
from resnets.system.errors import ArtefactError, DataError, EnvironmentFault, printable
from resnets.system.progress import follow, map_ahead
from resnets.system.runtime import allowed_cpus
from resnets.tasks.decode import BadImageError, center_crop, decode, resize

MAX_MEGAPIXELS = 200.0  # of one input: keeps memory in bounds, and belongs to no model
EXACT, INT8 = Path("artifacts/export/model.onnx"), Path("artifacts/export/model_int8.onnx")

Crop = NDArray[np.uint8]


def predict(
    arguments: list[str],
    lines: Iterable[bytes],
    *,
    model: Path | None,
    reports: Reports,
    batch_size: int,
    device: str,
    precision: str,
) -> None:
    """Classify all inputs and write the reports; `find_inputs` explains `arguments` and `lines`.

    Raises DataError, after everything is written, where an input was bad or there was none.
    """
    output: Output = "logits"
    if reports.explain or reports.features:
        output = "feature_map" if reports.explain else "features"
    path = model or default_model()
    classifier = open_classifier(path, output=output, device=device, precision=precision)
    answers = classify(find_inputs(arguments, lines), classifier, batch_size=batch_size)
    if "-" not in arguments and (reports.table() or not sys.stdout.isatty()):
        total = sum(1 for _ in find_inputs(arguments, (), read=False))
        answers = follow(answers, f"predicting with {path}", "images", total)
    num_inputs = num_bad = 0
    classes = classifier.meta.classes
    width = classifier.head[0].shape[1] if classifier.head else 0
    with open_writers(reports, classes, width) as writers:
        for answer in answers:
            num_inputs += 1
            num_bad += bool(answer.error)
            for write in writers:
                write(answer)
        if not num_inputs:
            raise DataError("no images found", f"name image files instead of {arguments}")
    if num_bad:
        what = f"{num_bad} of {num_inputs} inputs could not be read"
        raise DataError(what, "their rows say why; the other answers are complete")


def default_model() -> Path:
    """Return what the export stage made: the int8 model if it was made of the exact one beside it.

    An export keeps an int8 model only if it is good enough; a line says when one is left aside.
    """
    if not EXACT.is_file():
        raise EnvironmentFault(f"{EXACT}: no such file", "run `dvc repro`, or give --model")
    if INT8.is_file():
        try:
            int8, exact = (read_onnx(path)[1].hashes.get("weights") for path in (INT8, EXACT))
            if int8 == exact and exact:
                return INT8
            what = f"{INT8}: made of another model than {EXACT.name}"
        except ArtefactError as error:
            what = error.what
        print(printable(f"{what}; using {EXACT}"), file=sys.stderr)
    return EXACT


def classify(
    inputs: Iterable[tuple[str, Content]], classifier: Classifier, *, batch_size: int
) -> Iterator[Answer]:
    """Yield an answer for every input, in order."""
    ready = _read_ahead(inputs, classifier.meta.preprocess, ahead=2 * batch_size)
    while batch := list(islice(ready, batch_size)):
        good = [(path, crop) for path, crop in batch if not isinstance(crop, str)]
        answers = iter(_answer(good, classifier))
        for path, crop in batch:
            yield Answer(path, crop) if isinstance(crop, str) else next(answers)


def _answer(good: list[tuple[str, Crop]], classifier: Classifier) -> list[Answer]:
    """Run the model once on the crops of a batch."""
    if not good:
        return []
    scores = classifier.score(np.stack([crop for _, crop in good]))
    heat = None
    if scores.feature_map is not None and classifier.head:
        predicted = scores.probabilities.argmax(axis=1)
        heat = grad_cam(scores.feature_map, classifier.head[0], predicted)
    features = scores.features
    return [
        Answer(
            path,
            crop=crop,
            probabilities=scores.probabilities[row],
            features=None if features is None else features[row],
            heat=None if heat is None else heat[row],
        )
        for row, (path, crop) in enumerate(good)
    ]


def _read_ahead(
    inputs: Iterable[tuple[str, Content]], preprocess: FullPreprocess, *, ahead: int
) -> Iterator[tuple[str, Crop | str]]:
    """Yield each input's path with its crop or its error, decoded in threads ahead of time."""
    return map_ahead(
        lambda one: (one[0], _prepare(one[1], preprocess)),
        inputs,
        workers=len(allowed_cpus()),
        ahead=ahead,
        size=lambda one: len(one[1]) if isinstance(one[1], bytes) else 0,
    )


def _prepare(content: Content, preprocess: FullPreprocess) -> Crop | str:
    """Return what the model sees of a file, as the training's store does it, or the error."""
    try:
        if isinstance(content, BadImageError):
            raise content
        pixels = decode(content, channels=preprocess.channels, max_megapixels=MAX_MEGAPIXELS)
        small = resize(pixels, preprocess.resize, preprocess.fit)
        return np.array(center_crop(small, preprocess.crop))  # a copy: the whole picture is let go
    except BadImageError as error:
        return error.detail
    except MemoryError:
        return "not enough memory to decode it"
