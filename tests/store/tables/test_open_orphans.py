"""The triggers of the open set: right for every row of the ledger, whoever writes it, also after a restore."""

import datetime as dt
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

import factories
import mailglass_reconcile
import processes
from catalog import Installation, client, installation, live, url_of
from history import DELIVERY, ORPHAN, RECONCILED, new_id
from mailglass_reconcile.store.engines import create_engine
from open_set import ARRIVED, age, insert
from roles import temporary_role
from shapes import settings_of


def is_open(database: Installation, event_id: str) -> bool:
    """Return True if an orphan is in the table of open orphans."""
    return event_id in database.open_set()


ACCEPTED_ROWS: list[tuple[dict[str, Any], bool]] = [
    ({"key": "reconciled:not-a-uuid"}, True),
    ({"key": "reconciled:" + new_id().upper()}, True),
    ({"key": "reconciled:" + new_id() + "\n"}, True),
    ({"key": "reconciled:{" + new_id() + "}"}, True),
    ({"key": "reconciled:"}, True),
    ({"key": ""}, True),
    ({"key": "reconciled:" + "f" * 2_000}, True),
    ({"type": "reconciled"}, True),
    ({"type": "reconciled", "key": "reconciled:not-a-uuid"}, True),
    ({"type": "reconciled", "key": "reconciled:" + new_id().upper()}, True),
    ({"type": "reconciled", "key": "reconciled:" + new_id() + "\n"}, True),
    ({"type": "reconciled", "key": "reconciled:"}, True),
    ({"type": ""}, True),
    ({"inserted_at": "infinity"}, True),
    ({"inserted_at": "-infinity"}, True),
    ({"inserted_at": "294276-12-31 23:59:59"}, True),
    ({"inserted_at": "4713-01-01 00:00:00 BC"}, True),
    ({"tenant": ""}, True),
    ({"tenant": "t'\"%s{}\\:x\x7fé🙂" * 20}, True),
    ({"delivery": new_id()}, False),
    ({"orphan": False}, False),
]
"""Columns of a row, and whether it is open."""


@pytest.mark.slow
@pytest.mark.parametrize("is_reconciled", [False, True], ids=["other types", "reconciled"])  # keys are unique
def test_a_row_that_the_ledger_accepts_is_never_refused(database, is_reconciled):
    """Key, type, tenant and time may be anything; it is open if and only if it is an orphan."""
    expected = {}
    for columns, is_open_after in ACCEPTED_ROWS:
        if (columns.get("type") == "reconciled") != is_reconciled:
            continue
        with database.engine.begin() as connection:
            expected[insert(connection, **columns)] = is_open_after
    assert database.open_set() == {event_id for event_id, is_open_after in expected.items() if is_open_after}


def test_an_orphan_s_own_key_does_not_close_it(database):
    """Only a `reconciled` event does; one that is itself an orphan closes only itself."""
    own = new_id()
    with database.engine.begin() as connection:
        insert(connection, id=own, key=f"reconciled:{own}")
    assert is_open(database, own)


def test_a_tenant_that_is_too_long_is_refused_by_mailglass_s_index_and_not_by_ours(unmigrated):
    """A compressible text of one megabyte fails as it does without us; so does the longest accepted one."""
    outcomes: list[str] = []
    database = unmigrated
    for _ in range(2):
        for tenant in ("x" * 1_000_000, "x" * 200_000, "".join(uuid.uuid4().hex for _ in range(80))):
            try:
                with database.engine.begin() as connection:
                    insert(connection, tenant=tenant)
                outcomes.append("taken")
            except sa.exc.OperationalError as refused:
                outcomes.append(str(refused.orig).splitlines()[0])
        database.migrate()
    assert outcomes[:3] == outcomes[3:]
    assert "taken" in outcomes
    assert any("index row" in outcome for outcome in outcomes)
    assert "mailglass_open_orphans" not in str(outcomes)


@pytest.mark.parametrize("first", ["orphan", "reconciled"])
def test_an_orphan_and_its_reconciled_event_in_one_statement_leave_nothing_open(database, first):
    """The trigger closes the orphan if it comes first, the prune if it comes second."""
    id_ = new_id()
    rows = {
        "orphan": f"('{id_}', NULL, 'delivered', true, NULL, 'acme', now())",
        "reconciled": f"(gen_random_uuid(), gen_random_uuid(), 'reconciled', false, 'reconciled:{id_}', 'acme', now())",
    }
    ordered = [rows.pop(first), *rows.values()]
    database.run(
        "INSERT INTO mailglass_events (id, delivery_id, type, needs_reconciliation, idempotency_key, tenant_id,"  # noqa: S608
        f" occurred_at) VALUES {', '.join(ordered)}"
    )
    assert database.prune().settled == (first == "reconciled")
    assert database.open_set() == set()
    assert len(database.values("SELECT id FROM mailglass_events")) == 2


