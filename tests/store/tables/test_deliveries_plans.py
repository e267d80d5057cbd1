"""On tables that `migrate` made: updates by events stay in their page, and the plans of readers at 200 tenants."""

import datetime as dt
from collections.abc import Iterator

import pytest

import factories
from mailglass_reconcile import Sent, WebhookEvent, reconcile, record_send, record_webhook
from mailglass_reconcile.ops import checks, prune_preview, search, unknown_tenants
from mailglass_reconcile.ops.checks import CheckContext
from mailglass_reconcile.store.database import NIL, Database, Transaction
from mailglass_reconcile.store.queries import provider_reports
from mailglass_reconcile.store.tables import personal_data, retention
from mailglass_reconcile.store.tables.personal_data import PersonFilter
from meter import plan_of
from waiting import wait_until

INDEX = "mailglass_deliveries_tenant_inserted_idx"
BY_RECIPIENT = "mailglass_deliveries_recipient_idx"
OF_ORPHANS = "mailglass_events_needs_reconcile_idx"
LARGE = ("mailglass_deliveries", "mailglass_events")

UPDATES = """
SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'mailglass_deliveries'
"""


def share_of_hot_updates(db, updates: int) -> float:
    """Wait until so many updates of deliveries are counted, and return the share of those that stayed in their page."""
    db.engine.dispose()  # a session that ends reports its counts
    wait_until(lambda: db.rows(UPDATES)[0].n_tup_upd >= updates)
    [row] = db.rows(UPDATES)
    return row.n_tup_hot_upd / row.n_tup_upd


def test_with_a_webhook_a_transaction_updates_of_deliveries_stay_in_their_page(db):
    """No index has a column that an event changes, and each page has space."""
    now = dt.datetime.now(dt.UTC)
    sent = [Sent(recipient=f"u{n}@example.com", message_id=f"m-{n}", occurred_at=now) for n in range(60)]
    with db.engine.begin() as connection:
        record_send(connection, tenant_id="acme", provider="postmark", sent=sent)
    for number in range(60):
        for seconds, kind in ((1, "delivered"), (2, "complained")):
            event = WebhookEvent(
                type=kind,
                occurred_at=now + dt.timedelta(seconds=seconds),
                provider_event_id=f"{kind}{number}",
                message_id=f"m-{number}",
            )
            with db.engine.begin() as connection:
                record_webhook(connection, tenant_id="acme", provider="postmark", events=[event])
    assert share_of_hot_updates(db, 120) > 0.95


@pytest.mark.slow
def test_in_a_sweep_of_a_backlog_updates_of_deliveries_stay_in_their_page(db):
    """One transaction links what is in a page, which is pruned only afterwards."""
    messages = [f"message-{n:024d}" for n in range(3_000)]
    factories.insert_pairs(db, messages)
    assert reconcile().linked == 3_000
    assert share_of_hot_updates(db, 3_000) > 0.95


