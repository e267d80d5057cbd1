"""The cost of a sweep in rows and buffers rather than in seconds."""

import json

import pytest

import commands
import factories
import invariants
import mailglass_reconcile
import sweeping
from factories import delivery_row, insert, insert_pairs, orphan_row, postmark
from mailglass_reconcile import reconcile
from mailglass_reconcile.sweep import reconciler
from marking import slow_unless

pytestmark = pytest.mark.version_independent

TOUCHED = """
SELECT (SELECT sum(heap_blks_read + heap_blks_hit + coalesce(idx_blks_read + idx_blks_hit, 0))::bigint
          FROM pg_statio_user_tables WHERE schemaname = 'public') AS pages,
       (SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint
          FROM pg_stat_user_tables WHERE schemaname = 'public') AS read,
       (SELECT sum(n_tup_ins + n_tup_upd + n_tup_del)::bigint
          FROM pg_stat_user_tables WHERE schemaname = 'public') AS written
"""
IN_THE_HISTORY = 1
"""Rows that a sweep leaves in the history of runs."""


def load_touched(db):
    """Return the buffers, rows read and rows written so far; a session reports them when it ends."""
    db.wait_until_alone()
    return db.rows(TOUCHED)[0]


def cost_of_a_sweep(db):
    """Sweep, and return the result and its cost."""
    before = load_touched(db)
    result = reconcile()
    after = load_touched(db)
    return result, {name: getattr(after, name) - getattr(before, name) for name in ("pages", "read", "written")}


def sparkpost(transmission_id, **more):
    """Return the metadata of a SparkPost event."""
    return {"provider": "sparkpost", "transmission_id": transmission_id, **more}


def send(db, count, message_id):
    """Insert *count* deliveries of different recipients, and an event for each; *message_id* returns their ids."""
    insert(
        db,
        [delivery_row(message_id(n), recipient=f"u{n}@example.com") for n in range(count)],
        [orphan_row(sparkpost(message_id(n), recipient=f"U{n}@example.com")) for n in range(count)],
    )


