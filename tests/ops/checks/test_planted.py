"""Dropped objects and revoked privileges: the doctor finds each, and its remedy restores it.

`status --check` finds what is grave, and `migrate --check` what is of the schema.
"""

import re
from collections import defaultdict
from typing import NamedTuple

import pytest

import mailglass_reconcile
from database import Database
from diagnosing import heal, report, worst_finding
from mailglass_reconcile import runtime
from mailglass_reconcile.ops import checks
from mailglass_reconcile.ops.checks import ERROR, OK, WARNING, CheckContext, Finding
from mailglass_reconcile.ops.status import load_problems
from mailglass_reconcile.store import comparison, privileges, schema, script
from mailglass_reconcile.store.migration import runner
from mailglass_reconcile.store.script import SchemaStep

pytestmark = pytest.mark.slow


class Planted(NamedTuple):
    """A fault: its statement, the check that finds it, and the object's name in the finding."""

    check: str
    name: str
    sql: str
    status: str = ERROR


def make_drop_fault(step: SchemaStep) -> Planted:
    """Return the fault of dropping an object, or the key that an index belongs to."""
    if step.kind == "index":
        is_key = step.name.endswith("_pkey")
        sql = f"ALTER TABLE {step.table} DROP CONSTRAINT {step.name}" if is_key else f"DROP INDEX {step.name}"
        return Planted("indexes", step.name, sql, ERROR if step.is_unique or not step.only_on else WARNING)
    if step.kind == "trigger":
        return Planted(
            "triggers", step.name, f"DROP TRIGGER {step.name} ON {step.table}", WARNING if step.only_on else ERROR
        )
    if step.kind == "function":
        subject = "triggers" if step.is_trigger_function else "functions"
        # Findings have another name for it.
        name = schema.IMMUTABLE if step.name == "mailglass_raise_immutability" else step.name
        return Planted(subject, name, f"DROP FUNCTION {step.name} CASCADE", WARNING if step.only_on else ERROR)
    return Planted("schema", step.name, f"DROP TABLE {step.name}")


def load_definition(db: Database, name: str) -> str | None:
    """Return the definition of an index, or None."""
    sql = "SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indexrelid = to_regclass(quote_ident(:name))"
    return next((row[0] for row in db.rows(sql, name=name)), None)


def wrong_to_the_role() -> list[Finding]:
    """Return the findings of the fast checks as the role of this process."""
    with mailglass_reconcile.runtime.database().reading() as tx:
        return checks.run_fast(CheckContext(tx))


REVISION = [
    Planted("schema", "not migrated", f"DROP TABLE {schema.VERSION_TABLE}"),
    Planted("schema", "at revision 0000", "UPDATE mailglass_reconcile_version SET version_num = '0000'"),
]


def group_by_kind() -> dict[str, list[Planted]]:
    """Group the objects by kind, so that one check finds a whole group; tables stand alone."""
    groups = defaultdict(list)
    for step in script.steps():
        if step.name not in schema.MAILGLASS_TABLES:
            planted = make_drop_fault(step)
            groups[step.name if planted.check == "schema" else f"{planted.check}-{step.kind}"].append(planted)
    return groups


KINDS = group_by_kind()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_gone_is_found_and_made_again_by_the_remedy(db: Database, kind: str) -> None:
    """On tables that `migrate` made, it restores everything, and an index has the same definition again."""
    mailglass_reconcile.reconcile()
    before = {planted.name: load_definition(db, planted.name) for planted in KINDS[kind]}
    for planted in KINDS[kind]:
        db.run(planted.sql)
    check = KINDS[kind][0].check
    findings = [finding for finding in report() if finding.check == check]
    missing = runner.find_missing_objects(db.engine, db.settings)
    problems = "\n".join(load_problems(db.database))
    for planted in KINDS[kind]:
        matching = [finding for finding in findings if re.search(rf"\b{planted.name}\b", finding.message)]
        assert (planted.status, "run `mailglass-reconcile migrate`") in [
            (finding.status, finding.remedy) for finding in matching
        ]
        assert (planted.name in problems) == (planted.status == ERROR), planted
        assert [line for line in missing if planted.name in line]
    heal(db, "run `mailglass-reconcile migrate`")
    assert runner.find_missing_objects(db.engine, db.settings) == []
    assert {planted.name: load_definition(db, planted.name) for planted in KINDS[kind]} == before
    _is_well(db, check)


@pytest.mark.parametrize("planted", REVISION, ids=["no version", "another version"])
def test_a_database_without_a_revision_or_at_another_one_is_found(db: Database, planted: Planted) -> None:
    """`migrate` restores it, but refuses a revision of a newer or an earlier checkout."""
    mailglass_reconcile.reconcile()
    db.run(planted.sql)
    finding = worst_finding("schema")
    assert (finding.status, planted.name in finding.message) == (ERROR, True), finding
    if planted.sql.startswith("UPDATE"):
        db.run("UPDATE mailglass_reconcile_version SET version_num = :now", now=schema.VERSION)
    else:
        assert load_problems(db.database)
        assert [line for line in runner.find_missing_objects(db.engine, db.settings) if planted.name in line]
        assert finding.remedy == "run `mailglass-reconcile migrate`"
        heal(db, finding.remedy)
    assert runner.find_missing_objects(db.engine, db.settings) == []
    _is_well(db, "schema")


