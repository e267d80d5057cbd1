"""Recording that fails: counted by cause, and one line in the log for each cause and minute."""

import pytest
from pydantic import SecretStr

import mailglass_reconcile
from factories import delivery
from mailglass_reconcile import (
    DatabaseRefusedError,
    InvalidEventError,
    SchemaOutdatedError,
    Sent,
    record_send,
    telemetry,
)
from mailglass_reconcile.record import failures
from mailglass_reconcile.rules.log_throttle import LogThrottle
from recording import event, record
from waiting import wait_until


@pytest.fixture(autouse=True)
def nothing_yet(monkeypatch):
    """Start with empty counters and throttles, like a new process."""
    monkeypatch.setattr(failures, "_throttle", LogThrottle())
    monkeypatch.setattr(telemetry, "_counts", telemetry.Counter())


def count_failures():
    """Return this process's counts of failures by cause."""
    return {cause: number for cause, number in telemetry.counts("recording_failures").items() if number}


def send(connection):
    """Record a send."""
    record_send(connection, tenant_id="acme", provider="postmark", sent=[Sent(recipient="a@x.com", message_id="m-1")])


def test_webhooks_and_sends_that_the_database_refuses_are_counted_and_logged_once_a_minute(db, caplog):
    """A thousand failures of one cause are one line; another cause has a line of its own."""
    db.run("ALTER TABLE mailglass_events RENAME COLUMN idempotency_key TO gone")
    for writes in (record, record, send):
        with db.engine.begin() as connection, pytest.raises(SchemaOutdatedError):
            writes(connection, event()) if writes is record else writes(connection)
    db.run("ALTER TABLE mailglass_events RENAME COLUMN gone TO idempotency_key")
    db.run("ALTER TABLE mailglass_events ADD CONSTRAINT refused CHECK (tenant_id <> 'acme')")
    with db.engine.begin() as connection, pytest.raises(DatabaseRefusedError):
        record(connection, event())
    db.run("ALTER TABLE mailglass_events DROP CONSTRAINT refused")
    assert count_failures() == {"DatabaseRefusedError": 1, "SchemaOutdatedError": 3}
    subjects = [log_record.getMessage().partition(" was not recorded: ")[0] for log_record in caplog.records]
    assert subjects == ["a webhook of postmark", "a send by postmark", "a webhook of postmark"]


def test_a_lost_unique_index_is_noticed_with_the_first_webhook(db, caplog):
    """Nothing can be recorded without it."""
    db.run("DROP INDEX mailglass_events_idempotency_key_idx")
    with db.engine.begin() as connection, pytest.raises(mailglass_reconcile.MailglassReconcileError):
        record(connection, event())
    assert sum(count_failures().values()) == 1
    assert "a webhook of postmark was not recorded" in caplog.text
    db.run(
        "CREATE UNIQUE INDEX mailglass_events_idempotency_key_idx ON mailglass_events (idempotency_key)"
        " WHERE idempotency_key IS NOT NULL"
    )


def test_what_cannot_be_recorded_is_its_caller_s_to_log(db, caplog):
    """The error says what is wrong."""
    with db.engine.begin() as connection, pytest.raises(InvalidEventError):
        record(connection, event(type_="nonsense"))
    assert caplog.records == []


def test_broadcasts_that_a_web_process_has_lost_are_counted(db):
    """Each event counts twice, for its tenant's channel and its delivery's."""
    unreachable = db.settings.model_copy(update={"redis_url": SecretStr("redis://127.0.0.1:1/0")})
    mailglass_reconcile.configure(engine=db.engine, settings=unreachable)
    delivery(db, "m-1")
    with db.engine.begin() as connection:
        recorded = record(connection, event())
    mailglass_reconcile.broadcast(recorded)
    wait_until(lambda: telemetry.counts("messages") == {"failed": 2, "published": 0})
