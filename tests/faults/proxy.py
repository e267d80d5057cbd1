"""A TCP proxy in front of Postgres, which drops a connection at a chosen message of the client."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import sqlalchemy as sa

COMMIT = b"COMMIT\0"
"""The simple query as libpq sends it; `BEGIN ISOLATION LEVEL READ COMMITTED` does not hold it."""

Fault = Literal["before", "after"]
"""Drop the connection before the message reaches the server, or after the server has answered it."""


class Pair:
    """A client's connection and the server's, between which a proxy forwards."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.losing = threading.Event()
        """Set once the next answer of the server is to be lost, together with the connection."""

    def close(self) -> None:
        """Close both ends."""
        close(self.client)
        close(self.server)


class Proxy:
    """Forwards connections to the Postgres of *url*, on a Unix socket or a port, while the process runs."""

    def __init__(self, url: str) -> None:
        self._target = sa.make_url(url)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._pairs: set[Pair] = set()

    @property
    def port(self) -> int:
        """The port of the loopback address that the proxy listens on."""
        return int(self._listener.getsockname()[1])

    def url(self, url: str) -> str:
        """Return the URL that leads to the database of *url* through the proxy."""
        return url_through(self.port, url)

    def start(self) -> None:
        """Take connections in a thread of its own."""
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        """Take connections until the proxy is closed."""
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def close(self) -> None:
        """Stop, and drop what is open."""
        close(self._listener)
        self.drop()

    def drop(self) -> None:
        """Drop every connection that is open; new ones are taken."""
        for pair in list(self._pairs):
            pair.close()

    def on_message(self, pair: Pair, data: bytes) -> bool:
        """Do something before *data* of the client is forwarded; return False to drop the connection instead."""
        return True

    def _connect(self) -> socket.socket:
        directory, port = self._target.query.get("host"), self._target.port or 5432
        if directory is None:
            return socket.create_connection((self._target.host or "127.0.0.1", port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{directory}/.s.PGSQL.{port}")
        return server

    def _forward(self, client: socket.socket) -> None:
        try:
            server = self._connect()
        except OSError:
            close(client)
            return
        pair = Pair(client, server)
        self._pairs.add(pair)
        threading.Thread(target=_answer, args=(pair,), daemon=True).start()
        with contextlib.suppress(OSError):
            while (data := client.recv(1 << 20)) and self.on_message(pair, data):
                server.sendall(data)
        if not pair.losing.is_set():
            pair.close()


def _answer(pair: Pair) -> None:
    with contextlib.suppress(OSError):
        while data := pair.server.recv(1 << 20):
            if pair.losing.is_set():
                break
            pair.client.sendall(data)
    pair.close()


def close(end: socket.socket) -> None:
    """Close a socket, also for a thread that waits for it."""
    # Closed alone, it would stay open there, until its number is that of another socket.
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


def url_through(port: int, url: str) -> str:
    """Return *url* as it leads through the proxy on *port*."""
    query = {"sslmode": "disable", "gssencmode": "disable"}
    return sa.make_url(url).set(host="127.0.0.1", port=port, query=query).render_as_string(hide_password=False)


class FaultyProxy(Proxy):
    """Drops the connection of the *at*-th message that has *text*, and of the next *times* - 1."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._lock = threading.Lock()
        self._text: bytes = b""
        self._fault: Fault = "before"
        self._at = self._times = 0
        self.seen = 0
        """Messages that held *text* since the proxy was armed."""
        self.dropped = 0

    def arm(self, text: bytes, fault: Fault, at: int, times: int = 1) -> None:
        """Apply *fault* to the *at*-th message from now on (from 1) that has *text*, and to the next *times* - 1."""
        with self._lock:
            self._text, self._fault, self._at, self._times = text, fault, at, times
            self.seen = self.dropped = 0

    def on_message(self, pair: Pair, data: bytes) -> bool:
        """Drop the connection of a matching message now, or once the server has answered."""
        fault = self._fault_of(data)
        if fault == "after":
            pair.losing.set()
        return fault != "before"

    def _fault_of(self, data: bytes) -> Fault | None:
        with self._lock:
            if self._at == 0 or self._text not in data:
                return None
            self.seen += 1
            if self._at <= self.seen < self._at + self._times:
                self.dropped += 1
                return self._fault
            return None


@contextmanager
def postgres_proxy(database_url: str) -> Iterator[tuple[FaultyProxy, str]]:
    """Put a proxy before the server of *database_url*; yield it and the URL through it."""
    proxy = FaultyProxy(database_url)
    proxy.start()
    try:
        yield proxy, proxy.url(database_url)
    finally:
        proxy.close()
