"""Retention: old events are deleted per delivery, all or none, then deliveries; nothing else deletes from the
ledger.
"""

import datetime as dt
import json
import os
import re
from pathlib import Path

import pytest
import sqlalchemy as sa

import commands
import mailglass_reconcile
import meter
import processes
from backdating import batch, days_ago, prune
from catalog import live
from factories import delivery, delivery_row, insert, new_id, orphan, orphan_row, postmark, reconciled_row, uuid7
from mailglass_reconcile import Sent, WebhookEvent, record_send, record_webhook
from mailglass_reconcile.errors import ConfigurationError
from mailglass_reconcile.settings import Settings
from processes import COMMAND

pytestmark = pytest.mark.version_independent

EVENTS = "SELECT id::text FROM mailglass_events"
RECEIVING = Path("docs/record-and-receive.md")
LONG_AGO = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)


def ledger(db) -> set[str]:
    """Return the ids of all events."""
    return {row[0] for row in db.rows(EVENTS)}


def deliveries(db) -> set[str]:
    """Return the ids of all deliveries."""
    return {row[0] for row in db.rows("SELECT id::text FROM mailglass_deliveries")}


def insert_attached(db, delivery_id: str, days: float, **columns: object) -> str:
    """Insert an event of a delivery, and return its id."""
    row = orphan_row(
        {},
        delivery_id=delivery_id,
        needs_reconciliation=False,
        age_seconds=days * 86_400,
        **{"type": "opened", **columns},
    )
    insert(db, events=[row])
    return row["id"]


def insert_linked(db, message_id: str, days: int) -> str:
    """Link an orphan to its delivery some days ago, and return the delivery."""
    with days_ago(db, days):
        sent = delivery(db, message_id)
        orphan(db, postmark(message_id), occurred_at="2026-01-03")
        patient = db.settings.model_copy(update={"max_age_minutes": 525_600})
        mailglass_reconcile.configure(engine=db.engine, settings=patient)
        assert mailglass_reconcile.reconcile().linked == 1
        mailglass_reconcile.configure(engine=db.engine, settings=db.settings)
    return sent


def test_old_events_are_deleted_and_then_deliveries(db):
    """Linked, attached and expired events go with their `reconciled` events; younger ones stay."""
    old, young = insert_linked(db, "m-1", 31), insert_linked(db, "m-2", 29)
    insert_attached(db, old, 31)
    stored = {insert_attached(db, young, 29), orphan(db, postmark("m-4"), age_seconds=29 * 86_400)}
    orphan(db, postmark("m-3"), age_seconds=31 * 86_400)
    before = ledger(db)
    assert prune(db, 30, 30).as_dict() | {"expired": 0} == {
        **dict.fromkeys(("succeeded", "dead", "failed", "expired", "settled", "added", "jobs_done"), 0),
        **{"jobs_dead": 0, "events": 4, "deliveries": 1, "failures": {}, "status": "ok"},
    }
    assert len(before) == 8
    assert len(ledger(db)) == 4
    assert stored < ledger(db)
    assert deliveries(db) == {young}
    rows = db.rows("SELECT events, deliveries FROM mailglass_reconcile_runs WHERE kind = 'prune'")
    assert [tuple(row) for row in rows] == [(4, 1)]
    assert (prune(db, 30, 30).events, prune(db, 30, 30).deliveries) == (0, 0)


def test_without_a_retention_nothing_is_deleted(db):
    """By default everything is kept."""
    old = insert_linked(db, "m-1", 360)
    assert mailglass_reconcile.prune().events == 0
    assert len(ledger(db)) == 2
    assert deliveries(db) == {old}


def test_a_delivery_whose_latest_event_is_young_keeps_all_of_them(db):
    """Linked events follow the rule, too."""
    old = insert_linked(db, "m-1", 40)
    insert_attached(db, old, 20)
    assert prune(db).events == 0
    assert len(ledger(db)) == 3
    assert prune(db, 19).events == 3


