"""Attacks without a secret: hundreds of connections, and a signed webhook is still answered."""

import contextlib
import os
import resource
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import product

import httpx
import psutil
import pytest

import processes
import senders
from mailglass_reconcile.receiver.admission import AdmissionControl
from marking import nightly_unless
from receivers import first, now, receiving
from receivers import published as _published  # noqa: F401 - a fixture of every test
from strangers import BEHAVIOURS, MB

pytestmark = [pytest.mark.slow, pytest.mark.version_independent]

UVICORN = ("uvicorn", "mounting:shop", "--no-access-log", "--timeout-graceful-shutdown", "1")
KINDS = {"the command": (("mailglass_reconcile", "receive"), ""), "a mounted application": (UVICORN, "/webhooks")}
EVERY_KIND = pytest.mark.parametrize("kind", nightly_unless("the command".__eq__, KINDS))
IN_CI = ("the command", "most_of_a_body"), ("a mounted application", "another_certificate")


@contextmanager
def serving(kind: str, db, folder, **more: str):
    """Run a receiver; yield its address, the path before the providers' names, and its process."""
    module, path = KINDS[kind]
    with receiving(db, folder, module, **more) as (base, process):
        yield base, path, psutil.Process(process.pid)
        assert "Traceback" not in process.stderr  # later, uvicorn writes one for each response that it cuts off


@contextmanager
def strangers(base: str, path: str, behaviour: str) -> Iterator[None]:
    """Run hundreds of connections with one behaviour."""
    command = ["-m", "strangers", base.rpartition(":")[2], path, behaviour]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with processes.start(command, env, until="open\n"):
        yield


def connect(base: str) -> socket.socket:
    """Open a connection."""
    return socket.create_connection(("127.0.0.1", int(base.rpartition(":")[2])), timeout=50)


def post(place: str, provider: str) -> httpx.Response:
    """Post a signed webhook, with a longer timeout than a provider's, because the machine may be busy."""
    request = first(provider)
    return httpx.post(f"{place}/{provider}", content=request.body, headers=request.headers, timeout=250)


@pytest.mark.parametrize(("kind", "behaviour"), nightly_unless(IN_CI.__contains__, product(KINDS, BEHAVIOURS)))
def test_hundreds_of_strangers_leave_a_signed_webhook_answered(db, tmp_path, kind, behaviour):
    """The receiver has a core, and answers within a provider's timeout and the memory of a small container.

    One webhook while they come, and two more at the same time once they are there.
    """
    sizes = []
    with (
        serving(kind, db, tmp_path) as (base, path, process),
        strangers(base, path, behaviour),
        ThreadPoolExecutor() as pool,
    ):
        before = sum(process.cpu_times()[:2])
        for providers in (("postmark",), ("sendgrid", "mailgun")):
            answers = pool.map(lambda provider: post(f"{base}{path}", provider), providers)
            assert {answer.status_code for answer in answers} == {200}
            sizes.append(process.memory_info().rss // MB)
        assert sum(process.cpu_times()[:2]) - before < 30, "seconds of CPU, for all three"
    print(sizes)  # noqa: T201
    assert max(sizes) < 400


ROUND_TRIP_SECONDS = 0.2
"""Of a client on another continent."""


def post_from_far(base: str, provider: str, body: bytes, headers: dict[str, str], window: int) -> bytes:
    """Post a webhook from afar, one window per round trip, and return the beginning of the response."""
    lines = [f"POST /{provider} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    sent = "\r\n".join([*lines, "", ""]).encode() + body
    with connect(base) as client:
        for at in range(0, len(sent), window):
            threading.Event().wait(ROUND_TRIP_SECONDS)
            client.sendall(sent[at : at + window])
        return client.recv(12)


def batch(size: int) -> senders.Posted:
    """Return a webhook of SendGrid of some length."""
    event = {**senders.load_payloads("sendgrid")[0].payload, "filler": "x" * size}
    (request,) = senders.make_requests("sendgrid", [event], at=now())
    return request


@pytest.mark.parametrize("behaviour", nightly_unless("slow_body".__eq__, ["no_body", "slow_body", "garbage"]))
def test_hundreds_of_strangers_leave_large_and_distant_webhooks_answered(db, tmp_path, behaviour):
    """One is small and from afar, two have 1 MB, from afar and near; they used to be cut off each time."""
    large, small = batch(MB), first("postmark")
    with (
        serving("the command", db, tmp_path) as (base, _, _),
        strangers(base, "", behaviour),
        ThreadPoolExecutor() as pool,
    ):
        answers = [
            pool.submit(post_from_far, base, "postmark", small.body, small.headers, 100_000),
            pool.submit(post_from_far, base, "sendgrid", large.body, large.headers, 200_000),
            pool.submit(post_from_far, base, "sendgrid", large.body, large.headers, 2 * MB),
        ]
        assert [answer.result(250) for answer in answers] == [b"HTTP/1.1 200"] * 3


@EVERY_KIND
def test_half_bodies_that_a_proxy_streams_take_no_descriptors_and_leave_the_log_quiet(db, tmp_path, kind):
    """The rest of each was once read for five seconds; then each accept wrote a traceback."""
    module, path = KINDS[kind]
    with receiving(db, tmp_path, module) as (base, process):
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (1_024, 1_024))
        before = process.stderr
        command = ["-m", "strangers", base.rpartition(":")[2], path, "half_bodies"]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        statuses = []
        with processes.start(command, env) as proxy:
            while "open" not in proxy.stdout:
                statuses.append(post(f"{base}{path}", "postmark").status_code)
                assert proxy.poll() is None
        assert set(statuses) == {200}
        lines = process.stderr.removeprefix(before).splitlines()
        (refused,) = [line for line in lines if not line.startswith("INFO: postmark: 1 event")]
        assert refused.endswith("a webhook of postmark was refused: the user name or the password is wrong")


def test_a_body_that_does_not_arrive_is_answered_with_408(db, tmp_path):
    """The timeout is half a minute, also in a mounted application; the test uses a tenth of it."""
    sent = b"POST /webhooks/sendgrid HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n["
    modules = "canned_certificates,short_timeouts"
    with (
        serving("a mounted application", db, tmp_path, MAILGLASS_IMPORTS=modules) as (base, _, _),
        connect(base) as connection,
    ):
        started_at = time.monotonic()
        connection.sendall(sent)
        assert connection.recv(4_096).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - started_at > AdmissionControl.body_seconds / 10 - 0.1


def test_the_largest_bodies_are_evicted_when_many_fill_the_memory(db, tmp_path):
    """Whole bodies in the queue count, too; the response says when to retry."""
    body = b"mandrill_events=" + b"a" * (5 * MB - 100)
    head = b"POST /mandrill HTTP/1.1\r\nHost: x\r\nX-Mandrill-Signature: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    with serving("the command", db, tmp_path) as (base, _, process), contextlib.ExitStack() as opened:
        connections = []
        for _ in range(16):
            connections.append(opened.enter_context(connect(base)))
            connections[-1].sendall(head + body[:-1])  # before the next one: its head must come in time
        answer = b""
        while not answer.startswith(b"HTTP/1.1 503"):  # on a busy machine, some have timed out: 408
            answers, _, _ = select.select(connections, [], [], 200)
            answer = answers[0].recv(4_096)
            connections.remove(answers[0])
        request = first("postmark")
        assert (
            httpx.post(f"{base}/postmark", content=request.body, headers=request.headers, timeout=200).status_code
            == 200
        )
        assert process.memory_info().rss < 400 * MB
