"""The session that holds up a link, in `explain`, doctor and dashboard."""

from uuid import UUID

import pytest
import sqlalchemy as sa

import commands
import factories
import mailglass_reconcile
from browsing import Visitor, app
from mailglass_reconcile.ops.explanation import Explanation, explain
from mailglass_reconcile.ops.status import load_problems

LOCKS = {
    "delivery": "SELECT FROM mailglass_deliveries FOR UPDATE",
    "changed delivery": "UPDATE mailglass_deliveries SET lock_version = lock_version + 1",
    "orphan": "SELECT FROM mailglass_open_orphans FOR UPDATE",
}


def lock(connection: sa.Connection, sql: str) -> int:
    """Lock rows in the transaction of a connection, and return its process id."""
    connection.exec_driver_sql("SET LOCAL application_name = 'nightly `import`'")
    connection.exec_driver_sql(sql)
    return int(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())


def explain_event(db, event_id: str) -> Explanation:
    return explain(db.database, UUID(event_id))


@pytest.mark.parametrize("locked", LOCKS)
def test_explain_names_the_session_that_has_locked_an_event_or_its_delivery(db, locked):
    factories.insert_pairs(db, ["m-1"], age_seconds=900)
    event_id = db.value("SELECT event_id::text FROM mailglass_open_orphans")
    before = explain_event(db, event_id)
    with db.engine.begin() as connection:
        pid = lock(connection, LOCKS[locked])
        assert mailglass_reconcile.reconcile().skipped_held == 1
        held = explain_event(db, event_id)
        stdout = commands.run_here("explain", event_id).stdout
    session = f"session {pid} (role postgres, nightly \\x60import\\x60, idle in transaction)"
    assert held.state == before.state == "matched"
    assert held.sentence.startswith(f"its delivery exists, but {session} has locked it or the event, which sweeps skip")
    assert held.remedy == (f"end its transaction, in the program or with `SELECT pg_terminate_backend({pid})`",)
    assert f"\nheld since {held.held_by.since[:10]}" in stdout
    assert "\nnext try   first full sweep after that transaction; expires" in stdout
    assert explain_event(db, event_id) == before, "the transaction has ended"
    assert (before.sentence, before.held_by) == ("its delivery exists; the next sweep links it", None)


def test_a_lock_of_a_foreign_key_holds_up_no_link_and_is_not_named(db):
    factories.insert_pairs(db, ["m-1"], age_seconds=900)
    event_id = db.value("SELECT event_id::text FROM mailglass_open_orphans")
    with db.engine.begin() as connection:
        lock(connection, "SELECT FROM mailglass_deliveries FOR KEY SHARE")
        assert explain_event(db, event_id).held_by is None
        assert mailglass_reconcile.reconcile().linked == 1


@pytest.mark.parametrize("locked", ["delivery", "orphan"])
def test_doctor_and_dashboard_name_the_session_that_holds_up_the_oldest_link(db, locked):
    factories.insert_pairs(db, ["m-1"], age_seconds=9_000)
    for number in range(3):
        factories.orphan(db, factories.postmark(f"other-{number}"), age_seconds=600)
    with db.engine.begin() as connection:
        pid = lock(connection, LOCKS[locked])
        mailglass_reconcile.reconcile()
        page = Visitor(app(db)).get("/").text
        assert load_problems(db.database) == []
        db.run("UPDATE mailglass_reconcile_runs SET linkable_since = linkable_since - interval '1 hour'")
        (problem,) = load_problems(db.database)
    assert f"1 event that can be linked waits for the transaction of session {pid} (role postgres, nightly" in page
    assert f"although its delivery exists: session {pid} (role postgres, nightly" in problem
    assert f"`SELECT pg_terminate_backend({pid})`; the next sweep links it" in problem
