"""Find the images that `resnets predict` is asked about: files, folders, globs, archives, a list.

Everything that is named gets its place in the answer: what cannot be opened comes back as the
reason why. Nothing is extracted, nothing is held but the names in one folder or one archive.
"""

import glob
import os
import stat
from collections.abc import Iterable, Iterator
from itertools import repeat
from pathlib import Path

from resnets.data.containers import is_hidden, open_container
from resnets.system.errors import DataError
from resnets.tasks.decode import BadImageError

ARCHIVES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz")
Content = Path | bytes | BadImageError  # a file to read, one that is read, or why there is none


def find_inputs(
    arguments: Iterable[str], lines: Iterable[bytes], *, read: bool = True
) -> Iterator[tuple[str, Content]]:
    """Yield each image's path with its content, in the order of the arguments.

    `-` stands for `lines`, one path in each. A folder and an archive of it give the same order,
    that of the bytes of the paths; only a tar keeps its own. With `read` off, archives are listed
    and not read.
    """
    for argument in arguments:
        named = (os.fsdecode(line.rstrip(b"\r\n")) for line in lines) if argument == "-" else ()
        for text in named if argument == "-" else (argument,):
            if text:
                yield from _expand(text, read=read)


def _expand(text: str, *, read: bool) -> Iterator[tuple[str, Content]]:
    """Yield what one argument or one line of the list stands for."""
    path = Path(text)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        yield from _expand_pattern(text, error, read=read)
        return
    if stat.S_ISDIR(mode):
        yield from _walk(text)
    elif stat.S_ISREG(mode) and path.name.lower().endswith(ARCHIVES):
        yield from _open(path, read=read)
    else:
        yield text, path


def _expand_pattern(
    text: str, error: OSError | ValueError, *, read: bool
) -> Iterator[tuple[str, Content]]:
    """Yield what matches a pattern; a name that is neither file nor pattern is an error."""
    if "://" in text:
        yield text, BadImageError("unreadable", "not a local file; nothing is downloaded")
    elif not glob.has_magic(text):
        detail = error.strerror if isinstance(error, OSError) else str(error)
        yield text, BadImageError("unreadable", detail or "cannot be opened")
    else:
        found = sorted(glob.glob(text, recursive=True), key=os.fsencode)  # noqa: PTH207
        if "**" in text:  # it lists the files of every folder already
            found = [name for name in found if not Path(name).is_dir()]
        for name in found:
            yield from _expand(name, read=read)
        if not found:
            yield text, BadImageError("unreadable", "no file matches")


def _walk(folder: str) -> Iterator[tuple[str, Content]]:
    """Yield all files of a folder and its subfolders but hidden ones and those of tools."""
    try:
        with os.scandir(folder) as listing:
            entries = [entry for entry in listing if not is_hidden(entry.name)]
    except OSError as error:
        yield folder, BadImageError("unreadable", error.strerror or "cannot be listed")
        return
    for entry in sorted(entries, key=_place):
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)
        elif entry.is_dir():
            yield entry.path, BadImageError("unreadable", "a link to a folder; name the folder")
        else:
            yield entry.path, Path(entry.path)


def _place(entry: os.DirEntry[str]) -> bytes:
    """Return what sorts a folder's entries as their whole paths would be sorted."""
    return os.fsencode(entry.name) + (b"/" if entry.is_dir(follow_symlinks=False) else b"")


def _open(path: Path, *, read: bool) -> Iterator[tuple[str, Content]]:
    """Yield the files in an archive, in place; one that is broken is one input with an error."""
    try:
        container = open_container(path)
        contents = container.read(container.files) if read else repeat(b"")
        for name, content in zip(container.files, contents, strict=False):
            yield f"{path}/{name}", content
    except DataError as error:
        yield str(path), BadImageError("damaged", error.what)
