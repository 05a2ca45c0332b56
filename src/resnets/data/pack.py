"""Judge and decode every image of a dataset once, and pack the good ones into one flat file.

Threads do the work (Pillow decodes outside the interpreter lock) on files that one reader hands
out in order, so the result is the same for any number of threads. A few images are in memory at a
time. A stopped run leaves its part beside the result and the next run continues from it.
"""

import hashlib
import json
import os
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
from PIL import Image

from resnets.data.decode import FIXES, BadImageError, Decoded, Pixels, examine, resize
from resnets.data.duplicates import MIN_SIDE, is_flat, perceptual_hash
from resnets.data.layout import has_control_characters
from resnets.data.manifest import Rejected, Row
from resnets.data.sources import Content, Member, Source
from resnets.errors import printable
from resnets.runtime import StopRequest, failpoint, room_for

FLUSH_EVERY = 64  # images; what a killed run does again at most
FORMAT = 1  # raise it when the same file would be packed otherwise


@dataclass(frozen=True)
class Packing:
    """Say how images are packed."""

    channels: Literal[1, 3]
    resize: int
    fit: Literal["shorter_side", "stretch"]
    max_megapixels: float


def judge(member: Member, content: Content, packing: Packing) -> tuple[Row, Pixels] | Rejected:
    """Decode one image, or say why it is refused; the row lacks its place in the file."""
    try:
        data, decoded = _decode(member, content, packing)
    except BadImageError as error:
        return Rejected(
            printable(member.name), member.label, error.reason, error.detail, FIXES[error.reason]
        )
    pixels = decoded.pixels
    height, width, channels = pixels.shape
    pixel_hash = hashlib.sha256(f"{pixels.shape}".encode())
    pixel_hash.update(pixels.data)
    packed = np.ascontiguousarray(resize(pixels, packing.resize, packing.fit))
    grey = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels).convert("L")
    flat = is_flat(grey)
    notes = [*decoded.notes, *(["low information"] if flat else [])]
    return Row(
        id=member.name,
        label=member.label,
        side=member.side,
        sha256=hashlib.sha256(data).hexdigest(),
        pixel_sha256=pixel_hash.hexdigest(),
        phash="" if flat or min(height, width) < MIN_SIDE else perceptual_hash(grey),
        near="",
        format=decoded.format,
        width=width,
        height=height,
        channels=channels,
        offset=0,
        packed_height=packed.shape[0],
        packed_width=packed.shape[1],
        crc32=zlib.crc32(packed.data),
        note="; ".join(notes),
    ), packed  # fmt: skip


def _decode(member: Member, content: Content, packing: Packing) -> tuple[bytes, Decoded]:
    """Return the bytes of an image and what they decode to, or raise BadImageError."""
    if has_control_characters(member.name):
        raise BadImageError("bad_name", "a name that is not UTF-8 or has control characters")
    if isinstance(content, BadImageError):
        raise content
    if isinstance(content, bytes):
        channels, limit = packing.channels, packing.max_megapixels
        return content, examine(content, channels=channels, max_megapixels=limit)
    pixels = np.repeat(content, packing.channels, axis=2)
    return content.tobytes(), Decoded(pixels, "IDX", ())


def _judge_all(
    source: Source, members: list[Member], packing: Packing
) -> Iterator[tuple[Row, Pixels] | Rejected]:
    """Judge the members on all cores and yield the verdicts in their order."""
    workers = os.cpu_count() or 1
    ahead: deque[Future[tuple[Row, Pixels] | Rejected]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for member, content in source.read(members):
            ahead.append(pool.submit(judge, member, content, packing))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


class _Part:
    """Hold what is packed so far in two files, so that a stopped run can continue.

    `images.bin.part` has the pixels; each line of `rows.part` describes an image whose pixels are
    already there. The first line says what was packed how: another dataset starts afresh.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.images_path, self.rows_path = folder / "images.bin.part", folder / "rows.part"
        self.rows: list[Row] = []
        self.rejected: list[Rejected] = []
        self.size = 0
        self.images = self.images_path.open("r+b" if self.images_path.exists() else "w+b")
        self.lines = self.rows_path.open("r+b" if self.rows_path.exists() else "w+b")
        if self.lines.readline() == identity.encode() + b"\n":
            self._resume()
        else:
            self.lines.seek(0)
            self.lines.write(identity.encode() + b"\n")
        self.lines.truncate()
        self.images.truncate()

    def _resume(self) -> None:
        """Take over every image that is complete and leave both files at the end of the last."""
        end = self.lines.tell()
        for line in self.lines:
            if not line.endswith(b"\n"):
                break  # torn: the end of the file, wherever the last run died
            kind, values = json.loads(line)
            if kind == "rejected":
                self.rejected.append(Rejected(**values))
            else:
                row = Row(**values)
                packed = self.images.read(row.num_bytes)
                if zlib.crc32(packed) != row.crc32:
                    break
                self.rows.append(row)
                self.size += row.num_bytes
            end += len(line)
        self.lines.seek(end)
        self.images.seek(self.size)

    def add(self, verdict: tuple[Row, Pixels] | Rejected) -> None:
        """Append one image, or one refusal."""
        if isinstance(verdict, Rejected):
            self.rejected.append(verdict)
            line = ("rejected", vars(verdict))
        else:
            row = replace(verdict[0], offset=self.size)
            self.size += self.images.write(verdict[1].data)
            self.rows.append(row)
            line = ("row", vars(row))
        self.lines.write(json.dumps(line).encode() + b"\n")
        if (len(self.rows) + len(self.rejected)) % FLUSH_EVERY == 0:
            self.flush()
            failpoint("prepare.flushed")

    def flush(self) -> None:
        """Hand both files to the system, the pixels first."""
        self.images.flush()
        self.lines.flush()

    def finish(self, path: Path) -> None:
        """Put the images in their place."""
        self.flush()
        os.fsync(self.images.fileno())
        self.close()
        self.images_path.replace(path)
        self.rows_path.unlink()

    def close(self) -> None:
        """Close both files; what is in them stays for the next run."""
        self.images.close()
        self.lines.close()


def _identity(members: list[Member], packing: Packing) -> str:
    """Return a digest of what is packed and how, as far as the listing tells."""
    listing = hashlib.sha256(repr((FORMAT, PIL.__version__, packing)).encode())
    for member in members:
        listing.update(ascii((member.name, member.label, member.side, member.stamp)).encode())
    return listing.hexdigest()


def pack(
    source: Source, members: list[Member], packing: Packing, path: Path
) -> tuple[list[Row], list[Rejected]]:
    """Pack the members into the file `path`, continuing what a stopped run left.

    Returns the rows of the good images, in the order of their names, and the refused ones. Raises
    StoppedBySignal after saving what is done.
    """
    from resnets.data.progress import follow

    with (
        room_for(path, len(members) * packing.resize**2 * packing.channels),
        closing(_Part(path.parent, _identity(members, packing))) as part,
        StopRequest() as stop,
    ):
        todo = members[len(part.rows) + len(part.rejected) :]
        verdicts = _judge_all(source, todo, packing)
        for verdict in follow(verdicts, f"packing {source.path}", "images", len(todo)):
            part.add(verdict)
            if stop.is_set():
                part.flush()
                count = f"image {len(part.rows) + len(part.rejected)} of {len(members)}"
                raise stop.error(count)
        part.finish(path)
    by_name = sorted(part.rows, key=lambda row: row.id.encode())
    return by_name, sorted(part.rejected, key=lambda one: one.id)
