"""Find sides and classes in a tree of folders: which folder is a class, which one train or test.

    photos/cat/1.jpg                   class folders
    photos/train/cat/1.jpg             class folders below sides, which are respected
    wrapper/photos/train/cat/a/1.jpg   lone folders above are skipped; folders inside a class are
                                       part of it

Anything else is refused in words, because a guess would change labels silently.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from resnets.errors import DataError

SIDES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
TOOL_NAMES = frozenset({"__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini", "__pycache__"})
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic"}
)


@dataclass(frozen=True)
class Place:
    """Say where a file belongs: its name below the root, its class, the side it comes with."""

    path: str
    name: str
    label: str
    side: str


@dataclass
class Layout:
    """Hold the files that belong to classes, the classes, and what belongs to none."""

    places: list[Place] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    homeless: list[str] = field(default_factory=list)  # images outside the class folders
    ignored: list[str] = field(default_factory=list)  # hidden files, files of tools, READMEs


class _Tree:
    """Hold the subfolders and the files of every folder; a folder is a tuple of names."""

    def __init__(self, files: Iterable[str], folders: Iterable[str]) -> None:
        self.folders: dict[tuple[str, ...], set[str]] = defaultdict(set)
        self.files: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for folder in folders:
            self._add(tuple(folder.split("/")))
        for path in files:
            *parents, _ = path.split("/")
            self._add(tuple(parents))
            self.files[tuple(parents)].append(path)

    def _add(self, folder: tuple[str, ...]) -> None:
        while folder and folder[-1] not in self.folders[folder[:-1]]:
            self.folders[folder[:-1]].add(folder[-1])
            folder = folder[:-1]

    def has_image(self, folder: tuple[str, ...]) -> bool:
        """Tell whether the folder itself holds a file that is called like an image."""
        return any(looks_like_image(path) for path in self.files[folder])


def looks_like_image(path: str) -> bool:
    """Tell from the name alone whether a file outside the class folders was meant as an image."""
    return PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES


def is_hidden(path: str) -> bool:
    """Tell whether a path belongs to a tool or is hidden, and so never is data."""
    return any(part.startswith(".") or part in TOOL_NAMES for part in path.split("/"))


def arrange(files: list[str], folders: list[str], where: str) -> Layout:
    """Give every file its class and side; `folders` are named so that empty classes are noticed.

    Raises DataError when the tree has no class folders or is ambiguous.
    """
    layout = Layout(ignored=[path for path in files if is_hidden(path)])
    files = [path for path in files if not is_hidden(path)]
    tree = _Tree(files, (path for path in folders if not is_hidden(path)))
    if not files:
        raise DataError(f"{where}: no images found", "point it at a folder of class folders")
    root = _root(tree)
    has_sides = _has_sides(tree, root, where)
    tops = [(*root, name) for name in sorted(tree.folders[root])] if has_sides else [root]
    if not any(tree.folders[top] for top in tops):
        raise DataError(
            f"{where}: expected one folder per class, found {len(files)} files directly in "
            f"{'/'.join(root) or 'it'}",
            "put the images of each class into a folder of its own",
        )
    labels = _labels(tree, tops, where)
    layout.classes = sorted(set(labels.values()), key=str.encode)
    for path in sorted(files):
        parts = tuple(path.split("/"))
        folder = parts[: len(tops[0]) + 1]
        if folder in labels:
            side = SIDES[folder[-2].lower()] if has_sides else ""
            layout.places.append(Place(path, "/".join(parts[len(root) :]), labels[folder], side))
        elif looks_like_image(path):
            layout.homeless.append(path)
        else:
            layout.ignored.append(path)
    return layout


def _root(tree: _Tree) -> tuple[str, ...]:
    """Go down while a folder holds nothing but one folder of folders."""
    root: tuple[str, ...] = ()
    while len(tree.folders[root]) == 1 and not tree.has_image(root):
        (only,) = tree.folders[root]
        if not tree.folders[(*root, only)] or tree.has_image((*root, only)):
            break
        root = (*root, only)
    return root


def _has_sides(tree: _Tree, root: tuple[str, ...], where: str) -> bool:
    """Tell whether the folders below the root are sides; refuse a mixture, or two for one side."""
    names = sorted(tree.folders[root])
    # a class may well be called "train": a side has folders in it
    sides = [name for name in names if name.lower() in SIDES and tree.folders[(*root, name)]]
    if not sides:
        return False
    meant = {SIDES[name.lower()] for name in sides}
    if len(sides) < len(names) or len(meant) < len(sides) or "train" not in meant:
        raise DataError(
            f"{where}: the folders {', '.join(names)} do not make up train, val and test",
            "keep one folder per side on that level, one of them train",
        )
    return True


def _labels(tree: _Tree, tops: list[tuple[str, ...]], where: str) -> dict[tuple[str, ...], str]:
    """Return the class of each class folder, by its name in Unicode form NFC."""
    labels = {(*top, name): class_name(name, where) for top in tops for name in tree.folders[top]}
    if any(map(tree.folders.get, labels)) and not any(map(tree.files.get, labels)):
        raise DataError(
            f"{where}: no files in {'/'.join(min(labels))} and beside it, only folders",
            "point it at the folder that holds the class folders",
        )
    spellings: dict[str, set[str]] = defaultdict(set)
    for folder, label in labels.items():
        spellings[label.casefold()].add(folder[-1])
    for twins in spellings.values():
        if len(twins) > 1:
            names = " and ".join(ascii(name) for name in sorted(twins))
            raise DataError(
                f"{where}: the class folders {names} differ only in case or Unicode form",
                "merge or rename them",
            )
    return labels


def has_control_characters(name: str) -> bool:
    """Tell whether a name would break a table: control characters, or bytes that are not UTF-8."""
    return not name.isprintable() and any(unicodedata.category(c) in ("Cc", "Cs") for c in name)


def class_name(name: str, where: str) -> str:
    """Return a class name in Unicode form NFC; refuse what would harm a reader of the reports.

    Class names become columns of CSV files, keys of JSON files and words in charts.
    """
    label = unicodedata.normalize("NFC", name)
    if has_control_characters(label) or not label.strip() or label[0] in "=+-@":
        raise DataError(
            f"{where}: the class name {name!a} has control characters, is not UTF-8, or starts "
            "like a formula",
            "rename the folder",
        )
    return label
