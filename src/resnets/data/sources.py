"""Open a dataset in place: a folder, a zip, a tar (also compressed), or the four IDX files.

Nothing is extracted: members are read one after the other into memory, each up to a limit.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from resnets.data.archives import Container, open_archive
from resnets.data.idx import is_idx_folder, open_idx
from resnets.data.layout import Source, arrange, is_hidden
from resnets.system.errors import DataError
from resnets.tasks.decode import BadImageError, read_file


def open_source(path: Path) -> Source:
    """List the images of a dataset and their classes, without opening any.

    Raises DataError when there is no dataset, or one that is not safe or not clear.
    """
    if path.is_dir() and is_idx_folder(path):
        return open_idx(path)
    if not path.exists():
        raise DataError(f"{path}: no such folder or archive", "correct the path, or fetch the data")
    return arrange(_open_folder(path) if path.is_dir() else open_archive(path), path)


def _open_folder(root: Path) -> Container:
    """List a folder; pipes and devices are left alone, links may not lead out of the dataset."""
    inside = root.resolve()
    listed, folders = [], []
    for parent, subfolders, files in os.walk(root, onerror=_refuse_folder):
        here = Path(parent).relative_to(root)
        for name in list(subfolders):
            path = (here / name).as_posix()
            if is_hidden(name):
                subfolders.remove(name)
                listed.append(f"{path}/")  # as ignored, but not entered
            elif (root / path).is_symlink():
                raise DataError(f"{root / path}: a link to a folder", "put the folder itself there")
            else:
                folders.append(path)
        for name in files:
            path = (here / name).as_posix()
            if (root / path).is_symlink() and not is_hidden(name):
                _check_link(root / path, inside)
            if (root / path).is_file() or not (root / path).exists():  # a dangling link is bad
                listed.append(path)

    def read(paths: Iterable[str]) -> Iterator[tuple[str, bytes | BadImageError]]:
        for path in paths:
            try:
                yield path, read_file(root / path)
            except BadImageError as error:
                yield path, error

    return Container(sorted(listed, key=os.fsencode), folders, read)


def _refuse_folder(error: OSError) -> None:
    """Stop at a folder that cannot be listed: its images would be missing without a word."""
    raise DataError(f"{error.filename}: {error.strerror}", "correct its permissions") from error


def _check_link(file: Path, inside: Path) -> None:
    """Refuse a link that leads out of the dataset; DVC's cache is no harm."""
    target = Path(os.path.realpath(file))
    if not target.is_relative_to(inside) and "/files/md5/" not in target.as_posix():
        raise DataError(f"{file}: a link that points outside the dataset", "copy the file there")
