"""Open a dataset in place: a folder, a zip, a tar (also compressed), or the four IDX files.

Nothing is extracted: members are read one after the other into memory, each up to a limit.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from resnets.data.decode import BadImageError, Pixels, read_file
from resnets.data.layout import arrange, is_hidden
from resnets.errors import DataError


@dataclass(frozen=True)
class Entry:
    """Name one file inside a container; `stamp` changes when its content does."""

    path: str
    stamp: str


@dataclass(frozen=True)
class Member:
    """Name one image of a dataset, its class, and the side it comes with ("" where none)."""

    name: str
    label: str
    side: str
    path: str
    stamp: str


Content = bytes | Pixels | BadImageError  # a file, pixels as such, or why there is neither
Reader = Callable[[Iterable[str]], Iterator[tuple[str, Content]]]


@dataclass(frozen=True)
class Container:
    """Hold what a folder or an archive contains, and how to read it.

    `read` takes the paths wanted, in the order of `entries`, and yields each with its content.
    """

    entries: list[Entry]
    folders: list[str]
    read: Reader


@dataclass(frozen=True)
class Source:
    """Hold a dataset: its images in reading order, its classes, and what is no part of it."""

    path: Path
    members: list[Member]
    classes: list[str]
    homeless: list[str]
    ignored: list[str]
    reader: Reader

    def read(self, members: list[Member]) -> Iterator[tuple[Member, Content]]:
        """Yield the members with their content; pass them in the order of `self.members`."""
        by_path = {member.path: member for member in members}
        for path, content in self.reader(by_path):
            yield by_path[path], content


def open_source(path: Path) -> Source:
    """List the images of a dataset and their classes, without opening any.

    Raises DataError when there is no dataset, or one that is not safe or not clear.
    """
    from resnets.data import archives, idx

    if path.is_dir():
        if idx.is_idx_folder(path):
            return idx.open_idx(path)
        container = _open_folder(path)
    elif path.is_file():
        container = archives.open_archive(path)
    else:
        raise DataError(f"{path}: no such folder or archive", "correct the path, or fetch the data")
    layout = arrange([entry.path for entry in container.entries], container.folders, str(path))
    places = {place.path: place for place in layout.places}
    members = [
        Member(place.name, place.label, place.side, place.path, entry.stamp)
        for entry in container.entries
        if (place := places.get(entry.path))
    ]
    return Source(path, members, layout.classes, layout.homeless, layout.ignored, container.read)


def _open_folder(root: Path) -> Container:
    """List a folder; pipes and devices are left alone, links may not lead out of the dataset."""
    inside = root.resolve()
    entries, folders = [], []
    for parent, subfolders, files in os.walk(root, onerror=_refuse_folder):
        here = Path(parent)
        for name in list(subfolders):
            folder = (here / name).relative_to(root).as_posix()
            if is_hidden(name):
                subfolders.remove(name)
                entries.append(Entry(f"{folder}/", ""))  # listed as ignored, but not entered
            elif (here / name).is_symlink():
                raise DataError(f"{here / name}: a link to a folder", "put the folder itself there")
            else:
                folders.append(folder)
        for name in files:
            file = here / name
            if file.is_symlink() and not is_hidden(name):
                _check_link(file, inside)
            status = file.stat() if file.exists() else file.lstat()
            if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
                stamp = f"{status.st_size} {status.st_mtime_ns}"
                entries.append(Entry(file.relative_to(root).as_posix(), stamp))

    def read(paths: Iterable[str]) -> Iterator[tuple[str, Content]]:
        for path in paths:
            try:
                yield path, read_file(root / path)
            except BadImageError as error:
                yield path, error

    return Container(sorted(entries, key=lambda e: os.fsencode(e.path)), folders, read)


def _refuse_folder(error: OSError) -> None:
    """Stop at a folder that cannot be listed: its images would be missing without a word."""
    raise DataError(f"{error.filename}: {error.strerror}", "correct its permissions") from error


def _check_link(file: Path, inside: Path) -> None:
    """Refuse a link that leads out of the dataset, unless it leads into DVC's cache."""
    target = Path(os.path.realpath(file))
    if not target.is_relative_to(inside) and "/files/md5/" not in target.as_posix():
        raise DataError(f"{file}: a link that points outside the dataset", "copy the file there")
