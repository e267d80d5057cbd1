"""The server: what idle, slow and malformed connections cost others."""

import asyncio
import contextlib
import logging
import resource
import socket
import threading
import time

import httpx
import pytest

from mailglass_reconcile import server
from mailglass_reconcile.receiver.admission import AdmissionControl
from serving import serve, serve_here
from waiting import wait_until

pytestmark = pytest.mark.long

slow = pytest.mark.slow
HALF_A_HEAD = b"POST /x HTTP/1.1\r\nHost: x\r\n"
NO_BODY = HALF_A_HEAD + b"Content-Length: 5000\r\n\r\n"


def connect(address: str, sent: bytes = b"") -> socket.socket:
    """Open a connection, and send a text."""
    opened = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=120)
    opened.sendall(sent)
    return opened


@slow
def test_hundreds_of_idle_connections_block_nobody_and_log_nothing(db):
    """They once took every file descriptor, and each further accept was a traceback."""
    with contextlib.ExitStack() as opened, serve(db.environment()) as (process, address):
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (300, 300))
        for _ in range(400):
            opened.enter_context(connect(address))
        assert httpx.get(f"{address}/healthz", timeout=60).text == "alive\n"
        assert process.stop() == 0
        assert process.stderr == f"serving on {address}/; press Ctrl-C to stop\n"


def test_a_request_may_take_ten_seconds_to_arrive_and_its_body_half_a_minute():
    """The tests below wait a tenth of that. The receiver times out first, so that its client gets a response."""
    protocol = server.BoundedProtocol
    assert (protocol.head_seconds, AdmissionControl.body_seconds, protocol.body_seconds) == (10, 30, 31)


@slow
def test_a_request_that_does_not_arrive_within_ten_seconds_is_closed(db):
    """No byte, half a head or a second request once stayed open for ever."""
    halves = [
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nHost:",
    ]
    with contextlib.ExitStack() as opened, serve(db.environment(), module=("short_timeouts", "serve")) as (_, address):
        for connection in [opened.enter_context(connect(address, half)) for half in halves]:
            read_until_closed(connection)


@slow
def test_a_body_that_does_not_arrive_within_half_a_minute_is_closed(db):
    """The receiver answers before that."""
    with serve(db.environment(), module=("short_timeouts", "serve")) as (_, address):
        started_at = time.monotonic()
        sent = b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\ntoken"
        with connect(address, sent) as connection:
            read_until_closed(connection)
        assert time.monotonic() - started_at > AdmissionControl.body_seconds / 10


@slow
def test_a_client_that_sends_without_reading_is_closed_after_a_response(db):
    """Its responses would stay in this process's memory, and it would keep its place."""
    requests = b"GET /static/page.css HTTP/1.1\r\nHost: x\r\n\r\n" * 300_000
    with serve(db.environment()) as (_, address), connect(address) as greedy, pytest.raises(ConnectionError):
        greedy.sendall(requests)


@slow
def test_a_request_in_chunks_of_a_byte_is_closed(db):
    """Each chunk costs as much as a body; chunks of a kilobyte are read."""
    head = b"POST /login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with serve(db.environment()) as (_, address):
        with connect(address, head) as connection, pytest.raises(ConnectionError):
            connection.sendall(b"1\r\nx\r\n" * 1_000_000)
        with connect(address, head + (b"400\r\n" + b"x" * 1_024 + b"\r\n") * 50 + b"0\r\n\r\n") as connection:
            assert connection.recv(4_096).startswith(b"HTTP/1.1 4")


def read_until_closed(connection: socket.socket) -> None:
    """Read until the server closes the connection."""
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(4_096):
            pass


@slow
def test_a_malformed_request_gets_400_and_logs_nothing(db):
    """A request that is too long, or for another protocol, is not logged either."""
    with serve(db.environment()) as (process, address):
        for sent, answer in [
            (b"nonsense\r\n\r\n", b"HTTP/1.1 400"),
            (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * server.MAX_HEAD_BYTES, b"HTTP/1.1 400"),
            (b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", b"HTTP/1.1 401"),
        ]:
            with connect(address, sent) as connection:
                assert connection.recv(4_096).startswith(answer)
        assert process.stop() == 0
        assert process.stderr == f"serving on {address}/; press Ctrl-C to stop\n"


arrived: list[int] = []
"""Lengths of the pieces of bodies that `echo` has read."""


async def echo(scope, receive, send) -> None:
    """Answer with the length of the body, or at once for one path."""
    size, more = 0, scope["path"] != "/early"
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        arrived.append(len(message.get("body", b"")))
        more = message.get("more_body", False)
    head = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"7")]}
    await send(head)
    await send({"type": "http.response.body", "body": b"%7d" % size, "more_body": scope["path"] == "/early"})
    if scope["path"] == "/early":
        while (message := await receive())["type"] == "http.request" and message.get("more_body"):
            pass
        await send({"type": "http.response.body", "body": b""})


def read_answer(connection: socket.socket, text: bytes) -> None:
    """Read a response until it ends with a text."""
    answer = b""
    while not answer.endswith(text):
        part = connection.recv(4_096)
        assert part, answer
        answer += part


def is_open(connection: socket.socket) -> bool:
    """Return True if the server has not closed a connection."""
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False
    finally:
        connection.settimeout(20)


