"""Judge and decode every image of a dataset once, and pack the good ones into one flat file.

Threads do the work (Pillow decodes outside the interpreter lock) on files that one reader hands
out in order, so the result is the same for any number of threads. A few images are in memory at a
time. A stopped run leaves its part beside the result; the next run continues from it as far as the
code and the bytes of the files are the same.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
from PIL import Image

from resnets.data.duplicates import MIN_SIDE, is_flat, perceptual_hash
from resnets.data.layout import Content, Member, Source, has_control_characters
from resnets.system.files import failpoint, room_for
from resnets.system.progress import follow, map_ahead
from resnets.system.runtime import StopRequest, allowed_cpus
from resnets.tasks.decode import BadImageError, Decoded, Pixels, examine, resize
from resnets.tasks.manifest import Rejected, Row, refuse

FLUSH_EVERY = 64  # images; what a killed run does again at most

Verdict = tuple[Row, Pixels] | Rejected


@dataclass(frozen=True)
class Packing:
    """Say how images are packed."""

    channels: Literal[1, 3]
    resize: int
    fit: Literal["shorter_side", "stretch"]
    max_megapixels: float


def judge(member: Member, content: Content, packing: Packing) -> Verdict:
    """Decode one image, or say why it is refused; the row lacks its place and its near copies."""
    try:
        data, decoded = _decode(member, content, packing)
    except BadImageError as error:
        return refuse(member.name, member.label, error)
    pixels = decoded.pixels
    height, width, channels = pixels.shape
    pixel_hash = hashlib.sha256(f"{pixels.shape}".encode())
    pixel_hash.update(pixels.data)
    pixel_sha256 = pixel_hash.hexdigest()
    packed = np.ascontiguousarray(resize(pixels, packing.resize, packing.fit))
    grey = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels).convert("L")
    flat = is_flat(grey)
    return Row(
        id=member.name,
        label=member.label,
        side=member.side,
        sha256=hashlib.sha256(data).hexdigest(),
        pixel_sha256=pixel_sha256,
        phash="" if flat or min(height, width) < MIN_SIDE else perceptual_hash(grey),
        near=pixel_sha256[:16],
        format=decoded.format,
        width=width,
        height=height,
        channels=channels,
        offset=0,
        packed_height=packed.shape[0],
        packed_width=packed.shape[1],
        crc32=zlib.crc32(packed.data),
        note="; ".join([*decoded.notes, *(["low information"] if flat else [])]),
    ), packed


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


def _identity(members: list[Member], packing: Packing) -> bytes:
    """Return a line that stands for the names that are packed, how, and by which code."""
    identity = hashlib.sha256(repr((PIL.__version__, packing)).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        identity.update(path.read_bytes())
    for member in members:
        identity.update(ascii((member.name, member.label, member.side)).encode())
    return identity.hexdigest().encode() + b"\n"


def _line(verdict: Row | Rejected) -> bytes:
    """Return the line that describes one image in the part of a stopped run."""
    return json.dumps(vars(verdict)).encode() + b"\n"


def _saved(images_part: Path, rows_part: Path, identity: bytes) -> Iterator[Row | Rejected]:
    """Yield what a stopped run has packed, up to what is torn; other names or code start afresh.

    Each line of `rows_part` describes an image whose pixels are already in `images_part`.
    """
    images_part.touch()
    rows_part.touch()
    first, *lines = [*rows_part.read_bytes().splitlines(keepends=True), b""]
    if first != identity:
        rows_part.write_bytes(identity)
        return
    with images_part.open("rb") as images:
        for line in lines:
            if not line.endswith(b"\n"):
                return  # torn: the end of the file, wherever the last run died
            values = json.loads(line)
            verdict = Rejected(**values) if "reason" in values else Row(**values)
            packed = images.read(verdict.num_bytes) if isinstance(verdict, Row) else b""
            if isinstance(verdict, Row) and zlib.crc32(packed) != verdict.crc32:
                return
            yield verdict


def _is_unchanged(
    verdict: Row | Rejected, member: Member, content: Content, packing: Packing
) -> bool:
    """Tell whether a file is still what was judged; one that was refused is judged again."""
    if isinstance(verdict, Rejected) or isinstance(content, BadImageError):
        return judge(member, content, packing) == verdict
    data = content if isinstance(content, bytes) else content.tobytes()
    return hashlib.sha256(data).hexdigest() == verdict.sha256


def pack(
    source: Source, members: list[Member], packing: Packing, path: Path
) -> tuple[list[Row], list[Rejected]]:
    """Pack the members into the file `path`, continuing what a stopped run left.

    Returns the rows of the good images, in the order of their names, and the refused ones. Raises
    StoppedBySignal after saving what is done.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    images_part, rows_part = path.with_name(f"{path.name}.part"), path.with_name("rows.part")
    needed = len(members) * packing.resize**2 * packing.channels
    identity, reading = _identity(members, packing), source.read(members)
    done: list[Row | Rejected] = []
    with room_for(path, needed):
        saved = list(_saved(images_part, rows_part, identity))
        pairs = follow(
            zip(saved, reading, strict=False), f"comparing {source.path}", "images", len(saved)
        )
        for verdict, found in pairs if saved else ():
            if not _is_unchanged(verdict, *found, packing):
                reading = chain([found], reading)
                break
            done.append(verdict)
        size = sum(one.num_bytes for one in done if isinstance(one, Row))
        os.truncate(images_part, size)
        os.truncate(rows_part, len(identity) + sum(len(_line(one)) for one in done))
    num_left = len(members) - len(done)
    judged = map_ahead(
        lambda one: judge(*one, packing),
        reading,
        workers=len(allowed_cpus()),
        size=lambda one: len(one[1]) if isinstance(one[1], bytes) else 0,
    )
    with (
        room_for(path, needed),
        images_part.open("ab") as images,
        rows_part.open("ab") as lines,
        StopRequest() as stop,
    ):
        for new in follow(judged, f"packing {source.path}", "images", num_left):
            if isinstance(new, Rejected):
                done.append(new)
            else:
                done.append(replace(new[0], offset=size))
                size += images.write(new[1].data)
            lines.write(_line(done[-1]))
            if len(done) % FLUSH_EVERY == 0 or stop.is_set():
                images.flush()  # before the lines that say that they are there
                lines.flush()
                failpoint("prepare.flushed")
            if stop.is_set():
                raise stop.error(f"image {len(done)} of {len(members)}")
        images.flush()
        os.fsync(images.fileno())
    images_part.replace(path)
    rows_part.unlink()
    rows = [one for one in done if isinstance(one, Row)]
    rejected = [one for one in done if isinstance(one, Rejected)]
    return sorted(rows, key=lambda row: row.id.encode()), sorted(rejected, key=lambda one: one.id)
