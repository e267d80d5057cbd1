"""Privileges that are missing in Postgres, one at a time: the doctor names each, and its remedy grants it."""

import pytest

import commands
import mailglass_reconcile
from diagnosing import heal, report, worst_finding
from mailglass_reconcile.ops.checks import ERROR, OK
from mailglass_reconcile.store.migration import runner

pytestmark = pytest.mark.slow


@pytest.mark.guard
def test_a_documented_sweeper_has_all_privileges_and_the_doctor_needs_no_more(db, role):
    """Every check can be made with the sweeper's grants."""
    assert [finding for finding in report() if finding.check != "settings" and finding.status != OK] == []


@pytest.mark.parametrize(
    ("revoked", "missing"),
    [
        ("INSERT ON mailglass_events", "INSERT on mailglass_events"),
        (
            "UPDATE (terminal, updated_at) ON mailglass_deliveries",
            "UPDATE (terminal, updated_at) on mailglass_deliveries",
        ),
        ("DELETE ON mailglass_webhook_events", "DELETE on mailglass_webhook_events"),
        ("SELECT ON mailglass_open_orphans", "SELECT on mailglass_open_orphans"),
        ("SELECT ON mailglass_reconcile_version", "SELECT on mailglass_reconcile_version"),
        ("USAGE ON SCHEMA public", "USAGE on schema public"),
    ],
)
def test_a_privilege_that_is_missing(db, role, revoked, missing):
    """The finding names its table and columns; the remedy is the GRANT."""
    if "SCHEMA" in revoked:
        db.run("REVOKE USAGE ON SCHEMA public FROM PUBLIC")
    db.run(f"REVOKE {revoked} FROM {role}")
    finding = worst_finding("privileges")
    assert (finding.status, missing in finding.message, role in finding.message) == (ERROR, True, True)
    heal(db, finding.remedy)
    assert [finding for finding in report() if finding.check != "settings" and finding.status != OK] == []


def test_row_level_security_that_would_hide_rows(db, role):
    """Postgres refuses the query then; BYPASSRLS fixes it."""
    db.run("ALTER TABLE mailglass_deliveries ENABLE ROW LEVEL SECURITY")
    finding = worst_finding("privileges")
    assert (finding.status, "mailglass_deliveries" in finding.message) == (ERROR, True)
    heal(db, finding.remedy)
    assert worst_finding("privileges").status == OK


def test_a_retention_that_the_role_may_not_apply(db, role):
    """The finding names EXECUTE on each function and its GRANT; then the age that the owner of the tables allows."""
    days = {"retention_events_days": 30, "retention_deliveries_days": 30}
    settings = mailglass_reconcile.runtime.get_settings().model_copy(update=days)
    mailglass_reconcile.configure(engine=mailglass_reconcile.runtime.get_engine(), settings=settings)
    finding = worst_finding("privileges")
    assert finding.status == ERROR
    for function in ("mailglass_reconcile_prune_events_v1", "mailglass_reconcile_prune_deliveries_v1"):
        assert f"EXECUTE on {function}(" in finding.message
    heal(db, finding.remedy)
    for table, setting in (("events", "EVENTS"), ("deliveries", "DELIVERIES")):
        finding = worst_finding("privileges")
        assert f"lets role {role} delete no row" in finding.message
        assert f"the owner of mailglass_{table}" in finding.message
        assert finding.remedy == (
            f"run `mailglass-reconcile migrate` as the owner, with MAILGLASS_RETENTION_{setting}_DAYS=30"
        )
        planned = commands.run(
            db,
            *("prune", "--dry-run"),
            MAILGLASS_DATABASE_URL=settings.database_url.get_secret_value(),
            MAILGLASS_RETENTION_EVENTS_DAYS="30",
            MAILGLASS_RETENTION_DELIVERIES_DAYS="30",
        )
        assert f"prune: step {table} would fail: " in planned.stderr
        assert finding.remedy in planned.stderr
        owner = db.settings.model_copy(update={f"retention_{table}_days": 30})
        runner.migrate(db.engine, owner, lambda line: None)
    assert worst_finding("privileges").status == OK
