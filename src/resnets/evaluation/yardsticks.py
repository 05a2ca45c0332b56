"""Measure what a network must beat: the majority class, two classics on pixels, a linear probe.

They learn from at most MOST_IMAGES images of the training side, and take their only parameter, C,
from the validation side.
"""

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from resnets.models.bundle import load_bundle
from resnets.models.inference import infer
from resnets.params.section import Preprocess
from resnets.tasks.decode import Images, resize
from resnets.tasks.task import PixelStore, Task

THUMBNAIL = 32  # pixels
MOST_IMAGES = 2000
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)  # C; of equally good ones the first

Values = NDArray[np.floating]
Describe = Callable[[PixelStore], Values]  # images to (N, numbers)
Result = tuple[float | None, NDArray[np.bool_], NDArray[np.bool_]]  # C; what is right, val and test
Yardstick = tuple[str, list[Any], Sequence[Values]]  # name, estimators, train, val and test


def thumbnails(images: Images) -> Values:
    """Return the pixels (N, 32 * 32 * C), 0 to 1, of images that are stretched to a square."""
    small = [resize(images[row], THUMBNAIL, "stretch") for row in range(len(images))]
    return np.stack(small).reshape(len(small), -1) / 255


def backbone_features(folder: Path, preprocess: Preprocess, device: str) -> Describe | None:
    """Return what computes a backbone's features (N, F); None for a folder without a model."""
    path = folder / "model.safetensors"
    if not path.exists():
        return None
    options: dict[str, Any] = {"preprocess": preprocess, "batch_size": 256, "device": device}
    model = load_bundle(path).model
    return lambda images: infer(model, images, precision="fp32", output="features", **options)


def measure_yardsticks(
    task: Task, repeats: Sequence[int], features: Describe | None, seed: int = 0
) -> pd.DataFrame:
    """Return a row per yardstick and run: its scores, and `right`, a 0 or 1 per test image.

    `features` (N, F) are the backbone's; without it the probe is left out. Run number k draws its
    own training images by `seed` + k where there are more than MOST_IMAGES; else all runs would be
    the same, and there is one. With folds, each run has its own, and learns anew in each of them.
    """
    ways = {"pixels": _once(thumbnails)} | ({"features": _once(features)} if features else {})
    is_drawn = task.num_folds or len(task.side("train").ids) > MOST_IMAGES
    rows: list[dict[str, Any]] = []
    for repeat in repeats if is_drawn else repeats[:1]:
        folds, results = task.folds(repeat), defaultdict[str, list[Result]](list)
        order = np.argsort(np.concatenate([fold.rows("test") for fold in folds]))
        for fold in folds:
            for name, result in _measure_once(fold, seed + repeat, ways):
                results[name].append(result)
        for name, parts in results.items():
            strengths, val, test = zip(*parts, strict=True)
            right = np.concatenate(test)[order]
            rows.append(
                {
                    "yardstick": name,
                    "seed": seed + repeat,
                    "C": strengths[0] if len(folds) == 1 else None,
                    "val_accuracy": round(float(np.concatenate(val).mean()), 6),
                    "test_accuracy": round(float(right.mean()), 6),
                    "right": "".join(map(str, right.astype(int))),
                }
            )
    return pd.DataFrame(rows)


def _once(way: Describe) -> Describe:
    """Describe each image only once, however many sides it is on."""
    known: dict[str, Any] = {}

    def describe(images: PixelStore) -> Values:
        new = [row for row in images.rows if row.id not in known]
        if new:
            values = way(PixelStore(images.path, new))
            known.update(zip((row.id for row in new), values, strict=True))
        return np.stack([known[row.id] for row in images.rows])

    return describe


def _measure_once(
    task: Task, seed: int, ways: Mapping[str, Describe]
) -> Iterator[tuple[str, Result]]:
    """Yield the result of each yardstick on one test side."""
    train, val, test = task.side("train"), task.side("val"), task.side("test")
    drawn = np.sort(np.random.default_rng(seed).permutation(len(train.ids))[:MOST_IMAGES])
    learned = PixelStore(train.images.path, [train.images.rows[row] for row in drawn])
    labels = [train.labels[drawn], val.labels, test.labels]
    stores = learned, val.images, test.images
    values = {name: [way(images) for images in stores] for name, way in ways.items()}
    with threadpool_limits(1):  # the number of threads changes the last bits of sums
        for name, estimators, sides in _yardsticks(**values):
            yield name, _score(estimators, sides, labels)


def _yardsticks(
    pixels: Sequence[Values], features: Sequence[Values] | None = None
) -> Iterator[Yardstick]:
    """Yield each yardstick with what it sees of train, val and test."""
    linear = [LogisticRegression(C=c, max_iter=300) for c in STRENGTHS]
    gamma = 1 / (pixels[0].shape[1] * pixels[0].var())  # scikit-learn's "scale"
    kernels = [rbf_kernel(side, pixels[0], gamma) for side in pixels]  # many times SVC's own speed
    yield "majority", [DummyClassifier()], pixels
    yield "linear", linear, pixels
    yield "svm", [SVC(C=c, kernel="precomputed") for c in STRENGTHS], kernels
    if features:
        yield "probe", linear, features


def _score(
    estimators: Iterable[Any], values: Sequence[Values], labels: Sequence[NDArray[np.int64]]
) -> Result:
    """Return C of the estimator that is best on val, and what it has right on val and test."""
    if np.ptp(labels[0]) == 0:  # all that were drawn are of one class
        estimators = [DummyClassifier()]
    with warnings.catch_warnings():  # of separable images the logits grow for ever where C is large
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = [estimator.fit(values[0], labels[0]) for estimator in estimators]
    accuracies = [estimator.score(values[1], labels[1]) for estimator in fitted]
    best = fitted[int(np.argmax(accuracies))]
    val, test = (best.predict(values[k]) == labels[k] for k in (1, 2))
    return getattr(best, "C", None), val, test
