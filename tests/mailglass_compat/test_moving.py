"""Mailglass is rolled back, moved to another schema and back, or shares a database with tables that we made."""

import datetime as dt
import re
import textwrap
from pathlib import Path
from uuid import uuid4

import pytest

import factories
import mailglass_reconcile
from catalog import Installation, installation, live
from history import ORPHAN, insert_history, new_id, sweep
from mailglass_reconcile import (
    Sent,
    WebhookEvent,
    append,
    erase,
    find_orphans,
    link,
    prune,
    reconcile,
    reconcile_recent,
    record_send,
    record_webhook,
    runtime,
)
from mailglass_reconcile.errors import ConfigurationError, DatabaseRefusedError, SchemaOutdatedError
from mailglass_reconcile.ops import status
from mailglass_reconcile.ops.checks import CheckContext, Finding
from mailglass_reconcile.ops.checks import schema as checks
from mailglass_reconcile.store.database import Database
from mailglass_reconcile.store.migration import runner
from mailglass_reconcile.store.schema import revision
from shapes import SCHEMAS, make_mailglass_tables, roll_back

pytestmark = pytest.mark.slow

MAILGLASS_TABLES = ("mailglass_deliveries", "mailglass_events", "mailglass_webhook_events", "mailglass_suppressions")


FUNCTIONS = """
SELECT p.proname FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
 WHERE n.nspname = :schema
   AND p.proname IN ('mailglass_raise_immutability', 'mailglass_webhook_signed_body_immutable')
"""


def move(url: str, old_schema: str, new_schema: str) -> None:
    """Move Mailglass's four tables and its functions, as its upgrade to 2.0 does."""
    database = installation(url)
    database.run(f'CREATE SCHEMA IF NOT EXISTS "{new_schema}"')
    for table in MAILGLASS_TABLES:
        database.run(f'ALTER TABLE "{old_schema}".{table} SET SCHEMA "{new_schema}"')
    for function in database.values(FUNCTIONS, schema=old_schema):
        database.run(f'ALTER FUNCTION "{old_schema}".{function}() SET SCHEMA "{new_schema}"')


def finding(database: Installation) -> Finding:
    """Return the doctor's finding about the schema."""
    with Database(database.engine, database.settings).reading() as tx:
        [result] = checks.revision.findings(CheckContext(tx))
    return result


def read_documented_move(old_schema: str, new_schema: str) -> str:
    """Return the documented transaction between two schemas."""
    page = (Path(__file__).parents[2] / "docs" / "with-mailglass.md").read_text()
    [block] = [block for block in re.findall(r"```sql\n(.*?)```", page, re.S) if "SET SCHEMA" in block]
    moved = textwrap.dedent(block).replace("ALTER TABLE public.", f'ALTER TABLE "{old_schema}".')
    return moved.replace("SCHEMA mailglass;", f'SCHEMA "{new_schema}";').replace("= 'public'", f"= '{old_schema}'")


def test_the_documented_transaction_moves_every_table_of_ours(unmigrated):
    """The page lists the tables and the version."""
    moved = set(re.findall(r'ALTER TABLE "a".(\w+) SET SCHEMA "b"', read_documented_move("a", "b")))
    assert moved == {*revision.TABLES, revision.VERSION_TABLE}


def insert(database: Installation) -> str:
    """Insert an orphan as Mailglass does, and return its id."""
    id_ = new_id()
    database.run(ORPHAN.format(id=id_, age="1 minute"))
    return id_


