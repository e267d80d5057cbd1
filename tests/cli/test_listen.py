"""`mailglass-reconcile listen` as a process: what it prints, and how it ends."""

import fcntl
import json
import os
import signal
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

import factories
import mailglass_reconcile
import processes
from commands import conforming
from faults.redis_servers import Valkey
from processes import COMMAND, Process
from waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.version_independent]

Start = Callable[..., Process]


@pytest.fixture
def start(db, redis_url) -> Iterator[Start]:
    """Return a function that starts `listen` with arguments and waits until it is subscribed."""
    with ExitStack() as stack:

        def begin(*arguments: str, redis_url: str = redis_url, stdout: int | None = None) -> Process:
            client = stack.enter_context(redis.Redis.from_url(redis_url))
            before = listeners(client)
            return stack.enter_context(
                processes.start(
                    [*COMMAND, "listen", *arguments],
                    {
                        **db.environment(redis_url),
                        "PYTHONUNBUFFERED": "",
                    },  # Python itself splits lines without a buffer
                    until=lambda: listeners(client) > before,
                    files={} if stdout is None else {"stdout": stdout},
                )
            )

        yield begin


def listeners(client: redis.Redis) -> int:
    """Return how many clients of the server are subscribed."""
    return sum(1 for row in client.client_list() if int(row["psub"]) or int(row["sub"]))


def link(db, tenant: str = factories.TENANT) -> str:
    """Link one orphan, and return the id of its delivery."""
    message = factories.new_id()
    delivery = factories.delivery(db, message, tenant_id=tenant)
    factories.orphan(db, factories.postmark(message), tenant_id=tenant)
    assert mailglass_reconcile.reconcile().linked == 1
    return delivery


@pytest.mark.parametrize("tenant", [pytest.param(None, marks=pytest.mark.guard), "acme"])
def test_each_event_is_one_line_of_json_at_once(db, start, tenant):
    """Lines are flushed, are of the requested tenant or of all, and are printed once although there are two
    channels.
    """
    process = start("--json", *(["--tenant", tenant] if tenant else []))
    foreign = link(db, "other")
    own = link(db)
    expected = [own] if tenant else [foreign, own]
    lines = [process.read_line() for _ in expected]
    lines_read = conforming("listen", "\n".join(lines))
    assert [line["message"]["delivery_id"] for line in lines_read] == expected
    assert process.stop() == 0
    assert (process.stdout.splitlines(), process.stderr) == (lines, "")


def test_a_person_reads_one_escaped_line_per_event(db, start, redis_url):
    process = start()
    delivery = link(db)
    line = process.read_line()
    assert f"acme  delivered  delivery {delivery}" in line
    with redis.Redis.from_url(redis_url) as client:
        client.publish(
            "mailglass:events:acme", '{"delivery_id": "\\u001b[2J", "meta": {"event_id": "x", "type": "\\u0007"}}'
        )
    line = process.read_line()
    assert "\\x1b[2J" in line
    assert line.strip().isprintable()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_ends_it_quietly(start, number, code):
    """Ctrl-C exits with 130; a supervisor's SIGTERM is no failure."""
    process = start("--json")
    assert process.stop(number) == code
    assert process.output == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_in_the_middle_of_a_line_does_not_cut_it(start, redis_url, number, code):
    """A pipe holds 64 kB; the last line must be whole for a parser."""
    reading, writing = os.pipe()
    process = start("--json", stdout=writing)
    os.close(writing)
    message = json.dumps({"delivery_id": "y", "meta": {"event_id": "x"}, "text": "x" * 500_000})
    with redis.Redis.from_url(redis_url) as client:
        client.publish("mailglass:events:acme", message)
    with os.fdopen(reading) as output:
        wait_until(lambda: _bytes_in(reading) >= 65_536)
        process.send_signal(number)
        assert output.read() == f'{{"channel": "mailglass:events:acme", "message": {message}}}\n'
    assert (process.wait(), process.stderr) == (code, "")


def _bytes_in(pipe: int) -> int:
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_a_reader_that_leaves_ends_it_quietly(db, start):
    """`head -1` does this."""
    reading, writing = os.pipe()
    process = start("--json", stdout=writing)
    os.close(writing)
    os.close(reading)
    link(db)
    assert (process.wait(), process.stderr) == (0, "")


def test_a_redis_that_restarts_is_one_line_on_standard_error_and_it_goes_on(start, tmp_path: Path):
    valkey = Valkey(tmp_path / "valkey")
    try:
        process = start("--json", redis_url=valkey.url)
        valkey.stop()
        process.wait_for("broadcasts are missed until it is back")
        assert "MAILGLASS_REDIS_URL" in process.stderr
        valkey.start()
        with redis.Redis.from_url(valkey.url) as client:
            wait_until(lambda: client.publish("mailglass:events:acme", '{"delivery_id": "x"}'))
        line = '{"channel": "mailglass:events:acme", "message": {"delivery_id": "x"}}'
        assert process.read_line() == line
        assert process.stop() == 0
        assert (process.stdout, process.stderr.count("\n")) == (f"{line}\n", 1)
    finally:
        valkey.stop()
