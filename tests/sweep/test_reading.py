"""A sweep reads a bounded amount from the database."""

import json
import logging
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import psycopg
import pytest
import sqlalchemy as sa

import factories
import mailglass_reconcile
import meter
from bench.filling import fill
from mailglass_reconcile import key_rule, reconcile
from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.database import with_retries
from mailglass_reconcile.store.queries.selection import make_part
from mailglass_reconcile.sweep import recent, reconciler
from mailglass_reconcile.sweep.reading import FEW, ChunkReader, match_at_once, match_slice
from meter import Traffic, before_statements
from roles import temporary_role
from waiting import PATIENCE


def test_a_type_of_a_megabyte_is_linked_and_its_message_stays_small(db, subscriber):
    """The ledger does not limit a text; a message has the first 512 characters of a type."""
    factories.delivery(db, "m")
    factories.orphan(db, factories.postmark("m"), type="x" * 1_000_000)
    assert reconcile().linked == 1
    message = next(m for m in iter(lambda: subscriber.get_message(timeout=PATIENCE), None) if m["type"] == "pmessage")
    assert len(message["data"]) < 2_000
    assert json.loads(message["data"])["meta"]["type"] == "x" * 512


@pytest.mark.parametrize(
    "tenant",
    ["a\x00b", *(pytest.param(name, marks=pytest.mark.slow) for name in ("half \ud800", "x" * 2_000, "line\nend"))],
)
def test_a_tenant_id_that_no_row_can_have_is_swept_and_finds_nothing(db, tenant):
    factories.delivery(db, "m")
    factories.orphan(db, factories.postmark("m"))
    result = reconciler.prepare(tenant).run()
    assert (result.status, result.scanned, result.remaining) == ("ok", 0, 0)


