"""Read folders, zip and tar archives in place; nothing is extracted, so no name leads elsewhere.

A file that is damaged, encrypted, a device or a dangling link is refused alone, but a tar with
links or devices whole; one that unpacks to more than an image, without unpacking it. Of two
members with one name the last one counts.
"""

import os
import posixpath
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnets.system.errors import DataError
from resnets.tasks.decode import BadImageError, check_file_size, read_file

TOOL_NAMES = frozenset({"__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini", "Icon\r", "__pycache__"})

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".heic", ".heif", ".avif"),
)
UNREAD_SUFFIXES = (  # of photos as well, but no format that is read
    *(".nef", ".cr2", ".cr3", ".arw", ".dng", ".orf", ".rw2", ".raf"),
    *(".jxl", ".jp2", ".psd"),
)
FIXES = {  # what to do with a file that is no archive, or none that is read, by its suffix
    **dict.fromkeys((".xlsx", ".xls", ".ods", ".txt", ".json"), "save the table as .csv"),
    **dict.fromkeys((".rar", ".7z"), "unpack it, and name the folder"),
    **dict.fromkeys((*IMAGE_SUFFIXES, *UNREAD_SUFFIXES), "name the folder above it"),
}

Listing = tuple[list[str], list[str], Callable[[str], bytes]]  # files, folders, reads one file


def unread(name: str) -> BadImageError | None:
    """Return why a photo of this name is not read: some formats hold a preview, which decodes."""
    if not name.lower().endswith(UNREAD_SUFFIXES):
        return None
    return BadImageError("other_format", f"{Path(name).suffix} files are not read")


@dataclass(frozen=True)
class Container:
    """Hold what a folder or an archive contains, and how to read it."""

    files: list[str]
    folders: list[str]
    hidden: list[str]  # files that are hidden or belong to a tool
    read_one: Callable[[str], Any]  # returns bytes, or from IDX files pixels

    def read(self, files: Iterable[str]) -> Iterator[Any]:
        """Yield the content of each file or why it is refused; fast in the order of `files`."""
        for file in files:
            try:
                yield self.read_one(file)
            except BadImageError as error:
                yield error
            except MemoryError:
                raise
            except Exception as error:  # each compression has its own
                yield BadImageError("damaged", f"damaged in the archive: {error}")

    def read_text(self, file: str) -> str:
        """Return the text of a file that tells about the others, or raise DataError."""
        (content,) = self.read([file])
        if isinstance(content, BadImageError):
            raise DataError(f"{file}: {content.what}", "fetch the dataset again") from content
        return bytes(content).decode("utf-8-sig", "replace")


def is_hidden(path: str) -> bool:
    """Tell whether a path belongs to a tool or is hidden, and so never is data."""
    return any(part.startswith(".") or part in TOOL_NAMES for part in path.split("/"))


def open_container(path: Path) -> Container:
    """List a folder, or an archive by its content and not by its name.

    Raises DataError when it is neither, or cannot be read as a whole.
    """
    what = f"{path}: neither a folder nor a readable zip or tar archive"
    if path.is_file() and (fix := FIXES.get(path.suffix.lower())):  # a spreadsheet is a zip too
        raise DataError(what, fix)
    try:
        kind = _folder if path.is_dir() else _zip if zipfile.is_zipfile(path) else _tar
        files, folders, read_one = kind(path)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # a broken archive raises anything, from OSError to struct.error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if reason.endswith(":"):  # a line for each compression follows
            reason = "it starts as neither does, or is cut off"
        fix = "correct the path, or fetch the archive again"
        raise DataError(f"{what}: {reason}", fix) from error
    hidden = [file for file in files if is_hidden(file)]
    files = [file for file in files if not is_hidden(file)]
    return Container(files, [x for x in folders if x and not is_hidden(x)], hidden, read_one)


def _folder(root: Path) -> Listing:
    """List a folder; hidden subfolders are named, but not entered."""
    files, folders = [], []
    for parent, subfolders, names in os.walk(root, onerror=_refuse_folder):
        here = Path(parent).relative_to(root)
        names += filter(is_hidden, subfolders)
        files += [(here / name).as_posix() for name in names]
        subfolders[:] = [name for name in subfolders if not is_hidden(name)]
        for folder in (here / name for name in subfolders):
            if (root / folder).is_symlink():
                raise DataError(f"{root / folder}: a link to a folder", "put the folder there")
            folders.append(folder.as_posix())
    return sorted(files), folders, lambda file: read_file(root / file)


def _refuse_folder(error: OSError) -> None:
    """Stop at a folder that cannot be listed: its images would be missing without a word."""
    raise DataError(f"{error.filename}: {error.strerror}", "correct its permissions") from error


def _clean(name: str) -> str:
    """Return the path of a member below the root of its archive."""
    return posixpath.normpath(f"/{name}").lstrip("/")


def _member_name(info: zipfile.ZipInfo) -> str:
    """Return the name of a member of a zip; macOS writes UTF-8 without saying so."""
    name = info.filename
    if not info.flag_bits & 0x800:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return _clean(name.replace("\\", "/"))  # as some Windows tools write it


def _zip(path: Path) -> Listing:
    """List a zip archive."""
    archive = zipfile.ZipFile(path)
    members = {_member_name(info): info for info in archive.infolist()}

    def read_one(name: str) -> bytes:
        info = members[name]
        if info.flag_bits & 1:
            raise BadImageError("encrypted", "locked with a password")
        check_file_size(info.file_size)
        with archive.open(info) as file:
            return file.read(info.file_size)

    files = sorted(name for name, info in members.items() if not info.is_dir())
    return files, [name for name, info in members.items() if info.is_dir()], read_one


def _tar(path: Path) -> Listing:
    """List a tar archive in its own order, in which alone a compressed one is read fast."""
    members: dict[str, tuple[int, int]] = {}
    folders = []
    archive = tarfile.open(path)  # noqa: SIM115  # `read_one` goes on with it
    file = archive.fileobj
    assert file is not None
    while (info := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # each takes a kilobyte
        if info.isdir():
            folders.append(_clean(info.name))
        elif info.isreg() and not info.issparse():
            members[_clean(info.name)] = info.offset_data, info.size
        else:
            what = f"{path}: {info.name!r} in it is a link, a device or a sparse file"
            raise DataError(
                what, "pack the files themselves (tar --dereference --hard-dereference)"
            )
    file.seek(archive.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile stops at damage too
        raise tarfile.ReadError("it ends too early")
    while file.read(2**20):  # as far as the checksum
        pass

    def read_one(name: str) -> bytes:
        offset, num_bytes = members[name]
        check_file_size(num_bytes)
        file.seek(offset)
        return file.read(num_bytes)

    return list(members), folders, read_one