def test_our_tables_are_moved_after_mailglass_s_and_no_insert_of_its_own_fails_meanwhile(
    unmigrated, shape, empty_database_url, redis_url
):
    """After each commit Mailglass inserts an orphan; all are open at the end, also after moving back."""
    old = unmigrated
    still_open, *_ = insert_history(old)
    old.migrate()
    inserted = {still_open}
    old.run("""
        INSERT INTO mailglass_handler_outbox (event_id, handler, delivery_id, type, next_at, inserted_at)
        VALUES (gen_random_uuid(), 'audit', gen_random_uuid(), 'opened', now(), now());
        INSERT INTO mailglass_reconcile_runs (started_at, finished_at, kind, origin, status)
        VALUES (now(), now(), 'full', 'x', 'ok')""")
    places = [SCHEMAS[shape], "Mail_Glass"]
    for old_schema, new_schema in (places, places[::-1]):
        move(empty_database_url, old_schema, new_schema)
        new = installation(empty_database_url, new_schema)
        inserted.add(insert(new))
        new.run(read_documented_move(old_schema, new_schema))
        inserted.add(insert(new))
        new.migrate()
        inserted.add(insert(new))
        assert new.is_current()
        assert new.open_set() == inserted
        assert new.values("SELECT count(*) FROM mailglass_handler_outbox") == [1]
        assert new.values("SELECT count(*) FROM mailglass_reconcile_runs") == [1]
        remaining = installation(empty_database_url, old_schema).objects()
        assert not [line for line in remaining if "mailglass" in line and not line.startswith("schema")]
    new.run(ORPHAN.format(id=new_id(), age="5 minutes"))
    assert sweep(new, redis_url) > 1


def test_the_doctor_and_migrate_say_that_mailglass_s_tables_have_moved(unmigrated, shape, empty_database_url):
    """They do not suggest to migrate there, which would make a second set of tables."""
    old = unmigrated
    old.migrate()
    new_schema = {"0.1.1": "mailglass", "2.x": "public"}[shape]
    move(empty_database_url, SCHEMAS[shape], new_schema)
    with pytest.raises(DatabaseRefusedError, match=r"docs/with-mailglass\.md"):
        old.migrate()
    assert not old.is_current()
    result = finding(old)
    assert f"which schema {new_schema} has" in result.message
    assert f"set MAILGLASS_DATABASE_SCHEMA to {new_schema}" in result.remedy


def test_in_mailglass_s_new_schema_everything_leads_to_the_page_that_moves_our_tables(
    unmigrated, shape, empty_database_url
):
    """Who only set MAILGLASS_DATABASE_SCHEMA was told to migrate, and got a second set of tables without the waiting
    jobs of the first.
    """
    old = unmigrated
    old.migrate()
    move(empty_database_url, SCHEMAS[shape], "Mail_Glass")
    new = installation(empty_database_url, "Mail_Glass")
    moved = rf"schema {SCHEMAS[shape]} has our tables but no mailglass_events, .*with-mailglass\.md#move-our-tables"
    before = old.objects(), new.objects()
    for work in (old.migrate, new.migrate, lambda: new.migrate(plan=True)):
        with pytest.raises(DatabaseRefusedError, match=moved):
            work()
    assert (old.objects(), new.objects()) == before
    for database in (old, new):
        [line] = runner.find_missing_objects(database.engine, database.settings)
        assert finding(database).sentence == f"schema: {line}"
        assert re.match(moved, line)
        mailglass_reconcile.configure(engine=database.engine, settings=database.settings)
        try:
            assert status.load_problems(runtime.database()) == [f"schema: {line}"]
            for call in (reconcile, lambda: status.load_status(runtime.database())):
                with pytest.raises(SchemaOutdatedError, match=moved):
                    call()
            with database.engine.begin() as connection, pytest.raises(SchemaOutdatedError, match=moved):
                CALLS["record_webhook"](connection)
        finally:
            mailglass_reconcile.configure()
    move(empty_database_url, "Mail_Glass", SCHEMAS[shape])
    old.migrate()


def opened() -> WebhookEvent:
    """Return an event that happened now."""
    return WebhookEvent(type="opened", occurred_at=dt.datetime.now(dt.UTC), provider_event_id="1", message_id="m-1")


