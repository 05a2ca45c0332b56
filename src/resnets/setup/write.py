"""Write params.yaml for photos, and say on one screen what was found, chosen and why."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from datetime import timedelta
from itertools import count
from pathlib import Path
from string import Template
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from resnets.data.catalogue import all_items
from resnets.data.fetch import fetch
from resnets.data.findings import IMBALANCE
from resnets.data.layout import TABLES
from resnets.data.prepare import list_bad, summarise
from resnets.params import load_params
from resnets.params.schema import NO_BACKBONE, Params
from resnets.setup.look import FOLDS_BELOW, Look, look
from resnets.setup.rules import SMALL, Effort, choose, find_weights, read_backbone
from resnets.system.errors import ArtefactError, EnvironmentFault, ParamsError, printable
from resnets.system.files import write_bytes, write_text

TARGET, WEIGHTS = Path("params.yaml"), Path("data/weights")
PUBLISHED = "resnet18-f37072fd.pth"  # of ImageNet, 45 MB
BETTER = f"`resnets fetch {PUBLISHED}` (45 MB) gets better ones, --backbone names your own"
SEAL = "# as `resnets init` wrote it: "
NO_WEIGHTS = (  # ants and bees: 72% without weights of ImageNet, published with them 94%
    f"random weights: on few photos that costs some 20 points of accuracy. {BETTER}"
)


def init(
    photos: Path,
    *,
    backbone: Path | None,
    effort: Effort,
    force: bool,
    offline: bool,
    exclude_findings: bool = False,
) -> None:
    """Look, choose, write params.yaml and keep the old one beside it; an error changes nothing.

    Without a backbone that is named, published weights are taken from data/weights or fetched; else
    a bundle of an own run in data/weights.

    Raises ParamsError where Git lacks changes of params.yaml, DataError for photos that cannot be
    trained on, ArtefactError for weights of no network of the family.
    """
    if not Path("dvc.yaml").is_file():
        raise EnvironmentFault("dvc.yaml: no such file", "run it in the project's folder")
    if not force and TARGET.is_file() and not _is_sealed(TARGET) and _has_changes(TARGET):
        what = f"{TARGET}: has changes that Git does not hold"
        raise ParamsError(what, "commit them, or give --force, which keeps it beside the new one")
    if backbone and backbone.resolve().is_relative_to(Path("artifacts").resolve()):
        what = f"{backbone}: lies in artifacts/, which `dvc repro` writes anew"
        raise ParamsError(what, f"copy it to {WEIGHTS}/ first, and name the copy")
    seen = look(photos, exclude_findings=exclude_findings)
    weights = backbone or _weights(seen, offline=offline)
    values = choose(seen, read_backbone(weights) if weights else None, effort)
    template = Path(__file__).with_name("params.yaml").read_text(encoding="utf-8")
    text = _sealed("\n".join(_fill(line, values) for line in template.split("\n")))
    with tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder) / TARGET, text)
        params = load_params(Path(folder) / TARGET)
    from resnets.setup.measure import estimate_seconds  # imports torch

    minutes = estimate_seconds(params, seen.num_images, seen.seconds) / 60
    time = str(timedelta(minutes=max(1, round(minutes))))[:-3]
    said = {
        "written": _write(text),
        "time": f"about {time} (hours:minutes) for `dvc repro` on this machine",
    }
    table = Table.grid(padding=(0, 2))
    for topic, line in (_found(seen) | _chosen(params) | said).items():
        table.add_row(topic, escape(printable(line)))
    Console(highlight=False).print(table)


def _weights(seen: Look, *, offline: bool) -> Path | None:
    """Return the weights to start from where none are named; None where there are none."""
    published = None
    if seen.shorter_side >= SMALL:  # small images have other networks
        published = find_weights(WEIGHTS, is_published=True) or (None if offline else _fetch())
    return published or find_weights(WEIGHTS, is_published=False)


def _write(text: str) -> str:
    """Write params.yaml, keep the one before under another name, and say so."""
    said = str(TARGET)
    if TARGET.is_file():
        names = (Path(f"{TARGET}.old{number or ''}") for number in count())
        old = next(path for path in names if not path.exists())
        write_bytes(old, TARGET.read_bytes())
        said += f"; the one before is kept as {old}"
    write_text(TARGET, text)
    return said


def _fill(line: str, values: dict[str, Any]) -> str:
    """Put values into a line of the template, and its comment into the column of the others."""
    value, mark, comment = line.partition(" # ") if "$" in line else (line, "", "")
    filled = Template(value).substitute(values)
    return f"{filled:<23} # {comment}" if mark else filled


def _sealed(text: str) -> str:
    """Add a last line by which the next `init` sees whether anybody has edited the file."""
    return f"{text}{SEAL}{hashlib.sha256(text.encode()).hexdigest()[:16]}\n"


def _is_sealed(path: Path) -> bool:
    """Tell whether a file is as `init` has written it."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return SEAL in text and text == _sealed(text.rpartition(SEAL)[0])


