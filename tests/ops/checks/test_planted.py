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
from factories import orphan, postmark
from mailglass_reconcile import runtime
from mailglass_reconcile.errors import SchemaOutdatedError
from mailglass_reconcile.ops import checks
from mailglass_reconcile.ops.checks import ERROR, OK, WARNING, CheckContext, Finding
from mailglass_reconcile.ops.status import load_problems
from mailglass_reconcile.store import installed
from mailglass_reconcile.store.migration import privileges, runner
from mailglass_reconcile.store.schema import revision, script
from mailglass_reconcile.store.schema.script import SchemaStep
from marking import nightly_unless

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
        name = "mailglass_events_immutable_trigger" if step.name == "mailglass_raise_immutability" else step.name
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


def group_by_kind() -> dict[str, list[Planted]]:
    """Group the objects by kind, so that one check finds a whole group; tables stand alone."""
    groups = defaultdict(list)
    for step in script.steps():
        if step.name not in revision.MAILGLASS_TABLES:
            planted = make_drop_fault(step)
            groups[step.name if planted.check == "schema" else f"{planted.check}-{step.kind}"].append(planted)
    return groups


KINDS = group_by_kind()
IN_CI = ("functions-function", "triggers-trigger")


@pytest.mark.parametrize("kind", nightly_unless(IN_CI.__contains__, KINDS))
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


@pytest.mark.parametrize("table", nightly_unless([*revision.TABLES][:1].__contains__, revision.TABLES))
def test_a_table_that_is_gone_is_named_with_the_way_to_restore_it(db: Database, table: str) -> None:
    """A revision made it, which `migrate` does not run again."""
    mailglass_reconcile.reconcile()
    db.run(f"DROP TABLE {table}")
    finding = worst_finding("schema")
    assert (finding.status, f"table {table} is missing" in finding.message) == (ERROR, True)
    assert "run `mailglass-reconcile migrate --remove`, then `mailglass-reconcile migrate`" in str(finding.remedy)
    assert [line for line in runner.find_missing_objects(db.engine, db.settings) if table in line]
    assert table in "\n".join(load_problems(db.database))
    runner.remove(db.engine, db.settings, lambda line: None)
    runner.migrate(db.engine, db.settings, lambda line: None)
    assert runner.find_missing_objects(db.engine, db.settings) == []


def test_the_columns_that_are_compared_are_those_of_the_tables(db: Database) -> None:
    """A revision that adds one is not complete without it."""
    rows = db.rows(
        """SELECT c.relname, string_agg(a.attname, ' ' ORDER BY a.attnum)
             FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
            WHERE c.relname = ANY (:names) AND c.relnamespace = 'public'::regnamespace GROUP BY c.relname""",
        names=list(revision.TABLES),
    )
    assert {name: set(columns.split()) for name, columns in rows} == {
        name: set(columns.split()) for name, columns in revision.TABLES.items()
    }


def test_a_dropped_column_is_named_with_the_way_to_restore_it(db: Database) -> None:
    """`migrate` says the same, not that there is nothing to do."""
    mailglass_reconcile.reconcile()
    db.run("ALTER TABLE mailglass_handler_outbox DROP COLUMN error, DROP COLUMN finished_at")
    finding = worst_finding("schema")
    assert (finding.status, finding.message) == (ERROR, "table mailglass_handler_outbox lacks error, finished_at")
    assert "restore it from a backup" in str(finding.remedy)
    with pytest.raises(SchemaOutdatedError, match="lacks error, finished_at"):
        runner.migrate(db.engine, db.settings, lambda line: None)


HEADERS = [
    ("triggers", "mailglass_open_orphans_add()", "SECURITY INVOKER"),
    ("functions", "mailglass_reconcile_append_v1(text)", "SECURITY DEFINER"),
    ("triggers", "mailglass_open_orphans_remove()", "RESET ALL"),
    ("functions", "mailglass_reconcile_append_v1(text)", "SET search_path = public"),
    ("functions", "mailglass_reconcile_credible_v1(timestamp, timestamp)", "VOLATILE"),
]


@pytest.mark.parametrize(("check", "function", "change"), nightly_unless(HEADERS[:2].__contains__, HEADERS))
def test_a_changed_header_of_a_function_is_found_and_restored(
    db: Database, check: str, function: str, change: str
) -> None:
    """Its body is the same; a trigger's function without the owner's rights would fail every writer."""
    mailglass_reconcile.reconcile()
    before = db.value("SELECT pg_get_functiondef(CAST(:function AS regprocedure))", function=function)
    db.run(f"ALTER FUNCTION {function} {change}")
    finding = worst_finding(check)
    assert (finding.status, function.partition("(")[0] in finding.message) == (ERROR, True)
    assert runner.find_missing_objects(db.engine, db.settings)
    assert load_problems(db.database)
    heal(db, finding.remedy)
    assert db.value("SELECT pg_get_functiondef(CAST(:function AS regprocedure))", function=function) == before
    _is_well(db, check)


