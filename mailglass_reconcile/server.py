"""Serve an ASGI application with uvicorn, which comes with an extra, hardened for requests from a network.

uvicorn limits the size of a request's head and the time between two requests of a connection. This module adds a limit
of connections that evicts idle ones instead of refusing new ones, limits on the time and the CPU of a request, on the
lines of its head and on the time to read its response, and keeps an early response if the rest of the body is
malformed.
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
"""Timeout for responses in flight after SIGTERM."""
BACKLOG = 1_024
"""Connections that wait to be accepted; the kernel buffers what they send meanwhile."""
ACCEPTED_AT_ONCE = 1
"""Connections accepted per iteration of the event loop, so that each is read before others can evict it."""
MAX_HEAD_BYTES = 16_384
"""Greatest size of a request's line and headers."""
MAX_HEAD_LINES = 100
"""Greatest number of lines in a head: parsing thousands of tiny headers takes as much CPU as a webhook."""
PIECE_BYTES = 2_048
"""Bytes read from a connection before others are read. A full piece counts as progress."""
PROTECTED_ITERATIONS = 2
"""Iterations of the event loop during which a new connection is not evicted, because it has not been read yet."""
DEFER_SECONDS = 10
"""Seconds for which the kernel, where it can, hides a connection that has sent nothing."""
REQUEST_CPU_SECONDS = 0.01
BYTE_CPU_SECONDS = 50e-9
PIECE_CPU_SECONDS = 0.005
"""CPU time for reading a request, and for each of its bytes: 5 MB in chunks of one byte would take minutes. At most
`PIECE_CPU_SECONDS` of a piece are counted, because Python may collect garbage meanwhile."""


def run(app: Callable[..., Awaitable[None]], host: str, port: int) -> None:
    """Serve *app* until SIGTERM or SIGINT."""
    with _listen(host, port) as listener:
        # uvicorn shuts down first, then it raises the signal again.
        signal.signal(signal.SIGTERM, _exit)
        config = uvicorn.Config(
            app,
            access_log=False,  # the dashboard's URLs contain message ids
            backlog=ACCEPTED_AT_ONCE,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            http=BoundedProtocol,
            lifespan="off",
            loop="asyncio",
            log_level="error",  # a line for each malformed request would fill the disk
            server_header=False,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            ws="none",
        )
        print(f"serving on {_address(listener)}; press Ctrl-C to stop", file=sys.stderr, flush=True)  # noqa: T201
        _UvicornServer(config).run(sockets=[listener])