@pytest.mark.parametrize("sent", [HALF_A_HEAD, NO_BODY])
def test_a_body_in_progress_outlives_any_number_of_idle_connections(sent):
    """Each piece counts as progress; it once was evicted as the oldest without a whole request."""
    piece = bytes(server.PIECE_BYTES)
    arrived.clear()
    with serve_here(echo, max_connections=8, progress_seconds=60.0) as address, contextlib.ExitStack() as opened:
        honest = opened.enter_context(connect(address, HALF_A_HEAD + b"Content-Length: %d\r\n\r\n" % (5 * len(piece))))
        for number in range(1, 5):
            honest.sendall(piece)
            wait_until(lambda number=number: sum(arrived) == number * len(piece))
            strangers = [opened.enter_context(connect(address, sent)) for _ in range(12)]
            wait_until(lambda strangers=strangers: sum(map(is_open, strangers)) <= 7)
        honest.sendall(piece)
        read_answer(honest, b"  10240")


def test_a_silent_connection_is_evicted_before_a_slow_one():
    """It is the newer one."""
    with serve_here(echo, max_connections=8) as address, contextlib.ExitStack() as opened:
        dribbling = [opened.enter_context(connect(address, HALF_A_HEAD)) for _ in range(6)]
        silent = [opened.enter_context(connect(address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")) for _ in range(2)]
        for connection in silent:  # kept alive after a response
            read_answer(connection, b"      0")
        for evicted in silent:
            dribbling.append(opened.enter_context(connect(address, HALF_A_HEAD)))
            wait_until(lambda evicted=evicted: not is_open(evicted))
        assert all(map(is_open, dribbling))
        opened.enter_context(connect(address, HALF_A_HEAD))
        wait_until(lambda: not is_open(dribbling[0]))


def test_a_new_connection_is_read_before_it_can_be_evicted():
    """Strangers' uploads once kept everybody else out, however fast new connections came."""
    request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n1234"
    with serve_here(echo, max_connections=8) as address, contextlib.ExitStack() as opened:
        ending = threading.Event()
        uploads = [threading.Thread(target=upload, args=(address, ending)) for _ in range(10)]
        for thread in uploads:
            thread.start()
        opened.callback(lambda: [thread.join(20) for thread in uploads])
        opened.callback(ending.set)
        for _ in range(10):
            with connect(address, request) as connection:
                read_answer(connection, b"      4")


def upload(address: str, ending: threading.Event) -> None:
    """Send an endless body, and start again whenever the connection is closed."""
    while not ending.is_set():
        with (
            contextlib.suppress(OSError),
            connect(address, HALF_A_HEAD + b"Content-Length: 999999999\r\n\r\n") as connection,
        ):
            while not ending.is_set():
                connection.sendall(bytes(server.PIECE_BYTES))


def test_a_response_may_take_longer_to_make_than_to_read():
    """A webhook that waited for a lock lost its connection half a minute after its body, although it was recorded."""

    async def record(scope, receive, send):
        await receive()
        for _ in range(20):
            await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    with serve_here(record, response_seconds=0.0) as address:
        assert httpx.post(address, content=b"{}", timeout=60).text == "ok"


def test_a_client_that_does_not_read_a_large_response_is_closed():
    """Its response would stay in this process's memory, and it would keep its place."""
    size = 50 * 1024 * 1024
    ended = threading.Event()

    async def download(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
        for _ in range(50):
            await send({"type": "http.response.body", "body": bytes(size // 50), "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        ended.set()

    with (
        serve_here(download, response_seconds=0.0) as address,
        connect(address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") as connection,
    ):
        assert ended.wait(60)
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(1024 * 1024):
                received += len(piece)
    assert received < size


def test_a_malformed_rest_of_a_request_that_was_answered_leaves_no_traceback(caplog):
    """h11 refuses a second response; asyncio once logged that for each request, at ERROR."""
    with serve_here(echo) as address, caplog.at_level(logging.DEBUG):
        head = b"POST /early HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        with connect(address, head) as connection:
            assert connection.recv(4_096).startswith(b"HTTP/1.1 200")
            connection.sendall(b"ZZ\r\n")
            read_until_closed(connection)
        with connect(address, head.replace(b"early", b"late") + b"ZZ\r\n") as connection:
            assert connection.recv(4_096).startswith(b"HTTP/1.1 400")
    assert not [record for record in caplog.records if record.levelno > logging.WARNING]


def test_a_head_of_more_than_a_hundred_lines_is_refused_before_it_is_parsed(monkeypatch):
    """It may arrive in pieces; lines of a body do not count."""
    parsed = []
    receive_data = server.h11.Connection.receive_data
    monkeypatch.setattr(
        server.h11.Connection, "receive_data", lambda conn, data: (parsed.append(data), receive_data(conn, data))
    )
    with serve_here(echo) as address:
        for lines, status in [(99, b"200"), (100, b"400"), (3_900, b"400")]:
            head = b"POST / HTTP/1.1\r\nContent-Length: 400\r\nHost: x\r\n" + b"a:\r\n" * (lines - 3) + b"\r\n"
            parsed.clear()
            with connect(address, head + b"\n" * 400) as connection:
                assert connection.recv(4_096).startswith(b"HTTP/1.1 " + status), lines
            assert (b"".join(parsed).count(b"a:") == lines - 3) == (status == b"200")
