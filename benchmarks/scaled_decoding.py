"""Measure what data.scaled_decoding saves on 12-megapixel photos, and what it changes.

    python benchmarks/scaled_decoding.py photos.zip [model.onnx]

Forty photos are enlarged to 4000×3000 pixels, get noise as a camera's sensor adds it, and are
saved as JPEGs. With a model, its answers for the exact and for the scaled pixels are compared.
"""

import io
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from resnets.data.sources import open_source
from resnets.evaluation.markdown import table
from resnets.export.classifier import open_classifier
from resnets.tasks.decode import BadImageError, center_crop, decode, resize, to_pixels

NUM = 40


def enlarge(pixels, rng):
    """Return a JPEG of 12 megapixels."""
    large = Image.fromarray(pixels).resize((4000, 3000), Image.Resampling.LANCZOS)
    noisy = np.asarray(large) + rng.normal(0, 6, (3000, 4000, 1))
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=92)
    return file.getvalue()


def small(photos, size, *, scaled):
    """Return the photos at this size, and the milliseconds that each took."""
    start = time.process_time()
    options = {"channels": 3, "max_megapixels": 64, "size": size if scaled else None}
    images = [
        resize(to_pixels(decode(photo, **options).picture), size, "shorter_side")
        for photo in photos
    ]
    return np.stack(images), 1000 * (time.process_time() - start) / len(photos)


def main(path, model=None):
    """Print a row per size."""
    rng, source = np.random.default_rng(0), open_source(Path(path))
    contents = [
        content for _, content in source.read(source.members[:: max(1, len(source.members) // NUM)])
    ]
    photos = []
    for content in contents:
        if not isinstance(content, BadImageError):
            photos.append(
                enlarge(to_pixels(decode(content, channels=3, max_megapixels=64).picture), rng)
            )
    classifier = model and open_classifier(Path(model))
    own = classifier.meta.preprocess.resize if classifier else 256
    rows = []
    for size in sorted({64, 128, 256, own}):
        exact, before = small(photos, size, scaled=False)
        scaled, after = small(photos, size, scaled=True)
        difference = np.abs(exact.astype(int) - scaled)
        row = [size, f"{before:.0f}", f"{after:.0f}", f"{difference.mean():.2f}", difference.max()]
        if size == own and classifier:
            crop = classifier.meta.preprocess.crop
            answers = [
                classifier.score(
                    np.stack([center_crop(image, crop) for image in images])
                ).probabilities.argmax(1)
                for images in (exact, scaled)
            ]
            row.append(f"{(answers[0] == answers[1]).mean():.1%}")
        rows.append([*map(str, row), *["-"] * (6 - len(row))])
    print(f"{len(photos)} photos of 12 megapixels")
    columns = ["size", "ms exact", "ms scaled", "mean difference", "largest", "same class"]
    print(table(columns, rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
