"""Start the server as users do, and talk to it as careless and as hostile clients do."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import BadStatusLine, HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

BOUNDARY = "----a1b2c3"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


@dataclass(frozen=True)
class Answered:
    """Hold a response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Running:
    """Hold a server's process and its port."""

    process: subprocess.Popen[str]
    port: int

    def ask(
        self, body: bytes | Iterator[bytes] | None = None, path: str = "/predict", **headers: str
    ) -> Answered:
        """POST a body, or GET without one; `headers` have _ for -."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET" if body is None else "POST", path, body, named)
            response = connection.getresponse()
            return Answered(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def send(self, *pieces: bytes) -> Answered | None:
        """Write bytes to a new connection; None means that it was closed without an answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            try:
                for piece in pieces:
                    connection.sendall(piece)
                response = HTTPResponse(connection)
                response.begin()
                return Answered(response.status, dict(response.getheaders()), response.read())
            except (ConnectionError, BadStatusLine):
                return None


@contextmanager
def running(model: Path, *options: str) -> Iterator[Running]:
    """Run `resnets serve` on a free port, and end it."""
    command = [sys.executable, "-m", "resnets.cli", "serve", "--model", str(model), "--port", "0"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        yield Running(process, int(process.stdout.readline().rpartition(":")[2]))
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def form(files: Mapping[str, bytes], boundary: str = BOUNDARY) -> bytes:
    """Write a form as RFC 7578 says."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
        f"Content-Type: image/png\r\n\r\n".encode()
        + content
        + b"\r\n"
        for name, content in files.items()
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode()
