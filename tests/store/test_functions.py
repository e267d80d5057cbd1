"""The functions of the schema that writers and sweeps share."""

import pytest

import factories
import handling
import mailglass_reconcile
from catalog import installation
from mailglass_reconcile.store.schema import script
from mailglass_reconcile.store.schema.script import SCOPE
from mailglass_reconcile.store.tables import deliveries, handler_jobs, ledger, open_orphans, sends

FUNCTIONS = {
    step.name for step in script.steps() if step.kind == "function" and step.name.startswith("mailglass_reconcile_")
}
SIGNATURES = """
SELECT proname, pg_get_function_identity_arguments(oid) AS arguments, pg_get_function_result(oid) AS result
  FROM pg_proc WHERE proname LIKE 'mailglass_reconcile_%' ORDER BY proname
"""

SETTINGS = """
SELECT proname, proconfig::text[] FROM pg_proc WHERE proname LIKE 'mailglass_reconcile_%' AND proconfig IS NOT NULL
"""

WITH_THE_WRONG_CALLERS = """
SELECT proname FROM pg_proc
 WHERE proname ~ '^mailglass_(reconcile|open)_' AND prosecdef = has_function_privilege('public', oid, 'EXECUTE')
"""


def test_each_caller_names_a_functions_arguments_in_their_order(tx):
    """All of them are texts, so no type would show a mistake."""
    rows = {row.proname: row for row in tx.rows(SIGNATURES)}
    assert rows.keys() == FUNCTIONS
    for function in (
        deliveries.FIND,
        ledger.APPEND_EVENT,
        ledger.APPEND_WEBHOOK,
        ledger.LINK,
        open_orphans.AFTER_COMMIT,
        handler_jobs.CLAIM,
        handler_jobs.START,
        sends.STORE,
    ):
        arguments = rows[function.name].arguments.split(", ")
        assert [argument.rpartition(" ")[2] for argument in arguments] == ["text"] * len(function.arguments)


def test_each_function_that_is_called_has_the_settings_of_our_transactions(tx):
    """It keeps its plan, which would cost more than executing it. What only they call has our search_path."""
    expected = {**SCOPE, "plan_cache_mode": "force_generic_plan"}
    # A handler's transaction has no such settings.
    more = {f"mailglass_reconcile_{name}_job_v1": {"lock_timeout": "30s"} for name in ("claim", "start")}
    rows = {name: dict(setting.split("=", 1) for setting in settings) for name, settings in tx.rows(SETTINGS)}
    for name in ("finish_job", "hold_expired", "project", "failure", "require_age"):
        assert rows.pop(f"mailglass_reconcile_{name}_v1") == {"search_path": SCOPE["search_path"]}
    assert len(rows) == len(FUNCTIONS) - 5 - 16, "sixteen are inlined into statements of ours"
    for function, settings in rows.items():
        items = {name: value.replace('"', "") for name, value in settings.items()}
        assert items == {**expected, **more.get(function, {})}


@pytest.mark.parametrize("call", ["deliveries_v1('')", "orphans_v1('')"])
def test_a_walk_over_tenants_ends_with_the_callers_limit(tx, call):
    """The planner inlines the function's query; a call would read all tenants."""
    rows = tx.rows(f"EXPLAIN SELECT * FROM mailglass_reconcile_tenants_of_{call} LIMIT 1")  # noqa: S608
    plan = "\n".join(row[0] for row in rows)
    assert "Recursive Union" in plan
    assert "Function Scan" not in plan


@pytest.mark.parametrize(
    "query",
    [
        "SELECT mailglass_reconcile_orphan_of_v1(type, idempotency_key) FROM mailglass_events",
        "SELECT p.provider FROM mailglass_deliveries AS d,"
        " LATERAL mailglass_reconcile_provider_of_v1(d.id, d.provider) AS p",
        "SELECT mailglass_reconcile_iso_v1(occurred_at) FROM mailglass_events",
        "SELECT l.delivery_id FROM mailglass_events AS e,"
        " LATERAL mailglass_reconcile_link_of_v1(e.id, e.tenant_id) AS l",
        "SELECT FROM mailglass_events AS e"
        " WHERE NOT EXISTS (SELECT FROM mailglass_reconcile_link_of_v1(e.id, e.tenant_id))",
        "SELECT FROM mailglass_events AS e"
        " WHERE EXISTS (SELECT FROM mailglass_reconcile_link_of_v1(e.id, e.tenant_id) OFFSET 0)",
    ],
)
def test_functions_shared_by_readers_are_inlined(tx, query):
    """With a setting of its own or a SQL-standard body, it would be called for each row."""
    plan = "\n".join(row[0] for row in tx.rows(f"EXPLAIN (VERBOSE) {query}"))
    assert "_v1" not in plan
    assert "Function Scan" not in plan


