"""Classify image files with a model file, and give one answer for every input.

Images are decoded in threads while the model computes, and nothing grows with their number.
"""

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
from resnets.system.errors import DataError, EnvironmentFault
from resnets.system.progress import follow, map_ahead
from resnets.system.runtime import Engine, allowed_cpus
from resnets.tasks.decode import BadImageError, Crops, center_crop, decode, resize

MAX_MEGAPIXELS = 200.0  # of one input: keeps memory in bounds, and belongs to no model
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
    output: Output = "logits"
    if reports.explain or reports.features:
        output = "feature_map" if reports.explain else "features"
    path = model or default_model()
    classifier = open_classifier(
        path, output=output, device=device, engine=engine, precision=precision
    )
    has_pictures = bool(reports.plot or reports.explain)
    inputs = find_inputs(arguments, lines, shard=shard)
    answers = classify(inputs, classifier, batch_size=batch_size, has_pictures=has_pictures)
    if "-" not in arguments and (reports.table or not sys.stdout.isatty()):
        total = sum(1 for _ in find_inputs(arguments, (), read=False, shard=shard))
        answers = follow(answers, f"predicting with {path}", "images", total)
    num_inputs = num_bad = num_skipped = 0
    counts: Counter[str] = Counter()
    width = classifier.head[0].shape[1]
    with open_writers(reports, classifier.meta.classes, width, shard) as writers:
        for answer in answers:
            if answer.is_no_image and answer.path not in arguments and "-" not in arguments:
                num_skipped += 1  # of a folder or an archive: nobody asked about it
                continue
            counts[name_answer(answer, classifier.meta.classes, reports.threshold)] += 1
            num_inputs, num_bad = num_inputs + 1, num_bad + bool(answer.error)
            for write in writers:
                write(answer)
        # of few inputs, other shards than the first may get none, and that one what is no image
        if not num_inputs and (shard == ALL or (shard[0] == 1 and not num_skipped)):
            raise DataError("no images found", f"name image files instead of {arguments}")
    print(summarise(reports, counts, num_skipped), file=sys.stderr)
    if num_bad:
        what = f"{num_bad} of {num_inputs} inputs could not be read"
        raise DataError(what, "their rows say why; the other answers are complete")


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
        return Answer(path, error.what, error.fix, is_no_image)
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