def test_an_orphan_that_comes_after_its_reconciled_event_is_closed_by_the_prune(database):
    """The trigger does not read the ledger, which would make writers in SERIALIZABLE fail."""
    id_ = new_id()
    database.run(RECONCILED.format(id=id_))
    database.run(ORPHAN.format(id=id_, age="1 minute"))
    assert database.open_set() == {id_}
    assert database.prune().settled == 1
    assert database.open_set() == set()


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_a_reconciled_event_of_a_stricter_transaction_is_accepted_after_a_sweep_changed_the_orphan(database, level):
    """What the sweep stored since the writer's snapshot is no error for the writer."""
    id_ = new_id()
    database.run(ORPHAN.format(id=id_, age="1 minute"))
    with database.engine.connect().execution_options(isolation_level=level) as connection:
        connection.exec_driver_sql("SELECT count(*) FROM mailglass_events")
        database.run("UPDATE mailglass_open_orphans SET rank = 1, ids = 0")
        connection.exec_driver_sql(RECONCILED.format(id=id_))
        connection.commit()
    assert len(database.values("SELECT id FROM mailglass_events WHERE type = 'reconciled'")) == 1
    assert database.prune().settled == (level != "READ COMMITTED")
    assert database.open_set() == set()


def test_a_reconciled_event_does_not_wait_for_a_locked_orphan(database):
    """It commits while another transaction has locked the row; the prune closes the orphan."""
    id_ = new_id()
    database.run(ORPHAN.format(id=id_, age="1 minute"))
    with database.writing("SELECT FROM mailglass_open_orphans FOR UPDATE"):
        database.run("SET LOCAL lock_timeout = '1ms';" + RECONCILED.format(id=id_))
    assert is_open(database, id_)
    assert database.prune().settled == 1
    assert database.open_set() == set()


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/Los_Angeles", "Asia/Kathmandu", "Pacific/Kiritimati"])
def test_arrival_is_utc_whatever_the_writer_s_time_zone(database, zone):
    """The column's default is in the session's time zone; a writer's own value is read as UTC."""
    with database.engine.begin() as connection:
        connection.exec_driver_sql(f"SET LOCAL TimeZone = '{zone}'")
        by_default = insert(connection)
        by_hand = insert(connection, inserted_at="2026-03-29 02:30:00")
        now = connection.exec_driver_sql("SELECT now() AT TIME ZONE 'UTC'").scalar_one()
    arrivals = database.values(
        "SELECT arrived_at::text FROM mailglass_open_orphans WHERE event_id = CAST(:id AS uuid)", id=by_default
    ) + database.values(
        "SELECT arrived_at::text FROM mailglass_open_orphans WHERE event_id = CAST(:id AS uuid)", id=by_hand
    )
    assert arrivals[0].rstrip("0") == str(now).rstrip("0")
    assert arrivals[1] == "2026-03-29 02:30:00"


@pytest.fixture
def role(admin: sa.Engine) -> Iterator[str]:
    """A role of this test that may only log in."""
    with temporary_role(admin, "LOGIN") as name:
        yield name


@contextmanager
def acting_as(database: Installation, role: str) -> Iterator[sa.Connection]:
    """A connection with the privileges of *role*."""
    with database.engine.connect() as connection:
        connection.detach()  # closed at the end, because it has changed settings
        connection.exec_driver_sql(f"SET ROLE {role}")
        connection.commit()
        yield connection
        connection.rollback()


@pytest.fixture
def writer(database, role) -> Iterator[str]:
    """A role with privileges on the ledger alone."""
    schema = database.settings.database_schema
    database.run(f"GRANT SELECT, INSERT ON mailglass_events TO {role}; GRANT USAGE ON SCHEMA {schema} TO {role}")
    yield role
    database.run(f"DROP OWNED BY {role}")


def test_a_writer_with_privileges_on_the_ledger_alone_inserts_orphans_and_reconciled_events(database, writer):
    """It can neither read nor write the open set itself."""
    with acting_as(database, writer) as connection:
        first, second = insert(connection), insert(connection)
        connection.exec_driver_sql(RECONCILED.format(id=first))
        connection.commit()
        with pytest.raises(sa.exc.ProgrammingError, match="permission denied"):
            connection.exec_driver_sql("SELECT * FROM mailglass_open_orphans")
    assert database.open_set() == {second}


