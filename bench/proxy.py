"""A TCP proxy in front of Postgres: `Proxy` forwards, and `CountingProxy` counts round trips and delays each.

The benchmark runs the second one in a process of its own. `tests/faults/proxy.py` has one that drops connections.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import sqlalchemy as sa

ENDS = re.compile(rb"(Q....|P....\0)(BEGIN|COMMIT|ROLLBACK)(?! TO)", re.DOTALL)
"""What begins or ends a transaction, as the drivers send it."""

AFTER_COMMIT = b"mailglass_reconcile_after_commit"
"""What the connection of the background thread sends."""

TERMINATE = b"X"
FLUSH = b"H\0\0\0\x04"
"""What psycopg sends after a pipeline, when the answer may be there already; it asks for nothing."""


class Pair:
    """A client's connection and the server's, between which a proxy forwards."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.answered = threading.Event()
        """Set while the server has answered, and the client has not sent more."""
        self.losing = threading.Event()
        """Set once the next answer of the server is to be lost, together with the connection."""
        self.is_of_thread = False
        """Whether it is the background thread's."""

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

    def on_connection(self) -> None:
        """Do something before a connection is forwarded."""

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
        self.on_connection()
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
            pair.answered.set()
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


class Counts(NamedTuple):
    """What went through since the last call: round trips, those of BEGIN, COMMIT and ROLLBACK, and connections.

    The statements of the background thread are counted apart.
    """

    round_trips: int
    begins_and_ends: int
    background: int
    connections: int


class CountingProxy(Proxy):
    """Counts round trips; each takes *delay* seconds more.

    A round trip begins with what a client sends after the server has answered. Connecting, and the client's
    Terminate, count as a connection and not as round trips.
    """

    def __init__(self, url: str, delay: float) -> None:
        super().__init__(url)
        self._delay = delay
        self._counter = Counter[str]()

    def report(self, control: socket.socket) -> None:
        """Answer each connection with the counts, and begin again."""
        while True:
            reader, _ = control.accept()
            counter, self._counter = self._counter, Counter()
            with reader:
                reader.sendall(json.dumps([counter[name] for name in Counts._fields]).encode())

    def on_connection(self) -> None:
        """Take as long as TCP's own handshake and the start of the session would."""
        self._counter["connections"] += 1
        time.sleep(2 * self._delay)

    def on_message(self, pair: Pair, data: bytes) -> bool:
        """Count the first message of a round trip, and wait."""
        message = data.removeprefix(FLUSH)
        # Later statements of the thread may be prepared, and have a name only.
        pair.is_of_thread = pair.is_of_thread or AFTER_COMMIT in message
        if pair.answered.is_set() and message and message[:1] != TERMINATE:
            pair.answered.clear()
            self._counter[_kind(message, of_thread=pair.is_of_thread)] += 1
            time.sleep(self._delay)
        return True


def _kind(message: bytes, *, of_thread: bool) -> str:
    """Return what a round trip counts as."""
    if of_thread:
        return "background"
    return "begins_and_ends" if ENDS.match(message) else "round_trips"


class Through(NamedTuple):
    """A counting proxy that runs in a process of its own."""

    port: int
    control: int

    def url(self, url: str) -> str:
        """Return the URL that leads to the database of *url* through the proxy."""
        return url_through(self.port, url)


@contextmanager
def in_front_of(url: str, delay: float = 0.0) -> Iterator[Through]:
    """Run a counting proxy in front of the server of *url*, in a process of its own, while the block runs."""
    command = [sys.executable, "-m", "bench.proxy", url, str(delay)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout  # noqa: S101 - for the type checker
            yield Through(*json.loads(process.stdout.readline()))
        finally:
            process.kill()


def counts(control: int) -> Counts:
    """Return what went through the proxy with this control port since the last call."""
    with socket.create_connection(("127.0.0.1", control)) as reader:
        return Counts(*json.loads(reader.makefile().read()))


def main() -> None:
    """Listen on two free ports, print them, and forward."""
    parser = argparse.ArgumentParser(prog="python -m bench.proxy")
    parser.add_argument("url")
    parser.add_argument("delay", type=float)
    options = parser.parse_args()
    proxy, control = CountingProxy(options.url, options.delay), socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=proxy.report, args=(control,), daemon=True).start()
    print(json.dumps([proxy.port, control.getsockname()[1]]), flush=True)
    proxy.serve()


if __name__ == "__main__":
    main()
