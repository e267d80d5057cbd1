"""An ASGI application as a process of its own; needs uvicorn, which comes with an extra.

It is safe to reach from a network. uvicorn limits the size of a head and the time between two requests of a connection.
Added here: a limit of connections that evicts idle ones instead of refusing new ones, limits on the time and the CPU of
a request, on the lines of its head and on the time of its response, and an early answer survives a malformed body.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any

import h11
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
HEAD_LINES = 100
"""Lines of a head at most: parsing thousands of tiny headers takes as much CPU as a webhook."""
PIECE_BYTES = 2_048
"""What is read from a connection before it is the turn of others. A whole piece is progress."""
PROGRESS_SECONDS = 1.0
"""How long a connection counts as in progress after a whole piece; the pieces of a far client come less often than the
connections of a near one."""
FIRST_TURNS = 2
"""Turns of the event loop in which a new connection is read for the first time; until then it is not evicted."""
DEFER_SECONDS = 10
"""How long the kernel keeps a connection that has sent nothing from us, where it can."""
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

    If too many connections are open, one that has no whole request, or does not read its answer, is evicted, so that
    idle connections cannot keep others out: one that has sent nothing first, then one that sends little at a time, and
    then the one without progress for longest.
    """

    _deadline: asyncio.TimerHandle | None = None
    _since = 0.0
    """The last progress; before any, the opening of the connection or the answer before."""
    _turns_left = FIRST_TURNS
    _silent = True
    _progressed = False
    _spare = 0.0
    _in_body = False
    _answering = False
    _head_lines = 0
    _head_end = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, and close another one if there are too many."""
        super().connection_made(transport)
        transport.max_size = PIECE_BYTES  # type: ignore[attr-defined]  # asyncio's own transports have it
        self._wait_for_request()
        self.loop.call_soon(self._note_turn)
        if len(self.connections) > CONNECTIONS:
            idle = [
                connection
                for connection in self.connections
                if isinstance(connection, BoundedProtocol) and connection._is_idle() and connection is not self
            ]
            victim = min(idle, key=BoundedProtocol._rank, default=self)
            self.connections.discard(victim)  # it is lost only a moment later, and the next one must evict another
            victim.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Read a part of a request, unless that has cost too much; once it is whole, its answer may take longer."""
        self._silent = False
        if len(data) >= PIECE_BYTES:
            self._since, self._progressed = self.loop.time(), True
        if self._has_too_many_lines(data):
            self.send_400_response("Too many header lines.")
            return
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

    def send_400_response(self, msg: str) -> None:
        """Refuse a malformed request; of one that was answered before its end, cut off the rest."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def _is_idle(self) -> bool:
        return not self._answering or self.flow.write_paused

    def _note_turn(self) -> None:
        self._turns_left -= 1
        if self._turns_left:
            self.loop.call_soon(self._note_turn)

    def _rank(self) -> tuple[int, float]:
        """Return the place in the order of eviction; the lowest is evicted first."""
        if self._silent:
            return (3 if self._turns_left else 0), self._since
        is_progressing = self._progressed and self.loop.time() - self._since < PROGRESS_SECONDS
        return (2 if is_progressing else 1), self._since

    def _has_too_many_lines(self, data: bytes) -> bool:
        """Count the lines of a head that is arriving."""
        if self._in_body:
            return False
        text = self._head_end + data
        end = _END_OF_HEAD.search(text)
        self._head_lines += text[: end.end() if end else None].count(b"\n") - self._head_end.count(b"\n")
        self._head_end = text[-2:]
        return self._head_lines > HEAD_LINES

    def _wait_for_request(self) -> None:
        self._since, self._spare, self._in_body = self.loop.time(), REQUEST_CPU_SECONDS, False
        self._silent, self._progressed, self._head_lines, self._head_end = True, False, 0, b""
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


_END_OF_HEAD = re.compile(rb"\n\r?\n")


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve; asyncio takes the number of connections accepted at once for the length of the queue."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(QUEUE)

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
        if hasattr(socket, "TCP_DEFER_ACCEPT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER_SECONDS)
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