@pytest.mark.parametrize("where", ["pg_temp", "theirs"])
def test_triggers_do_not_use_a_writer_s_own_tables_and_functions(database, writer, where):
    database.run(f"CREATE SCHEMA theirs; GRANT ALL ON SCHEMA theirs TO {writer}")
    schema = database.settings.database_schema
    with acting_as(database, writer) as connection:
        connection.exec_driver_sql(f"SET search_path = pg_temp, theirs, {schema}")
        connection.exec_driver_sql(f"""
            CREATE TABLE {where}.mailglass_open_orphans (LIKE {schema}.mailglass_events);
            CREATE FUNCTION {where}.now() RETURNS timestamptz LANGUAGE sql AS $$ SELECT 'infinity'::timestamptz $$;
            CREATE FUNCTION {where}.substr(text, integer) RETURNS text LANGUAGE plpgsql AS
              $$ BEGIN RAISE 'led astray'; END $$;
            CREATE FUNCTION {where}.mailglass_open_orphans_add() RETURNS trigger LANGUAGE plpgsql AS
              $$ BEGIN RAISE 'led astray'; END $$;
        """)
        connection.exec_driver_sql(f"SET search_path = theirs, {schema}, pg_temp, pg_catalog")
        values = ORPHAN.replace("mailglass_events", f"{schema}.mailglass_events")
        orphan, settled = new_id(), new_id()
        connection.exec_driver_sql(values.format(id=orphan, age="1 minute"))
        connection.exec_driver_sql(values.format(id=settled, age="1 minute"))
        connection.exec_driver_sql(
            RECONCILED.replace("mailglass_events", f"{schema}.mailglass_events").format(id=settled)
        )
        connection.commit()
    assert database.open_set() == {orphan}


def test_triggers_do_not_use_an_operator_in_the_ledger_s_schema(database):
    """Every operand has the exact type of Postgres's own operator, which therefore wins."""
    database.run("""
        CREATE FUNCTION evil(text, uuid) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'led astray'; END $$;
        CREATE FUNCTION evil_too(text, text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'led astray'; END $$;
        CREATE FUNCTION timezone(text, timestamptz) RETURNS timestamp LANGUAGE plpgsql AS
          $$ BEGIN RAISE 'led astray'; END $$;
        CREATE OPERATOR || (FUNCTION = evil, LEFTARG = text, RIGHTARG = uuid);
        CREATE OPERATOR || (FUNCTION = evil_too, LEFTARG = text, RIGHTARG = text);
    """)
    with database.engine.begin() as connection:
        first, second = insert(connection), insert(connection)
        connection.exec_driver_sql(RECONCILED.format(id=first))
    assert database.open_set() == {second}


@pytest.mark.parametrize("function", ["mailglass_open_orphans_add", "mailglass_open_orphans_remove"])
def test_nobody_can_put_our_functions_on_a_table_of_their_own(database, writer, function):
    """They run with their owner's privileges, and would write anything into the open set."""
    with acting_as(database, writer) as connection:
        connection.exec_driver_sql("CREATE TEMPORARY TABLE mine (id uuid)")
        with pytest.raises(sa.exc.ProgrammingError, match="permission denied for function"):
            connection.exec_driver_sql(
                f"CREATE TRIGGER t AFTER INSERT ON mine FOR EACH ROW EXECUTE FUNCTION {function}()"
            )


def run(*command: str) -> None:
    """Run a program, and show its stderr if it fails."""
    result = processes.run(command, {**os.environ, "PGTZ": "UTC"})
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("schema", "shape"), [("public", "0.1.1"), ("Mail_Glass", "2.x")])
def test_a_dump_and_its_restore_are_complete(empty_database_url, make_database, drop_database, tmp_path, schema, shape):
    """Objects, rows, the open set and working triggers are restored."""
    database = live(empty_database_url, schema, shape)
    database.migrate()
    first = new_id()
    database.run(ORPHAN.format(id=first, age="1 minute"))
    database.run(DELIVERY)
    dump = str(tmp_path / "dump")
    run(client("pg_dump", database), "--format=custom", f"--file={dump}", f"--dbname={url_of(database)}")
    name = f"mgtest_{uuid.uuid4().hex[:12]}"
    restored = installation(make_database(name), schema)
    try:
        run(client("pg_restore", database), "--exit-on-error", f"--dbname={url_of(restored)}", dump)
        assert restored.objects() == database.objects()
        assert restored.rows() == database.rows()
        assert restored.is_current()
        second = new_id()
        restored.run(ORPHAN.format(id=second, age="1 minute"))
        assert restored.open_set() == {first, second}
        restored.run(RECONCILED.format(id=first))
        assert restored.open_set() == {second}
    finally:
        drop_database(name)


