"""Read zip and tar archives in place, and refuse those made to do harm.

Refused as a whole, with the member's name: names that lead elsewhere, links, devices, encrypted
or doubled entries, more members or more bytes than an honest dataset has. A damaged member is
refused alone.
"""

import stat
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from resnets.data.decode import BadImageError, check_file_size
from resnets.data.sources import Container, Content, Entry
from resnets.errors import DataError, ResNetsError

MAX_MEMBERS = 2_000_000  # ImageNet has 1.3 million
MAX_RATIO = 200  # photos hardly compress; beyond this, and beyond MIN_BOMB, it is a bomb
MIN_BOMB = 2**30
MAX_HEADER = 2**20  # bytes of a name or of extended attributes in a tar
FIX = "make the archive again from a folder of class folders"


def open_archive(path: Path) -> Container:
    """List an archive, by its content and not by its name.

    Raises DataError that names the archive and the member.
    """
    try:
        return _open_zip(path) if zipfile.is_zipfile(path) else _open_tar(path)
    except (ResNetsError, MemoryError):
        raise
    except Exception as error:  # a broken archive raises anything, from OSError to struct.error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{path}: neither a folder nor a readable zip or tar archive: {reason}",
            "correct the path, or fetch the archive again",
        ) from error


class _Listing:
    """Collect the members of an archive, and refuse the dangerous ones."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.limit = max(MIN_BOMB, MAX_RATIO * path.stat().st_size)
        self.num_bytes = 0
        self.entries: list[Entry] = []
        self.folders: list[str] = []
        self.names: dict[str, str] = {}  # a clean path, and the member's own name

    def add(self, name: str, num_bytes: int, stamp: str, *, is_folder: bool, fault: str) -> None:
        """Take one member; `fault` says what kind of thing it is when it may not be taken."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        outside = ".." in parts or PurePosixPath(name).is_absolute() or "\\" in name
        if outside or "\0" in name or PureWindowsPath(name).drive:
            fault = "a name that leads out of the archive"
        clean = "/".join(parts)
        if not is_folder and clean in self.names:
            fault = "a second member of that name"
        if fault:
            raise DataError(f"{self.path}: {name!r} is {fault}", FIX)
        if is_folder:
            self.folders += [clean] if clean else []
            return
        self.names[clean] = name
        self.num_bytes += num_bytes
        if len(self.names) > MAX_MEMBERS or self.num_bytes > self.limit:
            raise DataError(
                f"{self.path}: {name!r} is one member or byte too many "
                f"({len(self.names)} members, {self.num_bytes} bytes)",
                FIX,
            )
        self.entries.append(Entry(clean, stamp))


def _open_zip(path: Path) -> Container:
    """List a zip archive."""
    listing = _Listing(path)
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            fault = "encrypted" if info.flag_bits & 1 else ""
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                fault = "a link or a device"
            if info.orig_filename != info.filename:
                fault = "a name with a zero in it"
            stamp = f"{info.file_size} {info.CRC}"
            listing.add(info.filename, info.file_size, stamp, is_folder=info.is_dir(), fault=fault)

    def read(paths: Iterable[str]) -> Iterator[tuple[str, Content]]:
        with zipfile.ZipFile(path) as archive:
            for name in paths:
                yield name, _read_member(archive, listing.names[name])

    return Container(sorted(listing.entries, key=lambda e: e.path), listing.folders, read)


def _read_member(archive: zipfile.ZipFile, name: str) -> Content:
    """Read one member of a zip; its checksum is compared while reading."""
    try:
        check_file_size(archive.getinfo(name).file_size)
        return archive.read(name)
    except BadImageError as error:
        return error
    except MemoryError:
        raise
    except Exception as error:  # each compression has its own
        return BadImageError("damaged", f"damaged in the archive: {error}")


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


def _check_end(archive: tarfile.TarFile) -> None:
    """Insist on the block of zeros at the end: tarfile takes a damaged header for the end."""
    file = archive.fileobj
    assert file is not None
    file.seek(archive.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it ends too early")
    while file.read(2**20):  # a compressed archive has its checksum at the very end
        pass


def _open_tar(path: Path) -> Container:
    """List a tar archive, which keeps its order: a compressed one cannot be read in another."""
    listing = _Listing(path)
    with tarfile.open(path, tarinfo=_Header) as archive:
        for info in _members(archive):
            is_plain = info.isdir() or (info.isreg() and not info.issparse())
            fault = "" if is_plain else "a link, a device or a sparse file"
            stamp = f"{info.size} {info.mtime}"
            listing.add(info.name, info.size, stamp, is_folder=info.isdir(), fault=fault)
        _check_end(archive)

    def read(paths: Iterable[str]) -> Iterator[tuple[str, Content]]:
        clean = {listing.names[name]: name for name in paths}
        with tarfile.open(path, tarinfo=_Header) as archive:
            for info in _members(archive):
                if info.name in clean and info.isreg():
                    yield clean[info.name], _read_tar_member(archive, info, path)

    return Container(listing.entries, listing.folders, read)


def _read_tar_member(archive: tarfile.TarFile, info: tarfile.TarInfo, path: Path) -> Content:
    """Read one member of a tar; a tar that ends early is refused as a whole."""
    try:
        check_file_size(info.size)
        file = archive.extractfile(info)
        data = file.read() if file else b""
    except BadImageError as error:
        return error
    except MemoryError:
        raise
    except Exception as error:  # each compression has its own
        raise DataError(f"{path}: damaged at {info.name!r}: {error}", "fetch it again") from error
    if len(data) < info.size:
        raise DataError(f"{path}: the archive ends in {info.name!r}", "fetch it again")
    return data
