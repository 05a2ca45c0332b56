"""Find sides and classes in a tree of folders: which folder is a class, which one train or test.

    photos/cat/1.jpg                   class folders
    photos/train/cat/1.jpg             class folders below sides, which are respected
    wrapper/photos/train/cat/a/1.jpg   lone folders above are skipped; folders inside a class are
                                       part of it

Anything else is refused in words, because a guess would change labels silently.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from resnets.data.archives import Container
from resnets.system.errors import DataError
from resnets.tasks.decode import BadImageError, Pixels

SIDES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
TOOL_NAMES = frozenset({"__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini", "__pycache__"})
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic"}
)

Folder = tuple[str, ...]  # the names from the top down
Content = bytes | Pixels | BadImageError  # a file, pixels as such, or why there is neither


@dataclass(frozen=True)
class Member:
    """Name one image of a dataset, its class, and the side it comes with ("" where none)."""

    name: str  # below the root of the dataset
    label: str
    side: str
    path: str  # in the folder or archive


@dataclass(frozen=True)
class Source:
    """Hold a dataset: its images in reading order, its classes, and what belongs to none."""

    path: Path
    members: list[Member]
    classes: list[str]
    homeless: list[str]  # images outside the class folders
    ignored: list[str]  # hidden files, files of tools, READMEs
    reader: Callable[[Iterable[str]], Iterator[tuple[str, Content]]]

    def read(self, members: list[Member]) -> Iterator[tuple[Member, Content]]:
        """Yield the members with their content; pass them in the order of `self.members`."""
        by_path = {member.path: member for member in members}
        for path, content in self.reader(by_path):
            yield by_path[path], content


class _Tree:
    """Hold the subfolders and the files of every folder."""

    def __init__(self, files: Iterable[str], folders: Iterable[str]) -> None:
        self.folders: dict[Folder, set[str]] = defaultdict(set)
        self.files: dict[Folder, list[str]] = defaultdict(list)
        for path in files:
            self.files[tuple(path.split("/")[:-1])].append(path)
        for folder in [*self.files, *(tuple(path.split("/")) for path in folders)]:
            for depth in range(len(folder)):
                self.folders[folder[:depth]].add(folder[depth])

    def has_image(self, folder: Folder) -> bool:
        """Tell whether the folder itself holds a file that is called like an image."""
        return any(map(looks_like_image, self.files[folder]))


def looks_like_image(path: str) -> bool:
    """Tell from the name alone whether a file outside the class folders was meant as an image."""
    return PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES


def is_hidden(path: str) -> bool:
    """Tell whether a path belongs to a tool or is hidden, and so never is data."""
    return any(part.startswith(".") or part in TOOL_NAMES for part in path.split("/"))


def arrange(container: Container, where: Path) -> Source:
    """Give every file its class and side.

    Raises DataError when the tree has no class folders or is ambiguous.
    """
    files = [path for path in container.files if not is_hidden(path)]
    tree = _Tree(files, (path for path in container.folders if not is_hidden(path)))
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
    classes = sorted(set(labels.values()), key=str.encode)
    hidden = [path for path in container.files if is_hidden(path)]
    source = Source(where, [], classes, [], hidden, container.read)
    for path in files:
        parts = tuple(path.split("/"))
        folder = parts[: len(tops[0]) + 1]
        if folder in labels:
            name = "/".join(parts[len(root) :])
            side = SIDES[folder[-2].lower()] if has_sides else ""
            source.members.append(Member(name, labels[folder], side, path))
        else:
            (source.homeless if looks_like_image(path) else source.ignored).append(path)
    source.homeless.sort()  # a tar has an order of its own
    return source


def _root(tree: _Tree) -> Folder:
    """Go down while a folder holds nothing but one folder of folders."""
    root: Folder = ()
    while len(tree.folders[root]) == 1 and not tree.has_image(root):
        (only,) = tree.folders[root]
        if not tree.folders[(*root, only)] or tree.has_image((*root, only)):
            break
        root = (*root, only)
    return root


def _has_sides(tree: _Tree, root: Folder, where: Path) -> bool:
    """Tell whether the folders below the root are sides; refuse a mixture, or two for one side."""
    names = sorted(tree.folders[root])
    # a class may well be called "train": a side has folders in it
    sides = [name for name in names if name.lower() in SIDES and tree.folders[(*root, name)]]
    meant = {SIDES[name.lower()] for name in sides}
    if sides and (len(sides) < len(names) or len(meant) < len(sides) or "train" not in meant):
        raise DataError(
            f"{where}: the folders {', '.join(names)} do not make up train, val and test",
            "keep one folder per side on that level, one of them train",
        )
    return bool(sides)


def _labels(tree: _Tree, tops: list[Folder], where: Path) -> dict[Folder, str]:
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


def class_name(name: str, where: Path) -> str:
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
