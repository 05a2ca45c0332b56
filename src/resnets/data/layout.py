"""Find sides and classes in a tree of folders: which folder is a class, which one train or test.

    photos/cat/1.jpg                   class folders
    photos/train/cat/1.jpg             class folders below sides, which are respected
    wrapper/photos/train/cat/a/1.jpg   lone folders above are skipped; folders inside a class are
                                       part of it
    train/n01/images/1.jpg             Tiny ImageNet: val/val_annotations.txt labels val/images/

Anything else is refused in words, because a guess would change labels silently.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from resnets.data.containers import IMAGE_SUFFIXES, UNREAD_SUFFIXES, Container, unread
from resnets.system.errors import DataError
from resnets.tasks.decode import BadImageError, Pixels
from resnets.tasks.manifest import has_control_characters

SIDE_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
ANNOTATIONS = "val/val_annotations.txt"  # lines of file, class and a box, with tabs between
TABLES = (".csv", ".tsv")
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".rar", ".7z")
NO_PHOTO = {"empty", "not_an_image"}  # why a file is ignored that is not called like an image

Folder = tuple[str, ...]  # the names from the top down
Content = bytes | Pixels | BadImageError  # a file, pixels as such, or why there is neither


@dataclass(frozen=True)
class Member:
    """Name one image of a dataset, its class, and the side it comes with ("" where none)."""

    name: str  # below the root of the dataset
    label: str
    side: str
    path: str  # in the folder or archive
    group: str = ""  # one word for all that a table keeps together, "" where it says nothing


@dataclass(frozen=True)
class Source:
    """Hold a dataset: its images in reading order, its classes, and what belongs to none."""

    path: Path
    members: list[Member]
    classes: list[str]
    homeless: list[str]  # images outside the class folders
    ignored: list[str]  # hidden files, files of tools, READMEs
    container: Container

    def read(self, members: list[Member]) -> Iterator[tuple[Member, Content]]:
        """Yield the members with their content; pass them in the order of `self.members`."""
        return zip(members, self.container.read(m.path for m in members), strict=True)


def looks_like_image(path: str) -> bool:
    """Tell from the name alone whether a file was meant as an image."""
    return path.lower().endswith((*IMAGE_SUFFIXES, *UNREAD_SUFFIXES))


def with_class_folders(container: Container) -> Container:
    """Return a container whose files are called by side and class where Tiny ImageNet's are not.

    Its test images have no labels and are left out, as are its boxes.
    """
    listed = [path for path in container.files if f"/{path}".endswith(f"/{ANNOTATIONS}")]
    if len(listed) != 1:
        return container
    lines = container.read_text(listed[0])
    label_of = dict(re.findall(r"^([^\t\n]+)\t([^\t\n]+)", lines, re.MULTILINE))
    root, paths = listed[0].removesuffix(ANNOTATIONS), dict[str, str]()
    for path in container.files:
        match path.removeprefix(root).split("/"):
            case ["train", label, "images", name]:
                paths[f"train/{label}/{name}"] = path
            case ["val", "images", name]:
                paths["/".join(filter(None, ["val", label_of.get(name), name]))] = path
            case ["val", label, *_, name] if looks_like_image(name):  # was put into class folders
                paths[f"val/{label}/{name}"] = path
    hidden = [*container.hidden, f"{root}test"]
    read_one = container.read_one
    return Container([*paths], [], hidden, lambda name: read_one(paths[name]))


def arrange(container: Container, where: Path) -> Source:
    """Give every file its class and side.

    Raises DataError when the tree has no class folders or is ambiguous.
    """
    files = {path: tuple(path.split("/")) for path in container.files}
    if not files:
        raise DataError(f"{where}: no images found", "point it at a folder of class folders")
    with_files = {names[:-1] for names in files.values()}
    with_images = {names[:-1] for path, names in files.items() if looks_like_image(path)}
    tree = _subfolders(with_files.union(tuple(path.split("/")) for path in container.folders))
    if not tree[()]:
        found = f"{len(files)} file{'s' * (len(files) != 1)} directly in it"
        what = f"{where}: expected one folder per class, found {found}"
        raise DataError(what, advise_classes(container.files, where))
    root = _root(tree, with_images)
    has_sides = _has_sides(tree, root, where)
    if not has_sides and len(tree[root]) > 1 and SIDE_OF.keys() >= set(map(str.lower, tree[root])):
        what = f"{where}: {' and '.join(sorted(tree[root]))} hold images, and no class folders"
        raise DataError(what, advise_classes(container.files, where))
    tops = [(*root, name) for name in sorted(tree[root])] if has_sides else [root]
    labels = {(*top, name): class_name(name, where) for top in tops for name in tree[top]}
    if any(tree[folder] for folder in labels) and with_images.isdisjoint(labels):
        raise DataError(
            f"{where}: no images in {'/'.join(min(labels))} and beside it, only folders",
            "take out the level of folders that are no classes, or name a table of path and label",
        )
    refuse_twins({folder[-1]: label for folder, label in labels.items()}, where)
    classes, ignored = sorted(set(labels.values())), list(container.hidden)
    source = Source(where, [], classes, [], ignored, container)
    stems = {path.rpartition(".")[0] for path in files if path.lower().endswith(IMAGE_SUFFIXES)}
    for path, names in files.items():
        folder = names[: len(tops[0]) + 1]
        if unread(path) and path.rpartition(".")[0] in stems:  # a camera's raw file of that photo
            source.ignored.append(path)
        elif folder in labels:
            name = "/".join(names[len(root) :])
            side = SIDE_OF[folder[-2].lower()] if has_sides else ""
            source.members.append(Member(name, labels[folder], side, path))
        else:
            (source.homeless if looks_like_image(path) else source.ignored).append(path)
    source.homeless.sort()  # a tar has an order of its own
    return source


def advise_classes(files: Iterable[str], where: Path) -> str:
    """Say how a dataset of fewer than two classes may name them, by what lies at its top."""
    if where.suffix.lower() in TABLES:
        return "give at least two labels"
    tops = sorted(file for file in files if "/" not in file)
    tables = [str(where / name) for name in tops if name.lower().endswith(TABLES)]
    if not tables and any(name.lower().endswith(ARCHIVES) for name in tops):
        return "unpack the archives inside it"
    fix = "put the images of each class into a folder of its own"
    if tables and where.is_dir():
        return f"{fix}, or name the table: {' or '.join(tables)}"
    return f"{fix}, or unpack it and name the table in it" if tables else fix


def _subfolders(folders: Iterable[Folder]) -> dict[Folder, set[str]]:
    """Return the names of the subfolders of every folder."""
    tree: dict[Folder, set[str]] = defaultdict(set)
    for folder in folders:
        for depth in range(len(folder)):
            tree[folder[:depth]].add(folder[depth])
    return tree


def _root(tree: dict[Folder, set[str]], with_images: set[Folder]) -> Folder:
    """Go down while a folder holds nothing but one folder of folders."""
    root: Folder = ()
    while len(tree[root]) == 1:
        child = (*root, *tree[root])
        if not tree[child] or not with_images.isdisjoint((root, child)):
            break
        root = child
    return root


def _has_sides(tree: dict[Folder, set[str]], root: Folder, where: Path) -> bool:
    """Tell whether the folders below the root are sides; refuse a mixture, or two for one side."""
    names = sorted(tree[root])
    # a class may well be called "train": a side has folders in it
    sides = [name for name in names if name.lower() in SIDE_OF and tree[(*root, name)]]
    meant = {SIDE_OF[name.lower()] for name in sides}
    if sides and (len(sides) < len(names) or len(meant) < len(sides) or "train" not in meant):
        raise DataError(
            f"{where}: the folders {', '.join(names)} do not make up train, val and test",
            "keep one folder per side on that level, one of them train",
        )
    return bool(sides)


def refuse_twins(labels: dict[str, str], where: Path) -> None:
    """Refuse classes, by their names as found, that some system or reader takes for one."""
    names_of: dict[str, list[str]] = defaultdict(list)
    for name, label in sorted(labels.items()):
        names_of[" ".join(label.split()).casefold()].append(name)
    if twins := [names for names in names_of.values() if len(names) > 1]:
        is_seen = len({unicodedata.normalize("NFKC", name) for name in twins[0]}) > 1
        shown = map(repr if is_seen else ascii, twins[0])
        what = f"the classes {' and '.join(shown)} differ only in case, blanks or Unicode form"
        what += f" (and {len(twins) - 1} more)" * (len(twins) > 1)
        raise DataError(f"{where}: {what}", "merge them into one, or rename one")


def class_name(name: str, where: Path) -> str:
    """Return a class name in Unicode form NFC; refuse what would harm a reader of the reports.

    Class names become columns of CSV files, keys of JSON files and words in charts.
    """
    label = unicodedata.normalize("NFC", name)
    faults = {
        "is empty": not label.strip(),
        "is not UTF-8": any(unicodedata.category(char) == "Cs" for char in label),
        "has control characters": has_control_characters(label),
        "starts like a formula": label[:1] in "=+-@",
    }
    if fault := next((words for words, holds in faults.items() if holds), ""):
        raise DataError(f"{where}: the class name {name!a} {fault}", "rename the class")
    return label