CALLS = {
    "record_webhook": lambda connection: record_webhook(connection, provider="postmark", events=[opened()]),
    "record_send": lambda connection: record_send(
        connection, provider="postmark", sent=[Sent(recipient="a@b.cz", message_id="m-1")]
    ),
    "append": lambda connection: append(
        connection, tenant_id="acme", type="opened", occurred_at=dt.datetime.now(dt.UTC)
    ),
    "erase": lambda connection: erase(connection, recipient="a@b.cz"),
    "link": lambda connection: link(connection, uuid4(), uuid4(), reason="ticket 4711"),
    "find_orphans": find_orphans,
    "reconcile": lambda _connection: reconcile(),
    "reconcile_recent": lambda _connection: reconcile_recent(1.0),
}


def test_a_python_call_in_a_wrong_schema_names_the_setting(unmigrated):
    """This holds for each function, also if a function is missing, which aborts the caller's transaction."""
    wrong = unmigrated.settings.model_copy(update={"database_schema": "nowhere"})
    mailglass_reconcile.configure(engine=unmigrated.engine, settings=wrong)
    try:
        for name, call in CALLS.items():
            with unmigrated.engine.begin() as connection:
                with pytest.raises(SchemaOutdatedError) as refused:
                    call(connection)
                assert "MAILGLASS_DATABASE_SCHEMA" in str(refused.value), name
    finally:
        mailglass_reconcile.configure()


def test_a_rolled_back_mailglass_has_to_be_migrated_first(unmigrated, shape, empty_database_url):
    """`migrate` does not make its tables; once they exist again, everything is repaired."""
    database = unmigrated
    insert_history(database)
    database.migrate()
    roll_back(database)
    before = database.objects()
    for work in (database.migrate, lambda: database.migrate(plan=True)):
        with pytest.raises(DatabaseRefusedError, match=r"Mailglass was rolled back"):
            work()
    assert not database.is_current()
    assert database.objects() == before
    result = finding(database)
    assert "run Mailglass's own migrations" in result.remedy
    make_mailglass_tables(empty_database_url, shape)
    database.migrate()
    assert database.is_current()
    assert database.open_set() == set()


def test_orphans_whose_events_are_gone_are_closed_by_the_prune(mailglass_db):
    """Mailglass's tests truncate the ledger: the open set follows, and a new event is linked."""
    factories.delivery(mailglass_db, "m-1")
    for id_ in ("m-1", "m-2", "m-3"):
        factories.orphan(mailglass_db, factories.postmark(id_), age_seconds=900)
    reconcile(limit=1)
    mailglass_db.run("DROP TRIGGER IF EXISTS mailglass_events_no_truncate ON mailglass_events")
    mailglass_db.run("TRUNCATE mailglass_events")
    mailglass_db.broken.update({"I1", "I2", "I3", "I4"})
    factories.orphan(mailglass_db, factories.postmark("m-1"), age_seconds=800)
    prune()
    result = reconcile()
    assert (result.scanned, result.linked, result.skipped, result.status) == (1, 1, 0, "ok")
    assert mailglass_db.value("SELECT count(*) FROM mailglass_open_orphans") == 0
    assert mailglass_db.value("SELECT count(*) FROM mailglass_open_orphan_ids") == 0
    assert status.load_problems(mailglass_db.database) == []


def test_the_doctor_finds_our_tables_in_another_schema_than_mailglass_s(empty_database_url):
    """Ours are in `public`, Mailglass's in its own schema, so ours get none of its rows."""
    migrated = installation(empty_database_url)
    migrated.migrate()
    live(empty_database_url, "mailglass", "2.x")
    assert "MAILGLASS_DATABASE_SCHEMA to mailglass" in finding(migrated).remedy


def test_a_database_in_another_encoding_is_refused(admin, drop_database):
    """Addresses and ids may have any character."""
    name = f"mgtest_{new_id()}"
    with admin.connect() as connection:
        connection.exec_driver_sql(
            f"CREATE DATABASE \"{name}\" TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'"
        )
    url = admin.url.set(database=name, drivername="postgresql").render_as_string(hide_password=False)
    try:
        database = installation(url)
        before = database.objects()
        with pytest.raises(ConfigurationError, match="encoded in LATIN1"):
            database.migrate()
        assert database.objects() == before
    finally:
        drop_database(name)
