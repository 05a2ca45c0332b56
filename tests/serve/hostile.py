"""Make bodies that no server may answer with 200, for the tests and the benchmark."""

import struct
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from tests.data.photos import encode, make_photo
from tests.serve.servers import BOUNDARY, FORM, Answered, Running, form

KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
PHOTO = make_photo(0, (61, 43))
FORM_KIND = FORM["Content-Type"]
Body = tuple[str, str, bytes]  # what it is, its content type and its bytes


def chunk(kind: bytes, body: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, pixels: bytes, *more: bytes) -> bytes:
    """Return a grey PNG whose header says one thing and whose pixels another."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", pixels)


def hostile_bodies(num: int, seed: int = 0) -> Iterator[Body]:
    """Yield so many bodies: cut, bombs, garbage, wrong types, broken forms, in turns."""
    rng = np.random.default_rng(seed)
    whole = {kind: encode(PHOTO, kind) for kind in KINDS}
    zeros = zlib.compress(bytes(4_000_000), 9)
    bombs = (
        png(40_000, 40_000, zeros),
        png(900, 900, zlib.compress(bytes(1000))),
        png(60, 60, zeros[:50], chunk(b"zTXt", b"a\0\0" + zeros), chunk(b"iCCP", b"a\0\0" + zeros)),
        encode(Image.new("1", (20_000, 20_000)), "PNG"),
        encode(PHOTO, "JPEG", progressive=True)[:-2] + b"\xff\xda\x00\x02" * 3000,
    )
    kinds = ("text/html", "application/json", "application/zip", "multipart/mixed; boundary=x")
    for number in range(num):
        kind = KINDS[number // 6 % len(KINDS)]
        data, size = whole[kind], int(rng.integers(1, 20_000))
        yield (
            (f"cut {kind}", "image/png", data[: int(rng.integers(len(data) // 2))]),
            ("bomb", "image/png", bombs[number // 6 % len(bombs)]),
            ("garbage", "application/octet-stream", rng.bytes(size)),
            ("wrong type", kinds[number // 6 % len(kinds)], data),
            ("cut form", FORM_KIND, form({"a.png": data})[: int(rng.integers(len(data)))]),
            ("many parts", FORM_KIND, broken_form(rng, data)),
        )[number % 6]


def broken_form(rng: np.random.Generator, data: bytes) -> bytes:
    """Return a form of too many parts, with a bad image, or that hides its end."""
    many = form({f"{number}": data for number in range(int(rng.integers(65, 300)))})
    mixed = form({"good.png": data, "bad.png": rng.bytes(99)})
    start = f"--{BOUNDARY}\r\n".encode()
    nested = start * int(rng.integers(2, 3000)) + data
    return (many, mixed, nested)[int(rng.integers(3))]


def assert_all_refused(server: Running, bodies: Iterable[Body], clients: int = 8) -> list[int]:
    """Send the bodies from several clients at once; return the statuses, none of which is 200."""

    def send(body: Body) -> tuple[str, Answered]:
        what, kind, content = body
        return what, server.ask(content, Content_Type=kind)

    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(send, bodies))
    wrong = [(what, answer.status) for what, answer in answers if not 400 <= answer.status < 500]
    assert not wrong, wrong
    return [answer.status for _, answer in answers]
