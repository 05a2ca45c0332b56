"""Fetch the datasets and the published weights that the recipes use, and verify them.

Only https is spoken, also after a redirect. A file is written aside, compared with its checksum and
then renamed; a broken download continues where it stopped. `--from` takes local files through the
same checks.
"""

import difflib
import gzip
import hashlib
import re
import shutil
import socket
import urllib.request
import zlib
from functools import partial
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError

from resnets.data.catalogue import Item, all_items
from resnets.system.errors import ArtefactError, EnvironmentFault, ParamsError
from resnets.system.files import write_text
from resnets.system.progress import follow

BLOCK = 2**18
TIMEOUT = 30.0  # seconds without a byte


def fetch_by_name(
    name: str | None, root: Path, *, source: Path | None, sha256: str | None, about: bool = False
) -> None:
    """Fetch what has this name in the catalogue, or say where it comes from; for None, list all.

    Raises ParamsError for an unknown name.
    """
    items = all_items()
    if name is None:
        for known, item in items.items():
            print(f"{known:54}{item.megabytes:4} MB  {item.licence}")
        return
    if name not in items:
        whole = {known.partition("-")[0]: known for known in items}  # digits end a name
        close = difflib.get_close_matches(name.partition("-")[0], whole, 1)
        hint = f"did you mean {whole[close[0]]}? " if close else ""
        raise ParamsError(f"nothing is called {name!r}", f"{hint}see what there is: resnets fetch")
    item = items[name]
    if about:
        print(f"{name}, {item.megabytes} MB")
        for url, digits in item.files.items():
            print(f"{url}\n  SHA-256 {digits or 'not published: give --sha256'}")
    else:
        for path in fetch(item, root, source=source, sha256=sha256):
            print(f"{path}  verified")
    print(f"licence: {item.licence}\ncite: {item.citation}")


def fetch(
    item: Item, root: Path, *, source: Path | None = None, sha256: str | None = None
) -> list[Path]:
    """Bring the files of an item to their place below `root` and return their paths.

    `source` is a local file or folder to take them from, `sha256` the checksum of a single file
    that the publisher gives none for. Raises ArtefactError when a checksum differs,
    EnvironmentFault when an address cannot be reached or a local file is missing.
    """
    files = item.files
    if sha256 is not None:
        if len(files) > 1 or not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ParamsError(
                f"--sha256 {sha256}: not 64 hex digits, or for more than one file",
                "leave it out, or give the checksum of the one file",
            )
        files = dict.fromkeys(files, sha256)
    folder, paths = root / item.folder, item.paths(root)
    folder.mkdir(parents=True, exist_ok=True)
    for url, path in paths.items():
        part = path.with_name(f"{path.name}.part")
        if path.exists():
            _verify(path, files[url])
            continue
        given = source / path.name if source and source.is_dir() else source
        if given is None:
            download(url, part)
        elif given.is_file():
            shutil.copyfile(given, part)
        else:
            fix = f"let --from name {path.name}, or a folder that has it"
            raise EnvironmentFault(f"{given}: No such file", fix)
        _verify(part, files[url], given)
        part.replace(path)
    if item.classes:
        write_text(folder / "classes.txt", item.classes)
    return list(paths.values())


def _verify(path: Path, sha256: str, given: Path | None = None) -> None:
    """Raise ArtefactError unless the checksum of a file starts with these digits.

    A part with another one is removed; one that has no published checksum waits for --sha256.
    """
    name = path.name.removesuffix(".part")
    try:
        is_packed = name.endswith(".gz") and not name.endswith(".tar.gz")
        with gzip.open(path) if is_packed else path.open("rb") as read:
            actual = hashlib.file_digest(read, "sha256").hexdigest()
    except (gzip.BadGzipFile, EOFError, zlib.error):
        actual = "unknown, as it does not unpack"
    if not sha256:
        raise ArtefactError(
            f"{name}: its publisher names no checksum; this file's SHA-256 is {actual}",
            f"if you trust this file, say so: --sha256 {actual}",
        )
    if not actual.startswith(sha256):
        size = path.stat().st_size
        what = f"{given or path}: not the published file: {size} bytes, SHA-256 {actual}"
        fix = "delete it and fetch it again"
        if path.suffix == ".part":
            path.unlink()
            fix = "name the right file" if given else "fetch it again"
        raise ArtefactError(f"{what}; expected {sha256}", fix)


def download(url: str, part: Path) -> None:
    """Download a file to `part`, continuing what is already there.

    Raises EnvironmentFault with the address and what to do without a network.
    """
    name = part.name.removesuffix(".part")
    done = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "resnets", "Range": f"bytes={done}-"}
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            if not answer.url.startswith("https://"):
                raise URLError(f"redirected to {answer.url}, which is not https")
            done = done if answer.status == 206 else 0
            total = done + int(answer.headers.get("Content-Length") or 0)
            blocks = iter(partial(answer.read, BLOCK), b"")
            with part.open("ab" if done else "wb") as write:
                for block in follow(blocks, name, "bytes", total - done, len):
                    done += len(block)
                    write.write(block)
    except (HTTPException, TimeoutError, ConnectionError, URLError) as error:
        if isinstance(error, HTTPError) and error.code == 416:
            return  # nothing is missing; the checksum will tell whether it is right
        words = error.reason if type(error) is URLError else error
        if isinstance(words, socket.gaierror):
            words = f"no network? ({words.strerror})"
        raise EnvironmentFault(
            f"{url}: {words}",
            f"run it again, or get {name} by other means and name it with --from",
        ) from error
    if done < total:
        what = f"{url}: ended after {done} of {total} bytes"
        raise EnvironmentFault(what, "run the same command to continue")
