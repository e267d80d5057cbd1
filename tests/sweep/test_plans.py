"""The plans of a sweep's and a writer's statements at 20,000 rows, with statistics that are fresh, and with stale ones.

Postgres explains each statement that it executes, in a transaction that rolls back.
"""

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import sqlalchemy as sa

import factories
from mailglass_reconcile.mailglass_compat import raw_webhooks
from mailglass_reconcile.mailglass_compat.raw_webhooks import ReportedEvent
from mailglass_reconcile.mailglass_compat.readers import READERS
from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.rules.addresses import make_index_key
from mailglass_reconcile.rules.matching import Keys
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.caller_transaction import use_caller_transaction
from mailglass_reconcile.store.database import Database, Transaction, prefer_scans
from mailglass_reconcile.store.limits import Limits
from mailglass_reconcile.store.queries import orphan_lists, selection
from mailglass_reconcile.store.queries.orphan_lists import ListFilter
from mailglass_reconcile.store.queries.selection import OrphanFilter, Window
from mailglass_reconcile.store.tables import deliveries, handler_jobs, ledger, open_orphans, sends, stored_keys
from mailglass_reconcile.store.tables.deliveries import Question
from mailglass_reconcile.store.tables.ledger import Entry
from mailglass_reconcile.store.tables.open_orphans import Cursor
from mailglass_reconcile.store.tables.sends import Campaign, NewDelivery
from mailglass_reconcile.store.tables.stored_keys import StoredKeys
from marking import nightly_unless
from meter import Plan, plan_of
from projecting import Report, apply_projection

pytestmark = pytest.mark.long

ROWS = 20_000
WIDE = 8_000
SIZE = 500
TABLES = (
    "mailglass_events",
    "mailglass_deliveries",
    "mailglass_webhook_events",
    "mailglass_open_orphans",
    "mailglass_open_orphan_ids",
    "mailglass_handler_outbox",
    "mailglass_handled_types",
)
KEYED = 16_000
RANK = provider_rules.rank_of("postmark")
ARRIVAL = "mailglass_open_orphans_arrival_idx"
HANDLED = "mailglass_handled_types_pkey"
TYPES = 16

# The newest 4,000 orphans have neither keys nor state, and wait for a handler. All others have two ids, of which the
# second names a delivery, and matched nothing when a sweep looked at them.
LOAD = """
SET LOCAL TimeZone = 'UTC';
SET LOCAL session_replication_role = replica;
INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain, provider_message_id,
                                  last_event_type, last_event_at, inserted_at, updated_at)
SELECT md5('delivery' || n)::uuid, 'acme', 'Welcome', 'bulk', 'a@example.com', 'example.com', 'message-' || n,
       'dispatched', '2026-01-01', '2026-01-01', '2026-01-01' FROM generate_series(1, 20000) AS n;
INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, idempotency_key, metadata, needs_reconciliation,
                              inserted_at)
SELECT md5('event' || n)::uuid, 'acme', 'delivered', '2026-01-02', 'postmark:' || n || ':0',
       jsonb_build_object('provider', 'postmark', 'provider_event_id', 'Delivery:' || n, 'message_id', 'message-' || n),
       true, now()::timestamp - make_interval(secs => 100000 - n) FROM generate_series(1, 20000) AS n;
INSERT INTO mailglass_webhook_events (id, tenant_id, provider, provider_event_id, event_type_raw, status, raw_payload,
                                      received_at, inserted_at, updated_at)
SELECT md5('raw' || n)::uuid, 'acme', 'postmark', 'Delivery:' || n, 'Delivery', 'succeeded',
       '{"Recipient": "a@example.com"}', '2026-01-02', '2026-01-02', '2026-01-02' FROM generate_series(1, 20000) AS n;
INSERT INTO mailglass_open_orphans (event_id, tenant_id, arrived_at, provider, rank, ids, state)
SELECT md5('event' || n)::uuid, 'acme', now()::timestamp - make_interval(secs => 100000 - n),
       CASE WHEN n <= 16000 THEN 'postmark' END, CASE WHEN n <= 16000 THEN {rank} END,
       CASE WHEN n <= 16000 THEN 2 END, CASE WHEN n <= 16000 THEN 'unmatched' END FROM generate_series(1, 20000) AS n;
INSERT INTO mailglass_open_orphan_ids (event_id, position, candidate_id)
SELECT md5('event' || n)::uuid, p, CASE p WHEN 1 THEN 'other-' || n ELSE 'message-' || n END
  FROM generate_series(1, 16000) AS n, generate_series(1, 2) AS p;
INSERT INTO mailglass_handler_outbox
       (event_id, handler, delivery_id, type, state, attempts, next_at, inserted_at, finished_at)
SELECT md5('event' || n)::uuid, 'audit', md5('delivery' || n)::uuid, 'delivered',
       CASE WHEN n <= 16000 THEN 'done' ELSE 'waiting' END, 1, now()::timestamp, now()::timestamp,
       CASE WHEN n <= 16000 THEN now()::timestamp END FROM generate_series(1, 20000) AS n;
INSERT INTO mailglass_handled_types SELECT 'type-' || n, 'audit', now(), 'web, pid 7' FROM generate_series(1, 16) AS n;
""".replace("{rank}", str(RANK))