def test_deliveries_may_be_kept_longer_than_their_events(db):
    """They go when they are old enough themselves, also without any event."""
    old, older, bare = insert_linked(db, "m-1", 40), insert_linked(db, "m-2", 70), None
    with days_ago(db, 70):
        bare = delivery(db, "m-3")
    assert prune(db, 30, 60).deliveries == 2
    assert deliveries(db) == {old}
    assert ledger(db) == set()
    assert {older, bare} & deliveries(db) == set()


@pytest.mark.parametrize("state", ["waiting", "dead", "done"])
def test_an_event_that_a_handler_still_needs_is_kept_with_its_delivery(db, state):
    """Its job waits, or `dispatch --retry` may run it again."""
    old = insert_linked(db, "m-1", 40)
    event = insert_attached(db, old, 40)
    finished_at = None if state == "waiting" else dt.datetime(2026, 11, 26)
    db.run(
        """INSERT INTO mailglass_handler_outbox
                  (event_id, handler, delivery_id, type, state, next_at, inserted_at, finished_at)
           VALUES (CAST(:event AS uuid), 'audit', CAST(:delivery AS uuid), 'opened', :state, now(), now(),
                   :finished)""",
        event=event, delivery=old, state=state, finished=finished_at,
    )  # fmt: skip
    db.broken.add("I14")
    assert prune(db, retention_dead_days=None).events == (3 if state == "done" else 0)


def test_an_orphan_that_is_open_is_never_deleted(db):
    """A sweep may still link it, whatever the maximum age."""
    open_one = orphan(db, postmark("m-1"), age_seconds=40 * 86_400)
    assert prune(db, max_age_minutes=525_600).events == 0
    assert ledger(db) == {open_one}


@pytest.mark.parametrize("columns", [{"tenant_id": "other"}, {"type": "opened"}])
def test_an_expired_orphan_whose_key_another_tenant_s_or_another_kind_of_event_holds_is_deleted(db, columns):
    """Neither links it, so it belongs to no delivery."""
    expired = orphan(db, postmark("m-1"), age_seconds=40 * 86_400)
    holder = {**reconciled_row(expired, delivery(db, "m-2")), **columns}
    insert(db, events=[holder])
    db.run("DELETE FROM mailglass_open_orphans")
    assert prune(db, 30).events == 1
    assert ledger(db) == {holder["id"]}
    db.broken.update({"I1", "I2", "I5", "I6", "I13"})


def test_an_event_of_a_delivery_that_somebody_holds_is_left_to_the_next_prune(db):
    """Its writer may be about to attach another event."""
    old = insert_linked(db, "m-1", 40)
    with db.engine.connect() as writer:
        writer.exec_driver_sql("SELECT FROM mailglass_deliveries FOR NO KEY UPDATE")
        assert prune(db).events == 0
        event = WebhookEvent(type="opened", occurred_at=LONG_AGO, provider_event_id="1", message_id="m-1")
        [recorded] = record_webhook(writer, tenant_id="acme", provider="postmark", events=[event])
        assert str(recorded.delivery_id) == old
        writer.commit()
    assert prune(db).events == 0
    assert len(ledger(db)) == 3


def test_events_of_a_delivery_that_is_gone_are_deleted_too(db):
    """There is no row to lock."""
    insert_attached(db, new_id(), 40)
    assert prune(db).events == 1


def test_an_event_that_is_neither_linked_nor_attached_nor_expired_stays(db):
    """An application appended it without a delivery."""
    row = orphan_row({}, needs_reconciliation=False, age_seconds=4_000 * 86_400)
    insert(db, events=[row])
    assert prune(db).events == 0
    assert ledger(db) == {row["id"]}


@pytest.mark.parametrize("size", [1, pytest.param(7, marks=pytest.mark.slow)])
def test_any_size_of_batch_deletes_the_same(db, set_limits, size):
    """There are several tenants and providers, tied times, rows in between that stay, and ids without a time."""
    set_limits(batch_rows=size, retention_rows=size)
    young = set()
    rows = [
        delivery_row(None, tenant_id=f"t{number % 3}", provider=(None, "postmark", "ses")[number % 4 % 3])
        for number in range(40)
    ]
    for days, some in ((40, rows[:30]), (45, rows[30:])):
        with days_ago(db, days):
            insert(db, some)
    for number, row in enumerate(rows):
        columns = {"tenant_id": row["tenant_id"], "occurred_at": "2026-01-02"}
        events = [insert_attached(db, row["id"], 40 + number % 7, **columns) for _ in range(number % 3)]
        if number % 5 == 0:
            young |= {*events, insert_attached(db, row["id"], 1, **columns)}
    old_events = len(ledger(db)) - len(young)
    result = prune(db, 30, 30)
    assert (result.events, result.deliveries) == (old_events, 32)
    assert ledger(db) == young
    assert deliveries(db) == {row["id"] for row in rows[::5]}