def test_the_orphan_of_a_link_is_that_of_its_key_alone(tx):
    """A longer key, or an event of another type, gives none."""
    id_ = "0197a0c4-5a1e-7c3b-9d53-3f2b8f1c6a10"
    keys = {
        "reconciled": (f"reconciled:{id_}", f"reconciled:{id_}x", f"x{id_}", None),
        "opened": (f"reconciled:{id_}",),
    }
    statement = "SELECT mailglass_reconcile_orphan_of_v1(:type, :key)::text"
    assert [tx.value(statement, type=type_, key=key) for type_, of in keys.items() for key in of] == [id_, *[None] * 4]


def test_the_link_of_an_orphan_is_the_reconciled_event_of_its_tenant(tx):
    """An event of another type or tenant that holds the key is none; the key is looked up by its index."""
    for columns in ({}, {"type": "opened"}, {"tenant_id": "other"}):
        orphan, to = factories.orphan(tx, {}), factories.delivery(tx)
        row = {**factories.reconciled_row(orphan, to), **columns}
        factories.insert(tx, events=[row])
        links = tx.rows(
            "SELECT l.id::text, l.delivery_id::text FROM mailglass_events AS e,"
            " LATERAL mailglass_reconcile_link_of_v1(e.id, e.tenant_id) AS l WHERE e.id = CAST(:orphan AS uuid)",
            orphan=orphan,
        )
        assert [tuple(link) for link in links] == ([] if columns else [(row["id"], to)])
    tx.broken.update({"I1", "I2", "I5", "I6", "I13"})


@pytest.mark.parametrize(
    ("time", "iso"),
    [("2026-11-29 17:05:19.25", "2026-11-29T17:05:19.25Z"), ("infinity", "infinity"), (None, None)],
)
def test_a_time_is_written_in_iso_8601(tx, time, iso):
    """Infinite times were once `infinityZ`."""
    assert tx.value("SELECT mailglass_reconcile_iso_v1(CAST(:time AS timestamp))", time=time) == iso


def test_migrating_makes_a_function_that_is_missing(empty_database_url):
    """Without it the database is not current."""
    database = installation(empty_database_url)
    database.migrate()
    before = database.objects()
    database.run("DROP FUNCTION mailglass_reconcile_after_commit_v1")
    assert not database.is_current()
    database.migrate()
    assert database.is_current()
    assert database.objects() == before


@pytest.mark.slow
def test_every_role_may_execute_those_with_their_callers_privileges_and_no_others(empty_database_url):
    """Whatever the default is: the tables check these, and what has its owner's privileges is granted to roles."""
    database = installation(empty_database_url)
    database.run("ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC")
    database.migrate()
    assert database.values(WITH_THE_WRONG_CALLERS) == []


def test_jobs_are_enqueued_in_the_order_of_their_events_and_handlers(db):
    """Two transactions that enqueue the same jobs then wait for each other one way only."""
    handling.handle(db, ("b", "delivered"), ("a", "delivered"))
    events, to = (sorted((factories.new_id() for _ in range(20)), reverse=turned) for turned in (False, True))
    rows = [factories.delivery_row(str(n), id=to[n]) for n in range(20)]
    factories.insert(db, rows, [factories.orphan_row(factories.postmark(str(n)), id=events[n]) for n in range(20)])
    assert mailglass_reconcile.reconcile().linked == 20
    jobs = db.rows("SELECT event_id::text, handler FROM mailglass_handler_outbox ORDER BY ctid")
    assert [tuple(job) for job in jobs] == [(event, handler) for event in events for handler in "ab"]
