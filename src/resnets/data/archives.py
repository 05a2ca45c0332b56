"""Read zip and tar archives in place, and refuse those made to do harm.

Nothing is extracted, so a member's name leads nowhere. Refused as a whole, with the member's name:
links, devices, encrypted or doubled entries, more members or more bytes than an honest dataset has.
A damaged member is refused alone.
"""

import posixpath
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from resnets.system.errors import DataError, ResNetsError
from resnets.tasks.decode import BadImageError, check_file_size

MAX_MEMBERS = 2_000_000  # ImageNet has 1.3 million
MAX_RATIO = 200  # photos hardly compress; beyond this, and beyond MIN_BOMB, it is a bomb
MIN_BOMB = 2**30
MAX_HEADER = 2**20  # bytes of a name or of extended attributes in a tar

Reader = Callable[[Iterable[str]], Iterator[tuple[str, bytes | BadImageError]]]


@dataclass(frozen=True)
class Container:
    """Hold what a folder or an archive contains, and how to read it.

    `read` takes the paths wanted, in the order of `files`, and yields each with its bytes or the
    reason why not.
    """

    files: list[str]
    folders: list[str]
    read: Reader


def open_archive(path: Path) -> Container:
    """List an archive, by its content and not by its name.

    Raises DataError that names the archive and the member.
    """
    with _readable(path):
        return _open_zip(path) if zipfile.is_zipfile(path) else _open_tar(path)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Refuse an archive that is broken: it raises anything, from OSError to struct.error."""
    try:
        yield
    except (ResNetsError, MemoryError):
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{path}: neither a folder nor a readable zip or tar archive: {reason}",
            "correct the path, or fetch the archive again",
        ) from error


def _content(num_bytes: int, read: Callable[[int], bytes]) -> bytes | BadImageError:
    """Read one member of a declared size, at most one byte more; a damaged one is refused alone."""
    try:
        check_file_size(num_bytes)
        content = read(num_bytes + 1)
        if len(content) != num_bytes:
            raise ValueError(f"it does not hold the {num_bytes} bytes that it declares")
        return content
    except BadImageError as error:
        return error
    except MemoryError:
        raise
    except Exception as error:  # each compression has its own
        return BadImageError("damaged", f"damaged in the archive: {error}")


class _Listing:
    """Collect the members of an archive, and refuse the dangerous ones."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.limit = max(MIN_BOMB, MAX_RATIO * path.stat().st_size)
        self.num_bytes = 0
        self.folders: list[str] = []
        self.names: dict[str, str] = {}  # a clean path, and the member's own name

    def add(self, name: str, num_bytes: int, *, is_folder: bool, fault: str) -> None:
        """Take one member; `fault` says what kind of thing it is when it may not be taken."""
        clean = posixpath.normpath(f"/{name}").lstrip("/")
        if not is_folder and clean in self.names:
            fault = "a second member of that name"
        self.num_bytes += num_bytes
        if len(self.names) >= MAX_MEMBERS or self.num_bytes > self.limit:
            fault = f"one member or byte too many ({len(self.names)}, {self.num_bytes} bytes)"
        if fault:
            raise DataError(
                f"{self.path}: {name!r} is {fault}",
                "make the archive again from a folder of class folders",
            )
        if is_folder:
            self.folders += [clean] if clean else []
        else:
            self.names[clean] = name


def _open_zip(path: Path) -> Container:
    """List a zip archive."""
    listing = _Listing(path)
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            fault = "encrypted" if info.flag_bits & 1 else ""
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                fault = "a link or a device"
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # of others, zipfile decompresses 4 KB at once, which may become gigabytes
                fault = "compressed by another method than deflate"
            listing.add(info.filename, info.file_size, is_folder=info.is_dir(), fault=fault)

    def read(paths: Iterable[str]) -> Iterator[tuple[str, bytes | BadImageError]]:
        with zipfile.ZipFile(path) as archive:
            for name in paths:
                info = archive.getinfo(listing.names[name])
                yield name, _content(info.file_size, partial(_read_member, archive, info))

    return Container(sorted(listing.names), listing.folders, read)


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
    """Read up to `limit` bytes, also beyond the declared size, where zipfile itself would stop."""
    info.file_size = limit
    with archive.open(info) as file:
        return file.read(limit)


class _Header(tarfile.TarInfo):
    """Refuse headers of which tarfile would read any amount into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        """Parse one header block."""
        info = super().frombuf(buf, encoding, errors)
        if info.issparse() or (not info.isreg() and info.size > MAX_HEADER):
            raise ValueError(f"{info.name!r} is sparse, or a header of {info.size} bytes")
        return info


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar file without keeping them: each takes a kilobyte."""
    while (info := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # the type stubs lack it
        yield info


def _check_end(archive: tarfile.TarFile, limit: int) -> None:
    """Insist on the block of zeros at the end: tarfile takes a damaged header for the end.

    A compressed archive has its checksum at the very end, at most `limit` bytes further on.
    """
    file = archive.fileobj
    assert file is not None
    file.seek(archive.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it ends too early")
    while size := len(file.read(2**20)):
        limit -= size
        if limit < 0:
            raise tarfile.ReadError("it goes on after its end")


def _open_tar(path: Path) -> Container:
    """List a tar archive, which keeps its order: a compressed one cannot be read in another."""
    listing = _Listing(path)
    with tarfile.open(path, tarinfo=_Header) as archive:
        for info in _members(archive):
            is_plain = info.isdir() or (info.isreg() and not info.issparse())
            fault = "" if is_plain else "a link, a device or a sparse file"
            listing.add(info.name, info.size, is_folder=info.isdir(), fault=fault)
        _check_end(archive, listing.limit)

    def read(paths: Iterable[str]) -> Iterator[tuple[str, bytes | BadImageError]]:
        clean = {listing.names[name]: name for name in paths}
        with _readable(path), tarfile.open(path, tarinfo=_Header) as archive:
            for info in _members(archive):
                file = archive.extractfile(info) if info.name in clean else None
                if file is not None:
                    yield clean[info.name], _content(info.size, file.read)

    return Container(list(listing.names), listing.folders, read)
