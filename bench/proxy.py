"""A TCP proxy in front of Postgres, in a process of its own, that counts round trips and makes each take longer.

A round trip begins with what a client sends after the server has answered. Connecting, and the client's goodbye, count
as a connection and not as round trips.
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

QUESTION = b"mailglass_reconcile_after_commit"
"""What the connection of the background thread sends."""

GOODBYE = b"X"
FLUSH = b"H\0\0\0\x04"
"""What psycopg sends after a pipeline, when the answer may be there already; it asks for nothing."""


class Counts(NamedTuple):
    """What went through since the last look: round trips, those of BEGIN, COMMIT and ROLLBACK, and connections.

    The questions of the background thread are counted apart.
    """

    round_trips: int
    begins_and_ends: int
    background: int
    connections: int


class Proxy:
    """Forwards connections to the Unix socket at *path*; each round trip takes *delay* seconds more."""

    def __init__(self, path: str, delay: float) -> None:
        self._path, self._delay = path, delay
        self._counter = Counter[str]()

    def serve(self, listener: socket.socket) -> None:
        """Take connections until the process ends."""
        while True:
            client, _ = listener.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def tell(self, listener: socket.socket) -> None:
        """Answer each connection with the counts, and begin again."""
        while True:
            asker, _ = listener.accept()
            counter, self._counter = self._counter, Counter()
            with asker:
                asker.sendall(json.dumps([counter[name] for name in Counts._fields]).encode())

    def _forward(self, client: socket.socket) -> None:
        self._counter["connections"] += 1
        time.sleep(2 * self._delay)  # TCP's own handshake, and the start of the session
        with socket.socket(socket.AF_UNIX) as server, client, contextlib.suppress(OSError):
            server.connect(self._path)
            answered = threading.Event()
            threading.Thread(target=_answer, args=(server, client, answered), daemon=True).start()
            of_thread = False
            while data := client.recv(1 << 20):
                asked = data.removeprefix(FLUSH)
                of_thread = of_thread or QUESTION in asked  # later ones may be prepared, and have a name only
                if answered.is_set() and asked and asked[:1] != GOODBYE:
                    answered.clear()
                    self._counter[_kind(asked, of_thread=of_thread)] += 1
                    time.sleep(self._delay)
                server.sendall(data)
            server.shutdown(socket.SHUT_RDWR)


def _kind(asked: bytes, *, of_thread: bool) -> str:
    """Return what a round trip counts as."""
    if of_thread:
        return "background"
    return "begins_and_ends" if ENDS.match(asked) else "round_trips"


def _answer(server: socket.socket, client: socket.socket, answered: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while data := server.recv(1 << 20):
            answered.set()
            client.sendall(data)
        client.shutdown(socket.SHUT_RDWR)


class Through(NamedTuple):
    """A running proxy."""

    port: int
    control: int

    def url(self, url: str) -> str:
        """Return the URL that leads to the database of *url* through the proxy."""
        through = sa.make_url(url).set(host="127.0.0.1", port=self.port, query={"sslmode": "disable"})
        return through.render_as_string(hide_password=False)


@contextmanager
def in_front_of(url: str, delay: float = 0.0) -> Iterator[Through]:
    """Run a proxy in front of the server of *url*, on a Unix socket, while the block runs."""
    command = [sys.executable, "-m", "bench.proxy", f"{sa.make_url(url).query['host']}/.s.PGSQL.5432", str(delay)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout  # noqa: S101 - for the type checker
            yield Through(*json.loads(process.stdout.readline()))
        finally:
            process.kill()


def counts(control: int) -> Counts:
    """Return what went through the proxy with this control port since the last call."""
    with socket.create_connection(("127.0.0.1", control)) as asker:
        return Counts(*json.loads(asker.makefile().read()))


def main() -> None:
    """Listen on two free ports, print them, and forward."""
    parser = argparse.ArgumentParser(prog="python -m bench.proxy")
    parser.add_argument("path")
    parser.add_argument("delay", type=float)
    options = parser.parse_args()
    proxy = Proxy(options.path, options.delay)
    listener, control = (socket.create_server(("127.0.0.1", 0), backlog=64) for _ in range(2))
    threading.Thread(target=proxy.tell, args=(control,), daemon=True).start()
    print(json.dumps([listener.getsockname()[1], control.getsockname()[1]]), flush=True)
    proxy.serve(listener)


if __name__ == "__main__":
    main()
