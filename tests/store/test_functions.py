"""The statements that the database keeps as functions."""

import pytest

from catalog import installation
from mailglass_reconcile.store import functions

CALLS = {
    "mailglass_reconcile_deliveries_of_ids": (
        "ids",
        "candidate_id text, delivery_id text, tenant_id text, provider text, recipient text",
    ),
    "mailglass_reconcile_append": ("events", "event_id text, delivery_id text"),
    "mailglass_reconcile_append_and_project": ("events", "event_id text, delivery_id text"),
    "mailglass_reconcile_store_sends": (
        "event_ids delivery_ids types occurred_at keys entries recipients domains message_ids shared terminal tenant_id"
        " anyway suppressions events spellings provider mailable stream metadata",
        "key text, delivery_id text, open boolean",
    ),
    "mailglass_reconcile_after_commit": (
        "recorded_ids message_ids event_ids",
        "present text[], may_match boolean",
    ),
}
"""Arguments and columns of each, as released versions call them."""

EXECUTABLE = """
SELECT count(*) FROM pg_proc
 WHERE proname LIKE 'mailglass_reconcile_%' AND has_function_privilege('public', oid, 'EXECUTE')
"""


def test_a_function_keeps_its_arguments_and_columns():
    """While an upgrade is under way, processes of both versions call it. A changed one gets another name."""
    assert {kept.name: (" ".join(kept.parameters), kept.columns) for kept in functions.KEPT} == CALLS


@pytest.mark.parametrize(
    "sql",
    [
        "DROP FUNCTION mailglass_reconcile_after_commit",
        "UPDATE pg_proc SET prosrc = 'BEGIN END' WHERE proname = 'mailglass_reconcile_after_commit'",
    ],
)
def test_migrating_makes_the_functions_of_this_version(empty_database_url, sql):
    """If one is missing, or comes from another version, the database is not current."""
    database = installation(empty_database_url)
    database.migrate()
    before = database.objects()
    database.run(sql)
    assert not database.is_current()
    database.migrate()
    assert database.is_current()
    assert database.objects() == before


def test_anybody_may_execute_them_whatever_the_default_is(empty_database_url):
    """They have their caller's rights, which the tables ask for."""
    database = installation(empty_database_url)
    database.run("ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC")
    database.migrate()
    assert database.values(EXECUTABLE) == [len(functions.KEPT)]
