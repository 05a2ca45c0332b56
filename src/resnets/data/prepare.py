"""Prepare a task: pack a dataset, find duplicates and label conflicts, and report what is wrong."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from resnets.data.duplicates import label_conflicts, mark_near
from resnets.data.layout import NO_PHOTO, Member, Source, advise_classes, looks_like_image
from resnets.data.pack import Packing, pack
from resnets.data.sources import open_source
from resnets.params.schema import Checks, Data, TaskSection
from resnets.system.errors import DataError, list_kinds
from resnets.tasks.decode import BadImageError
from resnets.tasks.manifest import ManifestRow, Rejected, digest, refuse, write_table


def prepare_task(
    task: TaskSection, data: Data, checks: Checks, channels: Literal[1, 3], out_folder: Path
) -> tuple[list[ManifestRow], list[Rejected], dict[str, Any]]:
    """Judge and pack a dataset into `out_folder`: images.bin, manifest.csv and rejected.csv.

    Returns the good images, the refused ones and the metrics. Raises DataError when the classes are
    not the expected ones, or when more is wrong than `checks` allow; rejected.csv lists it all even
    then.
    """
    source = open_source(Path(task.path))
    members = select_members(source, task.classes, task.num_classes, task.exclude)
    packing = Packing(channels, data.resize, data.fit, checks.max_megapixels, data.scaled_decoding)
    manifest, listed = out_folder / "manifest.csv", out_folder / "rejected.csv"
    manifest.unlink(missing_ok=True)  # it would not fit the new images.bin
    rows, rejected = judge_all(source, members, packing, out_folder / "images.bin")
    rejected = [image for image in rejected if image.id not in task.exclude]
    write_table(listed, Rejected, rejected)
    _check_bad(rejected, len(rows) + len(rejected), checks, listed)
    check_classes(source.path, {member.label for member in members}, rows)
    write_table(manifest, ManifestRow, rows)
    metrics = summarise(rows, rejected) | {
        "ignored": len(source.ignored) + len(task.exclude),
        "hashes": {"data": digest(manifest.read_bytes())},
    }
    return rows, rejected, metrics


def judge_all(
    source: Source, members: list[Member], packing: Packing, path: Path
) -> tuple[list[ManifestRow], list[Rejected]]:
    """Pack the members into the file `path` and return the good images and all that is refused.

    What by name and content is no image joins the ignored files of the source.
    """
    rows, rejected = pack(source, members, packing, path)
    notes = {x.id for x in rejected if x.reason in NO_PHOTO and not looks_like_image(x.id)}
    source.ignored.extend(sorted(notes))
    rejected = [image for image in rejected if image.id not in notes]
    no_class = BadImageError("no_class", "an image outside the class folders")
    rejected += [refuse(name, "", no_class) for name in source.homeless]
    rejected += label_conflicts(rows)
    refused = {image.id for image in rejected}
    return mark_near([row for row in rows if row.id not in refused]), rejected


def check_classes(path: Path, classes: set[str], images: Sequence[Member | ManifestRow]) -> None:
    """Raise DataError where a class has no good image: to go on would renumber the others."""
    if empty := sorted(classes - {image.label for image in images}):
        what = f"{path}: class {empty[0]!r} has 0 good images"
        raise DataError(what, "repair what `resnets check` lists, fill its folder, or remove it")


def select_members(
    source: Source,
    classes: list[str] | None = None,
    num_classes: int | None = None,
    exclude: Collection[str] = (),
) -> list[Member]:
    """Return the images of the wanted classes, without those that are excluded by name.

    Raises DataError when the dataset has other classes, too few, or no such image.
    """
    wanted = set(classes or source.classes)
    names = list_kinds({"classes": sorted(wanted)}, 10)
    known = {member.name for member in source.members}.union(source.homeless)
    if missing := sorted(wanted.difference(source.classes)):
        what = f"has no class {missing[0]!r}; it has {list_kinds({'classes': source.classes}, 10)}"
        fix = "correct tasks.*.classes"
    elif num_classes not in (None, len(wanted)):
        what = f"num_classes is {num_classes}, but there are {names}"
        fix = "correct tasks.*.num_classes or the folders"
    elif len(wanted) < 2:
        what = f"need at least 2 classes, found {len(wanted)} ({', '.join(wanted)})"
        fix = advise_classes(source.container.files, source.path)
    elif unknown := sorted(set(exclude) - known):
        what = f"has no image {unknown[0]!r}, which is to be excluded"
        fix = "correct tasks.*.exclude: names are as `resnets check` prints them"
    else:
        members = [m for m in source.members if m.label in wanted and m.name not in exclude]
        check_classes(source.path, wanted, members)
        return members
    raise DataError(f"{source.path}: {what}", fix)


def list_bad(rejected: list[Rejected]) -> str:
    """Say how many files are refused for which reason, and name the first of them."""
    names: dict[str, list[str]] = defaultdict(list)
    for image in sorted(rejected, key=lambda image: image.reason):
        names[image.reason].append(image.id)
    return list_kinds(names)


def _check_bad(rejected: list[Rejected], total: int, checks: Checks, listed: Path) -> None:
    """Stop when more images are bad than allowed."""
    bad = f"{len(rejected)} of {total} images are bad: {list_bad(rejected)}; see {listed}"
    if rejected and checks.on_bad == "stop":
        raise DataError(bad, "do what the list says for each, or set checks.on_bad: quarantine")
    if len(rejected) > checks.max_bad_fraction * total:
        raise DataError(
            f"more than checks.max_bad_fraction ({checks.max_bad_fraction}): {bad}",
            "do what the list says for each, or raise checks.max_bad_fraction",
        )


def _counts(values: Iterable[str]) -> dict[str, int]:
    """Count values, sorted by value."""
    return dict(sorted(Counter(values).items()))


def _range(values: list[int]) -> dict[str, int | float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def summarise(rows: list[ManifestRow], rejected: list[Rejected]) -> dict[str, Any]:
    """Count images, refusals, duplicates, formats, sizes and notes."""
    files, groups = len({row.sha256 for row in rows}), len({row.group for row in rows})
    return {
        "images": len(rows),
        "classes": _counts(row.label for row in rows),
        "given_sides": _counts(row.side for row in rows if row.side),
        "rejected": {"all": len(rejected), **_counts(image.reason for image in rejected)},
        "duplicates": {  # copies beyond the first
            "exact": len(rows) - files,
            "same_pixels": files - groups,
            "near": groups - len({row.near for row in rows}),
        },
        "formats": _counts(row.format for row in rows),
        "width": _range([row.width for row in rows]),
        "height": _range([row.height for row in rows]),
        "notes": _counts(note for row in rows for note in row.note.split("; ") if note),
    }
