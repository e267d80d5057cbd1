"""Faults of servers, rights and settings, one at a time: the doctor names each and ends in seconds."""

import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import redis
import sqlalchemy as sa
from diagnosing import heal, of, report
from pydantic import SecretStr
from sqlalchemy.engine import make_url

import commands
import mailglass_reconcile
from conftest import FAST, Database
from mailglass_reconcile import runtime
from mailglass_reconcile.ops.doctor import lock, rounds
from mailglass_reconcile.ops.doctor.finding import ERROR, OK, WARNING
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.singleton.lock import PREFIX, key_of
from mailglass_reconcile.store import database, privileges
from mailglass_reconcile.store.migration import runner
from mailglass_reconcile.testing import servers

GRANTS = (Path(__file__).parent.parent.parent / "docs" / "grants.md").read_text()
SWEEPERS = next(sql for sql in re.findall(r"```sql\n(.*?)```", GRANTS, re.DOTALL) if "TO mailglass_sweeper" in sql)

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


AWAY = {"MAILGLASS_BROKER_URL": "redis://:canary@127.0.0.1:1/0"}
"""Nobody is asked for a worker then, which takes seconds."""


def using(db: Database, **settings: str) -> None:
    """Let this process use other settings than the test's own; its engine follows `database_url`."""
    made = db.settings.model_copy(update={name: SecretStr(value) for name, value in settings.items()})
    mailglass_reconcile.configure(engine=database.create_engine(made), settings=made)


def test_the_command_prints_one_json_object_of_findings_and_exits_with_1_because_of_an_error(db, redis_url):
    """The broker is away; nothing is on standard error, and no password in the report."""
    done = commands.tried(db, "doctor", "--json", **AWAY)
    found = json.loads(done.stdout)
    jsonschema.validate(found, REPORT)
    assert (done.returncode, done.stderr) == (1, "")
    errors = {one["check"] for one in found["findings"] if one["status"] == "error"}
    assert errors == {"broker"}
    assert "canary" not in done.stdout


def test_the_command_tells_a_person_each_finding_in_a_line_and_its_remedy_below(db):
    """Also how to ask, with an example, in its help."""
    done = commands.tried(db, "doctor", MAILGLASS_GRACE_SECOND="60", **AWAY)
    lines = done.stdout.splitlines()
    [at] = [number for number, line in enumerate(lines) if "MAILGLASS_GRACE_SECOND:" in line]
    assert lines[at].startswith("warning  settings")
    assert "did you mean MAILGLASS_GRACE_SECONDS?" in lines[at]
    assert lines[at + 1].lstrip().startswith("-> rename it to MAILGLASS_GRACE_SECONDS")
    assert "doctor --json |" in commands.tried(db, "doctor", "--help").stdout


def test_settings_that_cannot_be_used_are_named_before_anything_is_asked(db):
    """The variable, never its value; as JSON too."""
    done = commands.tried(db, "doctor", "--json", MAILGLASS_GRACE_SECONDS="canary")
    [found] = json.loads(done.stdout)["findings"]
    assert (done.returncode, found["check"], found["status"]) == (1, "settings", "error")
    assert "MAILGLASS_GRACE_SECONDS" in found["message"]
    assert "canary" not in done.stdout


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("MAILGLASS_DATABASE_ULR", "MAILGLASS_DATABASE_URL"),
        ("mailglass_tenent", "MAILGLASS_TENANT"),
        ("MAILGLASS_X", ""),
    ],
)
def test_a_variable_that_nobody_reads(db, monkeypatch, variable, meant):
    """With the one that was perhaps meant; once it is gone, all is well."""
    monkeypatch.setenv(variable, "canary")
    found = [one for one in report() if one.check == "settings" and variable in one.message]
    assert [one.status for one in found] == [WARNING]
    assert (f"did you mean {meant}?" in found[0].message) == bool(meant)
    assert "canary" not in found[0].message
    monkeypatch.delenv(variable)
    assert not [one for one in report() if variable in one.message]


def test_a_module_of_mailglass_imports_that_is_missing(db):
    """Its key rules are missing too."""
    mailglass_reconcile.configure(
        engine=db.engine, settings=db.settings.model_copy(update={"imports": "json, no_such_module"})
    )
    found = of("imports")
    assert (found.status, "no_such_module" in found.message) == (ERROR, True)


