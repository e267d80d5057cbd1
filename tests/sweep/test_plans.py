"""The plans of a sweep's statements at 50,000 rows, with statistics that are fresh, and with stale ones.

Each statement is caught as its function sends it and explained in the same transaction, which rolls back.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from mailglass_reconcile.store.eligible import Marks
from mailglass_reconcile.store.model import LAST_EVENT, Open, Place, Report, Slice

import factories
from mailglass_reconcile import projector
from mailglass_reconcile.rules import keys
from mailglass_reconcile.rules.keys import Keys
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import (
    borrowing,
    candidates,
    database,
    deliveries,
    eligible,
    engines,
    ledger,
    open_orphans,
    sends,
    slices,
)
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.deliveries import FEW, Question
from mailglass_reconcile.store.ledger import Entry
from mailglass_reconcile.store.sends import Campaign, New
from mailglass_reconcile.sweep import examination

ROWS = 50_000
WIDE = 20_000
SIZE = 500
TABLES = (
    "mailglass_events",
    "mailglass_deliveries",
    "mailglass_webhook_events",
    "mailglass_open_orphans",
    "mailglass_open_orphan_ids",
)
MARKS = Marks((), "*/1.1", ())

# The newest 10,000 orphans have no keys; every other one has two ids, of which the second names a delivery.
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
       jsonb_build_object('provider', 'postmark', 'provider_event_id', 'Delivery:' || n, 'message_id', 'message-' || n),
       true, now()::timestamp - make_interval(secs => 100000 - n) FROM generate_series(1, 50000) AS n;
INSERT INTO mailglass_webhook_events (id, tenant_id, provider, provider_event_id, event_type_raw, status, raw_payload,
                                      received_at, inserted_at, updated_at)
SELECT md5('raw' || n)::uuid, 'acme', 'postmark', 'Delivery:' || n, 'Delivery', 'succeeded',
       '{"Recipient": "a@example.com"}', '2026-01-02', '2026-01-02', '2026-01-02' FROM generate_series(1, 50000) AS n;
INSERT INTO mailglass_open_orphans (event_id, tenant_id, arrived_at, provider, rule, ids)
SELECT md5('event' || n)::uuid, 'acme', now()::timestamp - make_interval(secs => 100000 - n),
       CASE WHEN n <= 40000 THEN 'postmark' END, CASE WHEN n <= 40000 THEN 'postmark/1.1' END,
       CASE WHEN n <= 40000 THEN 2 END FROM generate_series(1, 50000) AS n;
INSERT INTO mailglass_open_orphan_ids (event_id, position, candidate_id)
SELECT md5('event' || n)::uuid, p, CASE p WHEN 1 THEN 'other-' || n ELSE 'message-' || n END
  FROM generate_series(1, 40000) AS n, generate_series(1, 2) AS p;
"""


CAMPAIGN = """
INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain, provider_message_id,
                                  last_event_type, last_event_at, inserted_at, updated_at)
SELECT md5('wide' || n)::uuid, 'acme', 'News', 'bulk', 'User ' || n || ' <U' || n || '@example.com>', 'example.com',
       'campaign', 'dispatched', '2026-01-01', '2026-01-01', '2026-01-01' FROM generate_series(1, 20000) AS n;
"""

STATISTICS = ["fresh", "of an empty database", "from before the campaign"]