def _is_well(db: Database, check: str) -> None:
    assert worst_finding(check).status == OK
    with db.database.reading() as tx:
        assert [finding for finding in checks.run_fast(CheckContext(tx)) if finding.check != "sweeps"] == []


@pytest.mark.parametrize("index", comparison.UNIQUE)
def test_an_index_of_mailglass_s_own_is_made_by_the_statement_that_is_printed(
    mailglass_db: Database, index: str
) -> None:
    """`migrate` does not change Mailglass's tables: it prints the statement and fails, because nothing can be
    recorded.
    """
    mailglass_reconcile.reconcile()
    assert [finding for finding in report() if finding.status != OK] == []
    place = mailglass_db.settings.database_schema
    mailglass_db.run(f"DROP INDEX {place}.{index}")
    finding = worst_finding("indexes")
    assert (finding.status, f"index {index} is missing" in finding.message) == (ERROR, True)
    assert load_problems(mailglass_db.database)
    assert runner.find_missing_objects(mailglass_db.engine, mailglass_db.settings)
    heal(mailglass_db, finding.remedy)
    assert [finding for finding in report() if finding.status != OK] == []


def test_an_index_of_mailglass_s_that_costs_only_speed_is_not_missed(mailglass_db: Database) -> None:
    """No promise depends on it."""
    mailglass_reconcile.reconcile()
    mailglass_db.run(f"DROP INDEX {mailglass_db.settings.database_schema}.mailglass_events_tenant_recent_idx")
    assert [finding for finding in report() if finding.status != OK] == []


@pytest.mark.parametrize(
    ("table", "privilege", "columns"),
    [
        (grant.object, privilege, columns)
        for grant in privileges.SWEEPER.grants
        if grant.condition == "everywhere"
        for privilege, columns in grant.privileges.items()
    ],
    ids=lambda part: part.replace(" ", "-")[:40],
)
def test_a_revoked_privilege_is_found_and_granted_by_the_remedy(
    db: Database, role: str, table: str, privilege: str, columns: str
) -> None:
    """Every privilege of the sweeper is checked; a sweep fails without it."""
    revoked = f"{privilege} ({', '.join(columns.split())})" if columns else privilege
    db.run(f"REVOKE {revoked} ON {table} FROM {role}")
    [result] = wrong_to_the_role()
    assert (result.check, f"on {table}" in result.message) == ("privileges", True)
    assert worst_finding("privileges").remedy == result.remedy
    heal(db, result.remedy)
    assert wrong_to_the_role() == []


@pytest.mark.parametrize(
    ("statement", "check"),
    [
        ("REVOKE INSERT ON mailglass_events FROM {role}", "privileges"),
        ("UPDATE mailglass_reconcile_version SET version_num = '0000'", "schema"),
        ("DROP FUNCTION mailglass_reconcile_after_commit_v1", "functions"),
    ],
)
def test_doctor_and_status_stop_at_the_same_checks(db: Database, role: str, statement: str, check: str) -> None:
    """Full sweeps have stopped too; neither says so before the first fault is repaired."""
    db.run("UPDATE mailglass_reconcile_runs SET finished_at = now() - interval '1 hour'")
    db.run(statement.format(role=role))
    with runtime.database().reading() as tx:
        fast = checks.run_fast(CheckContext(tx))
    assert [finding for finding in report() if finding.status == ERROR] == fast
    assert [finding.check for finding in fast] == [check]


def test_a_role_that_only_reads_is_no_fault_of_status(db: Database, role: str) -> None:
    """The dashboard's role is one; the doctor, which runs as a worker, names what it lacks."""
    for table in (*schema.TABLES, *schema.MAILGLASS_TABLES):
        db.run(f"REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON {table} FROM {role}")
        db.run(f"GRANT SELECT ON {table} TO {role}")
    assert wrong_to_the_role() == []
    assert worst_finding("privileges").status == ERROR


def test_a_cheap_check_that_cannot_read_does_not_hide_what_was_found_before(db: Database) -> None:
    """The schema is checked first, and after an error of it nothing is read."""
    db.run("ALTER TABLE mailglass_reconcile_runs RENAME TO away")
    with db.database.reading() as tx:
        findings = checks.run_fast(CheckContext(tx))
    db.run("ALTER TABLE away RENAME TO mailglass_reconcile_runs")
    assert [(finding.check, finding.status) for finding in findings] == [("schema", ERROR)]