def test_a_database_that_cannot_be_reached_does_not_hide_what_else_there_is(db):
    """It is one finding, with the cause told apart; Redis is looked at all the same."""
    using(db, database_url="postgresql://canary:canary-password@127.0.0.1:1/x")
    found = {one.check: one for one in report()}
    assert "127.0.0.1, port 1, database x: nothing listens there" in found["database"].message
    assert (found["database"].status, found["redis"].status) == (ERROR, OK)
    assert "MAILGLASS_DATABASE_URL" in found["database"].remedy
    assert "server" not in found
    assert "canary" not in str(found)


def test_a_database_that_takes_no_writes(db):
    """As one whose role is read-only by default; the remedy is a statement."""
    name = db.value("SELECT current_database()::text")
    db.run(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    found = of("server")
    assert (found.status, "default_transaction_read_only" in found.message) == (ERROR, True)
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("SET default_transaction_read_only = off")
        connection.exec_driver_sql(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
    assert of("server").status == OK


@pytest.mark.slow
def test_a_database_that_is_a_stand_by(redis_url):
    """It can be read and takes no link; promoted, as a fail-over does, it is well."""
    with servers.postgres_server(*FAST) as server:
        settings = Settings(database_url=SecretStr(server.url), redis_url=SecretStr(redis_url))
        mailglass_reconcile.configure(engine=database.create_engine(settings), settings=settings)
        runner.migrate(runtime.get_engine(), settings, lambda line: None)
        server.stop()
        (server.directory / "data" / "standby.signal").touch()
        server.start()
        found = of("server")
        assert (found.status, "stand-by" in found.message, "primary" in found.remedy) == (ERROR, True, True)
        with runtime.get_engine().connect() as connection:
            connection.exec_driver_sql("SELECT pg_promote()")
        assert of("server").status == OK
    mailglass_reconcile.configure()


def test_a_database_that_is_not_utf8(admin: sa.Engine, db, drop_database):
    """Named before it is migrated."""
    name = f"mgtest_{uuid.uuid4().hex[:12]}"
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
    using(db, database_url=make_url(db.url).set(database=name).render_as_string(hide_password=False))
    try:
        found = {one.check: one for one in report()}
        assert (found["encoding"].status, "SQL_ASCII" in found["encoding"].message) == (WARNING, True)
        assert (found["schema"].status, "migrate" in found["schema"].remedy) == (ERROR, True)
        assert "triggers" not in found
    finally:
        mailglass_reconcile.configure(engine=db.engine, settings=db.settings)
        drop_database(name)


@pytest.fixture
def role(db: Database, admin: sa.Engine) -> Iterator[str]:
    """A role with what docs/grants.md gives the sweeper; the doctor connects as it."""
    name = f"mgtest_role_{uuid.uuid4().hex[:12]}"
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'")
    with db.engine.begin() as connection:
        connection.exec_driver_sql(SWEEPERS.replace("mailglass_sweeper", name))
    url = make_url(db.url).set(username=name, password="secret")  # noqa: S106
    using(db, database_url=url.render_as_string(hide_password=False))
    yield name
    mailglass_reconcile.configure(engine=db.engine, settings=db.settings)
    with db.engine.begin() as connection:
        connection.exec_driver_sql(f"DROP OWNED BY {name}")
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP ROLE {name}")


def test_a_sweeper_as_documented_has_all_rights_and_the_doctor_needs_no_more(db, role):
    """Every check can be made with the sweeper's grants."""
    assert [one for one in report() if one.check != "settings" and one.status != OK] == []


@pytest.mark.parametrize(
    ("revoked", "named"),
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
def test_a_right_that_is_missing(db, role, revoked, named):
    """Named with its table and columns; the statement that grants it is the remedy."""
    if "SCHEMA" in revoked:
        db.run("REVOKE USAGE ON SCHEMA public FROM PUBLIC")
    db.run(f"REVOKE {revoked} FROM {role}")
    found = of("rights")
    assert (found.status, named in found.message, role in found.message) == (ERROR, True, True)
    heal(db, found.remedy)
    assert [one for one in report() if one.check != "settings" and one.status != OK] == []


def test_the_rights_that_are_looked_for_are_those_of_the_documentation():
    """Table by table and column by column."""
    documented = set()
    for statement in SWEEPERS.replace("\n", " ").split(";"):
        found = re.match(r"\s*GRANT (.*) ON (mailglass_\w+) TO", statement)
        if found:
            for right, columns in re.findall(r"(\w+)(?: \(([^)]*)\))?(?:,|$)", found[1].strip()):
                documented |= {(found[2], right, column.strip()) for column in columns.split(",")}
    looked_for = {(t, right, column) for t, right, names in privileges.SWEEPER for column in names.split() or [""]}
    assert looked_for == documented


def test_row_level_security_that_would_hide_rows(db, role):
    """Postgres refuses then; BYPASSRLS heals."""
    db.run("ALTER TABLE mailglass_deliveries ENABLE ROW LEVEL SECURITY")
    found = of("rights")
    assert (found.status, "mailglass_deliveries" in found.message) == (ERROR, True)
    heal(db, found.remedy)
    assert of("rights").status == OK


def test_others_who_may_create_objects_in_the_schema(db):
    """The remedy takes the right away."""
    db.run("GRANT CREATE ON SCHEMA public TO PUBLIC")
    found = of("creators")
    assert (found.status, "PUBLIC" in found.message) == (WARNING, True)
    heal(db, found.remedy)
    assert of("creators").status == OK


@pytest.fixture
def own_redis(db: Database) -> Iterator[redis.Redis]:
    """A Redis of the test's own, which this process is configured to use."""
    with servers.redis() as url, redis.Redis.from_url(url) as client:
        using(db, redis_url=url)
        yield client


def test_a_redis_that_is_away(db):
    """The cause is told apart; links are unaffected, and the database is looked at."""
    using(db, redis_url="redis://:canary@127.0.0.1:1/0")
    found = {one.check: one for one in report()}
    assert "127.0.0.1, port 1, database 0: nothing listens there" in found["redis"].message
    assert (found["redis"].status, found["open_set"].status) == (ERROR, OK)
    assert "canary" not in str(found)


def test_a_redis_that_is_a_replica(db, own_redis):
    """It takes messages and tells nobody; as a master it is well."""
    own_redis.replicaof("127.0.0.1", 1)
    found = of("redis")
    assert (found.status, "is a replica" in found.message) == (ERROR, True)
    own_redis.replicaof("NO", "ONE")
    assert of("redis").status == OK


@pytest.mark.parametrize(
    ("missing", "check", "status", "words"),
    [
        ("-publish", "redis_rights", ERROR, "may not PUBLISH"),
        ("resetchannels", "redis_rights", ERROR, "may not PUBLISH"),
        ("-eval", "redis", ERROR, "may not use EVAL"),
        ("-expire -pttl", "lock_rights", WARNING, "PTTL, EXPIRE"),
        ("resetkeys", "lock_rights", WARNING, "mailglass_reconcile:lock"),
    ],
)
def test_a_right_of_redis_that_is_missing(db, own_redis, missing, check, status, words):
    """Nothing is published and no lock of a sweep is touched to find that out; the remedy is the ACL's command."""
    rights = f"~{PREFIX}* &mailglass:events:* +eval +publish +get +pttl +set +expire +del"
    own_redis.execute_command("ACL", "SETUSER", "mailglass", "on", ">secret", *rights.split())
    where = own_redis.connection_pool.connection_kwargs
    using(db, redis_url=f"redis://mailglass:secret@{where['host']}:{where['port']}/0")
    with own_redis.pubsub() as heard:
        heard.psubscribe("*")
        assert {one.status for one in report() if "redis" in one.check or "lock" in one.check} == {OK}
        own_redis.execute_command("ACL", "SETUSER", "mailglass", *missing.split())
        found = of(check)
        assert (found.status, words in found.message) == (status, True)
        step = found.remedy.replace("<this user>", "mailglass").replace("'", "").split()
        own_redis.execute_command(*step)
        assert of(check).status == OK
        assert [m["type"] for m in iter(lambda: heard.get_message(timeout=0.1), None)] == ["psubscribe"]


def test_a_redis_whose_memory_is_full(db, own_redis):
    """The lock cannot be taken."""
    own_redis.config_set("maxmemory", 1)
    found = of("lock_rights")
    assert (found.status, "memory is full" in found.message) == (ERROR, True)
    own_redis.config_set("maxmemory", 0)
    assert of("lock_rights").status == OK


def test_a_lock_of_a_server_of_its_own_is_looked_at_there(db):
    """MAILGLASS_LOCK_URL leads nowhere, the broadcasts' Redis is well."""
    using(db, lock_url="redis://127.0.0.1:1/0")
    found = {one.check: one for one in report()}
    assert (found["redis"].status, found["redis_lock"].status) == (OK, ERROR)
    assert "MAILGLASS_LOCK_URL" in found["redis_lock"].remedy


@pytest.fixture
def store(redis_url: str) -> Iterator[redis.Redis]:
    """The Redis of the lock."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


def held(known: tuple[str, ...] = (), queued: int | None = 0) -> Any:
    """Return what is found of the lock if the workers know these tasks."""
    [found] = lock.lock(lock.holder(), known, queued)
    return found


def test_a_lock_that_was_left_behind(db, store):
    """Its holder, age and TTL are named, and deleting the key frees it; a holder that somebody knows is no fault."""
    key = key_of(None)
    assert held().status == OK
    store.set(key, "r0123456789abcdef0123456789abcdef:task-1", ex=40)
    found = held()
    assert (found.status, "task task-1 has the lock" in found.message) == (WARNING, True)
    assert re.search(r"renewed 2\d s ago, for (40|39) s more", found.message)
    assert held(known=("task-1",)).status == OK
    store.set(key, "qtask-2", ex=60)
    assert [held(queued=number).status for number in (0, 1, None)] == [WARNING, OK, OK]
    assert f"redis-cli DEL {key}" in held().remedy
    store.delete(key)
    assert held().status == OK


@pytest.mark.parametrize("plant", [lambda s, k: s.set(k, "rtask"), lambda s, k: s.set(k, "rtask", ex=3_600), None])
def test_a_lock_that_no_sweep_writes(db, store, plant: Callable[[redis.Redis, str], object] | None):
    """For ever, for an hour, of another kind: the next sweep takes it over, and the doctor says so."""
    key = key_of(None)
    (plant or (lambda s, k: s.rpush(k, "x")))(store, key)
    found = held()
    assert (found.status, "the next sweep takes it over" in found.remedy) == (WARNING, True)
    store.delete(key)


def test_a_lock_s_key_is_the_one_of_the_task(db):
    """The doctor need not import Celery to know it."""
    from mailglass_reconcile import tasks  # noqa: PLC0415 - the module that needs Celery

    assert tasks.reconcile.generate_lock("") == key_of(None)
    assert tasks.reconcile.generate_lock("", ("acme",)) == key_of("acme") != key_of(None)


def test_a_group_of_checks_that_hangs_is_left_behind_with_what_it_found():
    """The others are reported, and the report is there in time."""
    forever = threading.Event()

    def hangs():
        yield rounds.Finding("one", OK, "found before")
        forever.wait(60)

    def fails():
        yield rounds.Finding("two", OK, "found before")
        raise RuntimeError("canary")

    began = time.monotonic()
    found = rounds.run({"hanging": hangs, "failing": fails}, seconds=0.3)
    assert time.monotonic() - began < 5
    assert [(one.check, one.status) for one in found] == [
        ("one", OK),
        ("hanging", ERROR),
        ("two", OK),
        ("failing", ERROR),
    ]
    assert "within 0.3 s" in found[1].message
    assert "canary" not in str(found)
    forever.set()


def test_one_check_that_fails_does_not_stop_the_others(db, monkeypatch):
    """A table is gone: those that read it say so, the rest is as before."""
    db.run("ALTER TABLE mailglass_open_orphan_ids RENAME TO gone")
    try:
        found = {one.check: one for one in report()}
        assert "could not be checked" in found["tenants"].message
        assert (found["tenants"].status, found["other_reconciler"].status, found["redis"].status) == (ERROR, OK, OK)
    finally:
        db.run("ALTER TABLE gone RENAME TO mailglass_open_orphan_ids")
    assert runtime.get_settings() == db.settings