def _fetch() -> Path | None:
    """Fetch ImageNet weights; None, and a line that says why, where they cannot be had."""
    try:
        (path,) = fetch(all_items()[PUBLISHED], WEIGHTS.parent)
    except (EnvironmentFault, ArtefactError) as error:
        print(f"no ImageNet weights: {printable(error.what)}", file=sys.stderr)
        return None
    return path


def _has_changes(path: Path) -> bool:
    """Tell whether Git lacks this content; yes where there is no repository, or no Git at all."""
    if shutil.which("git") is None:
        return True
    command = ["git", "status", "--porcelain", "--", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode != 0 or bool(done.stdout)


def _found(seen: Look) -> dict[str, str]:
    """Return what was found."""
    found = summarise(seen.rows, seen.rejected)
    sizes = sorted(Counter(row.label for row in seen.rows).values())
    each = sizes[0] if sizes[0] == sizes[-1] else f"{sizes[0]} to {sizes[-1]}"
    kind = f"{', '.join(found['formats'])}, {'grey' if seen.is_grey else 'colour'}"
    pixels = f"{seen.shorter_side} pixels on the shorter side"
    lines = {"photos": f"{len(seen.rows)}: {len(sizes)} classes of {each}, {kind}, {pixels}"}
    if seen.path.is_file() and seen.path.suffix.lower() in TABLES:
        lines["table"] = "DVC watches it, not its photos: `dvc repro -f prepare@target` after those"
    if seen.rejected:
        lines["left out"] = f"{list_bad(seen.rejected)} (resnets check names all)"
    if seen.ignored:
        lines["skipped"] = f"{seen.ignored} that are hidden, of a tool, or no images"
    if notes := sum(found["notes"].values()):
        lines["noted"] = f"{notes} (resnets check names them, tasks.target.exclude drops them)"
    if kinds := Counter(finding.kind for finding in seen.odd.values()):
        shown = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
        what = "in tasks.target.exclude" if seen.excluded else "--exclude-findings leaves them out"
        lines["odd"] = f"{shown} (resnets check names them; {what})"
    if copies := sum(found["duplicates"].values()):
        lines["copies"] = f"{copies} of other photos: they stay on one side"
    if groups := {row.given_group for row in seen.rows} - {""}:
        lines["groups"] = f"{len(groups)} in the table: each stays on one side"
    if seen.split.group_regex:
        lines["groups"] = f"names alike in this part stay on one side: {seen.split.group_regex}"
    if seen.dropped_groups:
        why = "a class has too few such groups to keep each on one side: scores may be too good"
        lines["groups"] = f"names look like {seen.dropped_groups}, but {why}"
    return lines | {"split": _split(seen, has_given=bool(found["given_sides"]))}


def _split(seen: Look, *, has_given: bool) -> str:
    """Say how the photos are split, and why."""
    val, test = (
        f"{size:.0%}" if isinstance(size, float) else f"{size} of each class"
        for size in (seen.split.val, seen.split.test)
    )
    shown = [side for side, number in seen.num_images.items() if number or side != "unused"]
    sides = ", ".join(f"{seen.num_images[side]} {side}" for side in shown)
    if seen.split.folds:
        given = ", the given sides are pooled" if has_given else ""
        return (
            f"{seen.split.folds} folds of {sides}, as fewer than {FOLDS_BELOW} photos per class "
            f"are too few for one test{given}; what is shipped is trained on all"
        )
    given = "the given sides are kept; " if has_given else ""
    return f"{sides} ({given}where drawn, val gets {val} and test {test})"


def _chosen(params: Params) -> dict[str, str]:
    """Return what was chosen, and what it costs."""
    crop, name, training = params.preprocess.crop, params.model.name, params.training
    lines = {"images": f"{crop} × {crop} pixels, cut from {params.data.resize}"}
    if params.data.scaled_decoding:
        lines["images"] += "; larger JPEGs are decoded at a reduced scale (data.scaled_decoding)"
    source = params.backbone.input
    if source.startswith(f"{WEIGHTS}/") and source.endswith(".safetensors"):
        source = f"{source}, weights of an own run. {BETTER}"
    lines["network"] = f"{name} with {NO_WEIGHTS if source == NO_BACKBONE else source}"
    each = f"{len(params.repeat)} seeds each" if len(params.repeat) > 1 else "once each"
    if folds := params.split["target"].folds:
        each = f"{folds * len(params.repeat) + 1} trainings each: {folds} folds, and all photos"
    lines["training"] = f"{', '.join(params.transfer)}: {training.epochs} epochs, {each}"
    if training.loss.class_weights == "balanced":
        lines["weights"] = f"balanced, as the largest class is over {IMBALANCE} times the smallest"
    return lines
