"""Find the images that `resnets predict` is asked about: files, folders, globs, archives, a list.

Everything that is named gets its place in the answer: what cannot be opened comes back as the
reason why. Nothing is extracted, nothing is held but the names below one folder or in one archive.
"""

import glob
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice, repeat
from pathlib import Path

from resnets.data.containers import is_hidden, open_container, unread
from resnets.system.errors import DataError, ParamsError
from resnets.tasks.decode import BadImageError

ARCHIVES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz")
InputContent = Path | bytes | BadImageError  # a file to read, what it held, or why there is none
Input = tuple[str, InputContent]
Shard = tuple[int, int]  # number, from 1, and how many there are
ALL: Shard = (1, 1)
LINK = BadImageError("unreadable", "a link to a folder; name the folder")


def parse_shard(text: str) -> Shard:
    """Read 3/16 as the third of sixteen shards; raise ParamsError for what is none."""
    number, slash, count = text.partition("/")
    if slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
        return int(number), int(count)
    raise ParamsError(f"--shard {text}: no shard", "write 1/16 to 16/16 for the parts of 16")


def find_inputs(
    arguments: Iterable[str], lines: Iterable[bytes], *, read: bool = True, shard: Shard = ALL
) -> Iterator[Input]:
    """Yield each image's path with its content, in the order of the arguments.

    `-` stands for `lines`, one path in each. A folder and an archive of it give the same order,
    that of the bytes of the paths; only a tar keeps its own. With `read` off, archives are listed
    and not read. Shard number k of n gets the k-th of every n inputs.
    """
    number, count = shard
    found = islice(_all_inputs(arguments, lines, read=read), number - 1, None, count)
    for name, content in found:
        yield name, (content if isinstance(content, BadImageError) else unread(name) or content)


def _all_inputs(arguments: Iterable[str], lines: Iterable[bytes], *, read: bool) -> Iterator[Input]:
    """Yield the inputs of all shards."""
    listed = (os.fsdecode(line.rstrip(b"\r\n")) for line in lines)
    for argument in arguments:
        for text in listed if argument == "-" else (argument,):
            if "\0" in text:  # `find -print0` is no list of lines
                yield text, BadImageError("unreadable", "a null byte in its name")
            elif text:
                yield from _expand(text, read=read)


def _expand(text: str, *, read: bool, is_found: bool = False) -> Iterator[Input]:
    """Yield what an argument, a line of the list, or a name found by a pattern stands for."""
    path, mode = Path(text), 0
    with suppress(OSError):  # of a pattern; for a file, its decoder says why
        mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        yield from _walk(text)
    elif stat.S_ISREG(mode) and path.name.lower().endswith(ARCHIVES):
        yield from _open(path, read=read)
    elif mode or is_found or not ("://" in text or glob.has_magic(text)):
        yield text, path
    elif "://" in text:
        yield text, BadImageError("unreadable", "not a local file; nothing is downloaded")
    else:
        yield from _find(text, read=read)


def _find(pattern: str, *, read: bool) -> Iterator[Input]:
    """Yield what a pattern finds, each photo once: `**` goes through links, and so in circles."""
    names = sorted({*glob.glob(pattern, recursive=True)}, key=os.fsencode)  # noqa: PTH207
    if not names:
        yield pattern, BadImageError("unreadable", "no file matches")
    fixed, done = len(Path(pattern.partition("**")[0]).parts), set[Path]()

    def is_link(path: Path) -> bool:
        return len(path.parts) > fixed and path.is_symlink() and path.is_dir()

    for name in names:
        found = Path(name)
        if done.intersection((found, *found.parents)) or any(map(is_link, found.parents)):
            continue
        if found.is_dir():
            done.add(found)  # all of its files are given
        if is_link(found):
            yield name, LINK
        else:
            yield from _expand(name, read=read, is_found=True)


def _walk(folder: str) -> Iterator[Input]:
    """Yield all files of a folder and its subfolders but hidden ones and those of tools."""
    inputs: dict[str, InputContent] = {}

    def note(error: OSError) -> None:
        inputs[error.filename] = BadImageError("unreadable", error.strerror or "cannot be listed")

    for parent, subfolders, files in os.walk(folder, onerror=note):
        subfolders[:] = [name for name in subfolders if not is_hidden(name)]
        links = [name for name in subfolders if Path(parent, name).is_symlink()]
        for name in links:
            inputs[os.path.join(parent, name)] = LINK  # noqa: PTH118  (a leading ./ stays)
        for name in files:
            if not is_hidden(name):
                inputs[os.path.join(parent, name)] = Path(parent, name)  # noqa: PTH118
    yield from sorted(inputs.items(), key=lambda item: os.fsencode(item[0]))


def _open(path: Path, *, read: bool) -> Iterator[Input]:
    """Yield the files in an archive, in place; one that is broken is one input with an error."""
    try:
        container = open_container(path)
        contents = container.read(container.files) if read else repeat(b"")
        for name, content in zip(container.files, contents, strict=False):
            yield f"{path}/{name}", content
    except DataError as error:
        yield str(path), BadImageError("damaged", error.what)