class BoundedProtocol(H11Protocol):
    """HTTP with limits on connections and on the time of a request and its response.

    If too many connections are open, one with an incomplete request or an unread response is evicted, so that idle
    connections cannot keep others out: first one that has sent nothing, then one that sends little at a time, then the
    one without progress for longest.
    """

    max_connections = 128
    """Open connections at most, below the usual limits of open files."""
    head_seconds = 10.0
    """Timeout for a request's line and headers, from the opening of the connection or the previous response."""
    body_seconds = 31.0
    """Timeout for a request's body: longer than that of our applications, so that the client gets a response."""
    response_seconds = 30.0
    """Timeout for the client to read a response that does not fit into the buffers; making one has no timeout here."""
    progress_seconds = 1.0
    """Seconds for which a full piece counts as progress: a distant client's pieces arrive slowly."""

    _deadline: asyncio.TimerHandle | None = None
    _progress_at = 0.0
    """Time of the last progress; before any, of the connection's opening or the previous response."""
    _protected_iterations = PROTECTED_ITERATIONS
    _is_silent = True
    _has_progressed = False
    _cpu_budget = 0.0
    _in_body = False
    _is_responding = False
    _is_unread = False
    _head_lines = 0
    _head_end = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, and close another one if there are too many."""
        super().connection_made(transport)
        transport.max_size = PIECE_BYTES  # type: ignore[attr-defined]  # asyncio's own transports have it
        self._wait_for_request()
        self.loop.call_soon(self._count_iteration)
        if len(self.connections) > self.max_connections:
            idle = [
                connection
                for connection in self.connections
                if isinstance(connection, BoundedProtocol) and connection._is_idle() and connection is not self
            ]
            victim = min(idle, key=BoundedProtocol._rank, default=self)
            self.connections.discard(victim)  # `connection_lost` comes later, and the next one must evict another
            victim.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Read a piece of a request; close the connection if the request has used up its CPU time."""
        self._is_silent = False
        if len(data) >= PIECE_BYTES:
            self._progress_at, self._has_progressed = self.loop.time(), True
        if self._exceeds_head_lines(data):
            self.send_400_response("Too many header lines.")
            return
        started = time.thread_time()
        super().data_received(data)
        self._cpu_budget += len(data) * BYTE_CPU_SECONDS - min(time.thread_time() - started, PIECE_CPU_SECONDS)
        if self._cpu_budget < 0:
            self.transport.abort()
        self._update_deadline()

    def pause_writing(self) -> None:
        """Give the client a time to read its response, once: one that reads a little at a time gets no more."""
        super().pause_writing()
        if self._is_responding and not self._is_unread:
            self._is_unread = True
            self._set_deadline(self.response_seconds)

    def on_response_complete(self) -> None:
        """Wait for the next request on this connection.

        A client that pipelines requests is disconnected: common clients do not, and one that reads no response could
        avoid its eviction that way.
        """
        self._is_responding = self._is_unread = False
        self._wait_for_request()
        if self.conn.trailing_data[0]:
            self.transport.close()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_deadline()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Reject a malformed request; if it was answered early, close the connection instead."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def _is_idle(self) -> bool:
        return not self._is_responding or self.flow.write_paused

    def _count_iteration(self) -> None:
        self._protected_iterations -= 1
        if self._protected_iterations:
            self.loop.call_soon(self._count_iteration)

    def _rank(self) -> tuple[int, float]:
        """Return the sort key of evictions; the lowest is evicted first."""
        if self._is_silent:
            return (3 if self._protected_iterations else 0), self._progress_at
        is_progressing = self._has_progressed and self.loop.time() - self._progress_at < self.progress_seconds
        return (2 if is_progressing else 1), self._progress_at

    def _exceeds_head_lines(self, data: bytes) -> bool:
        """Count the lines of an incomplete head, and return True if there are too many."""
        if self._in_body:
            return False
        text = self._head_end + data
        end = _END_OF_HEAD.search(text)
        self._head_lines += text[: end.end() if end else None].count(b"\n") - self._head_end.count(b"\n")
        self._head_end = text[-2:]
        return self._head_lines > MAX_HEAD_LINES

    def _wait_for_request(self) -> None:
        self._progress_at, self._cpu_budget, self._in_body = self.loop.time(), REQUEST_CPU_SECONDS, False
        self._is_silent, self._has_progressed, self._head_lines, self._head_end = True, False, 0, b""
        self._set_deadline(self.head_seconds)

    def _update_deadline(self) -> None:
        """Set the deadline of the request's next phase: its body, or its response."""
        if self.cycle is None or self.cycle.response_complete:
            return
        if not self._in_body:
            self._in_body = True
            self._set_deadline(self.body_seconds)
        if not self.cycle.more_body and not self._is_responding:
            self._is_responding = True
            self._cancel_deadline()
            if self.flow.write_paused:  # an early response, before the end of the body
                self.pause_writing()

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()

    def _set_deadline(self, seconds: float) -> None:
        self._cancel_deadline()
        # abort(), because close() waits until a client that reads nothing has read everything.
        self._deadline = self.loop.call_later(seconds, self.transport.abort)


_END_OF_HEAD = re.compile(rb"\n\r?\n")


class _UvicornServer(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to serve, and restore the length of the queue, which asyncio sets to `ACCEPTED_AT_ONCE`."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # A response that the shutdown interrupts is not an error and needs no traceback.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        super().handle_exit(sig, frame)


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


def _listen(host: str, port: int) -> socket.socket:
    try:
        candidates = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = min(candidates, key=lambda candidate: candidate[0] != socket.AF_INET)
        listener = socket.socket(family, kind, protocol)
    except (socket.gaierror, UnicodeError):
        raise ConfigurationError(f"cannot listen on {host}: the name of the host is not known") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
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