ATTACHED = """
INSERT INTO mailglass_events (id, tenant_id, delivery_id, type, occurred_at, inserted_at)
SELECT CAST(lpad(to_hex((extract(epoch FROM now() - interval '40 days') * 1000)::bigint + n), 12, '0') || '7'
            || substr(md5(n::text), 14) AS uuid), 'acme', CAST(:delivery AS uuid), 'opened',
       now()::timestamp - interval '40 days' + make_interval(secs => n / 1000.0), now()::timestamp - interval '40 days'
  FROM generate_series(1, :number) AS n
"""
V4 = "00000000-0000-4000-8000-000000000001"


@pytest.mark.parametrize(
    ("id_", "days"),
    [(V4, 40), (V4, 1), (uuid7(400 * 86_400), 1), (uuid7(86_400), 40)],
    ids=["a UUIDv4 that sorts below", "a young one", "of a slow clock", "of a fast clock"],
)
@pytest.mark.parametrize("is_attached", [True, False])
def test_an_event_whose_id_and_time_are_not_both_old_stays_with_those_of_its_delivery(db, id_, days, is_attached):
    """The walk goes by ids; of a hundred random ones, one would be among those of the past."""
    if is_attached:
        to = new_id()
        kept = {insert_attached(db, to, 40), insert_attached(db, to, days, id=id_), insert_attached(db, to, 40)}
        gone = new_id()
        insert_attached(db, gone, 40)
    else:
        kept = {orphan(db, {}, id=id_, age_seconds=days * 86_400)}
        orphan(db, {}, age_seconds=40 * 86_400)
    assert prune(db).events == 1
    assert ledger(db) == kept


def test_a_linked_orphan_whose_id_is_no_uuidv7_keeps_its_delivery_s_events(db):
    """Another program may have inserted it."""
    with days_ago(db, 40):
        to = delivery(db, "m-1")
        event = orphan(db, postmark("m-1"), id=V4)
        insert(db, events=[reconciled_row(event, to)])
    assert prune(db).events == 0
    assert len(ledger(db)) == 2


def test_a_delivery_that_another_program_inserted_is_deleted_by_its_time(db):
    """As docs/record-and-receive.md shows, with a UUIDv4."""
    [insertion] = re.findall(r"(INSERT INTO mailglass_deliveries.*?);", RECEIVING.read_text(), re.DOTALL)
    ids = [db.value(insertion.replace("now()", f"(now() - interval '{days} days')")) for days in (29, 31)]
    assert [id_.version for id_ in ids] == [4, 4]
    assert prune(db, 8, 30).deliveries == 1
    assert deliveries(db) == {str(ids[0])}


def test_a_plain_delete_is_refused_even_to_the_owner(db):
    """Another role with the function's setting is refused too, and so is any UPDATE."""
    insert_attached(db, new_id(), 40)
    for statement in (
        "DELETE FROM mailglass_events",
        "UPDATE mailglass_events SET type = 'x'",
        "SET LOCAL mailglass_reconcile.retention = 'on'; UPDATE mailglass_events SET type = 'x'",
        "CREATE ROLE mgtest_other; GRANT ALL ON mailglass_events TO mgtest_other; SET LOCAL ROLE mgtest_other;"
        " SET LOCAL mailglass_reconcile.retention = 'on'; DELETE FROM mailglass_events",
    ):
        with pytest.raises(mailglass_reconcile.LedgerImmutableError), db.engine.connect() as connection:
            connection.execution_options(no_parameters=True).exec_driver_sql(statement)
    assert prune(db).events == 1
    insert_attached(db, new_id(), 40)
    with db.engine.connect() as connection, pytest.raises(mailglass_reconcile.LedgerImmutableError):
        connection.exec_driver_sql("DELETE FROM mailglass_events")


