"""The plans of a sweep's statements at 50,000 rows, with fresh statistics and with those of an empty database.

Each statement is caught as its function sends it and explained in the same transaction, which rolls back.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

import factories
from mailglass_reconcile import projector
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import database, ledger, open_orphans
from mailglass_reconcile.store.model import LAST_EVENT, Keys, Place, Report, Slice
from mailglass_reconcile.sweep import keys, match

ROWS = 50_000
SIZE = 500
TABLES = ("mailglass_events", "mailglass_deliveries", "mailglass_open_orphans")

LOAD = """
SET LOCAL TimeZone = 'UTC';
SET LOCAL session_replication_role = replica;
INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain, provider_message_id,
                                  last_event_type, last_event_at, inserted_at, updated_at)
SELECT md5('delivery' || n)::uuid, 'acme', 'Welcome', 'bulk', 'a@example.com', 'example.com', 'message-' || n,
       'dispatched', '2026-01-01', '2026-01-01', '2026-01-01' FROM generate_series(1, 50000) AS n;
INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, idempotency_key, metadata, needs_reconciliation,
                              inserted_at)
SELECT md5('event' || n)::uuid, 'acme', 'delivered', '2026-01-02', 'postmark:' || n || ':0',
       jsonb_build_object('provider', 'postmark', 'message_id', 'message-' || n), true,
       now()::timestamp - make_interval(secs => 100000 - n) FROM generate_series(1, 50000) AS n;
INSERT INTO mailglass_open_orphans (event_id, tenant_id, arrived_at, provider, candidate_ids)
SELECT id, tenant_id, inserted_at, 'postmark',
       CASE WHEN right(metadata ->> 'message_id', 1) <> '7' THEN ARRAY[metadata ->> 'message_id', 'other'] END
  FROM mailglass_events ORDER BY inserted_at;
"""


@pytest.fixture(scope="module", params=["fresh statistics", "stale statistics"])
def connection(request, make_database, drop_database, template) -> Iterator[sa.Connection]:
    """A connection to a database of 50,000 open orphans, in a transaction of the settings that a batch has."""
    name = f"mgtest_{factories.new_id()}"
    settings = Settings(database_url=make_database(name, template))
    with database.create_engine(settings).connect() as connection:
        with connection.begin():
            for table in TABLES:
                connection.exec_driver_sql(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
                connection.exec_driver_sql(f"ANALYZE {table}")
            connection.exec_driver_sql(LOAD)
            if request.param == "fresh statistics":
                connection.exec_driver_sql("ANALYZE")
        with database.transaction(connection, settings, probes_only=True):
            yield connection
    drop_database(name)


@pytest.fixture
def piece(connection) -> Slice:
    """A slice of 500 orphans in the middle of the order of arrival."""
    rows = connection.exec_driver_sql(
        "SELECT arrived_at::text, event_id::text FROM mailglass_open_orphans"
        " ORDER BY arrived_at, event_id OFFSET 25000 LIMIT 501"
    ).all()
    return Slice(Place(*rows[0]), Place(*rows[-1]), None)


@pytest.fixture
def pairs(connection) -> list[tuple[str, str]]:
    """500 orphans from all over the table, each with its delivery."""
    sql = """
    SELECT md5('event' || n)::uuid::text, md5('delivery' || n)::uuid::text FROM generate_series(1, 50000, 100) AS n
    """
    return [tuple(row) for row in connection.exec_driver_sql(sql)]


class Plan:
    """A plan that has run: the indexes it used, the tables it scanned whole, and the rows that it read."""

    def __init__(self, root: dict[str, Any]) -> None:
        """Walk the plan's nodes."""
        self.indexes: set[str] = set()
        self.whole: set[str] = set()
        self.read = 0
        self._walk(root)

    def _walk(self, node: dict[str, Any]) -> None:
        if "Index Name" in node:
            self.indexes.add(node["Index Name"])
        if node["Node Type"] == "Seq Scan":
            self.whole.add(node["Relation Name"])
        if "Relation Name" in node and "Scan" in node["Node Type"]:
            seen = node["Actual Rows"] + sum(
                node.get(f"Rows Removed by {cause}", 0) for cause in ("Filter", "Index Recheck")
            )
            self.read += round(seen * node["Actual Loops"])
        for child in node.get("Plans", ()):
            self._walk(child)


def plan_of(connection: sa.Connection, call: Callable[[], object]) -> Plan:
    """Return the plan of the last statement that a call sends; what it did is undone."""
    sent = []

    def note(connection, cursor, statement, parameters, context, executemany):
        sent.append((statement, parameters))

    with connection.begin_nested() as savepoint:
        sa.event.listen(connection, "before_cursor_execute", note)
        call()
        sa.event.remove(connection, "before_cursor_execute", note)
        savepoint.rollback()
    statement, parameters = sent[-1]
    with connection.begin_nested() as savepoint:
        explained = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters).scalar_one()
        savepoint.rollback()
    plan = Plan(explained[0]["Plan"])
    assert not plan.whole & set(TABLES)
    return plan


