"""Run the HTTP server: its socket, the time of its connections, and its end."""

import asyncio
import socket
from math import ceil
from pathlib import Path
from types import FrameType

from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from resnets.predict.run import default_model
from resnets.serve.app import build_app
from resnets.serve.limits import Limits
from resnets.system.errors import EnvironmentFault, hear
from resnets.system.runtime import Engine

MAX_CONNECTIONS = 512  # more get 503
MAX_HEAD = 16 * 2**10  # bytes of a request line and its headers


class Connection(H11Protocol):
    """Close a connection on which nothing gets done; uvicorn waits for slow clients for ever.

    One request must follow another within the time that a request may take in all, from its first
    byte to the last one of its answer. `timeout_graceful_shutdown` is that time too.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to watch."""
        super().connection_made(transport)
        self._watch(self)

    def _watch(self, before: object) -> None:
        """Look again and again if the request is another one than before."""
        if self.cycle is before:
            self.transport.abort()
        elif not self.transport.is_closing():
            self.loop.call_later(
                self.config.timeout_graceful_shutdown or 0, self._watch, self.cycle
            )


def serve(
    model: Path | None, host: str, port: int, limits: Limits, engine: Engine = "auto"
) -> None:
    """Answer requests until a signal comes, and then those that are under way.

    Raises EnvironmentFault where the port is taken, and what `open_classifier` raises.
    """
    path = model or default_model()
    longest = ceil(2 * limits.seconds) + 1
    config = Config(
        build_app(path, limits, engine),
        http=Connection,
        ws="none",
        lifespan="on",
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        headers=[("X-Content-Type-Options", "nosniff")],
        limit_concurrency=MAX_CONNECTIONS,
        h11_max_incomplete_event_size=MAX_HEAD,
        timeout_graceful_shutdown=longest,
    )
    server = Server(config)

    def stop(_number: int, _frame: FrameType | None) -> None:
        server.should_exit = True

    with listen(host, port) as listener:
        hear(stop)  # uvicorn raises the signal that ended it once more
        address = f"[{host}]" if ":" in host else host
        print(f"serving {path} at http://{address}:{listener.getsockname()[1]}", flush=True)
        server.run([listener])


def listen(host: str, port: int) -> socket.socket:
    """Open the port, so that one that is taken is an error of ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        words = error.strerror or str(error)
        fix = "give another --port or --host, or stop what listens there"
        raise EnvironmentFault(f"{host}:{port}: {words}", fix) from None
    # asyncio forgets it where a socket does not name its protocol: each answer would take 40 ms
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
