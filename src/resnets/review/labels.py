"""Say which images have another label than before, and which labels are suspected or no longer.

Git has no list of all labels, so what is compared are the tables that it has: of the test images,
with folds of all images, and of suspected and little believed labels.
"""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from resnets.evaluation.markdown import code, section
from resnets.evaluation.predictions import FIX
from resnets.review.revisions import Revision
from resnets.system.errors import ArtefactError

TABLE = "plots/labels/labels.csv"
STATES = {(True, False): "no longer", (False, True): "newly", (True, True): "still"}

LabelByName = dict[str, str]  # by the image's name


def label_changes(base: Revision, head: Revision) -> tuple[list[str], list[str]]:
    """Return a sentence, if anything changed, and a table of the images whose label or doubt did.

    An image that was moved to the folder of another class counts as the same one where both
    revisions name all images and it has no namesake.
    """
    if not all(TABLE in revision.files for revision in (base, head)):
        return [], []
    before, after = labels_of(base), labels_of(head)
    name_at_head = {name: name for name in before.keys() & after.keys()}
    if _names_all(base, before) and _names_all(head, after):
        name_at_head |= dict(_moved(before, after))
    changed = {old for old, new in name_at_head.items() if before[old] != after[new]}
    name_at_base = {new: old for old, new in name_at_head.items()}
    doubted = _suspects(base), {name_at_base.get(name, name) for name in _suspects(head)}
    rows, states = [], Counter[str]()
    for name in sorted(changed.union(*doubted)):
        state = STATES.get((name in doubted[0], name in doubted[1]), "")
        if name in changed or state != "still":
            states[state] += 1
            labels = before.get(name), after.get(name_at_head.get(name, name))
            rows.append([code(name), *(code(x) if x else "–" for x in labels), state])
    if not rows:
        return [], []
    said = (
        f"**Labels**: {len(changed):,} changed, of {len(name_at_head):,} images whose label both "
        f"show; {states['no longer']:,} are no longer suspected, {states['newly']:,} newly."
    )
    return [said], section("## Labels", ["image", "base", "head", "suspected"], rows, words=4)


def labels_of(revision: Revision) -> LabelByName:
    """Return all labels of the target task that a revision shows."""
    models = [f"plots/{name}/predictions.csv" for name in revision.models if name != "backbone"]
    tables = [revision.files[path] for path in models if path in revision.files]
    # by place: a class may be called as a column is
    lines = [line for table in tables for line in [*csv.reader(io.StringIO(table))][1:]]
    known = {line[0]: line[1] for line in lines if len(line) > 1}
    return known | {row["id"]: row["label"] for row in _rows(revision)}


def _rows(revision: Revision) -> Iterable[dict[str, str]]:
    rows = csv.DictReader(io.StringIO(revision.files[TABLE]))
    if not {"id", "label", "suspected"} <= set(rows.fieldnames or ()):
        raise ArtefactError(f"{TABLE} at {revision.name}: lacks columns", FIX)
    return rows


def _suspects(revision: Revision) -> set[str]:
    return {row["id"] for row in _rows(revision) if row["suspected"] == "True"}


def _names_all(revision: Revision, labels: LabelByName) -> bool:
    """Tell whether these are all labels that the revision used."""
    images = revision.metrics.get("split_target", {}).get("images", {})
    return len(labels) == sum(int(images.get(side, 0)) for side in ("train", "val", "test"))


def _moved(before: LabelByName, after: LabelByName) -> Iterator[tuple[str, str]]:
    """Yield both names of the images that only changed the folder of their class."""
    homes = []
    for labels, others in ((before, after), (after, before)):
        names = defaultdict[tuple[str, ...], list[str]](list)
        for name in labels.keys() - others.keys():
            names[tuple(part for part in name.split("/") if part != labels[name])].append(name)
        homes.append(names)
    for place in homes[0].keys() & homes[1].keys():
        if len(homes[0][place]) == len(homes[1][place]) == 1:
            yield homes[0][place][0], homes[1][place][0]