def test_the_survey_reads_the_index_of_arrival(connection):
    """Once along what is eligible."""
    settings = Settings()
    plan = plan_of(connection, lambda: open_orphans.survey(connection, settings, None))
    assert "mailglass_open_orphans_arrival_idx" in plan.indexes
    assert plan.read <= ROWS + 100


def test_a_slices_end_is_found_in_the_index_of_arrival(connection, piece):
    """No more rows than the slice has."""
    end = Slice(piece.after, Place("infinity", LAST_EVENT), None)
    plan = plan_of(connection, lambda: open_orphans.slice_end(connection, end, SIZE))
    assert plan.indexes == {"mailglass_open_orphans_arrival_idx"}
    assert plan.read <= SIZE + 1


def test_keys_are_read_by_the_ledgers_primary_key(connection, piece):
    """Of those orphans of the slice alone that have none."""
    plan = plan_of(connection, lambda: list(open_orphans.read_values(connection, piece, keys.reads())))
    assert {"mailglass_open_orphans_arrival_idx", "mailglass_events_pkey"} <= plan.indexes
    assert plan.read <= 2 * SIZE


@pytest.mark.parametrize("tenant_id", [None, "acme"])
def test_the_match_probes_the_deliveries_index(connection, piece, tenant_id):
    """Two probes for each of an orphan's two candidates, none of which reads more than it finds."""
    whole = Slice(piece.after, piece.until, tenant_id)
    plan = plan_of(connection, lambda: match.match(connection, whole, {}))
    assert {"mailglass_open_orphans_arrival_idx", "mailglass_deliveries_provider_msg_id_idx"} <= plan.indexes
    assert plan.read <= 3 * SIZE


def test_the_match_of_computed_keys_probes_too(connection, pairs):
    """Keys that are not stored yet come as parameters."""
    computed = {event: Keys("postmark", (f"message-{n}",), None) for n, (event, _) in enumerate(pairs)}
    nothing = Slice(Place("infinity", LAST_EVENT), Place("infinity", LAST_EVENT), None)
    plan = plan_of(connection, lambda: match.match(connection, nothing, computed))
    assert "mailglass_deliveries_provider_msg_id_idx" in plan.indexes
    assert plan.read <= 3 * SIZE


def test_a_claim_goes_by_primary_keys(connection, pairs):
    """Open orphan, event and delivery of each pair, once."""
    plan = plan_of(connection, lambda: open_orphans.claim(connection, pairs))
    assert {"mailglass_open_orphans_pkey", "mailglass_events_pkey", "mailglass_deliveries_pkey"} <= plan.indexes
    assert plan.read <= 4 * SIZE


def test_an_append_reads_each_orphan_once(connection, pairs):
    """By the ledger's primary key."""
    events, deliveries = zip(*pairs, strict=True)
    ids = [ledger.uuid7() for _ in pairs]
    plan = plan_of(connection, lambda: ledger.append_reconciled(connection, ids, list(events), list(deliveries)))
    assert plan.indexes == {"mailglass_events_pkey"}
    assert plan.read <= SIZE


def test_a_projection_reads_each_delivery_by_its_primary_key(connection, pairs):
    """Once to decide and once to write."""
    at = "2026-01-02T03:04:05"
    reports = [Report(delivery, "delivered", at, at) for _, delivery in pairs]
    plan = plan_of(connection, lambda: projector.project(connection, reports))
    assert plan.indexes == {"mailglass_deliveries_pkey"}
    assert plan.read <= 2 * SIZE


def test_keys_are_stored_by_primary_key(connection):
    """Of those that have none."""
    sql = "SELECT event_id::text FROM mailglass_open_orphans WHERE candidate_ids IS NULL LIMIT %(size)s"
    ids = connection.exec_driver_sql(sql, {"size": SIZE}).scalars()
    computed = {event: Keys("postmark", ("one",), None) for event in ids}
    plan = plan_of(connection, lambda: open_orphans.store_keys(connection, computed))
    assert plan.indexes == {"mailglass_open_orphans_pkey"}
    assert plan.read <= 3 * SIZE


def test_closing_goes_by_primary_key(connection, pairs):
    """What somebody else has settled."""
    plan = plan_of(connection, lambda: open_orphans.close(connection, [event for event, _ in pairs]))
    assert plan.indexes == {"mailglass_open_orphans_pkey"}
    assert plan.read <= 2 * SIZE


def test_looking_for_a_committed_event_is_one_probe(connection):
    """After a COMMIT whose answer was lost."""
    plan = plan_of(connection, lambda: ledger.present(connection, ledger.uuid7()))
    assert plan.indexes == {"mailglass_events_pkey"}
    assert plan.read == 0
