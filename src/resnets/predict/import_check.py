"""Score imported weights on labelled images, in every network that their file may be of.

Some options have the same weights: a file of one loads without an error into another, which then
guesses, or is a little worse than it was at home.
"""

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnets.data.pack import Packing, pack
from resnets.data.sources import open_source
from resnets.evaluation.significance import mcnemar, wilson
from resnets.models.bundle import FullPreprocess
from resnets.models.inference import infer
from resnets.params.schema import Model
from resnets.system.errors import ArtefactError, DataError, printable
from resnets.tasks.task import PixelStore
from resnets.training.start import import_backbone, look_alikes, recorded

ALPHA = 0.01  # of a better look-alike
OURS = "as params.yaml has it"


def check_import(
    weights: Path,
    data: Path,
    *,
    network: Model,
    preprocess: FullPreprocess,
    order: list[str] | None,
    max_megapixels: float,
    device: str,
) -> None:
    """Print the share of images that each network with these weights gets right, beside chance.

    `order` names the classes as the head has them; without it a class folder is called by its
    number in the head, or all classes are sorted. Raises ArtefactError where another network than
    the given one is better, or it is no better than chance; DataError where the classes do not fit.
    """
    source = open_source(data)
    _, meta, _ = import_backbone(weights, network, preprocess)
    places, form = class_places(source.classes, len(meta.classes), order, data), meta.preprocess
    right: dict[str, NDArray[np.bool_]] = {}
    with tempfile.TemporaryDirectory() as folder:
        packing = Packing(
            form.channels, form.resize, form.fit, max_megapixels, form.scaled_decoding
        )
        rows, bad = pack(source, source.members, packing, Path(folder) / "images.bin")
        if not rows:
            raise DataError(f"{data}: no image can be read", "look at it with `resnets check`")
        images = PixelStore(Path(folder) / "images.bin", rows)
        labels = np.array([places[row.label] for row in rows])
        others = {} if recorded(weights) else look_alikes(network)  # a bundle names its network
        for name, candidate in {OURS: network, **others}.items():
            model, *_ = import_backbone(weights, candidate, preprocess)
            logits = infer(model, images, preprocess=form, device=device, precision="fp32")
            right[name] = logits.argmax(1) == labels
    chance = float(np.bincount(labels).max() / len(labels))
    shares = {name: hits.mean() for name, hits in right.items()}
    print(f"{len(rows)} images of {printable(str(data))}; {len(bad)} could not be read")
    for name, share in {**shares, "chance (always the most frequent class)": chance}.items():
        print(f"{share:7.1%}  {name}")
    best = max(shares, key=shares.__getitem__)
    ours, theirs = right[OURS], right[best]
    if wilson(int(theirs.sum()), len(theirs))[0] <= chance:
        raise ArtefactError(
            f"{weights}: no better than chance on {data}",
            "compare model, data.resize, preprocess and the order of the classes with their source",
        )
    if mcnemar(int((ours & ~theirs).sum()), int((theirs & ~ours).sum())) < ALPHA:
        what = f"{shares[OURS]:.1%} are right {OURS}, and {shares[best]:.1%} with {best}"
        raise ArtefactError(f"{weights}: {what}", f"set {best} in params.yaml")


def read_lines(path: Path) -> list[str]:
    """Return the names of classes in a text file, without blank lines."""
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    return [line for line in lines if line.strip()]


def class_places(
    classes: list[str], num_places: int, order: list[str] | None, data: Path
) -> dict[str, int]:
    """Return the place of each class in a head of so many; raise DataError where one has none."""
    fix = "call each class folder by its number in the head, or give all names with --order"
    names = order or classes
    places = {name: place for place, name in enumerate(names)}
    if order is None and all(name.isdecimal() for name in classes):
        places = {name: int(name) for name in classes}
    elif len(names) != num_places:
        raise DataError(f"{data}: {len(names)} classes, but the head has {num_places}", fix)
    for name in classes:
        if places.get(name, num_places) >= num_places or names.count(name) > 1:
            what = f"{data}: class {name!r} has no place in a head of {num_places}, or two"
            raise DataError(what, fix)
    return places
