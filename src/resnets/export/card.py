"""Write the model card: what a model is, what it was measured on, and what it is not good for."""

from collections.abc import Mapping
from dataclasses import asdict
from operator import itemgetter
from typing import Any

import numpy as np

from resnets.evaluation.evaluate import Evaluation
from resnets.evaluation.metrics import metrics_for
from resnets.evaluation.report import code, table
from resnets.models.bundle import Bundle, FullPreprocess
from resnets.tasks.task import Task

Facts = Mapping[str, Any]

WEAK = 3  # classes named as the weakest


def model_card(bundle: Bundle, task: Task, scores: Evaluation, row: Facts, report: Facts) -> str:
    """Return the card in Markdown.

    `scores` are of the test side, `row` is the model's in the leaderboard, whose seeds are quoted,
    `report` is what the export measured.
    """
    meta, name = bundle.meta, bundle.meta.architecture["name"]
    sections = {
        "Use": _use(meta.preprocess, meta.temperature, inside=report["output"] == "probabilities"),
        "Data": _data(task, bundle),
        "Results on the test images": _results(scores, row),
        "The exported files": _files(report),
        "Intended use and limits": _limits(scores, meta.preprocess.crop),
        "Licence": "The code is under the MIT licence. The weights were learnt from the data "
        "above, and from the initial weights where there are some: their licences decide what may "
        "be done with this model, and are for its publisher to state here.",
    }
    start = (
        f"# Model card: {name}, {len(meta.classes)} classes\n\nA {name} that tells "
        f"{len(meta.classes)} classes of pictures apart: {', '.join(map(code, meta.classes))}. "
        "It gives every class a probability, calibrated on validation images (temperature "
        f"{meta.temperature:g})."
    )
    texts = [start, *(f"## {title}\n\n{text}" for title, text in sections.items())]
    return "\n\n".join(texts) + "\n"


def _cell(value: object) -> str:
    """Write a score with four decimals; None, which cannot be known, as nothing."""
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)


def _use(p: FullPreprocess, temperature: float, *, inside: bool) -> str:
    """Say how to run the model, with `resnets` and without."""
    fit = "shorter side" if p.fit == "shorter_side" else "both sides, stretched,"
    steps = f"decode it upright as {'RGB' if p.channels == 3 else 'grey'}, resize the {fit} to "
    steps += f"{p.resize} pixels (bilinear, antialiased), cut out the central {p.crop} × {p.crop}"
    given, taken = f"uint8 (N, {p.crop}, {p.crop}, {p.channels})", "`probabilities`"
    if not inside:
        steps += f", divide by 255, subtract {p.mean} and divide by {p.std} (per channel)"
        given = f"float32 (N, {p.channels}, {p.crop}, {p.crop})"
        taken = "`logits`; softmax(logits / temperature) are the probabilities, temperature "
        taken += f"{temperature:g}"
    return (
        "```\nresnets predict photos/ --model model.onnx --output answers.csv\n```\n\n"
        f"Elsewhere: {steps}. Give `images`, {given} with any N; take {taken}. The order of the "
        "classes is in `class_indices.json`, and everything stands in the file's metadata too "
        "(key `resnets`, JSON). The image size is fixed: it is the one that was measured."
    )


def _data(task: Task, bundle: Bundle) -> str:
    """Count the images of each class on each side, and give the hashes of what was used."""
    sides = (task.side(side).labels for side in ("train", "val", "test"))
    counts = np.stack([np.bincount(labels, minlength=len(task.classes)) for labels in sides], 1)
    rows = [(code(name), *numbers) for name, numbers in zip(task.classes, counts, strict=True)]
    hashes = {**bundle.meta.hashes, "weights": bundle.sha256}
    tables = [
        table(("class", "train", "validation", "test"), [*rows, ("all", *counts.sum(0))]),
        table(("hash of", "value"), sorted(hashes.items()), words=2),
        table(("training", "value"), sorted(bundle.meta.training.items()), words=2),
    ]
    return "\n\n".join(tables)


def _results(scores: Evaluation, row: Facts) -> str:
    """Give the scores with their 95% intervals, the classes one by one, and other seeds."""
    shown = [name for name in metrics_for("card") if name in scores.scores]
    rows = [(name, *map(_cell, asdict(scores.scores[name]).values())) for name in shown]
    columns = ("support", "precision", "recall", "recall_low", "recall_high", "f1")
    classes = [(code(one["class"]), *(_cell(one[c]) for c in columns)) for one in scores.per_class]
    texts = [
        f"{scores.images} images; intervals are 95%.",
        table(("score", "value", "low", "high"), rows),
        table(("class", *columns), classes),
    ]
    if row["seeds"] > 1:
        texts.append(
            f"Over {row['seeds']} training runs with different seeds the test accuracy is "
            f"{row['seeds_mean']:.4f} ± {row['seeds_std']:.4f} (standard deviation)."
        )
    return "\n\n".join(texts)


def _files(report: Facts) -> str:
    """Say how exact the ONNX files are, and how large."""
    text = (
        f"`model.onnx` ({report['bytes']:,} bytes) was compared with the trained model on all "
        f"{report['images']} test images and on black, white and noise, at batch sizes "
        f"{report['batch_sizes']}: the largest difference is {report['max_abs_diff']:.2g}, "
        f"{report['top1_mismatches']} predictions differ."
    )
    if not (int8 := report.get("int8")):
        return text
    keys = ("accuracy", "fp32_accuracy", "agreement")
    rows = [(side, *(_cell(int8[side][key]) for key in keys)) for side in ("val", "test")]
    verdict = "`model_int8.onnx` is the default of `resnets predict`."
    if not int8["is_default"]:
        verdict = f"It loses {int8['drop']:.4f} on validation, above max_drop: it is not shipped."
    header = ("int8", "accuracy", "accuracy fp32", "same answer")
    return f"{text}\n\n{table(header, rows)}\n\nint8 takes {int8['bytes']:,} bytes. {verdict}"


def _limits(scores: Evaluation, crop: int) -> str:
    """Say what the model is for and where it is weak."""
    present = [row for row in scores.per_class if row["support"]]
    weak = sorted(present, key=itemgetter("recall"))[:WEAK]
    names = ", ".join(f"{code(row['class'])} (recall {row['recall']:.2f})" for row in weak)
    return (
        "For pictures like those it was trained on, to sort or to suggest; where an error has "
        "consequences, a person should look. It knows its classes only and will give one of them "
        "to any picture: `--threshold` marks unsure answers, but a picture of something else can "
        f"be answered with confidence. It sees the central {crop} × {crop} pixels after resizing. "
        f"Weakest classes: {names}. Pictures from another camera, place or time can be harder "
        "than the test images, which come from the same source as the training images."
    )