# Of each small tenant, 50 deliveries of a quarter of an hour ago to 50 days ago, every second one without a provider.
LOAD = """
SET LOCAL TimeZone = 'UTC';
SET LOCAL session_replication_role = replica;
INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain, provider,
                                  provider_message_id, last_event_type, last_event_at, dispatched_at, inserted_at,
                                  updated_at)
SELECT gen_random_uuid(), 'tenant-' || lpad(t::text, 3, '0'), 'News', 'bulk', 'u' || n || '-' || t || '@example.com',
       'example.com', CASE WHEN n % 2 = 0 THEN 'postmark' END, 'm-' || t || '-' || n,
       CASE WHEN n % 3 = 0 THEN 'delivered' ELSE 'dispatched' END, at, at, at, at
  FROM generate_series(1, 199) AS t, generate_series(0, 49) AS n,
       LATERAL (SELECT now()::timestamp - make_interval(days => n, mins => 15) AS at) AS a;
INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain, provider,
                                  provider_message_id, last_event_type, last_event_at, dispatched_at, inserted_at,
                                  updated_at)
SELECT gen_random_uuid(), 'acme', 'News', 'bulk', 'a' || n || '@example.com', 'example.com', 'ses', 'a-' || n,
       'delivered', at, at, at, at
  FROM generate_series(1, 20000) AS n, LATERAL (SELECT now()::timestamp - make_interval(mins => n) AS at) AS a;
INSERT INTO mailglass_events (id, tenant_id, delivery_id, type, occurred_at, metadata, inserted_at)
SELECT CAST(lpad(to_hex((extract(epoch FROM inserted_at) * 1000)::bigint), 12, '0') || '7'
            || substr(md5(id::text), 14) AS uuid), tenant_id, id, 'dispatched', inserted_at,
       '{"provider": "postmark"}', inserted_at
  FROM mailglass_deliveries;
INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, needs_reconciliation, inserted_at)
SELECT CAST(lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7'
            || substr(md5(t || '/' || n), 14) AS uuid), 'tenant-' || lpad(t::text, 3, '0'), 'opened', at, true, at
  FROM generate_series(1, 199) AS t, generate_series(1, 20) AS n,
       LATERAL (SELECT now()::timestamp - make_interval(days => 9 + n) AS at) AS a;
"""


@pytest.fixture(scope="module")
def tx(mailglass_databases, template, redis_url) -> Iterator[Transaction]:
    """A transaction of the prune on a database with 200 tenants, of which one has most deliveries."""
    with mailglass_databases.copy(template, redis_url) as copy:
        with copy.engine.begin() as connection:
            connection.execution_options(no_parameters=True).exec_driver_sql(LOAD)
            connection.exec_driver_sql("ANALYZE")
        with Database(copy.engine, copy.settings).connect() as connected, connected.writing() as tx:
            yield tx


def load_deliveries_to(tx: Transaction) -> None:
    """Look deliveries up by address, as `erase` does."""
    personal_data.find_deliveries(tx, PersonFilter("u7-7@example.com", "u7-7@example.com", "tenant-007"))


def prune_events(tx: Transaction) -> None:
    """Delete a batch of events."""
    tx.execute(retention._PRUNE_EVENTS, {"days": 30, "size": 500, "after_id": NIL})


def prune_deliveries(tx: Transaction) -> None:
    """Delete a batch of deliveries, from the middle of the walk on."""
    cursor = {"after_tenant": "tenant-100", "after_provider": "", "after_time": "-infinity", "after_id": NIL}
    tx.execute(retention._PRUNE_DELIVERIES, {"days": 30, "size": 500, **cursor})


READERS = {
    "is a tenant there": (
        lambda tx: tx.execute(unknown_tenants._IS_THERE, {"tenant_id": "nobody"}),
        {INDEX, OF_ORPHANS},
        0,
    ),
    "reports": (provider_reports.load_reports, {INDEX}, 15_000),
    "status and metrics": (lambda tx: checks.run_fast(CheckContext(tx)), {INDEX}, 16_000),
    "preview of events": (lambda tx: tx.execute(prune_preview._EVENTS, {"days": 30}), {"mailglass_events_pkey"}, 4_000),
    "preview of deliveries": (lambda tx: tx.execute(prune_preview._DELIVERIES, {"days": 30}), {INDEX}, 5_000),
    "retention of events": (prune_events, {"mailglass_events_pkey"}, 6_000),
    "retention of deliveries": (prune_deliveries, {INDEX}, 4_000),
    "search by recipient": (
        lambda tx: search.find_within(tx, search.parse_term("u7-7@example.com", "tenant-007")),
        {BY_RECIPIENT},
        500,
    ),
    "erasure": (load_deliveries_to, {BY_RECIPIENT}, 10),
}


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_at_200_tenants_each_reader_goes_by_an_index(tx, reader):
    """Ours has the tenant, the provider and the time of insertion; none of Mailglass's three over the tenant exists."""
    read, indexes, most = READERS[reader]
    plan = plan_of(tx, lambda: read(tx))
    assert not plan.whole.keys() & set(LARGE)
    assert plan.indexes >= indexes
    assert plan.read <= most
