"""A TCP proxy before Postgres or Redis that drops a connection at a chosen message of the client."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from sqlalchemy.engine import make_url

Fault = Literal["before", "after"]
"""Drop the connection before the message reaches the server, or after the server has answered it."""


class Proxy:
    """Forwards connections; the *at*-th message that holds *wanted* meets with a fault, *times* times in a row."""

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._wanted: bytes = b""
        self._fault: Fault = "before"
        self._at = self._times = 0
        self.seen = 0
        """Messages that held *wanted* since the proxy was armed."""
        self.dropped = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        """The port of the loopback address that the proxy listens on."""
        return int(self._listener.getsockname()[1])

    def arm(self, wanted: bytes, fault: Fault, at: int, times: int = 1) -> None:
        """Meet the *at*-th message from now on (from 1) that holds *wanted*, and the next *times* - 1, with *fault*."""
        with self._lock:
            self._wanted, self._fault, self._at, self._times = wanted, fault, at, times
            self.seen = self.dropped = 0

    def close(self) -> None:
        """Stop, and drop what is open."""
        _close(self._listener)
        self.drop()

    def drop(self) -> None:
        """Drop every connection that is open; new ones are taken."""
        for end in list(self._sockets):
            _close(end)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = self._connect()
        except OSError:
            _close(client)
            return
        self._sockets |= {client, server}
        losing = threading.Event()
        threading.Thread(target=self._answer, args=(server, client, losing), daemon=True).start()
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 20):
                fault = self._fault_of(data)
                if fault == "before":
                    break
                if fault == "after":
                    losing.set()
                server.sendall(data)
        if not losing.is_set():
            _close(client)
            _close(server)

    def _answer(self, server: socket.socket, client: socket.socket, losing: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 20):
                if losing.is_set():
                    break
                client.sendall(data)
        _close(client)
        _close(server)

    def _fault_of(self, data: bytes) -> Fault | None:
        with self._lock:
            if self._at == 0 or self._wanted not in data:
                return None
            self.seen += 1
            if self._at <= self.seen < self._at + self._times:
                self.dropped += 1
                return self._fault
            return None


def _close(end: socket.socket) -> None:
    # Closed alone, it would stay open in a thread that waits for it, until its number is that of another socket.
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


@contextmanager
def before_postgres(database_url: str) -> Iterator[tuple[Proxy, str]]:
    """Put a proxy before the server of *database_url*, and yield it and the URL that leads through it."""
    url = make_url(database_url)
    port = url.port or 5432

    def connect() -> socket.socket:
        directory = url.query.get("host")
        if directory is None:
            return socket.create_connection((url.host or "127.0.0.1", port))
        end = socket.socket(socket.AF_UNIX)
        end.connect(f"{directory}/.s.PGSQL.{port}")
        return end

    proxy = Proxy(connect)
    through = url.set(host="127.0.0.1", port=proxy.port, query={"sslmode": "disable", "gssencmode": "disable"})
    try:
        yield proxy, through.render_as_string(hide_password=False)
    finally:
        proxy.close()
