"""Faults of Postgres and of the settings, one at a time: the doctor names each within seconds."""

import json
import time
import uuid

import jsonschema
import pytest
import sqlalchemy as sa
from pydantic import SecretStr
from sqlalchemy.engine import make_url

import commands
import mailglass_reconcile
from diagnosing import report, use_settings, worst_finding
from mailglass_reconcile import runtime
from mailglass_reconcile.ops.checks import ERROR, OK, WARNING, server
from mailglass_reconcile.ops.status import load_problems
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.migration import runner
from mailglass_reconcile.testing import servers
from mailglass_reconcile.testing.plugin import FAST

pytestmark = pytest.mark.slow

REPORT = {
    "type": "object",
    "required": ["findings"],
    "additionalProperties": False,
    "properties": {
        "findings": {
            "type": "array",
            "minItems": 10,
            "items": {
                "type": "object",
                "required": ["check", "status", "message", "remedy"],
                "additionalProperties": False,
                "properties": {
                    "check": {"type": "string", "pattern": "^[a-z_]+$"},
                    "status": {"enum": ["ok", "warning", "error"]},
                    "message": {"type": "string", "pattern": "^[^\n]+$"},
                    "remedy": {"type": ["string", "null"], "pattern": "^[^\n]+$"},
                },
                "if": {"properties": {"status": {"const": "ok"}}},
                "then": {"properties": {"remedy": {"type": "null"}}},
                "else": {"properties": {"remedy": {"type": "string"}}},
            },
        }
    },
}


UNREACHABLE_BROKER = {"CELERY_BROKER_URL": "redis://:canary@127.0.0.1:1/0"}
"""Nobody is asked for a worker then, which takes seconds."""


def test_the_command_prints_one_json_object_of_findings_and_exits_with_1_because_of_an_error(db, redis_url):
    """The broker is unreachable; stderr is empty, and the report has no password."""
    result = commands.run_unchecked(db, "doctor", "--json", **UNREACHABLE_BROKER)
    document = json.loads(result.stdout)
    jsonschema.validate(document, REPORT)
    assert (result.returncode, result.stderr) == (1, "")
    errors = {finding["check"] for finding in document["findings"] if finding["status"] == "error"}
    assert errors == {"broker"}
    assert "canary" not in result.stdout


def test_the_command_tells_a_person_each_finding_in_a_line_and_its_remedy_below(db):
    """Its help has an example."""
    result = commands.run_unchecked(db, "doctor", MAILGLASS_GRACE_SECOND="60", **UNREACHABLE_BROKER)
    lines = result.stdout.splitlines()
    assert lines[-1].startswith("1 error, 1 warning; ")
    assert lines[-3].startswith("error    broker"), "the gravest is next to the prompt"
    assert not [line for line in lines if line.startswith("ok ")]
    assert "ok       database" in commands.run_unchecked(db, "doctor", "--verbose", **UNREACHABLE_BROKER).stdout
    [at] = [number for number, line in enumerate(lines) if "MAILGLASS_GRACE_SECOND;" in line]
    assert lines[at].startswith("warning  settings")
    assert "did you mean MAILGLASS_GRACE_SECONDS?" in lines[at]
    assert lines[at + 1].lstrip().startswith("-> rename it to MAILGLASS_GRACE_SECONDS")
    assert "doctor --json |" in commands.run_unchecked(db, "doctor", "--help").stdout


def test_settings_that_cannot_be_used_are_named_before_anything_is_asked(db):
    """The finding has the variable and never its value, as JSON too."""
    result = commands.run_unchecked(db, "doctor", "--json", MAILGLASS_GRACE_SECONDS="canary")
    [finding] = json.loads(result.stdout)["findings"]
    assert (result.returncode, finding["check"], finding["status"]) == (1, "settings", "error")
    assert "MAILGLASS_GRACE_SECONDS" in finding["message"]
    assert "canary" not in result.stdout


@pytest.mark.parametrize(
    ("variable", "suggestion"),
    [
        ("MAILGLASS_DATABASE_ULR", "MAILGLASS_DATABASE_URL"),
        ("mailglass_tenent", "MAILGLASS_TENANT"),
        ("MAILGLASS_X", ""),
    ],
)
def test_a_variable_that_nobody_reads(db, monkeypatch, variable, suggestion):
    """The finding suggests a similar name; without the variable, settings are well."""
    monkeypatch.setenv(variable, "canary")
    findings = [finding for finding in report() if finding.check == "settings" and variable in finding.message]
    assert [finding.status for finding in findings] == [WARNING]
    assert (f"did you mean {suggestion}?" in findings[0].message) == bool(suggestion)
    assert "canary" not in findings[0].message
    monkeypatch.delenv(variable)
    assert not [finding for finding in report() if variable in finding.message]


