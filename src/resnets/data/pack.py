"""Judge and decode every image of a dataset once, and pack the good ones into one flat file.

Threads do the work (Pillow decodes outside the interpreter lock) on files that one reader hands
out in order, so the result is the same for any number of threads. A few images are in memory at a
time. A stopped run leaves its part beside the result; the next run continues from it as far as the
code and the names and bytes of the files are the same.
"""

import hashlib
import json
import os
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Literal

import PIL

from resnets.data.containers import unread
from resnets.data.duplicates import MIN_SIDE, is_flat, perceptual_hash
from resnets.data.layout import Content, Member, Source
from resnets.system.files import failpoint, room_for
from resnets.system.progress import follow, map_ahead
from resnets.system.runtime import StopRequest, allowed_cpus
from resnets.tasks.decode import BadImageError, Decoded, convert, decode, resize, to_picture
from resnets.tasks.manifest import ManifestRow, Rejected, has_control_characters, refuse

FLUSH_EVERY = 64  # images; what a killed run does again at most
PACKAGE = Path(__file__).parents[1]

Judged = ManifestRow | Rejected


@dataclass(frozen=True)
class Packing:
    """Say how images are packed."""

    channels: Literal[1, 3]
    resize: int
    fit: Literal["shorter_side", "stretch"]
    max_megapixels: float
    scaled_decoding: bool = False


def judge(member: Member, content: Content, packing: Packing) -> tuple[Judged, bytes]:
    """Decode one image and pack its pixels, or say why it is refused.

    The row lacks its place in the store and its near copies.
    """
    try:
        data, decoded = _decode(member, content, packing)
    except BadImageError as error:
        return refuse(member.name, member.label, error), b""
    picture = decoded.picture
    width, height = picture.size
    pixel_hash = hashlib.sha256(str((height, width, packing.channels)).encode())
    pixel_hash.update(picture.tobytes())
    pixel_sha256 = pixel_hash.hexdigest()
    small = resize(picture, packing.resize, packing.fit)
    packed = small.tobytes()
    grey = picture.convert("L")
    flat = is_flat(grey)
    return ManifestRow(
        id=member.name,
        label=member.label,
        side=member.side,
        sha256=hashlib.sha256(data).hexdigest(),
        pixel_sha256=pixel_sha256,
        phash="" if flat or min(picture.size) < MIN_SIDE else perceptual_hash(grey),
        near=pixel_sha256[:16],
        format=decoded.format,
        width=decoded.width,
        height=decoded.height,
        channels=packing.channels,
        offset=0,
        packed_height=small.shape[0],
        packed_width=small.shape[1],
        crc32=zlib.crc32(packed),
        given_group=member.group,
        note="; ".join(filter(None, [decoded.note, "low information" if flat else ""])),
    ), packed


def _decode(member: Member, content: Content, packing: Packing) -> tuple[bytes, Decoded]:
    """Return the bytes of an image and what they decode to, or raise BadImageError."""
    if has_control_characters(member.name):
        raise BadImageError("bad_name", "a name that is not UTF-8 or has control characters")
    if isinstance(content, BadImageError):
        raise content
    if refused := unread(member.name):
        raise refused
    if isinstance(content, bytes):
        size = packing.resize if packing.scaled_decoding else None
        limit = packing.max_megapixels
        return content, decode(content, channels=packing.channels, max_megapixels=limit, size=size)
    picture = convert(to_picture(content), packing.channels)
    kind = "IDX" if content.shape[2] == 1 else "CIFAR"
    return content.tobytes(), Decoded(picture, kind, "", *picture.size)


def pack(
    source: Source, members: list[Member], packing: Packing, path: Path
) -> tuple[list[ManifestRow], list[Rejected]]:
    """Pack the members into the file `path`, continuing what a stopped run left.

    Returns the rows of the good images, in the order of their names, and the refused ones. Raises
    StoppedBySignal after saving what is done.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    images_part, rows_part = path.with_name(f"{path.name}.part"), path.with_name("rows.part")
    needed = len(members) * packing.resize**2 * packing.channels
    code = _code(packing)
    with room_for(path, needed), images_part.open("a+b") as images, rows_part.open("a+b") as lines:
        done = _continue(source, members, code, images, lines)
        judged = map_ahead(
            lambda pair: (_fingerprint(code, *pair), *judge(*pair, packing)),
            source.read(members[len(done) :]),
            workers=len(allowed_cpus()),
            size=lambda pair: len(pair[1]) if isinstance(pair[1], bytes) else 0,
        )
        judged = follow(judged, f"packing {source.path}", "images", len(members) - len(done))
        with StopRequest() as stop:
            for fingerprint, verdict, packed in judged:
                if isinstance(verdict, ManifestRow):
                    verdict = replace(verdict, offset=images.tell())
                images.write(packed)
                line = fingerprint, len(packed), zlib.crc32(packed), vars(verdict)
                lines.write(json.dumps(line).encode() + b"\n")
                done.append(verdict)
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
    rows = [verdict for verdict in done if isinstance(verdict, ManifestRow)]
    rejected = [verdict for verdict in done if isinstance(verdict, Rejected)]
    return sorted(rows, key=lambda row: row.id.encode()), sorted(rejected, key=lambda bad: bad.id)


def _code(packing: Packing) -> bytes:
    """Return a digest of the code that packs, and how it is told to."""
    code = hashlib.sha256(repr((PIL.__version__, packing)).encode())
    for path in sorted([*PACKAGE.glob("data/*.py"), *PACKAGE.glob("tasks/*.py")]):
        code.update(path.read_bytes())
    return code.digest()


def _fingerprint(code: bytes, member: Member, content: Content) -> str:
    """Return a word for all that the verdict on a file depends on."""
    word = hashlib.sha256(code + ascii(member).encode())
    word.update(ascii(content).encode() if isinstance(content, BadImageError) else bytes(content))
    return word.hexdigest()


def _continue(
    source: Source, members: list[Member], code: bytes, images: IO[bytes], lines: IO[bytes]
) -> list[Judged]:
    """Return what a stopped run has packed, up to the first file that changed; cut off the rest.

    Each line describes an image whose pixels are already in `images`.
    """
    images.seek(0)
    lines.seek(0)
    done, saved, size = list[Judged](), lines.readlines(), 0
    pairs = zip(saved, source.read(members), strict=False)
    title = f"comparing {source.path}"
    for line, pair in follow(pairs, title, "images", len(saved)) if saved else ():
        if not line.endswith(b"\n"):
            break  # torn: the end of the file, wherever the last run died
        try:
            fingerprint, num_bytes, crc32, values = json.loads(line)
        except ValueError:  # of another release
            break
        if fingerprint != _fingerprint(code, *pair) or zlib.crc32(images.read(num_bytes)) != crc32:
            break
        done.append(Rejected(**values) if "reason" in values else ManifestRow(**values))
        size += num_bytes
    images.seek(images.truncate(size))
    lines.truncate(sum(map(len, saved[: len(done)])))
    return done