def test_the_function_refuses_to_delete_events_younger_than_two_days(db):
    """This holds for every role: events of a day ago may still be swept."""
    insert_attached(db, new_id(), 1.5)
    for name in ("events", "deliveries"):
        with pytest.raises(sa.exc.DBAPIError, match="at least 2 days"):
            db.rows(f"SELECT * FROM {batch(name, 1)}")  # noqa: S608


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["0.1.1", "2.x"])
def test_on_mailglass_s_tables_the_steps_fail_with_the_reason(empty_database_url, shape):
    """The other steps run, and the command exits with 1."""
    database = live(empty_database_url, shape=shape)
    database.migrate()
    database.run("""INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, needs_reconciliation, inserted_at)
                    VALUES (gen_random_uuid(), 'acme', 'opened', now(), true, now() - interval '40 days')""")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MAILGLASS_")}
    days = {f"MAILGLASS_RETENTION_{name}_DAYS": "30" for name in ("EVENTS", "DELIVERIES")}
    result = processes.run(
        [*COMMAND, "prune", "--json"], {**inherited, "MAILGLASS_DATABASE_URL": empty_database_url, **days}
    )
    printed = json.loads(result.stdout)
    assert (result.returncode, printed["status"], printed["expired"]) == (1, "partial", 1)
    assert set(printed["failures"]) == {"events", "deliveries"}
    assert result.stderr == (
        "ERROR: prune: steps events, deliveries failed, and the others ran: `migrate` did not make the tables of schema"
        " public, so no event is deleted: unset MAILGLASS_RETENTION_EVENTS_DAYS and"
        " MAILGLASS_RETENTION_DELIVERIES_DAYS\n"
    )
    assert database.values("SELECT count(*) FROM mailglass_events") == [1]


def test_an_invalid_retention_is_a_usage_error(db, redis_url):
    """Nothing is deleted."""
    result = commands.run_unchecked(db, "prune", MAILGLASS_RETENTION_DELIVERIES_DAYS="30")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(
        "mailglass-reconcile: MAILGLASS_RETENTION_DELIVERIES_DAYS: set MAILGLASS_RETENTION_E"
    )


def test_a_webhook_and_a_send_that_are_repeated_after_their_event_was_pruned_count_as_new(db):
    """They get another delivery, because nothing remembers the first one."""
    event = WebhookEvent(type="opened", occurred_at=LONG_AGO, provider_event_id="1", message_id="m-1")
    sent = [Sent(recipient="ada@example.com", message_id="m-1", occurred_at=LONG_AGO)]

    def record() -> list[str]:
        with db.engine.begin() as connection:
            [send] = record_send(connection, tenant_id="acme", provider="postmark", sent=sent)
            record_webhook(connection, tenant_id="acme", provider="postmark", events=[event])
        return [str(send.delivery_id)]

    with days_ago(db, 40):
        first = record()
        assert record() == first
    assert (prune(db, 30, 30).events, deliveries(db)) == (2, set())
    assert record() != first
    assert len(ledger(db)) == 2


@pytest.mark.parametrize(
    ("retentions", "wrong"),
    [
        ({"events": "8"}, None),
        ({"events": "infinity"}, None),
        ({"events": "30", "deliveries": "30"}, None),
        ({"events": "30", "deliveries": "infinity"}, None),
        ({"events": "7"}, "MAILGLASS_RETENTION_EVENTS_DAYS: must be `infinity` or at least 8 days"),
        ({"deliveries": "30"}, "MAILGLASS_RETENTION_DELIVERIES_DAYS: set MAILGLASS_RETENTION_EVENTS_DAYS too"),
        (
            {"events": "30", "deliveries": "29"},
            "MAILGLASS_RETENTION_DELIVERIES_DAYS: must be `infinity` or at least the 30 days",
        ),
        ({"events": "infinity", "deliveries": "29"}, "MAILGLASS_RETENTION_DELIVERIES_DAYS: set"),
    ],
)
def test_invalid_settings_are_refused(monkeypatch, retentions, wrong):
    """Events are kept a day longer than sweeps read them, and deliveries at least as long as their events."""
    for name, value in retentions.items():
        monkeypatch.setenv(f"MAILGLASS_RETENTION_{name.upper()}_DAYS", value)
    if wrong is None:
        Settings()
    else:
        with pytest.raises(ConfigurationError, match=wrong):
            Settings()