@pytest.fixture(scope="module", params=STATISTICS)
def made(request, make_database, drop_database, template) -> Iterator[tuple[sa.Engine, Settings]]:
    """A database of 50,000 open orphans, and of one message id with 20,000 deliveries."""
    name = f"mgtest_{factories.new_id()}"
    settings = Settings(database_url=make_database(name, template))
    engine = engines.create_engine(settings)
    with engine.begin() as connection:
        for table in TABLES:
            connection.exec_driver_sql(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
            connection.exec_driver_sql(f"ANALYZE {table}")
        connection.exec_driver_sql(LOAD)
        if request.param == "from before the campaign":
            connection.exec_driver_sql("ANALYZE")
        connection.exec_driver_sql(CAMPAIGN)
        if request.param == "fresh":
            connection.exec_driver_sql("ANALYZE")
    yield engine, settings
    drop_database(name)


@pytest.fixture(scope="module")
def tx(made) -> Iterator[Transaction]:
    """A transaction with the settings of a batch."""
    engine, settings = made
    with engine.connect() as connection, database.transaction(connection, settings, probes_only=True) as tx:
        yield tx


@pytest.fixture(scope="module")
def reading(made) -> Iterator[Transaction]:
    """A transaction with the settings of a slice."""
    engine, settings = made
    with (
        engine.connect() as connection,
        database.transaction(connection, settings, read_only=True, snapshot=True, probes_only=True) as tx,
    ):
        yield tx


@pytest.fixture(scope="module")
def application(made) -> Iterator[Transaction]:
    """A caller's own transaction, in which the planner may do what it likes."""
    engine, settings = made
    with engine.begin() as connection, borrowing.borrowed(connection, settings) as tx:
        yield tx


@pytest.fixture
def whole() -> Slice:
    """Every open orphan."""
    return Slice(Place("-infinity", LAST_EVENT), Place("infinity", LAST_EVENT))


@pytest.fixture
def pairs(tx) -> list[tuple[str, str]]:
    """500 orphans from all over the table, each with its delivery."""
    sql = """
    SELECT md5('event' || n)::uuid::text, md5('delivery' || n)::uuid::text FROM generate_series(1, 50000, 100) AS n
    """
    return [tuple(row) for row in tx.execute(sql)]


@pytest.fixture
def events(pairs) -> list[str]:
    """The orphans of `pairs`."""
    return [event for event, _ in pairs]


class Plan:
    """Plans that have run: indexes used, kinds of node, tables scanned whole and how often, and the rows read."""

    def __init__(self) -> None:
        self.indexes: set[str] = set()
        self.kinds: Counter[str] = Counter()
        self.whole: Counter[str] = Counter()
        self.read = 0

    def add(self, node: dict[str, Any]) -> None:
        """Take in a node and those below it."""
        self.kinds[node["Node Type"]] += 1
        if "Index Name" in node:
            self.indexes.add(node["Index Name"])
        if node["Node Type"] == "Seq Scan":
            self.whole[node["Relation Name"]] += node["Actual Loops"]
        if "Scan" in node["Node Type"] and ("Relation Name" in node or "Index Name" in node):
            seen = node["Actual Rows"] + sum(
                node.get(f"Rows Removed by {cause}", 0) for cause in ("Filter", "Index Recheck")
            )
            self.read += round(seen * node["Actual Loops"])
        for child in node.get("Plans", ()):
            self.add(child)


def plan_of(tx: Transaction, call: Callable[[], object]) -> Plan:
    """Return the plan of all statements that a call sends; what it did is undone."""
    sent = []

    def note(connection, cursor, statement, parameters, context, executemany):
        sent.append((statement, parameters))

    connection = tx.connection
    with connection.begin_nested() as savepoint:
        sa.event.listen(connection, "before_cursor_execute", note)
        call()
        sa.event.remove(connection, "before_cursor_execute", note)
        savepoint.rollback()
    plan = Plan()
    with connection.begin_nested() as savepoint:
        for statement, parameters in sent:
            explained = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
            plan.add(explained.scalar_one()[0]["Plan"])
        savepoint.rollback()
    return plan


def probing(tx: Transaction, call: Callable[[], object]) -> Plan:
    """Return the plan of a call that reaches every row through an index."""
    plan = plan_of(tx, call)
    assert not plan.whole.keys() & set(TABLES)
    return plan


def test_the_survey_reads_the_catalog_only(reading):
    """Sizes and the state of the schema; nothing that grows."""
    plan = plan_of(reading, lambda: eligible.survey(reading, Settings()))
    assert not (plan.whole.keys() | plan.indexes) & {*TABLES, "mailglass_open_orphans_arrival_idx"}
    assert plan.read <= 100


@pytest.mark.parametrize("tenant_id", [None, "acme"])
def test_the_groups_are_counted_along_the_index_of_arrival(reading, whole, tenant_id):
    """Once along what is eligible."""
    plan = probing(reading, lambda: eligible.groups(reading, replace(whole, tenant_id=tenant_id), MARKS))
    assert plan.indexes == {"mailglass_open_orphans_arrival_idx"}
    assert plan.read == ROWS


def test_what_remains_is_counted_along_the_index_of_arrival(reading, whole):
    """Once along what is eligible."""
    plan = probing(reading, lambda: eligible.count(reading, whole))
    assert plan.indexes == {"mailglass_open_orphans_arrival_idx"}
    assert plan.read == ROWS


def test_the_edges_of_ranges_are_found_in_one_walk_of_the_index_of_arrival(reading, whole):
    """Nothing is sorted, however large the backlog."""
    plan = probing(reading, lambda: eligible.cuts(reading, whole, 5_000, ROWS))
    assert plan.indexes == {"mailglass_open_orphans_arrival_idx"}
    assert plan.kinds["Sort"] <= 1, "that of the few edges"
    assert plan.read <= ROWS


def test_orphans_without_keys_are_read_until_there_are_enough(reading, whole):
    """In order of arrival, no more rows than asked for."""
    place = reading.execute(
        "SELECT arrived_at::text, event_id::text FROM {schema}.mailglass_open_orphans WHERE rule IS NULL"
        " ORDER BY arrived_at LIMIT 1 OFFSET 100"
    ).one()
    piece = replace(whole, after=Place(*place))
    plan = probing(reading, lambda: slices.without_keys(reading, piece, MARKS, SIZE))
    assert plan.indexes == {"mailglass_open_orphans_arrival_idx"}
    assert plan.read <= SIZE + 1


def test_orphans_that_name_a_delivery_are_probed_for_until_there_are_enough(reading, whole):
    """Each orphan, its two ids, their deliveries, and its ids once more."""
    plan = probing(reading, lambda: slices.naming(reading, whole, MARKS, SIZE))
    assert {"mailglass_open_orphans_arrival_idx", "mailglass_open_orphan_ids_pkey"} <= plan.indexes
    assert plan.read <= 6 * SIZE + 10


def test_orphans_that_name_a_delivery_are_found_by_reading_both_tables_once(reading, whole):
    """If that is cheaper: ids and deliveries are hashed, nothing is probed for, but for the ids of those found."""

    def call() -> list[Open]:
        with database.by_scans(reading):
            return slices.naming_by_scans(reading, whole, MARKS, SIZE)

    plan = plan_of(reading, call)
    assert "Hash Join" in plan.kinds
    assert plan.kinds["Nested Loop"] == 1, "the one over the ranges of arrival"
    assert plan.whole["mailglass_open_orphan_ids"] == 1
    assert plan.whole["mailglass_deliveries"] <= 1
    assert plan.read <= ROWS + 2 * ROWS + ROWS + WIDE + 2 * SIZE


def test_after_scans_statements_probe_again(reading, whole):
    """The way that was chosen for one statement is not kept."""
    with database.by_scans(reading):
        pass
    probing(reading, lambda: slices.naming(reading, whole, MARKS, SIZE))


def test_what_names_provider_and_recipient_is_read_by_the_ledgers_primary_key(reading, events):
    """One row per orphan."""
    plan = probing(reading, lambda: candidates.of_events(reading, events))
    assert plan.indexes == {"mailglass_events_pkey"}
    assert plan.read <= SIZE


def test_values_at_paths_are_read_by_the_ledgers_primary_key(reading, events):
    """One row per orphan, however many paths."""
    plan = probing(reading, lambda: candidates.at_paths(reading, events, keys.reads()["mailgun"]))
    assert plan.indexes == {"mailglass_events_pkey"}
    assert plan.read <= SIZE


def test_recipients_of_raw_webhooks_are_read_by_their_unique_index(reading, events):
    """One event and one raw webhook per orphan."""
    plan = probing(reading, lambda: candidates.postmark_recipients(reading, events))
    assert plan.indexes == {"mailglass_events_pkey", "mailglass_webhook_events_provider_event_id_idx"}
    assert plan.read <= 2 * SIZE


def test_keys_are_stored_by_primary_keys(tx, events):
    """Held, looked for in the ledger, their old ids removed, the new ones stored."""
    computed = {event: Keys("postmark", ("one", "two"), None, "postmark/1.1") for event in events}
    plan = probing(tx, lambda: candidates.store(tx, computed))
    assert plan.indexes == {
        "mailglass_open_orphans_pkey",
        "mailglass_events_idempotency_key_idx",
        "mailglass_open_orphan_ids_pkey",
    }
    assert plan.read <= 2 * SIZE + 2 * SIZE


def test_ids_are_looked_up_by_our_index(reading):
    """Each once; of a wide id no more than shows that it is one."""
    ids = [*(f"message-{n}" for n in range(1, SIZE)), "campaign"]
    plan = probing(reading, lambda: deliveries.of_ids(reading, ids))
    assert plan.indexes == {deliveries.INDEX}
    assert plan.read <= SIZE + FEW + 1


ASKING = {
    "a recipient that it has": ("acme", "u7777@example.com"),
    "a recipient that it has not": ("acme", "nobody@example.com"),
    "no recipient": ("acme", None),
    "an earlier tenant": ("aaa", None),
    "a later tenant": ("zzz", "u7777@example.com"),
}


@pytest.mark.parametrize("asking", ASKING)
def test_a_question_to_a_wide_id_reads_few_rows(reading, asking):
    """Of 20,000 deliveries, whatever asks."""
    tenant, recipient = ASKING[asking]
    question = Question("campaign", tenant, ("sparkpost", "SparkPost"), recipient)
    plan = probing(reading, lambda: deliveries.of_wide_ids(reading, [question] * SIZE))
    assert plan.indexes == {deliveries.INDEX, "mailglass_deliveries_provider_msg_id_idx"}
    assert plan.read <= 5 * SIZE


@pytest.mark.parametrize("asking", ASKING)
def test_a_question_of_an_applications_event_reads_few_rows(application, asking):
    """Where nothing keeps the planner from other ways."""
    tenant, recipient = ASKING[asking]
    question = Question("campaign", tenant, ("sparkpost", "SparkPost"), recipient)
    plan = probing(application, lambda: deliveries.of_wide_ids(application, [question]))
    assert plan.read <= 5


def test_a_wide_ids_delivery_is_found_by_its_address(reading):
    """The index's expression and the query's are the same, and take the address out of a display name."""
    found = deliveries.of_wide_ids(reading, [Question("campaign", "acme", ("sparkpost",), "u7777@example.com")])
    assert "User 7777 <U7777@example.com>" in [delivery.recipient for _, delivery in found]


def test_a_link_is_claimed_and_appended_by_primary_keys(tx, pairs):
    """Open orphan, event and delivery of each pair, once."""
    plan = probing(tx, lambda: ledger.append_reconciled(tx, pairs))
    assert plan.indexes == {"mailglass_open_orphans_pkey", "mailglass_events_pkey", "mailglass_deliveries_pkey"}
    assert plan.read <= 3 * SIZE


def test_a_projection_reads_each_delivery_by_its_primary_key(tx, pairs):
    """Once to decide and once to write."""
    at = "2026-01-02T03:04:05"
    reports = [Report(delivery, "delivered", at, at, event) for event, delivery in pairs]
    plan = probing(tx, lambda: projector.project(tx, reports))
    assert plan.indexes == {"mailglass_deliveries_pkey"}
    assert plan.read <= 2 * SIZE


def test_closing_goes_by_primary_keys(tx, events):
    """Of the orphans and of their ids."""
    plan = probing(tx, lambda: open_orphans.close(tx, events, events))
    assert plan.indexes == {"mailglass_open_orphans_pkey", "mailglass_open_orphan_ids_pkey"}
    assert plan.read <= 3 * SIZE


def test_refusing_goes_by_primary_key(tx, events):
    """Each row twice: once to lock it, unless somebody holds it, and once to write it."""
    plan = probing(tx, lambda: open_orphans.refuse(tx, events))
    assert plan.indexes == {"mailglass_open_orphans_pkey"}
    assert plan.read <= 2 * SIZE


def test_looking_for_reconciled_events_goes_by_their_key(tx, events):
    """One event and one probe per orphan."""
    plan = probing(tx, lambda: ledger.not_reconciled(tx, events))
    assert plan.indexes == {"mailglass_events_pkey", "mailglass_events_idempotency_key_idx"}
    assert plan.read <= SIZE


def test_looking_for_a_committed_event_is_one_probe(tx):
    """After a COMMIT whose answer was lost."""
    plan = probing(tx, lambda: ledger.present(tx, ledger.uuid7()))
    assert plan.indexes == {"mailglass_events_pkey"}
    assert plan.read == 0


def test_the_marks_of_this_test_are_todays():
    """Or else the stored keys above would be none."""
    rules, any_provider = examination.marks()
    assert (rules["postmark"], any_provider) == ("postmark/1.1", MARKS.any_provider)


def test_open_orphans_of_an_applications_ids_are_looked_up_by_candidate_id(application):
    """Where nothing keeps the planner from other ways: ids, orphans and their ids once more."""
    wanted = {f"message-{n}" for n in range(1, 5 * SIZE, 5)}
    plan = probing(application, lambda: slices.wanted(application, "acme", wanted, [], Settings()))
    assert plan.indexes == {
        "mailglass_open_orphan_ids_candidate_idx",
        "mailglass_open_orphans_pkey",
        "mailglass_open_orphan_ids_pkey",
    }
    assert plan.read <= 4 * SIZE


def test_storing_sends_looks_for_their_ids_only(application):
    """By our index, whether they have other deliveries or none, or 20,000."""
    campaign = Campaign("acme", ("postmark", "Postmark"), "Welcome", "bulk", "{}")
    ids = [*(f"message-{n}" for n in range(1, SIZE)), *(f"new-{n}" for n in range(1, SIZE)), "campaign"]
    new = []
    for id_ in ids:
        event, delivery = factories.new_id(), factories.new_id()
        entry = Entry(event, "acme", delivery, "dispatched", "2026-01-02", f"send:{id_}", None, {}, False)
        new.append(New(entry, delivery, "a@example.com", id_, shared=False))
    plan = probing(application, lambda: sends.store(application, campaign, new))
    assert plan.indexes == {deliveries.INDEX, "mailglass_events_idempotency_key_idx"}
    assert plan.read <= 2 * SIZE


MILLION = """
SET LOCAL session_replication_role = replica;
INSERT INTO mailglass_open_orphans (event_id, tenant_id, arrived_at, provider, rule, ids)
SELECT md5('event' || n)::uuid, 'acme', now()::timestamp, 'postmark', 'postmark/1.1', 1
  FROM generate_series(1, 1000000) AS n;
INSERT INTO mailglass_open_orphan_ids (event_id, position, candidate_id)
SELECT md5('event' || n)::uuid, 1, CASE WHEN n <= 100000 THEN 'campaign' ELSE 'message-' || n END
  FROM generate_series(1, 1000000) AS n;
"""


@pytest.mark.slow
def test_of_a_million_open_orphans_a_writer_reads_only_those_of_its_ids(make_database, drop_database, template):
    """By candidate id, in its own transaction and after it; of an id of 100,000 no more than a batch; and by event.

    With statistics of empty tables, and with fresh ones.
    """
    name = f"mgtest_{factories.new_id()}"
    settings = Settings(database_url=make_database(name, template))
    engine = engines.create_engine(settings)
    index = "mailglass_open_orphan_ids_candidate_idx"
    wanted = {
        "a thousand ids": ([f"message-{n}" for n in range(1, 1_000_000, 1_000)], [], 900),
        "an id of very many": (["campaign"], [], settings.batch_size),
        "an unknown id": (["nobody's"], [], 0),
        "an event": ([], ["7e8b0a5d-4f6c-4a8b-9c6e-1f2d3c4b5a69"], 0),
    }
    try:
        with engine.begin() as connection:
            for table in TABLES[3:]:
                connection.exec_driver_sql(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
                connection.exec_driver_sql(f"ANALYZE {table}")
            connection.exec_driver_sql(MILLION)
        for analysed in (False, True):
            if analysed:
                with engine.begin() as connection:
                    connection.exec_driver_sql("ANALYZE mailglass_open_orphans, mailglass_open_orphan_ids")
            with engine.connect() as connection:
                with connection.begin(), borrowing.borrowed(connection, settings) as application:
                    plans = _plans_of(application, settings, wanted)
                with database.transaction(connection, settings, read_only=True, probes_only=True) as after:
                    plans |= {f"{asked}, after": plan for asked, plan in _plans_of(after, settings, wanted).items()}
            for asked, (plan, found, expected) in plans.items():
                assert found == expected, asked
                assert plan.indexes <= {index, "mailglass_open_orphans_pkey", "mailglass_open_orphan_ids_pkey"}, asked
                assert index in plan.indexes, asked
                assert plan.read <= 3 * expected, asked
    finally:
        drop_database(name)


def _plans_of(tx, settings, wanted):
    """Return for each question its plan, how many open orphans answer it, and how many should."""
    found = {}
    for asked, (ids, events, expected) in wanted.items():
        answer = slices.wanted(tx, "acme", ids, events, settings)
        plan = probing(tx, lambda ids=ids, events=events: slices.wanted(tx, "acme", ids, events, settings))
        found[asked] = (plan, len(answer), expected)
    return found
