"""The server: what idle, slow and malformed connections cost the others."""

import contextlib
import socket
import time

import httpx
import pytest

from mailglass_reconcile import server
from mailglass_reconcile.receiver import bodies
from serving import serving

pytestmark = pytest.mark.slow


def connect(address: str, sent: bytes = b"") -> socket.socket:
    """Open a connection, and send something."""
    opened = socket.create_connection(("127.0.0.1", int(address.split(":")[2].strip("/"))), timeout=120)
    opened.sendall(sent)
    return opened


def test_hundreds_of_idle_connections_keep_nobody_out_and_leave_no_line_in_the_log(db):
    """They took every file of the process, which then wrote a traceback for each attempt to accept another one."""
    url, redis_url = db.url, db.settings.redis_url.get_secret_value()
    with contextlib.ExitStack() as opened, serving(url, redis_url, files=300) as (process, address):
        for _ in range(400):
            opened.enter_context(connect(address))
        assert httpx.get(f"{address}healthz", timeout=60).text == "alive\n"
        process.terminate()
        assert process.wait(20) == 0
        assert process.stderr.read() == ""


def test_a_request_may_take_ten_seconds_to_arrive_and_its_body_half_a_minute():
    """The tests below wait a tenth of that. The receiver gives up on a body first: its client gets an answer."""
    assert (server.HEAD_SECONDS, bodies.BODY_SECONDS, server.BODY_SECONDS) == (10, 30, 31)


def test_a_request_that_does_not_arrive_within_ten_seconds_is_cut_off(db):
    """Nothing at all, half a head, a second request: each stayed open forever."""
    halves = [
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nHost:",
    ]
    url, redis_url = db.url, db.settings.redis_url.get_secret_value()
    with contextlib.ExitStack() as opened, serving(url, redis_url, module="hurried") as (_, address):
        for one in [opened.enter_context(connect(address, half)) for half in halves]:
            until_closed(one)


def test_a_body_that_does_not_arrive_within_half_a_minute_is_cut_off(db):
    """Of which the receiver answers its own before that."""
    url, redis_url = db.url, db.settings.redis_url.get_secret_value()
    with serving(url, redis_url, module="hurried") as (_, address):
        began = time.monotonic()
        sent = b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\ntoken"
        with connect(address, sent) as one:
            until_closed(one)
        assert time.monotonic() - began > bodies.BODY_SECONDS / 10


def test_a_client_that_sends_on_without_reading_is_cut_off_after_an_answer(db):
    """Its answers would wait in this process's memory, and it would keep its place."""
    url, redis_url = db.url, db.settings.redis_url.get_secret_value()
    requests = b"GET /static/page.css HTTP/1.1\r\nHost: x\r\n\r\n" * 300_000
    with serving(url, redis_url) as (_, address), connect(address) as greedy, pytest.raises(ConnectionError):
        greedy.sendall(requests)


def test_a_request_in_chunks_of_a_byte_is_cut_off(db):
    """Each chunk costs as much as a body; those of a kilobyte are read."""
    url, redis_url = db.url, db.settings.redis_url.get_secret_value()
    head = b"POST /login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with serving(url, redis_url) as (_, address):
        with connect(address, head) as one, pytest.raises(ConnectionError):
            one.sendall(b"1\r\nx\r\n" * 1_000_000)
        with connect(address, head + (b"400\r\n" + b"x" * 1_024 + b"\r\n") * 50 + b"0\r\n\r\n") as one:
            assert one.recv(4_096).startswith(b"HTTP/1.1 4")


def until_closed(one: socket.socket) -> None:
    """Read what comes, until the server closes the connection."""
    with contextlib.suppress(ConnectionResetError):
        while one.recv(4_096):
            pass


def test_a_malformed_request_gets_400_and_leaves_no_line_in_the_log(db):
    """Nor does one that is too long, or that wants another protocol."""
    url, redis_url = db.url, db.settings.redis_url.get_secret_value()
    with serving(url, redis_url) as (process, address):
        for sent, answer in [
            (b"nonsense\r\n\r\n", b"HTTP/1.1 400"),
            (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * server.HEAD_BYTES, b"HTTP/1.1 400"),
            (b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", b"HTTP/1.1 401"),
        ]:
            with connect(address, sent) as one:
                assert one.recv(4_096).startswith(answer)
        process.terminate()
        assert process.wait(20) == 0
        assert process.stderr.read() == ""
