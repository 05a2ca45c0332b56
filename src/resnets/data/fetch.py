"""Fetch the datasets and the published weights that the recipes use, and verify them.

Only https is spoken, also after a redirect. A file is written aside, compared with its checksum and
then renamed; a broken download continues where it stopped. `--from` takes local files through the
same checks.
"""

import gzip
import hashlib
import os
import re
import shutil
import ssl
import urllib.request
import zlib
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError

from rich.console import Console
from rich.table import Table

from resnets.data.catalogue import File, Item, all_items
from resnets.system.errors import ArtefactError, EnvironmentFault, ParamsError
from resnets.system.files import write_text
from resnets.system.progress import follow

BLOCK = 2**18
MAX_BYTES = 2**32  # of a file whose size the publisher does not state
TIMEOUT = 30.0  # seconds without a byte


def fetch_by_name(name: str | None, root: Path, *, source: Path | None, sha256: str | None) -> None:
    """Fetch what has this name in the catalogue and print where it is; print all of it for None.

    Raises ParamsError for an unknown name.
    """
    console, items = Console(highlight=False, soft_wrap=True), all_items()
    if name is None:
        console.print(_table(items))
    elif name not in items:
        raise ParamsError(f"nothing is called {name!r}", "see what there is: resnets fetch")
    else:
        for path in fetch(name, items[name], root, source=source, sha256=sha256):
            console.print(f"{path}  verified")
        console.print(f"licence: {items[name].licence}\ncite: {items[name].citation}")


def _table(items: dict[str, Item]) -> Table:
    """Return the catalogue."""
    table = Table(show_lines=True)
    for title in ("name", "address", "bytes", "SHA-256", "licence", "citation"):
        table.add_column(title, overflow="fold")
    for name, item in items.items():
        for file in item.files:
            known = file.sha256 or "none published: give --sha256"
            size = str(file.size or "not published")
            table.add_row(name, file.url, size, known, item.licence, item.citation)
    return table


def fetch(
    name: str, item: Item, root: Path, *, source: Path | None = None, sha256: str | None = None
) -> list[Path]:
    """Bring the files of an item to their place below `root` and return their paths.

    `source` is a local file or folder to take them from, `sha256` the checksum of a single file
    that the publisher gives none for. Raises ArtefactError when a checksum differs,
    EnvironmentFault when an address cannot be reached.
    """
    files = item.files
    if sha256 is not None:
        if len(files) > 1 or not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ParamsError(
                f"--sha256 {sha256}: not 64 hex digits, or {name} has more than one file",
                "leave it out, or give the checksum of the one file",
            )
        files = (File(files[0].url, files[0].size, sha256),)
    folder = root / item.folder
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        path, part = folder / file.name, folder / f"{file.name}.part"
        if path.exists():
            _verify(path, file)
            continue
        if source is None:
            download(file, part, name)
        else:
            _copy(source / file.name if source.is_dir() else source, part)
        try:
            _verify(part, file)
        except ArtefactError:
            if file.sha256:  # otherwise it waits for --sha256
                part.unlink()
            raise
        part.replace(path)
    if item.classes:
        write_text(folder / "classes.txt", "\n".join(item.classes) + "\n")
    return [folder / file.name for file in files]


def _copy(path: Path, part: Path) -> None:
    """Copy a local file."""
    if not path.is_file():
        raise EnvironmentFault(f"{path}: no such file", "put it there, or name another place")
    shutil.copyfile(path, part)


def _verify(path: Path, file: File) -> None:
    """Flush a file, and raise ArtefactError unless it has the known checksum."""
    with path.open("rb") as read:
        os.fsync(read.fileno())
    found = _sha256(path, unpacked=file.is_unpacked)
    if not file.sha256:
        raise ArtefactError(
            f"{file.name}: its publisher names no checksum; this file's SHA-256 is {found}",
            f"if you trust this file, say so: --sha256 {found}",
        )
    if not found.startswith(file.sha256):
        raise ArtefactError(
            f"{path}: not the published file: {path.stat().st_size} bytes, SHA-256 "
            f"{found or 'unknown, as it does not unpack'}; expected {file.sha256}",
            "delete it and fetch it again",
        )


def _sha256(path: Path, *, unpacked: bool) -> str:
    """Return the checksum of a file or of what a gzip file holds, "" where that is damaged."""
    try:
        with gzip.open(path) if unpacked else path.open("rb") as read:
            return hashlib.file_digest(read, "sha256").hexdigest()
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return ""


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follow redirects to https addresses only."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str,
        headers: HTTPMessage, newurl: str,
    ) -> urllib.request.Request | None:  # fmt: skip
        """Refuse an address that is not https."""
        if not newurl.startswith("https://"):
            raise URLError(f"redirected to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(file: File, part: Path, name: str, context: ssl.SSLContext | None = None) -> None:
    """Download a file to `part`, continuing what is already there.

    Raises EnvironmentFault with the address and what to do without a network.
    """
    if not file.url.startswith("https://"):
        raise ParamsError(f"{file.url}: not an https address", "use https")
    opener = urllib.request.build_opener(
        _HttpsOnly, urllib.request.HTTPSHandler(context=context or ssl.create_default_context())
    )
    done = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "resnets", **({"Range": f"bytes={done}-"} if done else {})}
    try:
        with opener.open(
            urllib.request.Request(file.url, headers=headers), timeout=TIMEOUT
        ) as answer:
            done = done if answer.status == 206 else 0
            total = file.size or done + int(answer.headers.get("Content-Length") or 0)
            with part.open("ab" if done else "wb") as write:
                blocks = iter(lambda: answer.read(BLOCK), b"")
                for block in follow(blocks, file.name, "bytes", total - done, len):
                    done += len(block)
                    if done > (file.size or MAX_BYTES):
                        raise ArtefactError(
                            f"{file.url}: more than {file.size or MAX_BYTES} bytes",
                            "is the address right?",
                        )
                    write.write(block)
    except (HTTPException, TimeoutError, ConnectionError, URLError) as error:
        if isinstance(error, HTTPError) and error.code == 416:
            return  # nothing is missing; the checksum will tell whether it is right
        raise EnvironmentFault(
            f"{file.url}: {error}",
            f"run it again, or get {file.name} by other means: "
            f"resnets fetch {name} --from {file.name}",
        ) from error
    if done < total:
        raise EnvironmentFault(
            f"{file.url}: ended after {done} of {total} bytes", "run the same command to continue"
        )
