"""An ASGI application as a process of its own; needs uvicorn, which comes with an extra.

It is safe to reach from a network: the number of connections is limited, and so are the time and the CPU that a request
may take to arrive.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from mailglass_reconcile.errors import ConfigurationError

SHUTDOWN_SECONDS = 1
"""How long answers under way may take after SIGTERM."""
CONNECTIONS = 128
"""Open connections at most, which stays below usual limits of open files."""
QUEUE = 1_024
"""Connections that wait to be accepted; what they send is there when it is their turn."""
ACCEPTED_AT_ONCE = 1
"""Connections accepted in one turn of the event loop: each must be read before many others take its place."""
HEAD_SECONDS = 10.0
"""How long a request's line and headers may take to arrive, from the opening of its connection or from the answer
before it."""
BODY_SECONDS = 31.0
"""How long its body may take: a little longer than an application of ours waits, so that the client gets an answer."""
ANSWER_SECONDS = 30.0
"""How long its answer may take to be written."""
HEAD_BYTES = 16_384
"""Length of a request's line and headers at most."""
PIECE_BYTES = 2_048
"""What is read from a connection before it is the turn of others."""
REQUEST_CPU_SECONDS = 0.01
BYTE_CPU_SECONDS = 50e-9
PIECE_CPU_SECONDS = 0.005
"""What reading a request may cost, and each byte of it more: 5 MB in chunks of one byte would cost minutes. No more is
counted of a piece, because Python may collect its garbage meanwhile."""


def run(app: Callable[..., Awaitable[None]], host: str, port: int) -> None:
    """Serve *app* until SIGTERM or SIGINT."""
    with _listening(host, port) as listener:
        # uvicorn ends first, then it raises the signal once more.
        signal.signal(signal.SIGTERM, _leave)
        config = uvicorn.Config(
            app,
            access_log=False,  # addresses of pages hold message ids
            backlog=ACCEPTED_AT_ONCE,
            h11_max_incomplete_event_size=HEAD_BYTES,
            http=BoundedProtocol,
            lifespan="off",
            loop="asyncio",
            log_level="error",  # a line for each malformed request would fill the disk
            server_header=False,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            ws="none",
        )
        print(f"serving on {_address(listener)}; press Ctrl-C to stop", file=sys.stderr, flush=True)  # noqa: T201
        _Server(config).run(sockets=[listener])


class BoundedProtocol(H11Protocol):
    """HTTP with limits on connections and on the time that a request and its answer may take.

    If too many connections are open, the oldest that has no whole request, or does not read its answer, is closed, so
    that idle connections cannot keep others out.
    """

    _deadline: asyncio.TimerHandle | None = None
    _since = 0.0
    _spare = 0.0
    _in_body = False
    _answering = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, and close another one if there are too many."""
        super().connection_made(transport)
        transport.max_size = PIECE_BYTES  # type: ignore[attr-defined]  # asyncio's own transports have it
        self._wait_for_request()
        if len(self.connections) > CONNECTIONS:
            idle = [one for one in self.connections if isinstance(one, BoundedProtocol) and one._is_idle()]
            oldest = min(idle, key=lambda one: one._since, default=self)
            self.connections.discard(oldest)  # it is lost only a moment later, and the next one must close another
            oldest.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Read a part of a request, unless that has cost too much; once it is whole, its answer may take longer."""
        began = time.thread_time()
        super().data_received(data)
        self._spare += len(data) * BYTE_CPU_SECONDS - min(time.thread_time() - began, PIECE_CPU_SECONDS)
        if self._spare < 0:
            self.transport.abort()
        self._note_progress()

    def on_response_complete(self) -> None:
        """Wait for the next request on this connection.

        A client that sends it before it has the answer is cut off: no usual one does, and one that reads no answer
        could keep its place by that.
        """
        self._answering = False
        self._wait_for_request()
        if self.conn.trailing_data[0]:
            self.transport.close()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def _is_idle(self) -> bool:
        return not self._answering or self.flow.write_paused

    def _wait_for_request(self) -> None:
        self._since, self._spare, self._in_body = self.loop.time(), REQUEST_CPU_SECONDS, False
        self._allow(HEAD_SECONDS)

    def _note_progress(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            return
        if not self._in_body:
            self._in_body = True
            self._allow(BODY_SECONDS)
        if not self.cycle.more_body and not self._answering:
            self._answering = True
            self._allow(ANSWER_SECONDS)

    def _allow(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        # abort(), because close() waits until a client that reads nothing has read everything.
        self._deadline = self.loop.call_later(seconds, self.transport.abort)


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve; asyncio takes the number of connections accepted at once for the length of the queue."""
        await super().startup(sockets)
        for one in sockets or ():
            one.listen(QUEUE)

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
