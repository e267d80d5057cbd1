"""The server: what it prints, and malformed requests."""

import contextlib
import socket

import httpx
import pytest

from mailglass_reconcile import server
from serving import serve
from waiting import PATIENCE

pytestmark = [pytest.mark.long, pytest.mark.slow]


def connect(address: str, sent: bytes = b"") -> socket.socket:
    """Open a connection, and send a text."""
    opened = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=120)
    opened.sendall(sent)
    return opened


def test_idle_connections_block_nobody_and_log_nothing(db):
    with contextlib.ExitStack() as opened, serve(db.environment()) as (process, address):
        for _ in range(400):
            opened.enter_context(connect(address))
        assert httpx.get(f"{address}/healthz", timeout=PATIENCE).text == "alive\n"
        assert process.stop() == 0
        assert process.stderr == f"serving on {address}/; press Ctrl-C to stop\n"


def test_a_malformed_request_gets_400_and_logs_nothing(db):
    """Too long a head, a malformed chunk and another protocol, too: uvicorn wrote a traceback for some of them."""
    with serve(db.environment()) as (process, address):
        for sent, answer in [
            (b"nonsense\r\n\r\n", b"HTTP/1.1 400"),
            (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * server.MAX_HEAD_BYTES, b"HTTP/1.1 400"),
            (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nnonsense\r\n\r\n", b"HTTP/1.1 200"),
            *[
                (method + b" / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n", b"HTTP/1.1 400")
                for method in (b"GET", b"HEAD", b"POST")
            ],
            (b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", b"HTTP/1.1 401"),
        ]:
            with connect(address, sent) as connection:
                assert connection.recv(4_096).startswith(answer)
        assert process.stop() == 0
        assert process.stderr == f"serving on {address}/; press Ctrl-C to stop\n"
