"""`mailglass-reconcile listen` as a process: what it prints, and how it ends."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

import factories
import mailglass_reconcile
from commands import conforming
from faults.redis_servers import Valkey
from waiting import wait_until

pytestmark = pytest.mark.slow

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(db, redis_url) -> Iterator[Start]:
    """Start `listen` with more arguments, and wait until it is subscribed."""
    started = []

    def begin(*arguments: str, redis_url: str = redis_url, **options: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "mailglass_reconcile", "listen", *arguments],
            env={**db.environment(redis_url), "PYTHONUNBUFFERED": ""},  # Python itself cuts lines without a buffer
            stdout=options.get("stdout", subprocess.PIPE),
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        with redis.Redis.from_url(redis_url) as client:
            before = listeners(client)
            wait_until(lambda: listeners(client) > before or process.poll() is not None)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


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
    """Flushed as it comes, of the tenant that was asked for or of all, once although it has two channels."""
    process = start("--json", *(["--tenant", tenant] if tenant else []))
    others = link(db, "other")
    result = link(db)
    expected = [result] if tenant else [others, result]
    lines = [process.stdout.readline() for _ in expected]
    document = conforming("listen", "".join(lines))
    assert [line["message"]["delivery_id"] for line in document] == expected
    process.terminate()
    rest, errors = process.communicate(timeout=60)
    assert (rest, errors, process.returncode) == ("", "", 0)


def test_a_person_reads_one_escaped_line_per_event(db, start, redis_url):
    """Time, tenant, type and ids; whatever somebody else publishes cannot steer the terminal."""
    process = start()
    delivery = link(db)
    line = process.stdout.readline()
    assert f"acme  delivered  delivery {delivery}" in line
    with redis.Redis.from_url(redis_url) as client:
        client.publish(
            "mailglass:events:acme", '{"delivery_id": "\\u001b[2J", "meta": {"event_id": "x", "type": "\\u0007"}}'
        )
    line = process.stdout.readline()
    assert "\\x1b[2J" in line
    assert line.strip().isprintable()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_ends_it_quietly(start, number, code):
    """Ctrl-C is 130; a supervisor's SIGTERM is no failure."""
    process = start("--json")
    process.send_signal(number)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_in_the_middle_of_a_line_does_not_cut_it(start, redis_url, number, code):
    """A pipe holds 64 kB; whoever parses the lines gets a whole last one."""
    process = start("--json")
    message = json.dumps({"delivery_id": "y", "meta": {"event_id": "x"}, "text": "x" * 500_000})
    with redis.Redis.from_url(redis_url) as client:
        client.publish("mailglass:events:acme", message)
    wait_until(lambda: _waiting_in(process.stdout) >= 65_536)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert (output, errors) == (f'{{"channel": "mailglass:events:acme", "message": {message}}}\n', "")
    assert process.returncode == code


def _waiting_in(pipe) -> int:
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_a_reader_that_leaves_ends_it_quietly(db, start):
    """As `head -1` does."""
    reading, writing = os.pipe()
    process = start("--json", stdout=writing)
    os.close(writing)
    os.close(reading)
    link(db)
    _, errors = process.communicate(timeout=60)
    assert (errors, process.returncode) == ("", 0)


def test_a_redis_that_is_away_at_the_start_is_one_line_that_names_the_setting(db):
    """Exit code 1, and no password."""
    process = subprocess.run(
        [sys.executable, "-m", "mailglass_reconcile", "listen", "--json"],
        env=db.environment("redis://:canary@127.0.0.1:1/0"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (process.stdout, process.returncode) == ("", 1)
    assert len(process.stderr.splitlines()) == 1
    assert "cannot connect to Redis at 127.0.0.1, port 1, database 0: nothing listens there" in process.stderr
    assert "MAILGLASS_REDIS_URL" in process.stderr
    assert "canary" not in process.stderr


def test_a_redis_that_restarts_is_one_line_on_standard_error_and_it_goes_on(start, tmp_path: Path):
    """Standard output stays JSON."""
    valkey = Valkey(tmp_path / "valkey")
    try:
        process = start("--json", redis_url=valkey.url)
        valkey.stop()
        output = process.stderr.readline()
        assert "MAILGLASS_REDIS_URL" in output
        assert "broadcasts are missed until it is back" in output
        valkey.start()
        with redis.Redis.from_url(valkey.url) as client:
            wait_until(lambda: client.publish("mailglass:events:acme", '{"delivery_id": "x"}'))
        assert process.stdout.readline() == '{"channel": "mailglass:events:acme", "message": {"delivery_id": "x"}}\n'
        process.terminate()
        assert process.communicate(timeout=60) == ("", "")
    finally:
        valkey.stop()