def test_a_module_of_mailglass_imports_that_is_missing(db):
    """Its key rules are missing too."""
    mailglass_reconcile.configure(
        engine=db.engine, settings=db.settings.model_copy(update={"imports": "json, no_such_module"})
    )
    finding = worst_finding("imports")
    assert (finding.status, "no_such_module" in finding.message) == (ERROR, True)


def test_a_database_that_cannot_be_reached_does_not_hide_what_else_there_is(db):
    """It is one finding with its cause; Redis is checked all the same."""
    use_settings(db, database_url="postgresql://canary:canary-password@127.0.0.1:1/x")
    findings = {finding.check: finding for finding in report()}
    assert "127.0.0.1, port 1, database x: nothing listens there" in findings["database"].message
    assert (findings["database"].status, findings["redis"].status) == (ERROR, OK)
    assert "MAILGLASS_DATABASE_URL" in findings["database"].remedy
    assert "server" not in findings
    assert "canary" not in str(findings)


def test_a_database_that_takes_no_writes(db):
    """The remedy changes what made it so, here the database, and not one role of several."""
    db.set_default("default_transaction_read_only", "on")
    finding = worst_finding("server")
    assert (finding.status, "default_transaction_read_only" in finding.message) == (ERROR, True)
    assert finding.sentence in load_problems(db.database), "not only the doctor, while webhooks are answered with 503"
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT", no_parameters=True) as connection:
        connection.exec_driver_sql(finding.remedy)  # all at once, as `psql -c` sends it
    db.engine.dispose()
    assert worst_finding("server").status == OK


@pytest.mark.parametrize(("seconds", "words"), [(55 * 3_600, "2 days ahead of"), (-90, "1 minute behind")])
def test_a_clock_that_differs_from_the_databases(db, monkeypatch, seconds, words):
    """It is that of the doctor's own machine, which the finding says; a receiver may have another one."""
    monkeypatch.setattr(server, "time", lambda: time.time() + seconds)
    finding = worst_finding("clock")
    assert finding.status == WARNING
    assert finding.message == f"the clock of this machine, where the doctor runs, is {words} the database's"
    monkeypatch.setattr(server, "time", lambda: time.time() + 20)
    assert worst_finding("clock").status == OK


def test_a_database_that_is_a_stand_by(redis_url):
    """It can be read but not written; after a failover promotes it, it is healthy."""
    with servers.postgres_server(*FAST) as server:
        settings = Settings(database_url=SecretStr(server.url), redis_url=SecretStr(redis_url))
        mailglass_reconcile.configure(engine=engines.create_engine(settings), settings=settings)
        runner.migrate(runtime.get_engine(), settings, lambda line: None)
        server.stop()
        (server.directory / "data" / "standby.signal").touch()
        server.start()
        finding = worst_finding("server")
        assert (finding.status, "replica" in finding.message, "primary" in finding.remedy) == (ERROR, True, True)
        with runtime.get_engine().connect() as connection:
            connection.exec_driver_sql("SELECT pg_promote()")
        assert worst_finding("server").status == OK
    mailglass_reconcile.configure()


def test_of_a_database_that_is_not_migrated_nothing_else_is_checked(admin: sa.Engine, db, drop_database):
    """A database that is not UTF8, which `migrate` refuses, is one."""
    name = f"mgtest_{uuid.uuid4().hex[:12]}"
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
    use_settings(db, database_url=make_url(db.url).set(database=name).render_as_string(hide_password=False))
    try:
        findings = {finding.check: finding for finding in report()}
        assert (findings["schema"].status, "migrate" in findings["schema"].remedy) == (ERROR, True)
        assert (findings["server"].status, "SQL_ASCII" in findings["server"].message) == (ERROR, True)
        assert "triggers" not in findings
    finally:
        mailglass_reconcile.configure(engine=db.engine, settings=db.settings)
        drop_database(name)


@pytest.mark.timeout(60)
def test_a_schema_that_cannot_be_read_in_time_is_an_error(db):
    """Another session has locked the table of the version; the doctor once never ended."""
    with db.engine.connect() as other, other.begin():
        other.exec_driver_sql("LOCK TABLE mailglass_reconcile_version")
        findings = {finding.check: finding for finding in report()}
    assert (findings["schema"].status, "57014" in findings["schema"].message) == (ERROR, True)
    assert "sweeps" not in findings


@pytest.mark.guard
def test_one_check_that_fails_does_not_stop_the_others(db):
    """The check that reads a column of the wrong type says so; all others are as before."""
    db.run("ALTER TABLE mailglass_handler_outbox ALTER COLUMN next_at TYPE text")
    try:
        findings = {finding.check: finding for finding in report()}
        assert "could not be checked" in findings["handlers"].message
        assert (findings["handlers"].status, findings["reports"].status, findings["redis"].status) == (ERROR, OK, OK)
    finally:
        as_time = "TYPE timestamp USING CAST(next_at AS timestamp)"
        db.run(f"ALTER TABLE mailglass_handler_outbox ALTER COLUMN next_at {as_time}")
    assert runtime.get_settings() == db.settings