FILLED = """
WITH sent AS (
  INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain, last_event_type,
                                    last_event_at, inserted_at, updated_at)
  SELECT gen_random_uuid(), 'tenant ' || n % 3, 'Mail', 'bulk', 'a@example.com', 'example.com', 'opened',
         now()::timestamp - interval '40 days', now()::timestamp - interval '40 days', now()
    FROM generate_series(1, :number) AS n
  RETURNING id, tenant_id, inserted_at
)
INSERT INTO mailglass_events (id, tenant_id, delivery_id, type, occurred_at, inserted_at)
SELECT CAST(lpad(to_hex((extract(epoch FROM inserted_at) * 1000)::bigint), 12, '0') || '7'
            || substr(md5(id || '/' || n), 14) AS uuid), tenant_id, id, 'opened', inserted_at, inserted_at
  FROM sent, generate_series(1, 2) AS n
"""


@pytest.mark.parametrize("ages", [(1,), (40, 1)])
def test_a_prune_locks_no_delivery_that_stays(db, ages):
    with days_ago(db, 40):
        kept = delivery(db, "m-1")
    for day, days in enumerate(ages, 1):
        insert_attached(db, kept, days, occurred_at=f"2026-01-0{day}")
    assert (prune(db, 30, 30).events, prune(db, 30, 30).deliveries) == (0, 0)
    assert db.value("SELECT xmax::text FROM mailglass_deliveries") == "0"


@pytest.mark.slow
def test_a_delivery_that_stays_for_a_dead_job_is_read_once_however_many_events_it_has(db, set_limits):
    set_limits(retention_rows=100)
    read = []
    for number in (1_000, 2_000):
        to = new_id()
        db.run(ATTACHED, number=number, delivery=to)
        db.run("""INSERT INTO mailglass_handler_outbox
                         (event_id, handler, delivery_id, type, state, next_at, inserted_at)
                  SELECT id, 'audit', delivery_id, type, 'dead', now(), now() FROM mailglass_events LIMIT 1""")
        with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE mailglass_events")  # the second would read the first's dead rows
        read.append(buffers(db)[0])
        assert len(ledger(db)) == number
        db.run("TRUNCATE mailglass_handler_outbox")
        assert prune(db, 30, 30).events == number
    db.broken.add("I14")
    assert read[1] < 2.6 * read[0]


@pytest.mark.slow
def test_the_cost_of_deleting_is_linear(db, set_limits):
    """While a snapshot keeps dead rows, twice as many tied rows read twice as many buffers, not four times."""
    set_limits(batch_rows=100, retention_rows=100)
    read = []
    for number in (600, 1_200):
        db.run(FILLED, number=number)
        db.run("ANALYZE mailglass_events, mailglass_deliveries")
        with db.engine.connect() as reader:
            reader.execution_options(isolation_level="REPEATABLE READ").exec_driver_sql("SELECT FROM mailglass_events")
            read.append(buffers(db))
        assert db.value("SELECT count(*) FROM mailglass_events, mailglass_deliveries") == 0
    for few, many in zip(*read, strict=True):
        assert many < 2.6 * few


def buffers(db) -> tuple[int, int]:
    """Prune, and return the numbers of buffers that the functions have read, for events and for deliveries."""
    with (
        meter.plans(db.engine, 'FROM "public".mailglass_reconcile_prune_events_v1') as of_events,
        meter.plans(db.engine, 'FROM "public".mailglass_reconcile_prune_deliveries_v1') as of_deliveries,
    ):
        assert prune(db, 30, 30).failures == {}
    return of_events.buffers, of_deliveries.buffers