@pytest.mark.slow
@pytest.mark.parametrize("many", [False, True])
def test_recipients_of_one_id_cost_no_more_than_twice_what_distinct_ids_cost(db, set_limits, many):
    """One call of the provider's API sent the campaign; ten batches in two slices are tried too."""
    count = 4_000 if many else 2_000
    if many:
        set_limits(few_orphans=count, slice_orphans=count // 2)
        settings = db.settings.model_copy(update={"batch_size": count // 10})
        mailglass_reconcile.configure(engine=db.engine, settings=settings)
    send(db, count, lambda n: f"1000{n}")
    db.run("ANALYZE")
    result, distinct = cost_of_a_sweep(db)
    assert result.linked == count
    send(db, count, lambda n: "77777")
    result, shared = cost_of_a_sweep(db)
    assert result.linked == count
    assert shared["pages"] <= 2 * distinct["pages"]
    assert shared["read"] <= 2 * distinct["read"]


@pytest.mark.parametrize("are_stored", [pytest.param(False, marks=pytest.mark.slow), True])
def test_ambiguous_orphans_of_wide_ids_cost_what_they_are(db, are_stored):
    """200 events without a recipient have two ids of 100 deliveries each; keys are computed once, and then stored."""
    insert(
        db,
        [delivery_row(str(n % 2), recipient=f"u{n}@example.com") for n in range(200)],
        [orphan_row(sparkpost(str(n % 2))) for n in range(200)],
    )
    if are_stored:
        reconcile()
    result, cost = cost_of_a_sweep(db)
    assert result.ambiguous == 200
    assert cost["read"] <= 12 * 200
    assert cost["written"] == (0 if are_stored else 2 * 200) + IN_THE_HISTORY


def test_a_sweep_beside_orphans_that_never_match_writes_its_row_of_the_history_only(db):
    """Once their keys are stored, they cost a few rows read each, and never leave the database."""
    insert(db, [], [orphan_row(postmark(f"never {n}")) for n in range(1_000)])
    reconcile()
    result, cost = cost_of_a_sweep(db)
    assert result.unmatched == 1_000
    assert cost["written"] == IN_THE_HISTORY
    assert cost["read"] <= 4 * 1_000


def test_what_matches_beside_orphans_that_never_match_writes_its_own_rows_only(db):
    """One link writes its event, its delivery, its orphan and the history's row."""
    insert(db, [], [orphan_row(postmark(f"never {n}"), age_seconds=900) for n in range(500)])
    reconcile()
    insert_pairs(db, ["one"])
    result, cost = cost_of_a_sweep(db)
    assert (result.linked, result.unmatched) == (1, 500)
    assert cost["written"] <= 4 + IN_THE_HISTORY


@pytest.fixture(params=[False, True], ids=["by probes", "by scans"])
def path(request, monkeypatch):
    """Let sweeps choose their orphans by one of the two paths, whatever the sizes of the tables."""
    opened = reconciler.open_window
    monkeypatch.setattr(reconciler, "open_window", lambda *a, **o: opened(*a, **o)._replace(by_scans=request.param))


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("more", slow_unless((500).__eq__, [500, 1_900]))
def test_webhooks_under_a_wrong_tenant_do_not_cost_each_delivery_of_their_campaign(db, more):
    """100,000 deliveries and 50 webhooks would stop the recent sweeps of all tenants."""
    insert(db, [], [orphan_row(sparkpost("campaign"), tenant_id="wrong") for _ in range(100)])
    costs = []
    for number in (100, more):
        insert(db, [delivery_row("campaign", recipient=f"u{n}@example.com") for n in range(number)])
        assert reconcile().tenant_mismatch == 100
        insert_pairs(db, 1)
        result, cost = cost_of_a_sweep(db)
        assert (result.linked, result.tenant_mismatch) == (1, 100)
        costs.append(cost)
    assert costs[1]["pages"] <= costs[0]["pages"] + more


@pytest.mark.usefixtures("path")
def test_a_delivery_of_another_provider_keeps_no_tenant_mismatch(db):
    """It has the event's id, which says nothing; spellings of the event's provider, and none, still do."""
    for number, provider in enumerate(("ses", " PostMark ", None)):
        factories.delivery(db, str(number), tenant_id="other", provider=provider)
        factories.delivery(db, str(number), tenant_id="other", provider="postmark")
        factories.orphan(db, postmark(str(number)))
    assert reconcile().tenant_mismatch == 3
    db.run("DELETE FROM mailglass_deliveries WHERE provider = 'postmark'")
    result, cost = cost_of_a_sweep(db)
    assert (result.unmatched, result.tenant_mismatch) == (1, 2)
    assert cost["written"] == IN_THE_HISTORY + 1


@pytest.mark.usefixtures("path")
def test_a_tenant_mismatch_whose_other_delivery_is_gone_becomes_unmatched(db):
    for id_ in ("gone", "stays"):
        factories.delivery(db, id_, tenant_id="other")
        factories.orphan(db, postmark(id_))
    assert reconcile().tenant_mismatch == 2
    db.run("DELETE FROM mailglass_deliveries WHERE provider_message_id = 'gone'")
    result = reconcile()
    assert (result.unmatched, result.tenant_mismatch) == (1, 1)
    result, cost = cost_of_a_sweep(db)
    assert (result.unmatched, result.tenant_mismatch) == (1, 1)
    assert cost["written"] == IN_THE_HISTORY


@pytest.mark.usefixtures("path")
def test_orphans_that_the_database_refuses_stand_last_in_the_next_sweep(db):
    """Other orphans are linked first, even older ones."""
    db.run("ALTER TABLE mailglass_deliveries ADD CONSTRAINT bad CHECK (NOT (terminal AND recipient = 'bad@x.com'))")
    refused = [delivery_row(f"bad {n}", recipient="bad@x.com") for n in range(5)]
    insert(db, refused, [orphan_row(postmark(f"bad {n}")) for n in range(5)])
    assert reconcile().failed == 5
    insert_pairs(db, ["good"], age_seconds=900)
    settings = db.settings.model_copy(update={"batch_size": 1})
    mailglass_reconcile.configure(engine=db.engine, settings=settings)
    observed = []
    result = sweeping.run(reconciler.prepare(), lambda r: observed.append((r.linked, r.failed)))
    assert (result.linked, result.failed, result.status) == (1, 5, "partial")
    assert observed[0] == (1, 0)
    db.run("ALTER TABLE mailglass_deliveries DROP CONSTRAINT bad")
    assert reconcile().linked == 5


# The values of the damaged row cannot be read, but its header can.
DAMAGE = """
SET LOCAL allow_system_table_mods = on;
UPDATE pg_class SET relkind = 'r' WHERE oid = '{toast}'::regclass;
DELETE FROM {toast};
UPDATE pg_class SET relkind = 't' WHERE oid = '{toast}'::regclass;
"""


def test_a_row_that_cannot_be_read_costs_that_row_only(db, caplog):
    """One that has a damaged value is named, counted, left open, and comes last in the next sweep."""
    insert(db, [delivery_row(str(n)) for n in range(20)], [orphan_row(postmark(str(n))) for n in range(10)])
    db.run("ALTER TABLE mailglass_events ALTER metadata SET STORAGE external")
    bad = factories.orphan(db, postmark("10", blob="x" * 10_000), age_seconds=900)
    toast = db.value("SELECT reltoastrelid::regclass::text FROM pg_class WHERE oid = 'mailglass_events'::regclass")
    with db.engine.begin() as connection:
        connection.exec_driver_sql(DAMAGE.format(toast=toast))
    result = reconcile()
    assert (result.linked, result.failed, result.status) == (10, 1, "partial")
    assert f"orphan {bad} cannot be read (SQLSTATE XX001)" in caplog.text
    insert(db, [], [orphan_row(postmark(str(n))) for n in range(10, 20)])
    result = reconcile()
    assert (result.linked, result.failed, result.remaining) == (10, 1, 1)
    with db.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        connection.exec_driver_sql("TRUNCATE mailglass_events")  # the checker cannot read it either
    db.broken.update(invariants.ALL)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_JP"])
def test_the_clients_encoding_is_the_sweeps_own(db, encoding):
    """Ids may have characters that the environment's encoding does not have."""
    ids = ["→ 1", "ы", "日本", "plain"]
    insert_pairs(db, ids)
    result = commands.run(db, "sweep", "--json", PGCLIENTENCODING=encoding)
    assert json.loads(result.stdout)["linked"] == len(ids)