@pytest.mark.slow
def test_a_restore_of_data_without_triggers_is_repaired_by_the_prune(
    database, make_database, drop_database, template_of, shape, tmp_path
):
    """Orphans that the triggers missed enter the open set, reconciled ones leave it."""
    still_open, settled = new_id(), new_id()
    for id_ in (still_open, settled):
        database.run(ORPHAN.format(id=id_, age="1 minute"))
    database.run(RECONCILED.format(id=settled))
    dump = str(tmp_path / "dump")
    tables = ["--table=mailglass_events", "--table=mailglass_deliveries", "--table=mailglass_webhook_events"]
    run(client("pg_dump", database), "--format=custom", *tables, f"--file={dump}", f"--dbname={url_of(database)}")
    name = f"mgtest_{uuid.uuid4().hex[:12]}"
    settings = settings_of(make_database(name, template_of(shape, witnessed=False)), shape)
    restored = Installation(settings, create_engine(settings))
    try:
        restored.run(f"INSERT INTO mailglass_open_orphans VALUES ('{settled}', 'acme', now())")  # noqa: S608
        command = [client("pg_restore", database), "--data-only", "--disable-triggers", "--exit-on-error"]
        run(*command, f"--dbname={url_of(restored)}", dump)
        assert restored.open_set() == {settled}
        result = restored.prune()
        assert (result.added, result.settled) == (1, 1)
        assert restored.open_set() == {still_open}
        assert restored.is_current()
    finally:
        drop_database(name)


@pytest.mark.parametrize("way", ["trigger", pytest.param("repair", marks=pytest.mark.slow)])
def test_orphans_of_tenants_with_very_long_names_stay_out(db, way):
    """Compressible names of 150,000 characters would exhaust a sweep; those of 1,000 are linked."""
    if way == "repair":
        db.run("ALTER TABLE mailglass_events DISABLE TRIGGER mailglass_open_orphans_add")
    longest = "t" * 1_000
    for tenant in (longest, longest + "t", "t" * 150_000):
        factories.delivery(db, "m-1", tenant_id=tenant)
        factories.orphan(db, factories.postmark("m-1"), tenant_id=tenant)
    db.run("ALTER TABLE mailglass_events ENABLE TRIGGER mailglass_open_orphans_add")
    if way == "repair":
        assert mailglass_reconcile.prune().added == 1
    assert db.rows("SELECT tenant_id FROM mailglass_open_orphans") == [(longest,)]
    assert mailglass_reconcile.reconcile().linked == 1


@pytest.mark.parametrize("inserted_at", ["infinity", "-infinity", "9999-12-31", "294276-12-31 23:59:59", "in an hour"])
def test_a_row_with_an_impossible_time_arrives_when_it_is_written(database, inserted_at):
    """It is swept and expires like any other."""
    if inserted_at == "in an hour":
        inserted_at = str(dt.datetime.now(dt.UTC).replace(tzinfo=None) + dt.timedelta(hours=1))
    with database.engine.begin() as connection:
        event_id = insert(connection, inserted_at=inserted_at)
    assert 0 <= age(database, event_id) < 60


@pytest.mark.slow
@pytest.mark.parametrize("minutes", [-1, 4])
def test_a_clock_that_is_slightly_ahead_is_accepted(database, minutes):
    """The tolerance is five minutes."""
    when = dt.datetime.now(dt.UTC).replace(tzinfo=None) + dt.timedelta(minutes=minutes)
    with database.engine.begin() as connection:
        event_id = insert(connection, inserted_at=str(when))
    assert database.values(ARRIVED, id=event_id) == [when]


@pytest.mark.slow
def test_the_trigger_of_an_orphan_does_not_read_the_ledger(database):
    """The writer may only insert; reading would make SERIALIZABLE writers fail."""
    name = f"mgtest_role_{uuid.uuid4().hex[:12]}"
    [body] = database.values("SELECT prosrc FROM pg_proc WHERE proname = 'mailglass_open_orphans_add'")
    assert "mailglass_events" not in body
    database.run(f"CREATE ROLE {name}; GRANT INSERT ON mailglass_events TO {name}")
    database.run(f"GRANT USAGE ON SCHEMA {database.settings.database_schema} TO {name}")
    try:
        with database.engine.begin() as connection:
            connection.exec_driver_sql(f"SET LOCAL ROLE {name}")
            event_id = insert(connection)
        assert age(database, event_id) is not None
    finally:
        database.run(f"DROP OWNED BY {name}; DROP ROLE {name}")