def test_a_missing_privilege_ends_a_sweep_with_one_line_that_has_the_grant(db, admin, caplog):
    """It is not bad data: no orphan is retried alone or marked as refused."""
    numbers = [str(n) for n in range(20)]
    factories.insert(
        db, map(factories.delivery_row, numbers), [factories.orphan_row(factories.postmark(n)) for n in numbers]
    )
    with temporary_role(admin, "", db) as role:
        db.run(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}")
        db.run(f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO {role}")
        db.run(f"REVOKE INSERT ON mailglass_events FROM {role}")
        acting = engines.create_engine(db.settings)
        sa.event.listen(acting, "connect", lambda raw, _: (raw.execute(f"SET ROLE {role}"), raw.commit()))
        mailglass_reconcile.configure(engine=acting, settings=db.settings)
        with caplog.at_level(logging.ERROR, "mailglass_reconcile"):
            result = reconcile()
        mailglass_reconcile.configure(engine=db.engine, settings=db.settings)
    assert (result.status, result.linked, result.failed) == ("failed", 0, 0)
    (line,) = [record.message for record in caplog.records]
    assert line.endswith(f"run GRANT INSERT ON public.mailglass_events TO {role}")
    assert db.value("SELECT max(refused) FROM mailglass_open_orphans") == 0


def sweep_and_count(db, prepare=reconciler.prepare) -> tuple[int, Traffic]:
    """Sweep on an open connection, and return the number of links and what was sent."""
    with db.database.connect() as connected, meter.traffic(connected.connection) as counted:
        linked = prepare().run(nullcontext(connected)).linked
    return linked, counted[0]


def test_a_pair_of_another_writer_costs_a_sweep_eight_statements_in_three_transactions(db, set_limits):
    """They are window, choice, orphans, documents, deliveries and raw webhooks; the link; and the history."""
    set_limits(reading_seconds=PATIENCE)
    factories.insert_pairs(db, 1)
    assert sweep_and_count(db) == (1, Traffic(statements=8, transactions=3, round_trips=14))


def test_with_nothing_to_do_a_sweep_costs_three_statements_in_two_transactions_and_a_tick_two_in_one(db):
    assert sweep_and_count(db) == (0, Traffic(statements=3, transactions=2, round_trips=7))
    assert sweep_and_count(db, lambda: recent.prepare(1.0)) == (0, Traffic(statements=2, transactions=1, round_trips=4))


def test_few_orphans_are_matched_in_the_transaction_that_selects_them_while_it_is_young(db, set_limits):
    """A migration waits for it; many orphans are read in transactions of their own."""
    set_limits(reading_seconds=PATIENCE)
    factories.insert_pairs(db, FEW + 1)
    ids = [row.id for row in db.rows("SELECT event_id::text AS id FROM mailglass_open_orphans")]

    def match(count: int, age: float):
        with db.database.reading() as tx:
            return match_at_once(tx, time.monotonic() - age, [make_part(ids[:count])], of_any_age=False)

    (result,) = match(FEW, age=0.0)
    assert [match.orphan.event_id for match in result.matches] == ids[:FEW]
    assert (match(FEW, age=PATIENCE), match(FEW + 1, age=0.0)) == (None, None)


TRANSACTIONS = """
SELECT count(*) FROM pg_stat_activity
 WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid()
"""


def test_a_sweep_computes_keys_outside_of_its_transactions(db, monkeypatch):
    """A slow rule must not hold up those who alter the tables."""
    monkeypatch.setattr(provider_rules, "_rules", dict(provider_rules._rules))
    open_transactions = []

    @key_rule("postmark", reads=("metadata/message_id",))
    def read_slowly(message_id):
        open_transactions.append(db.value(TRANSACTIONS))
        return [message_id]

    factories.insert_pairs(db, 3)
    assert reconcile().linked == 3
    assert open_transactions == [0] * 3


def test_after_a_slow_transaction_fewer_orphans_are_read_at_once_and_more_again_later(db):
    """A chunk is never smaller than the least, or larger than the most."""
    with db.database.connect() as connected:
        reader = ChunkReader(connected, lambda: 60_000, lambda: False)
        sizes = [reader.size]
        for _ in range(2):
            with reader.reading() as tx:
                tx.execute("SELECT pg_sleep(0.3)")
            reader.adapt()
            sizes.append(reader.size)
        for _ in range(4):
            reader.adapt()
            sizes.append(reader.size)
    assert sizes == [1_000, 500, 500, 1_000, 2_000, 4_000, 4_000]


def test_orphans_of_a_slice_are_read_chunk_by_chunk(db):
    """None is left out, and each is read once."""
    factories.insert_pairs(db, 10)
    ids = [row.id for row in db.rows("SELECT event_id::text AS id FROM mailglass_open_orphans")]
    read_at_once = []

    def note(_connection, statement, parameters):
        if "mailglass_open_orphan_ids AS i" in statement:
            read_at_once.append(parameters["event_ids"].count(",") + 1)

    with before_statements(db.engine, note), db.database.connect() as connected:
        reader = ChunkReader(connected, lambda: 60_000, lambda: False)
        reader.size = 3
        matches = match_slice(reader, ids, with_retries, of_any_age=False).matches
    assert [match.orphan.event_id for match in matches] == ids
    assert read_at_once == [3, 7], "the second chunk has at least the least size"


RAW_WEBHOOKS = """
INSERT INTO mailglass_webhook_events
       (id, tenant_id, provider, provider_event_id, event_type_raw, status, raw_payload, received_at, inserted_at,
        updated_at)
SELECT gen_random_uuid(), e.tenant_id, e.provider, e.event_id, 'Delivery', 'succeeded',
       CASE e.provider WHEN 'postmark' THEN jsonb_build_object('Recipient', d.recipient)
            ELSE jsonb_build_object('_batch', jsonb_build_array(jsonb_build_object(
                   'email', d.recipient, 'sg_event_id', e.event_id))) END, e.inserted_at, e.inserted_at, e.inserted_at
  FROM (SELECT *, metadata ->> 'provider' AS provider, metadata ->> 'provider_event_id' AS event_id,
               coalesce(metadata ->> 'message_id', split_part(metadata ->> 'sg_message_id', '.', 1)) AS message_id
          FROM mailglass_events) AS e
  JOIN mailglass_deliveries AS d ON d.provider_message_id = e.message_id AND d.tenant_id = e.tenant_id
"""

READERS = """
SELECT pid, xact_start, extract(epoch FROM clock_timestamp() - xact_start) AS seconds FROM pg_stat_activity
 WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid()
   AND backend_xid IS NULL AND query NOT LIKE '%of_window%' AND query NOT LIKE '%mailglass_reconcile_link_v1%'
"""


@pytest.mark.slow
def test_no_reading_transaction_holds_up_a_migration_while_20_000_are_swept_on_a_busy_interpreter(db):
    """They wait 500 ms for a lock; the statement that chooses is the only one that may take longer."""
    fill(db.url, deliveries=10_000, messages=10_000)
    db.run(RAW_WEBHOOKS)
    ages: dict[tuple[int, object], float] = {}
    has_ended = threading.Event()

    def keep_busy():
        while not has_ended.is_set():
            sum(range(1_000))

    def sample():
        with psycopg.connect(db.url, autocommit=True) as connection:
            while not has_ended.is_set():
                for pid, start, seconds in connection.execute(READERS):
                    ages[pid, start] = max(ages.get((pid, start), 0.0), float(seconds))

    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(keep_busy), threads.submit(sample)]
        result = reconcile()
        has_ended.set()
        for future in running:
            future.result()
    assert result.linked == 20_000
    # On a busy machine a few are slower, until the next chunk is smaller.
    assert statistics.quantiles(ages.values(), n=10)[-1] < 0.3


def test_all_statements_of_a_reading_transaction_see_the_same_rows(db):
    """A delivery that is committed between two statements is seen by neither."""
    count = "SELECT count(*) FROM {schema}.mailglass_deliveries"
    with db.database.reading() as tx:
        before = tx.execute(count).scalar_one()
        factories.delivery(db)
        assert tx.execute(count).scalar_one() == before
