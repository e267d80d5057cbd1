"""Faults of Redis during a sweep: no link is lost, a second at most, and messages are counted."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import redis
from pydantic import SecretStr

from database import Database
from factories import insert_pairs
from faults.redis_servers import Valkey, silent
from mailglass_reconcile import pubsub
from mailglass_reconcile.pubsub import Publisher
from mailglass_reconcile.store import database as databases
from mailglass_reconcile.sweep.reconciler import Sweep
from mailglass_reconcile.sweep.result import SweepResult
from waiting import PATIENCE, settle

pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.version_independent]

ORPHANS = 30


def sweep(db: Database, url: str, at_batch: int = 0, act: Callable[[], object] = lambda: None) -> SweepResult:
    """Link in batches of one, act after some of them, and check the invariants of every sweep."""
    insert_pairs(db, ORPHANS)
    before = db.count_links()
    settings = db.settings.model_copy(update={"batch_size": 1})
    with pubsub.create_client(SecretStr(url), "MAILGLASS_REDIS_URL") as client:
        publisher = Publisher(client)
        swept = Sweep(databases.Database(db.engine, settings), publisher)
        for _ in swept.batches():
            if at_batch and swept.result.linked == at_batch:
                publisher.wait()
                act()
        result = swept.result
    assert (result.status, result.linked, db.count_links() - before) == ("ok", ORPHANS, ORPHANS)
    assert result.published + result.publish_failed == 2 * ORPHANS
    return result


@pytest.mark.guard
def test_a_redis_that_refuses_loses_no_link(db: Database) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert sweep(db, f"redis://127.0.0.1:{port}/0").publish_failed == 2 * ORPHANS


@pytest.mark.guard
def test_a_redis_that_never_answers_costs_a_second_in_all(db: Database) -> None:
    """A timeout of half a second applies twice if the sweep lasts."""
    with silent() as (port, accepted):
        assert sweep(db, f"redis://127.0.0.1:{port}/0").publish_failed == 2 * ORPHANS
        assert 1 <= len(accepted) <= 2


def test_a_redis_that_stops_answering_during_a_sweep_costs_a_second_in_all(db: Database, valkey: Valkey) -> None:
    """SIGSTOP stops the process; when it continues, it executes what it was sent."""
    with _paused(valkey) as pause:
        result = sweep(db, valkey.url, 10, pause)
    assert result.published == 20
    with redis.Redis.from_url(valkey.url) as client:
        assert client.info("commandstats")["cmdstat_publish"]["calls"] in (20, 22, 24)


@contextmanager
def _paused(valkey: Valkey) -> Iterator[Callable[[], None]]:
    import psutil  # noqa: PLC0415 - used here alone

    with redis.Redis.from_url(valkey.url) as client:
        process = psutil.Process(client.info("server")["process_id"])
    yield process.suspend
    process.resume()


def test_a_redis_that_ends_during_a_sweep_loses_the_messages_after_it(db: Database, valkey: Valkey) -> None:
    assert sweep(db, valkey.url, 10, valkey.stop).published == 20


@pytest.mark.parametrize("batches", [0, 10])
def test_a_redis_without_memory_loses_no_link(db: Database, valkey: Valkey, batches: int) -> None:
    """Redis may refuse or run the script; messages that it accepts are published."""

    def fill() -> None:
        valkey.command("CONFIG", "SET", "maxmemory", 1)

    with redis.Redis.from_url(valkey.url) as client, client.pubsub() as heard:
        heard.psubscribe("mailglass:*")
        heard.get_message(timeout=PATIENCE)
        if batches == 0:
            fill()
        result = sweep(db, valkey.url, batches, fill)
        settle()
        client.publish("mailglass:", b"end")
        messages = [*iter(lambda: heard.get_message(timeout=PATIENCE)["data"], b"end")]
    assert len(messages) == result.published


def test_a_redis_restarted_during_a_sweep_is_used_again(db: Database, valkey: Valkey) -> None:

    def restart() -> None:
        valkey.stop()
        valkey.start()

    result = sweep(db, valkey.url, 10, restart)
    assert result.publish_failed in (0, 2)


def test_a_password_changed_during_a_sweep_loses_the_messages_after_it(
    db: Database, valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    """Connections are dropped, the old password is refused, and one warning says so."""

    def change() -> None:
        with redis.Redis.from_url(valkey.url) as client:
            client.execute_command("CONFIG", "SET", "requirepass", "new")
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    result = sweep(db, valkey.url, 10, change)
    assert (result.published, result.publish_failed) == (20, 2 * ORPHANS - 20)
    assert len([r for r in caplog.records if "cannot publish" in r.getMessage()]) == 1
