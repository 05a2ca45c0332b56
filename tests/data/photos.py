"""Generate photos, and trees and archives of class folders, for the tests of this folder."""

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from resnets.data.prepare import prepare_task
from resnets.params.schema import Checks, Data, Split, TaskSection
from resnets.tasks.manifest import ManifestRow, Rejected

DATA = {"resize": 32}
CHECKS = {"max_bad_fraction": 0.0, "max_megapixels": 1.0}


def split_options(**changes: object) -> Split:
    """Return how to split, with these changes."""
    return Split(**{"val": 0.2, "test": 0.2, **changes})


class Prepared(NamedTuple):
    """Hold what `prepare_task` returns."""

    rows: list[ManifestRow]
    rejected: list[Rejected]
    metrics: dict[str, Any]


def prepare(source: Path, out: Path, *, channels: int = 3, **options: object) -> Prepared:
    """Prepare a task; `options` are keys of `tasks.*`, `checks` and `data` in params.yaml."""
    selection = {key: options.pop(key) for key in TaskSection.model_fields if key in options}
    task = TaskSection(path=str(source), **selection)
    limits = {key: options.pop(key) for key in Checks.model_fields if key in options}
    checks, data = Checks(**{**CHECKS, **limits}), Data(**{**DATA, **options})
    return Prepared(*prepare_task(task, data, checks, channels, out))


def make_photo(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """Return a smooth random picture; two seeds give pictures that are nothing alike."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """Return the bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pets(num: int = 4, prefix: str = "", start: int = 0) -> dict[str, bytes]:
    """Return the files of the classes cat and dog, with so many distinct photos each."""
    return {
        f"{prefix}{label}/{index}.png": encode(make_photo(start + 1000 * number + index))
        for number, label in enumerate(("cat", "dog"))
        for index in range(num)
    }


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    """Write files below a folder."""
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    """Write files into a zip."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    """Write files into a tar, compressed as its name says."""
    mode = "w:gz" if path.suffix == ".gz" else "w"
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path
