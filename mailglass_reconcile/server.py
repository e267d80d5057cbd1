"""An ASGI application as a process of its own; needs uvicorn, which comes with an extra.

It is safe to reach from a network: the number of connections is limited, and a request has to arrive within seconds.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from mailglass_reconcile.errors import ConfigurationError

SHUTDOWN_SECONDS = 1
"""How long answers under way may take after SIGTERM."""
CONNECTIONS = 128
"""Open connections at most; with the queue of those not yet accepted, this stays below usual limits of open files."""
QUEUE = 64
REQUEST_SECONDS = 10.0
"""How long a whole request may take to arrive, from the opening of its connection or from the answer before it."""
ANSWER_SECONDS = 30.0
"""How long its answer may take to be written."""
HEAD_BYTES = 16_384
"""Length of a request's line and headers at most."""


def run(app: Callable[..., Awaitable[None]], host: str, port: int) -> None:
    """Serve *app* until SIGTERM or SIGINT.

    Args:
        app: An ASGI application.
        host: A name or an address of this machine.
        port: Its port; 0 is any free one.

    Raises:
        ConfigurationError: It cannot listen there.
        SystemExit: With 0, after SIGTERM.
    """
    with _listening(host, port) as listener:
        # uvicorn ends first, then it raises the signal once more.
        signal.signal(signal.SIGTERM, _leave)
        config = uvicorn.Config(
            app,
            access_log=False,  # addresses of pages hold message ids
            backlog=QUEUE,
            h11_max_incomplete_event_size=HEAD_BYTES,
            http=BoundedProtocol,
            lifespan="off",
            log_level="error",  # a line for each malformed request would fill the disk
            server_header=False,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            ws="none",
        )
        print(f"serving on {_address(listener)}; press Ctrl-C to stop", file=sys.stderr, flush=True)  # noqa: T201
        _Server(config).run(sockets=[listener])


class BoundedProtocol(H11Protocol):
    """HTTP with limits on connections and on the time that a request and its answer may take.

    If too many connections are open, the one that has waited longest for a whole request is closed, so that idle
    connections cannot keep others out.
    """

    _deadline: asyncio.TimerHandle | None = None
    _answering = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, and close another one if there are too many."""
        super().connection_made(transport)
        self._allow(REQUEST_SECONDS)
        if len(self.connections) > CONNECTIONS:
            waiting = [one for one in self.connections if isinstance(one, BoundedProtocol) and not one._answering]
            longest = min(waiting, key=lambda one: one._deadline.when() if one._deadline else 0.0, default=self)
            self.connections.discard(longest)  # it is lost only a moment later, and the next one must close another
            longest.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Read a part of a request; once it is whole, its answer may take longer."""
        super().data_received(data)
        self._note_whole_request()

    def on_response_complete(self) -> None:
        """Wait for the next request on this connection."""
        self._answering = False
        self._allow(REQUEST_SECONDS)
        super().on_response_complete()
        self._note_whole_request()  # a client may send the next request before it has the answer

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def _note_whole_request(self) -> None:
        arrived = self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        if arrived and not self._answering:
            self._answering = True
            self._allow(ANSWER_SECONDS)

    def _allow(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        # abort(), because close() waits until a client that reads nothing has read everything.
        self._deadline = self.loop.call_later(seconds, self.transport.abort)


class _Server(uvicorn.Server):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # An answer that is cut off at the end is not an error and needs no traceback.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        super().handle_exit(sig, frame)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


def _listening(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        listener = socket.socket(family, kind, protocol)
    except (socket.gaierror, UnicodeError):
        raise ConfigurationError(f"cannot listen on {host}: the name of the host is not known") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(QUEUE)
    except OSError as error:
        listener.close()
        raise ConfigurationError(f"cannot listen on {host}, port {port}: {_reason(error)}") from None
    return listener


def _reason(error: OSError) -> str:
    reasons: dict[Any, str] = {
        errno.EADDRINUSE: "another process listens there; choose another --port",
        errno.EADDRNOTAVAIL: "this machine has no such address",
        errno.EACCES: "only root may use this port; choose one above 1023",
    }
    return reasons.get(error.errno, type(error).__name__)


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
