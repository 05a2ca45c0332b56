"""Bound what a request may cost, and take its images out of it.

A body is read whole, within a size and a time, and nothing of it is written to disk.
"""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO

from multipart import MultipartError, MultipartParser, ParserLimitReached, parse_options_header
from starlette.requests import Request

from resnets.system.errors import ParamsError, ResNetsError

MAX_BODIES = 8  # of the largest size, held by all requests together
Image = tuple[str, bytes]  # its name and its content


@dataclass(frozen=True)
class Limits:
    """Say how much one request may bring, and how many images may wait."""

    megabytes: float = 32
    images: int = 64
    megapixels: float = 50
    seconds: float = 30  # to send a request, and as much again to answer it
    waiting: int = 256

    def __post_init__(self) -> None:
        for key in ("megabytes", "megapixels", "seconds"):
            if not math.isfinite(value := getattr(self, key)):
                raise ParamsError(f"--max-{key} is {value}", "give a finite number")
        if self.waiting < self.images:
            what = f"--max-waiting {self.waiting} is below --max-images {self.images}"
            raise ParamsError(what, "give at least as many as one request may have")


class Refused(ResNetsError):
    """Report a request that is not answered, with its HTTP status."""

    def __init__(self, status: int, what: str, fix: str) -> None:
        super().__init__(what, fix)
        self.status = status


class Bodies:
    """Read bodies; remember how many bytes of them all requests hold together."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.held = limits, 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytearray]:
        """Hold the body of a request; refuse one that is too large or too slow."""
        most, body = int(self.limits.megabytes * 1e6), bytearray()
        too_large = Refused(413, f"a body of more than {most:,} bytes", "send fewer images at once")
        if int(request.headers.get("content-length", 0)) > most:
            raise too_large
        try:
            async with asyncio.timeout(self.limits.seconds):
                async for chunk in request.stream():
                    body += chunk
                    self.held += len(chunk)
                    if len(body) > most:
                        raise too_large
                    if self.held > MAX_BODIES * most:
                        raise Refused(429, "other requests fill the memory", "try again later")
            yield body
        except TimeoutError:
            what = f"no whole request within {self.limits.seconds:g} seconds"
            raise Refused(408, what, "send it faster") from None
        finally:
            self.held -= len(body)


def split_body(content_type: str, body: bytearray, max_images: int) -> list[Image]:
    """Return the images of a body: the files of a form, all held in memory, or the whole of it."""
    kind, options = parse_options_header(content_type)
    if kind != "multipart/form-data":
        if kind.startswith("image/") or kind in ("", "application/octet-stream"):
            return [("image", bytes(body))]
        fix = "send multipart/form-data (curl -F image=@photo.jpg) or an image/… type"
        raise Refused(415, f"a body of the type {kind[:100]!r}", fix)
    limits = {"memory_limit": len(body), "spool_limit": len(body), "disk_limit": 0}
    limits["part_limit"] = max_images
    boundary = options.get("boundary", "")
    try:
        parts = list(MultipartParser(BytesIO(body), boundary, strict=True, **limits))
    except ParserLimitReached as error:
        what = f"at most {max_images} images in a request ({error})"
        raise Refused(413, what, "send several requests") from None
    except MultipartError as error:
        raise Refused(400, f"not a whole form: {error}", "let a library write the form") from None
    if not parts or any(part.filename is None for part in parts):
        raise Refused(400, "a form whose fields are not files", "send curl -F image=@photo.jpg")
    return [(part.filename, part.raw) for part in parts]