@pytest.mark.parametrize(
    "statement",
    [
        "REVOKE EXECUTE ON FUNCTION mailglass_reconcile_append_v1(text) FROM PUBLIC",
        "GRANT EXECUTE ON FUNCTION mailglass_reconcile_prune_events_v1 TO PUBLIC",
        "CREATE OR REPLACE FUNCTION mailglass_reconcile_credible_v1(occurred_at timestamp, arrived_at timestamp)"
        " RETURNS timestamp LANGUAGE sql IMMUTABLE AS 'SELECT $1'",
    ],
)
def test_a_function_with_another_body_or_other_callers_is_an_error_and_restored(db: Database, statement: str) -> None:
    """A restored dump may have lost the privilege."""
    mailglass_reconcile.reconcile()
    db.run(statement)
    finding = worst_finding("functions")
    assert (finding.status, "differs from this version's" in finding.message) == (ERROR, True), finding
    assert finding.message in "\n".join(load_problems(db.database))
    heal(db, finding.remedy)
    _is_well(db, "functions")
    assert runner.find_missing_objects(db.engine, db.settings) == []


@pytest.mark.parametrize("comment", ["FUNCTION mailglass_reconcile_append_v1", "TRIGGER mailglass_open_orphans_add ON"])
def test_a_lost_comment_is_restored(db: Database, comment: str) -> None:
    """`pg_restore --no-comments` loses all of them."""
    mailglass_reconcile.reconcile()
    check = "triggers" if "TRIGGER" in comment else "functions"
    db.run(f"COMMENT ON {comment}{' mailglass_events' * comment.endswith('ON')} IS NULL")
    assert worst_finding(check).status == ERROR
    heal(db, worst_finding(check).remedy)
    _is_well(db, check)


def _is_well(db: Database, check: str) -> None:
    assert worst_finding(check).status == OK
    with db.database.reading() as tx:
        assert [finding for finding in checks.run_fast(CheckContext(tx)) if finding.check != "sweeps"] == []


@pytest.mark.parametrize("index", installed.CONFLICT_INDEXES)
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
    assert runner.find_missing_objects(mailglass_db.engine, mailglass_db.settings) == [
        f"{finding.message}: {finding.remedy}"
    ]
    with pytest.raises(SchemaOutdatedError, match="CREATE UNIQUE INDEX CONCURRENTLY"):
        runner.migrate(mailglass_db.engine, mailglass_db.settings, lambda line: None)
    heal(mailglass_db, finding.remedy)
    assert [finding for finding in report() if finding.status != OK] == []
    assert runner.find_missing_objects(mailglass_db.engine, mailglass_db.settings) == []


def test_an_index_of_mailglass_s_that_costs_only_speed_is_not_missed(mailglass_db: Database) -> None:
    """No promise depends on it."""
    mailglass_reconcile.reconcile()
    mailglass_db.run(f"DROP INDEX {mailglass_db.settings.database_schema}.mailglass_events_tenant_recent_idx")
    assert [finding for finding in report() if finding.status != OK] == []


REVOCABLE = [
    (str(required), required.object)
    for required in privileges.documented_privileges()
    if required.role == privileges.SWEEPER and not required.condition
]


@pytest.mark.parametrize("revoked", [REVOCABLE[::2], REVOCABLE[1::2]], ids=["every second", "the others"])
def test_each_revoked_privilege_is_found_and_granted_by_the_remedy(
    db: Database, role: str, revoked: list[tuple[str, str]]
) -> None:
    """Every privilege of the sweeper is checked; a sweep fails without it."""
    for privilege, name in revoked:
        db.run(f"REVOKE {privilege} ON {'FUNCTION ' * (privilege == 'EXECUTE')}{name} FROM {role}")
    [result] = wrong_to_the_role()
    assert result.check == "privileges"
    lacking = [f"{privilege} on {name}" for privilege, name in revoked]
    assert [words for words in lacking if words not in result.message] == []
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
    for table in (*revision.TABLES, *revision.MAILGLASS_TABLES):
        db.run(f"REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON {table} FROM {role}")
        db.run(f"GRANT SELECT ON {table} TO {role}")
    assert wrong_to_the_role() == []
    assert worst_finding("privileges").status == ERROR


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("mailglass_deliveries", "provider_message_id"),
        ("mailglass_deliveries", "last_event_type"),
        ("mailglass_events", "metadata"),
        ("mailglass_webhook_events", "raw_payload"),
    ],
)
def test_a_renamed_column_of_mailglass_is_one_finding_that_names_it(db: Database, table: str, column: str) -> None:
    """`status --check` and `migrate` say the same, before a statement fails without it."""
    mailglass_reconcile.reconcile()
    orphan(db, postmark("m-1"))
    db.run(f"ALTER TABLE {table} RENAME COLUMN {column} TO renamed")
    try:
        findings = [finding for finding in report() if finding.status == ERROR]
        with runtime.database().reading() as tx:
            fast = checks.run_fast(CheckContext(tx))
        with pytest.raises(SchemaOutdatedError, match=f"nothing was changed.*table {table} lacks {column}: undo"):
            runner.migrate(db.engine, db.settings, lambda line: None)
    finally:
        db.run(f"ALTER TABLE {table} RENAME COLUMN renamed TO {column}")
    assert findings == fast
    assert [(finding.check, finding.message) for finding in findings] == [("schema", f"table {table} lacks {column}")]


def test_a_cheap_check_that_cannot_read_does_not_hide_what_was_found_before(db: Database) -> None:
    db.run("ALTER TABLE mailglass_reconcile_runs RENAME TO away")
    with db.database.reading() as tx:
        findings = checks.run_fast(CheckContext(tx))
    db.run("ALTER TABLE away RENAME TO mailglass_reconcile_runs")
    assert [(finding.check, finding.status) for finding in findings] == [("schema", ERROR)]