CAMPAIGN = """
INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain, provider_message_id,
                                  last_event_type, last_event_at, inserted_at, updated_at)
SELECT md5('wide' || n)::uuid, 'acme', 'News', 'bulk', 'User ' || n || ' <U' || n || '@example.com>', 'example.com',
       'campaign', 'dispatched', '2026-01-01', '2026-01-01', '2026-01-01' FROM generate_series(1, 8000) AS n;
"""

STALE = ("of an empty database", "from before the campaign", "from a quiet time")
STATISTICS = nightly_unless(STALE[:1].__contains__, ["fresh", *STALE], is_quick="fresh".__eq__)


@pytest.fixture(scope="session")
def loaded(make_database, drop_database, template) -> Iterator[str]:
    """The name of a database of 20,000 open orphans, with the statistics of an empty one, to copy."""
    name = f"mgtest_{factories.new_id()}"
    engine = engines.create_engine(Settings(database_url=make_database(name, template)))
    with engine.begin() as connection:
        for table in TABLES:
            connection.exec_driver_sql(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
            connection.exec_driver_sql(f"ANALYZE {table}")
        connection.exec_driver_sql(LOAD)
    engine.dispose()
    yield name
    drop_database(name)


@pytest.fixture(scope="module", params=STATISTICS)
def large_database(request, mailglass_databases, loaded, redis_url) -> Iterator[tuple[sa.Engine, Settings]]:
    """A database of 20,000 open orphans, and of one message id with 8,000 deliveries."""
    with mailglass_databases.copy(loaded, redis_url) as copy:
        with copy.engine.begin() as connection:
            if request.param == "from before the campaign":
                connection.exec_driver_sql("ANALYZE")
            if request.param == "from a quiet time":  # when all had keys, and no job was waiting
                connection.exec_driver_sql(
                    "UPDATE mailglass_open_orphans SET rank = %s, state = 'unmatched' WHERE rank IS NULL", (RANK,)
                )
                connection.exec_driver_sql("UPDATE mailglass_handler_outbox SET state = 'done' WHERE state = 'waiting'")
                connection.exec_driver_sql("ANALYZE")
                connection.exec_driver_sql(
                    "UPDATE mailglass_open_orphans SET rank = NULL, state = NULL WHERE ids IS NULL"
                )
                connection.exec_driver_sql(
                    "UPDATE mailglass_handler_outbox SET state = 'waiting' WHERE finished_at IS NULL"
                )
            connection.exec_driver_sql(CAMPAIGN)
            if request.param == "fresh":
                connection.exec_driver_sql("ANALYZE")
        yield copy.engine, copy.settings


@pytest.fixture(scope="module")
def tx(large_database) -> Iterator[Transaction]:
    """A transaction with the settings of a batch."""
    with Database(*large_database).connect() as connected, connected.linking() as tx:
        yield tx


@pytest.fixture(scope="module")
def writing(large_database) -> Iterator[Transaction]:
    """A transaction with the settings of a sweep's writes between batches."""
    with Database(*large_database).connect() as connected, connected.writing() as tx:
        yield tx


@pytest.fixture(scope="module")
def reading(large_database) -> Iterator[Transaction]:
    """A transaction with the settings of a slice, without parallel workers, whose number would vary."""
    with Database(*large_database).connect() as connected, connected.reading() as tx:
        tx.connection.exec_driver_sql("SET LOCAL max_parallel_workers_per_gather = 0")
        yield tx


@pytest.fixture(scope="module")
def application(large_database) -> Iterator[Transaction]:
    """A caller's own transaction, with our savepoint outside those of the tests."""
    engine, settings = large_database
    with engine.begin() as connection, use_caller_transaction(connection, settings) as tx:
        tx.execute("SELECT 1")
        yield tx


@pytest.fixture(scope="module")
def untouched(large_database) -> Iterator[Transaction]:
    """A caller's transaction without our settings, in which the planner is free."""
    engine, settings = large_database
    with engine.begin() as connection:
        yield Transaction(connection, settings)


@pytest.fixture
def all_open() -> Window:
    """The window of every open orphan."""
    return Window("-infinity", "infinity", triggers=True, indexed=True, by_scans=False)


@pytest.fixture
def pairs(tx) -> list[tuple[str, str]]:
    """500 orphans from all parts of the table, each with its delivery."""
    sql = """
    SELECT md5('event' || n)::uuid::text, md5('delivery' || n)::uuid::text FROM generate_series(1, 20000, 40) AS n
    """
    return [tuple(row) for row in tx.execute(sql)]


@pytest.fixture
def events(pairs) -> list[str]:
    """The orphans of `pairs`."""
    return [event for event, _ in pairs]


@pytest.fixture
def other_orphans(tx) -> list[str]:
    """500 other orphans for writes, because indexes keep dead entries after a rollback, which reads would count."""
    return list(tx.execute("SELECT md5('event' || n)::uuid::text FROM generate_series(21, 20000, 40) AS n").scalars())


def probing(tx: Transaction, call: Callable[[], object]) -> Plan:
    """Return the plan of a call that reaches every row through an index."""
    plan = plan_of(tx, call)
    assert not plan.whole.keys() & set(TABLES)
    return plan


def test_the_window_of_a_recent_sweep_reads_the_catalog_only(reading):
    """It reads the window's bounds and the schema's state, and no table that grows."""
    plan = plan_of(reading, lambda: selection.open_window(reading, ages=(60.0, -300.0)))
    assert not plan.whole.keys() & set(TABLES)
    assert plan.catalog + plan.read <= 100


def test_the_window_of_a_full_sweep_counts_a_few_along_the_index_of_arrival(reading):
    """It counts just enough to know that more are open."""
    plan = probing(reading, lambda: selection.open_window(reading, counted=True))
    assert plan.indexes & {ARRIVAL, deliveries.INDEX} == {ARRIVAL}
    assert plan.catalog + plan.read <= Limits.few_orphans + 100


def test_the_edges_of_ranges_are_found_in_one_walk_of_the_index_of_arrival(reading, all_open):
    """Nothing is sorted, however large the backlog."""
    plan = probing(reading, lambda: selection.range_boundaries(reading, all_open, None, 5_000, ROWS))
    assert plan.indexes == {ARRIVAL}
    assert plan.kinds["Sort"] <= 1, "that of the few edges"
    assert plan.read <= ROWS


def test_what_arrived_after_a_sweep_is_counted_without_reading_the_others(reading):
    """It reads the index of arrival from the end of the window on, at most so many rows."""
    in_grace = reading.execute("SELECT (now()::timestamp - interval '1 minute')::text").scalar_one()
    plan = probing(reading, lambda: selection.load_newer(reading, in_grace))
    assert plan.indexes == {ARRIVAL}
    assert plan.read == 0
    few = Transaction(reading.connection, reading.settings, Limits(most_counted=SIZE))
    plan = probing(few, lambda: selection.load_newer(few, None))
    assert plan.indexes == {ARRIVAL}
    assert plan.kinds["Sort"] == 0
    assert plan.read <= SIZE


def test_a_list_reads_along_the_index_of_arrival_until_there_are_enough(reading):
    """It reads each orphan, its event for the type, and its two ids."""
    plan = probing(reading, lambda: orphan_lists.load_newest(reading, ListFilter(), None, SIZE))
    assert plan.indexes >= {ARRIVAL, "mailglass_events_pkey"}
    assert plan.kinds["Sort"] == plan.kinds["Incremental Sort"] == 0
    assert plan.read <= 4 * SIZE + 10


FILTERS = {
    **{state: ListFilter(state=state) for state in ("unmatched", "unseen", "ambiguous")},
    "tenant": ListFilter(tenant_id="acme"),
    "another tenant": ListFilter(tenant_id="beryl"),
    "provider": ListFilter(provider="postmark"),
    "tenant and state": ListFilter(tenant_id="acme", state="unmatched"),
    "recipient": ListFilter(recipient="a@example.com"),
}


@pytest.mark.parametrize("name", FILTERS)
def test_a_list_with_a_filter_reads_the_open_orphans_once_at_most(reading, name):
    """Types and ids are looked up for the page alone."""
    plan = plan_of(reading, lambda: orphan_lists.load_newest(reading, FILTERS[name], None, SIZE))
    assert plan.whole.keys() <= {"mailglass_open_orphans"}
    assert plan.read <= ROWS + 3 * SIZE


@pytest.mark.parametrize("name", FILTERS)
def test_causes_are_counted_along_the_index_of_arrival(reading, name):
    """Each open orphan is read once; ids and deliveries are looked up for a tenant mismatch only."""
    plan = probing(reading, lambda: orphan_lists.count_causes(reading, FILTERS[name], ROWS))
    assert plan.read <= ROWS


def test_a_tenant_mismatch_costs_its_ids_and_one_delivery(writing, other_orphans):
    """500 mismatches among all open orphans are read."""
    with writing.connection.begin_nested() as savepoint:
        open_orphans.store_states(writing, dict.fromkeys(other_orphans, ("tenant_mismatch", RANK)))
        row_filter = ListFilter(state="tenant_mismatch")
        plan = probing(writing, lambda: orphan_lists.count_causes(writing, row_filter, ROWS))
        savepoint.rollback()
    assert deliveries.INDEX in plan.indexes
    assert plan.read <= ROWS + 4 * SIZE


def test_a_list_by_message_id_finds_its_orphans_by_primary_key(reading):
    """Stale statistics change nothing."""
    row_filter = ListFilter(message_ids=frozenset(("message-7", "other-8")))
    plan = probing(reading, lambda: orphan_lists.load_newest(reading, row_filter, None, SIZE))
    assert "mailglass_open_orphans_pkey" in plan.indexes
    assert plan.read <= 20


PROBED = {ARRIVAL, "mailglass_open_orphan_ids_pkey", deliveries.INDEX}


@pytest.mark.parametrize("tenant_id", [None, pytest.param("acme", marks=pytest.mark.slow)])
def test_orphans_to_match_are_chosen_by_probes(reading, all_open, tenant_id):
    """Each orphan of the window is read twice along the index of arrival, then its two ids and their deliveries."""
    plan = probing(reading, lambda: selection.select_orphans(reading, all_open._replace(by_scans=False), tenant_id))
    assert plan.indexes == PROBED
    assert plan.read <= 2 * ROWS + 4 * KEYED + 4 * ROWS


def test_a_targeted_sweep_reads_the_window_once_and_the_ids_that_it_is_about(reading, all_open):
    """Orphans with outdated keys or none are included."""
    only = OrphanFilter("postmark", ["message-7"])
    plan = probing(
        reading, lambda: selection.select_orphans(reading, all_open._replace(by_scans=False), "acme", only=only)
    )
    assert plan.indexes <= {*PROBED, "mailglass_open_orphan_ids_candidate_idx"}
    assert plan.read <= 3 * ROWS


def test_a_small_window_of_a_large_table_is_chosen_by_probes_of_its_rows(reading, all_open):
    """A recent sweep has such a window, or a range of a fan-out."""
    small = all_open._replace(after=_place(reading, ROWS - SIZE).arrived_at, until="infinity", by_scans=False)
    plan = probing(reading, lambda: selection.select_orphans(reading, small))
    assert plan.indexes <= PROBED
    assert plan.read <= 20 * SIZE


@pytest.mark.parametrize("tenant_id", [None, pytest.param("acme", marks=pytest.mark.slow)])
def test_orphans_to_match_are_chosen_by_reading_the_tables_once_each(reading, all_open, tenant_id):
    """Ids and deliveries are hashed; orphans are read for their states and for the counts."""
    plan = plan_of(reading, lambda: selection.select_orphans(reading, all_open._replace(by_scans=True), tenant_id))
    assert "Hash Join" in plan.kinds or "Hash Semi Join" in plan.kinds
    assert plan.kinds["Nested Loop"] == 0
    assert not plan.indexes & {*PROBED, "mailglass_open_orphans_pkey"}
    assert plan.whole["mailglass_open_orphans"] <= 4
    assert plan.whole["mailglass_open_orphan_ids"] <= 2
    assert plan.whole["mailglass_deliveries"] <= 2


def test_each_table_is_read_once_if_no_orphan_can_match(writing, all_open):
    """The counts of the groups show which branches have no orphans to choose."""
    keyed = all_open._replace(until=_place(writing, KEYED).arrived_at, by_scans=True)
    with writing.connection.begin_nested() as savepoint:
        writing.connection.exec_driver_sql("SET LOCAL max_parallel_workers_per_gather = 0")
        writing.execute("DELETE FROM {schema}.mailglass_open_orphan_ids WHERE position = 2")
        plan = plan_of(writing, lambda: selection.select_orphans(writing, keyed))
        savepoint.rollback()
    assert {table: plan.whole[table] for table in TABLES if plan.whole[table]} == {
        "mailglass_open_orphans": 1,
        "mailglass_open_orphan_ids": 1,
        "mailglass_deliveries": 1,
    }


def ids_by_part(selection):
    """Return the ids of each part in order, because a rotation starts at a random row."""
    return {part.priority: sorted(id_ for ids in part.slices(1_000) for id_ in ids) for part in selection.parts}


@pytest.mark.parametrize("path", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["by scans", "by probes"])
def test_both_paths_choose_the_same(reading, all_open, path):
    """They leave out the same, too."""
    alternative, preferred = (
        selection.select_orphans(reading, all_open._replace(by_scans=prefer_scans)) for prefer_scans in (not path, path)
    )
    assert (preferred.selected, preferred.left_out) == (alternative.selected, alternative.left_out)
    ids = ids_by_part(preferred)
    assert ids == ids_by_part(alternative)
    assert preferred.selected.total() + preferred.left_out.total() == ROWS
    assert sum(map(len, ids.values())) == preferred.selected.total()


def test_a_full_sweep_of_many_orphans_prefers_scans_and_one_of_few_prefers_probes(reading):
    place = _place(reading, ROWS - SIZE).arrived_at
    assert selection.open_window(reading, counted=True).by_scans
    assert not selection.open_window(reading, counted=True, bounds=(place, None)).by_scans
    assert not selection.open_window(reading).by_scans, "nothing is counted for a recent sweep"


MANY_MILLIONS = """
UPDATE pg_class SET reltuples = 10000000, relpages = greatest(pg_relation_size(oid) / 8192, 1)
 WHERE relname IN ('mailglass_open_orphans', 'mailglass_open_orphan_ids', 'mailglass_deliveries')
"""


def test_a_planner_that_expects_ten_million_rows_hashes_and_never_compares_lists_row_by_row(untouched, all_open):
    """A subplan that does not fit into the memory for a hash would run once for each orphan."""
    with untouched.connection.begin_nested() as savepoint:
        untouched.connection.exec_driver_sql(MANY_MILLIONS)
        with prefer_scans(untouched):
            parameters = selection.parameters(untouched, all_open._replace(by_scans=True), None)
            rows = untouched.execute("EXPLAIN " + selection._SELECT, parameters).scalars().all()
        savepoint.rollback()
    plan = "\n".join(rows)
    assert "rows=1" in plan
    assert "SubPlan" not in plan.replace("hashed SubPlan", "")
    assert "Nested Loop" not in plan
    assert "Hash" in plan


@pytest.mark.slow
def test_after_scans_statements_probe_again(reading, all_open):
    """The path of one statement does not apply to the next."""
    selection.select_orphans(reading, all_open._replace(by_scans=True))
    probing(reading, lambda: selection.select_orphans(reading, all_open._replace(by_scans=False)))


def test_orphans_are_read_by_primary_key(reading, events):
    plan = probing(reading, lambda: open_orphans.read(reading.reading, events))
    assert plan.indexes == {"mailglass_open_orphans_pkey", "mailglass_open_orphan_ids_pkey"}
    assert plan.read <= 3 * SIZE


def test_since_when_they_could_be_linked_is_read_by_primary_keys(reading, pairs):
    """One orphan and one delivery are read per pair."""
    plan = probing(reading, lambda: open_orphans.linkable_since(reading, pairs))
    assert plan.indexes == {"mailglass_open_orphans_pkey", "mailglass_deliveries_pkey"}
    assert plan.read <= 2 * SIZE


def test_documents_are_read_by_the_ledgers_primary_key(reading, events):
    """One row is read per orphan, however many paths its rule has."""
    plan = probing(reading, lambda: list(ledger.load_documents(reading.reading, events)))
    assert plan.indexes == {"mailglass_events_pkey"}
    assert plan.read <= SIZE


def test_recipients_of_raw_webhooks_are_read_by_their_unique_index(reading, events):
    """One raw webhook per orphan is found by its id at the provider."""
    reported = [
        ReportedEvent(event, "acme", f"Delivery:{n}", None) for n, event in zip(range(1, ROWS, 40), events, strict=True)
    ]
    reader = READERS["postmark"]
    plan = probing(reading, lambda: raw_webhooks.load_recipients(reading.reading, "postmark", reader, reported))
    assert plan.indexes == {"mailglass_webhook_events_pkey", "mailglass_webhook_events_provider_event_id_idx"}
    assert plan.read <= 2 * SIZE
    assert plan.catalog <= 100


def test_keys_are_stored_by_primary_keys(writing, other_orphans):
    """The rows are claimed, their old ids deleted, and the new ones stored."""
    computed = {event: StoredKeys(Keys("postmark", ("one", "two"), None, RANK), "unmatched") for event in other_orphans}
    plan = probing(writing, lambda: stored_keys.store(writing, computed, dict.fromkeys(other_orphans, RANK)))
    assert plan.indexes == {
        "mailglass_open_orphans_pkey",
        "mailglass_open_orphan_ids_pkey",
    }
    assert plan.read <= 3 * SIZE + 2 * SIZE + 2 * SIZE


def test_keys_of_a_slice_are_stored_without_reading_the_ledger_whole(writing):
    """A fifth of all orphans cost one event and one probe each."""
    sql = "SELECT md5('event' || n)::uuid::text FROM generate_series(16001, 20000) AS n"
    computed = {
        id_: StoredKeys(Keys("postmark", (), None, RANK), "unmatchable") for id_ in writing.execute(sql).scalars()
    }
    plan = probing(writing, lambda: stored_keys.store(writing, computed))
    assert plan.read <= 3 * len(computed)


def test_states_are_stored_by_primary_key(writing, other_orphans):
    """Each row is locked and then written."""
    plan = probing(
        writing, lambda: open_orphans.store_states(writing, dict.fromkeys(other_orphans, ("unmatched", RANK)))
    )
    assert plan.indexes == {"mailglass_open_orphans_pkey"}
    assert plan.read <= 4 * SIZE


def test_ids_are_looked_up_by_our_index(reading):
    """Each id is looked up once."""
    questions = [Question(f"message-{n}", "acme", None) for n in range(1, SIZE + 1)]
    plan = probing(reading, lambda: deliveries.find(reading.reading, questions))
    assert plan.indexes == {deliveries.INDEX}
    assert plan.read <= SIZE


ASKING = {
    "a recipient that it has": ("acme", "u7777@example.com"),
    "a recipient that it has not": ("acme", "nobody@example.com"),
    "a recipient outside ASCII": ("acme", "bücher@example.com"),
    "no recipient": ("acme", None),
    "an earlier tenant": ("aaa", None),
    "a later tenant": ("zzz", "u7777@example.com"),
}


def question(tenant, recipient):
    """Return a question for the deliveries of the wide id."""
    return Question("campaign", tenant, recipient and make_index_key(recipient))


@pytest.mark.parametrize("asking", ASKING)
def test_a_question_to_a_wide_id_reads_few_rows(reading, asking):
    """The id names 20,000 deliveries; every caller reads few."""
    tenant, recipient = ASKING[asking]
    plan = probing(reading, lambda: deliveries.find(reading.reading, [question(tenant, recipient)] * SIZE))
    assert plan.indexes == {deliveries.INDEX, "mailglass_deliveries_provider_msg_id_idx"}
    assert plan.read <= 5 * SIZE + factories.WIDE + 1


@pytest.mark.parametrize("asking", ASKING)
def test_a_question_of_an_applications_event_reads_few_rows(application, asking):
    """The question is asked in a writer's transaction."""
    tenant, recipient = ASKING[asking]
    plan = probing(application, lambda: deliveries.find(application.reading, [question(tenant, recipient)]))
    assert plan.read <= factories.WIDE + 1 + 5


def test_a_wide_ids_delivery_is_found_by_its_address(reading):
    """Index and query have the same expression, which takes the address out of a display name."""
    address_question = question("acme", "u7777@example.com")
    answers = deliveries.find(reading.reading, [address_question])
    assert "User 7777 <U7777@example.com>" in [delivery.recipient for delivery in answers.of(address_question)]


def test_a_link_is_claimed_and_appended_by_primary_keys(tx, pairs):
    """Orphan, event and delivery of each pair are read, the delivery twice more for the projection, and the ids for
    the close.
    """
    plan = probing(tx, lambda: ledger.link(tx, pairs))
    assert plan.indexes == {
        "mailglass_open_orphans_pkey",
        "mailglass_open_orphan_ids_pkey",
        "mailglass_events_pkey",
        "mailglass_events_idempotency_key_idx",
        "mailglass_deliveries_pkey",
        HANDLED,
    }
    assert plan.read <= 3 * SIZE + 2 * SIZE + 4 * SIZE + TYPES
    assert plan.kinds["Result"] < 10, "no statement for a single link"


def test_a_projection_reads_each_delivery_by_its_primary_key(tx, pairs):
    """It is read once to decide and once to write."""
    at = "2026-01-02T03:04:05"
    reports = [Report(delivery, "delivered", at, at) for _, delivery in pairs]
    plan = probing(tx, lambda: apply_projection(tx, reports))
    assert plan.indexes == {"mailglass_deliveries_pkey"}
    assert plan.read <= 2 * SIZE


def test_an_orphan_that_is_marked_as_failed_is_read_twice(writing, other_orphans):
    """It is read once to lock it, unless another session holds it, and once to write it."""
    plan = probing(writing, lambda: open_orphans.mark_failed(writing, other_orphans))
    assert plan.read <= 2 * SIZE


def test_a_job_is_claimed_by_one_probe_for_each_handler_and_type(writing):
    """Other waiting jobs do not matter; event and delivery are read by their primary keys."""
    turns = [("audit", "opened"), ("audit", "delivered"), ("other", "delivered")]
    plan = probing(writing, lambda: handler_jobs.claim(writing, turns, synchronous=True))
    assert plan.indexes == {
        "mailglass_handler_outbox_due_idx",
        "mailglass_handler_outbox_pkey",
        "mailglass_events_pkey",
        "mailglass_deliveries_pkey",
    }
    assert plan.read <= 4


@pytest.mark.usefixtures("large_database")
@pytest.mark.parametrize("scope", ["writing", "untouched"])
def test_an_attempt_ends_without_reading_all_that_wait(request, scope):
    """This holds in the handler's own transaction, where the planner is free, and after it."""
    tx = request.getfixturevalue(scope)
    event_id = tx.execute("SELECT md5('event20000')::uuid::text").scalar_one()
    job = handler_jobs.Job(event_id, "audit", 1, False, "delivered", event_id, *7 * (None,), None)
    plan = plan_of(tx, lambda: handler_jobs.start(tx, job, 30))
    assert plan.indexes == {"mailglass_handler_outbox_pkey"}
    assert plan.read <= 1
    plan = plan_of(
        tx, lambda: handler_jobs.claim(tx, [], synchronous=True, failure=handler_jobs.Failure(job, "ValueError"))
    )
    assert "mailglass_handler_outbox_pkey" in plan.indexes
    assert plan.read <= 1, "there is nothing to claim without handlers"


def test_the_keys_of_this_test_are_current():
    """Otherwise the plans above would be those of orphans without keys."""
    assert Keys("postmark", ("one",), None, RANK).is_current


def test_open_orphans_of_an_applications_ids_are_looked_up_by_candidate_id(application):
    lines = {f"message-{n}" for n in range(1, 5 * SIZE, 5)}
    plan = probing(application, lambda: open_orphans.with_message_ids(application, "acme", lines))
    assert plan.indexes == {"mailglass_open_orphan_ids_candidate_idx", "mailglass_open_orphans_pkey"}
    assert plan.read <= 2 * SIZE


@pytest.mark.parametrize("scope", ["application", "untouched"])
def test_whether_anything_may_match_is_one_probe_per_id(request, events, scope):
    """In a transaction without our settings, an id is one probe, or an event its two ids and their deliveries."""
    tx = request.getfixturevalue(scope)
    ids = [*(f"new-{n}" for n in range(SIZE)), "campaign"]
    plan = probing(tx, lambda: open_orphans.after_commit(tx, (), ids, ()))
    assert "mailglass_open_orphan_ids_candidate_idx" in plan.indexes
    assert plan.read == 0
    plan = probing(tx, lambda: open_orphans.after_commit(tx, (), (), events))
    assert {"mailglass_open_orphan_ids_pkey", deliveries.INDEX} <= plan.indexes
    assert plan.read <= 1 + 2 * 2, "a bitmap scan counts its rows twice"
    plan = probing(tx, lambda: open_orphans.after_commit(tx, events, (), ()))
    assert "mailglass_events_pkey" in plan.indexes
    assert plan.read <= 2 * len(events), "which of them are there"


@pytest.mark.slow
def test_whether_anything_may_match_is_one_probe_per_id_where_all_rows_have_the_same_one(untouched, events):
    """The statistics know only the rows of one campaign."""
    connection = untouched.connection
    new, some_events = [f"new-{n}" for n in range(20)], events[:20]
    with connection.begin_nested() as savepoint:
        connection.exec_driver_sql("UPDATE mailglass_open_orphan_ids SET candidate_id = 'open'")
        connection.exec_driver_sql("UPDATE mailglass_deliveries SET provider_message_id = 'campaign'")
        connection.exec_driver_sql("ANALYZE mailglass_open_orphan_ids, mailglass_deliveries")
        by_ids = probing(untouched, lambda: open_orphans.after_commit(untouched, (), new, ()))
        by_one = probing(untouched, lambda: open_orphans.after_commit(untouched, (), ["open"], ()))
        by_events = probing(untouched, lambda: open_orphans.after_commit(untouched, (), (), some_events))
        savepoint.rollback()
    assert by_ids.read == 0
    assert by_one.read == 1
    assert by_events.read <= 6 * len(some_events), "two ids each, and those that the update has left behind"


def test_a_webhooks_events_are_appended_with_three_probes_for_each_delivery(application, pairs):
    """Half of them are attached, each to a delivery that is locked and updated; other tables are only appended to."""
    entries = []
    for number, (_, delivery) in enumerate(pairs):
        id_ = factories.new_id()
        attached = delivery if number % 2 else None
        entries.append(Entry(id_, "acme", attached, "opened", "2026-01-02", f"webhook:{id_}", None, {}, True))
    stored = [StoredKeys(Keys("postmark", ("one", "two"), None, RANK), "unmatched")] * len(entries)
    plan = probing(application, lambda: ledger.append_webhook(application, entries, stored))
    assert plan.indexes == {"mailglass_deliveries_pkey", HANDLED}
    assert plan.read <= 3 * SIZE / 2 + TYPES


def test_storing_sends_looks_for_their_ids_only(application):
    """Our indexes find them, whether the ids have other deliveries, none, or 20,000."""
    campaign = Campaign("acme", ("postmark", "Postmark"), "Welcome", "bulk", "{}")
    ids = [*(f"message-{n}" for n in range(1, SIZE)), *(f"new-{n}" for n in range(1, SIZE)), "campaign"]
    new = []
    for id_ in ids:
        event, delivery = factories.new_id(), factories.new_id()
        entry = Entry(event, "acme", delivery, "dispatched", "2026-01-02", f"send:{id_}", None, {}, False)
        new.append(NewDelivery(entry, delivery, "a@example.com", id_))
    plan = probing(application, lambda: sends.store(application, campaign, new))
    candidates = "mailglass_open_orphan_ids_candidate_idx"
    assert plan.indexes == {deliveries.INDEX, "mailglass_events_idempotency_key_idx", candidates, HANDLED}
    assert plan.read <= 2 * SIZE + 2 * TYPES


def _place(tx: Transaction, number: int) -> Cursor:
    """Return the cursor of the *number*-th open orphan in the order of arrival."""
    row = tx.execute(
        "SELECT arrived_at::text, event_id::text FROM {schema}.mailglass_open_orphans"
        " ORDER BY arrived_at, event_id LIMIT 1 OFFSET CAST(:number AS bigint) - 1",
        {"number": number},
    ).one()
    return Cursor(*row)


LARGER = """
SET LOCAL session_replication_role = replica;
INSERT INTO mailglass_open_orphans (event_id, tenant_id, arrived_at, provider, rank, ids, state)
SELECT md5('event' || n)::uuid, 'acme', now()::timestamp, 'postmark', {rank}, 1, 'unmatched'
  FROM generate_series(1, 200000) AS n;
INSERT INTO mailglass_open_orphan_ids (event_id, position, candidate_id)
SELECT md5('event' || n)::uuid, 1, CASE WHEN n <= 20000 THEN 'campaign' ELSE 'message-' || n END
  FROM generate_series(1, 200000) AS n;
""".replace("{rank}", str(RANK))


@pytest.mark.slow
def test_of_200_000_open_orphans_a_writer_reads_only_those_of_its_ids(make_database, drop_database, template):
    """A candidate id finds them in its transaction and after it, at most a batch of an id of 20,000; so does an
    event.

    With statistics of empty tables, and with fresh ones.
    """
    name = f"mgtest_{factories.new_id()}"
    settings = Settings(database_url=make_database(name, template))
    engine = engines.create_engine(settings)
    index = "mailglass_open_orphan_ids_candidate_idx"
    cases = {
        "a thousand ids": ([f"message-{n}" for n in range(1, 200_000, 200)], 900),
        "an id of very many": (["campaign"], settings.batch_size),
        "an unknown id": (["nobody's"], 0),
    }
    event = ["7e8b0a5d-4f6c-4a8b-9c6e-1f2d3c4b5a69"]
    try:
        with engine.begin() as connection:
            for table in TABLES[3:]:
                connection.exec_driver_sql(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
                connection.exec_driver_sql(f"ANALYZE {table}")
            connection.exec_driver_sql(LARGER)
        for analysed in (False, True):
            if analysed:
                with engine.begin() as connection:
                    connection.exec_driver_sql("ANALYZE mailglass_open_orphans, mailglass_open_orphan_ids")
            with engine.connect() as connection:
                with connection.begin():
                    after = Transaction(connection, settings)
                    for requests, (ids, expected) in cases.items():
                        plan = probing(after, partial(open_orphans.after_commit, after, (), ids, ()))
                        assert plan.read == min(expected, 1), requests
                    plan = probing(after, partial(open_orphans.after_commit, after, (), (), event))
                    assert plan.read == 0
                with connection.begin(), use_caller_transaction(connection, settings) as tx:
                    for requests, (ids, expected) in cases.items():
                        event_ids = open_orphans.with_message_ids(tx, "acme", ids)
                        assert len(event_ids) == expected, requests
                        plan = probing(tx, lambda ids=ids: open_orphans.with_message_ids(tx, "acme", ids))
                        assert plan.indexes == {index, "mailglass_open_orphans_pkey"}, requests
                        assert plan.read <= 2 * expected, requests
                        plan = probing(tx, lambda event_ids=event_ids: open_orphans.read(tx.reading, event_ids))
                        assert plan.read <= 2 * expected, requests
                    plan = probing(tx, lambda: open_orphans.read(tx.reading, event))
                    assert plan.read == 0
    finally:
        drop_database(name)


def test_a_wide_id_makes_no_row_of_each_orphan_with_each_delivery(untouched, all_open):
    """2,000 orphans of the campaign and its 20,000 deliveries would be 40 million rows."""
    with untouched.connection.begin_nested() as savepoint:
        untouched.connection.exec_driver_sql(
            "UPDATE mailglass_open_orphan_ids SET candidate_id = 'campaign' WHERE position = 2 AND event_id = ANY"
            " (ARRAY(SELECT md5('event' || n)::uuid FROM generate_series(30001, 32000) AS n))"
        )
        plan = plan_of(untouched, lambda: selection.select_orphans(untouched, all_open._replace(by_scans=True)))
        savepoint.rollback()
    assert plan.most <= 2 * KEYED + ROWS + WIDE


AT_ONCE = 200_000
WIDE_ORPHANS = 20_000
# All arrived at once, as one import brings them; every hundredth is of another tenant, and the last have one id.
LOAD_AT_ONCE = """
SET LOCAL session_replication_role = replica;
INSERT INTO mailglass_open_orphans (event_id, tenant_id, arrived_at, provider, rank, ids, state)
SELECT md5('event' || n)::uuid, CASE WHEN n % 100 = 0 THEN 'beryl' ELSE 'acme' END,
       now()::timestamp - interval '1 hour', 'postmark', 1, 1, 'unmatched' FROM generate_series(1, 200000) AS n;
INSERT INTO mailglass_open_orphan_ids (event_id, position, candidate_id)
SELECT md5('event' || n)::uuid, 1, CASE WHEN n > 180000 THEN 'campaign' ELSE 'message-' || n END
  FROM generate_series(1, 200000) AS n;
"""
LISTS_AT_ONCE = {
    "all": (ListFilter(), 4 * SIZE + 10),
    "past their grace": (ListFilter(min_age_seconds=60.0, max_age_seconds=604_800.0), 4 * SIZE + 10),
    "a tenant": (ListFilter(tenant_id="beryl"), AT_ONCE + 4 * SIZE),
    "a state that none has": (ListFilter(state="ambiguous"), AT_ONCE + 4 * SIZE),
    "a recipient that none has": (ListFilter(recipient="a@example.com"), AT_ONCE + 4 * SIZE),
    "an id": (ListFilter(message_ids=frozenset(["message-7"])), 10),
    "an id of many": (ListFilter(message_ids=frozenset(["campaign"])), 3 * WIDE_ORPHANS + 4 * SIZE),
    "events": (ListFilter(event_ids=frozenset([factories.new_id()])), 10),
}


@pytest.fixture(scope="module")
def orphans_at_once(mailglass_databases, template, redis_url) -> Iterator[Database]:
    """A database of 200,000 open orphans that arrived at the same moment."""
    with mailglass_databases.copy(template, redis_url) as copy:
        with copy.engine.begin() as connection:
            for table in ("mailglass_open_orphans", "mailglass_open_orphan_ids"):
                connection.exec_driver_sql(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
            connection.exec_driver_sql(LOAD_AT_ONCE, execution_options={"no_parameters": True})
            connection.exec_driver_sql("ANALYZE")
        yield Database(copy.engine, copy.settings)


@pytest.mark.slow
@pytest.mark.parametrize("after", [None, 100_000])
@pytest.mark.parametrize("name", nightly_unless([*LISTS_AT_ONCE][:2].__contains__, LISTS_AT_ONCE))
def test_a_page_of_200_000_orphans_that_arrived_at_once_reads_them_once_at_most(orphans_at_once, name, after):
    """Without a filter, it reads the page alone, wherever it begins."""
    filters, at_most = LISTS_AT_ONCE[name]
    with orphans_at_once.reading() as tx:
        tx.connection.exec_driver_sql("SET LOCAL max_parallel_workers_per_gather = 0")
        cursor = after and tx.execute("SELECT md5('event' || :n)::uuid::text", {"n": str(after)}).scalar_one()
        plan = plan_of(tx, lambda: orphan_lists.load_newest(tx, filters, cursor, SIZE))
    assert plan.read <= at_most


@pytest.mark.slow
def test_pages_of_orphans_that_arrived_at_once_follow_each_other(orphans_at_once):
    """Orphans of one moment are ordered by id, so no page repeats the one before it."""
    with orphans_at_once.reading() as tx:
        first = orphan_lists.load_newest(tx, ListFilter(tenant_id="beryl"), None, SIZE)
        second = orphan_lists.load_newest(tx, ListFilter(tenant_id="beryl"), first[-1].event_id, SIZE)
    ids = [orphan.event_id for orphan in (*first, *second)]
    assert ids == sorted(set(ids), reverse=True)
    assert len(ids) == 2 * SIZE
