"""Write the model card: what a model is, what it was measured on, and what it is not good for."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from resnets.bundle import Bundle, FullPreprocess
from resnets.data.task import Task
from resnets.evaluation import Evaluation, Row
from resnets.markdown import code, table

SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "top5", "roc_auc", "nll", "ece")
WEAK = 3  # classes named as the weakest


def model_card(
    bundle: Bundle,
    task: Task,
    *,
    scores: Evaluation,
    metrics: Mapping[str, Any],
    report: Mapping[str, Any],
) -> str:
    """Return the card in Markdown.

    `scores` are of the test side, `metrics` what the evaluation wrote (its `seeds` are quoted),
    `report` what the export measured.
    """
    meta = bundle.meta
    name = meta.architecture["name"]
    parts = [
        f"# Model card: {name}, {len(meta.classes)} classes\n",
        f"A {name} that tells {len(meta.classes)} classes of pictures apart: "
        f"{', '.join(map(code, meta.classes))}. It gives every class a probability, calibrated "
        f"on validation images (temperature {meta.temperature:g}).\n",
        "## Use\n",
        _use(meta.preprocess, meta.temperature, inside="probabilities" in report["output"]),
        "## Data\n",
        _data(task, bundle),
        "## Results on the test images\n",
        _results(scores, metrics),
        "## The exported files\n",
        _files(report),
        "## Intended use and limits\n",
        _limits(scores, meta.preprocess.crop),
        "## Licence\n",
        "The code is under the MIT licence. The weights were learnt from the data above, and from "
        "the initial weights where there are some: their licences decide what may be done with "
        "this model, and are for its publisher to state here.\n",
    ]
    return "\n".join(parts)


def _score(value: object) -> str:
    """Write a score with four decimals; None, which cannot be known, as nothing."""
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)


def _use(preprocess: FullPreprocess, temperature: float, *, inside: bool) -> str:
    """Say how to run the model, with `resnets` and without."""
    p, shape = preprocess, "(N, {0}, {0}, {1})" if inside else "(N, {1}, {0}, {0})"
    fit = "shorter side" if p.fit == "shorter_side" else "both sides, stretched,"
    steps = f"decode it upright as {'RGB' if p.channels == 3 else 'grey'}, resize the {fit} to "
    steps += f"{p.resize} pixels (bilinear, antialiased), cut out the central {p.crop} × {p.crop}"
    last = "softmax(logits / temperature) are the probabilities"
    if not inside:
        steps += f", divide by 255, subtract {p.mean} and divide by {p.std} (per channel)"
    result = "`probabilities`" if inside else f"`logits`; {last}, temperature {temperature:g}"
    return (
        "```\nresnets predict photos/ --model model.onnx --output answers.csv\n```\n\n"
        f"Elsewhere: {steps}. Give `images`, {'uint8' if inside else 'float32'} "
        f"{shape.format(p.crop, p.channels)} with any N; take {result}. The order of the classes "
        "is in `class_indices.json`, and everything stands in the file's metadata too "
        "(key `resnets`, JSON). The image size is fixed: it is the one that was measured.\n"
    )


def _data(task: Task, bundle: Bundle) -> str:
    """Count the images of each class on each side, and give the hashes of what was used."""
    counts = [
        np.bincount(task.side(side).labels, minlength=len(task.classes))
        for side in ("train", "val", "test")
    ]
    rows = [(code(name), *(int(c[k]) for c in counts)) for k, name in enumerate(task.classes)]
    rows.append(("all", *(int(c.sum()) for c in counts)))
    hashes = {**bundle.meta.hashes, "weights": bundle.sha256}
    tables = [
        table(("class", "train", "validation", "test"), rows),
        table(("hash of", "value"), sorted(hashes.items()), words=2),
        table(("training", "value"), sorted(bundle.meta.training.items()), words=2),
    ]
    return "\n\n".join(tables) + "\n"


def _results(scores: Evaluation, metrics: Mapping[str, Any]) -> str:
    """Give the scores with their 95% intervals, the classes one by one, and other seeds."""
    shown = [(name, scores.scores[name]) for name in SCORES if name in scores.scores]
    rows = [(name, *map(_score, (s.value, s.low, s.high))) for name, s in shown]
    columns = ("support", "precision", "recall", "recall_low", "recall_high", "f1")
    classes = [(code(row["class"]), *(_score(row[c]) for c in columns)) for row in scores.per_class]
    text = f"{scores.images} images; intervals are 95%.\n\n"
    text += table(("score", "value", "low", "high"), rows) + "\n\n"
    text += table(("class", *columns), classes) + "\n"
    seeds = metrics.get("seeds", {})
    if seeds.get("n", 1) > 1:
        text += f"\nOver {seeds['n']} training runs with different seeds the test accuracy is "
        text += f"{seeds['mean']:.4f} ± {seeds['std']:.4f} (standard deviation).\n"
    return text


def _files(report: Mapping[str, Any]) -> str:
    """Say how exact the ONNX files are, and how large."""
    text = (
        f"`model.onnx` ({report['bytes']:,} bytes) was compared with the trained model on all "
        f"{report['images']} test images and on black, white and noise, at batch sizes "
        f"{report['batch_sizes']}: the largest difference is {report['max_abs_diff']:.2g}, "
        f"{report['top1_mismatches']} predictions differ.\n"
    )
    if int8 := report.get("int8"):
        rows = [
            (side, *(_score(int8[side][key]) for key in ("accuracy", "fp32_accuracy", "agreement")))
            for side in ("val", "test")
        ]
        text += "\n" + table(("int8", "accuracy", "accuracy fp32", "same answer"), rows)
        text += f"\n\nint8 takes {int8['bytes']:,} bytes. " + (
            "`model_int8.onnx` is the default of `resnets predict`.\n"
            if int8["is_default"]
            else f"It loses {int8['drop']:.4f} on validation, more than allowed, so it is not "
            "shipped.\n"
        )
    return text


def _limits(scores: Evaluation, crop: int) -> str:
    """Say what the model is for and where it is weak."""

    def recall(row: Row) -> float:
        return float(row["recall"] or 0)

    weak = sorted((row for row in scores.per_class if row["support"]), key=recall)[:WEAK]
    names = ", ".join(f"{code(row['class'])} (recall {recall(row):.2f})" for row in weak)
    return (
        "For pictures like those it was trained on, to sort or to suggest; where an error has "
        "consequences, a person should look. It knows its classes only and will give one of them "
        "to any picture: `--threshold` marks unsure answers, but a picture of something else can "
        f"be answered with confidence. It sees the central {crop} × {crop} pixels after resizing. "
        f"Weakest classes: {names}. Pictures from another camera, place or time can be harder "
        "than the test images, which come from the same source as the training images.\n"
    )
