"""The tables that applications select from, compared with migrated databases and read in every way of SQLAlchemy."""

import datetime as dt
import importlib
import re
from collections.abc import Iterator
from types import ModuleType

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.orm import DeclarativeBase, Session

import factories
import mailglass_reconcile
import pages
import processes
from mailglass_reconcile import Sent, record_send, tables
from mailglass_reconcile.store.migration import privileges

HOUR = dt.timedelta(hours=1)
SENT_AT = dt.datetime(2026, 5, 6, 7, 8, 9, tzinfo=dt.timezone(2 * HOUR))
OPTIONS = {"include_object": mailglass_reconcile.include_object}


@pytest.fixture
def imported(request) -> Iterator[ModuleType]:
    """The module as a process imports it that has the test's settings."""
    yield importlib.reload(tables)
    request.getfixturevalue("monkeypatch").undo()
    mailglass_reconcile.configure()
    importlib.reload(tables)


def send(connection) -> None:
    """Record a send of `SENT_AT`."""
    sent = [Sent(recipient="ada@example.com", message_id="m-1", occurred_at=SENT_AT)]
    record_send(connection, provider="postmark", sent=sent, metadata={"order": 7})


def differences(connection, module) -> list[str]:
    """Return the columns of the tables that the database lacks, or has with another type or key."""
    inspector, different = sa.inspect(connection), []
    for table in module.metadata.tables.values():
        reflected = {column["name"]: column for column in inspector.get_columns(table.name, table.schema)}
        key = inspector.get_pk_constraint(table.name, table.schema)["constrained_columns"]
        if key != [column.name for column in table.primary_key]:
            different.append(f"{table.name}: {key}")
        for column in table.columns:
            in_database = reflected.get(column.name, {"type": None, "nullable": None})
            types = [type_ and type_.compile(connection.dialect) for type_ in (column.type, in_database["type"])]
            if types[0] != types[1] or column.nullable != in_database["nullable"]:
                different.append(f"{column}: {types}, {in_database['nullable']}")
    return different


def test_each_column_is_that_of_the_tables_that_migrate_made(db):
    """The types are the database's, so that what is selected is what is stored."""
    with db.engine.connect() as connection:
        assert differences(connection, tables) == []


def test_each_column_is_in_the_tables_that_mailglass_made(mailglass_db, imported):
    """They are in the configured schema, and have only columns that every version of Mailglass has."""
    assert imported.metadata.schema == mailglass_db.settings.database_schema
    with mailglass_db.engine.connect() as connection:
        assert differences(connection, imported) == []


def test_a_role_that_shows_deliveries_may_select_whole_rows():
    """The columns are those that `mailglass_viewer` may read."""
    granted = {
        required.object: {*required.columns}
        for required in privileges.documented_privileges()
        if (required.role, required.privilege) == ("mailglass_viewer", "SELECT")
    }
    assert granted == {table.name: {*table.columns.keys()} for table in (tables.deliveries, tables.events)}


def test_a_column_that_the_page_on_the_tables_names_is_there():
    rows = re.findall(r"^\| `mailglass_(\w+)` \| (.*) \|$", (pages.ROOT / "docs/concepts.md").read_text(), re.M)
    offered = {name: words for name, words in rows if hasattr(tables, name)}
    assert {*offered} >= {"deliveries", "events", "handler_outbox", "reconcile_runs"}
    values = {"reconciled", "reconciled_from_event_id", "waiting", "done", "dead"}
    for name, words in offered.items():
        assert {*re.findall(r"`(\w+)`", words)} - values <= {*getattr(tables, name).columns.keys()}


def test_times_have_a_time_zone_whatever_that_of_the_session(db):
    """In a result and an aggregate; and in a condition, on either side, with arithmetic."""
    table = tables.deliveries
    times = sa.select(table.c.last_event_at, sa.func.max(table.c.last_event_at), table.c.delivered_at)
    with db.engine.connect() as connection:
        connection.exec_driver_sql("SET TimeZone = 'America/New_York'")
        send(connection)
        (row,) = connection.execute(times.group_by(table.c.id))
        assert tuple(row) == (SENT_AT, SENT_AT, None)
        assert row.last_event_at.tzinfo is dt.UTC
        for condition in (
            table.c.last_event_at == SENT_AT,
            table.c.last_event_at.between(SENT_AT - HOUR, SENT_AT + HOUR),
            table.c.last_event_at + HOUR > SENT_AT,
            sa.literal(SENT_AT, table.c.last_event_at.type) - table.c.last_event_at < HOUR,
            table.c.delivered_at == None,  # noqa: E711 - SQLAlchemy's IS NULL
        ):
            assert connection.scalars(sa.select(table.c.recipient).where(condition)).all() == ["ada@example.com"]


def test_a_time_without_a_time_zone_is_refused(db):
    """It would be the local time of somebody."""
    table = tables.deliveries
    naive = sa.select(table.c.id).where(table.c.last_event_at > dt.datetime(2026, 1, 1))
    with (
        db.engine.connect() as connection,
        pytest.raises(sa.exc.StatementError, match="a datetime that has a time zone"),
    ):
        connection.execute(naive)


def test_every_driver_reads_the_same(driver):
    """Times, ids and JSON have Python's types, in a connection and through a mapped class."""
    table = tables.deliveries

    class Base(DeclarativeBase):
        pass

    class Delivery(Base):
        __table__ = tables.deliveries

    driver.run(send)
    selected = driver.run(lambda connection: connection.execute(sa.select(table)).mappings().one())
    mapped = driver.run_session(lambda session: session.scalars(sa.select(Delivery)).one().__dict__)
    assert (selected["last_event_at"], selected["metadata"]["order"]) == (SENT_AT, 7)
    assert {name: mapped[name] for name in selected} == dict(selected)


def test_an_application_joins_them_with_a_table_of_its_own(db):
    class Base(DeclarativeBase):
        pass

    class Order(Base):
        __tablename__ = "orders"
        id = sa.orm.mapped_column(sa.Integer, primary_key=True)
        delivery_id = sa.orm.mapped_column(sa.Uuid)

    factories.delivery(db, "m-1")
    with Session(db.engine) as session:
        Base.metadata.create_all(session.connection())
        delivery = session.execute(sa.select(tables.deliveries)).one()
        session.add(Order(id=7, delivery_id=delivery.id))
        joined = sa.select(Order.id, tables.deliveries.c.recipient).join(
            tables.deliveries, tables.deliveries.c.id == Order.delivery_id
        )
        assert session.execute(joined).all() == [(7, delivery.recipient)]


@pytest.mark.parametrize("include_schemas", [False, True])
@pytest.mark.parametrize("how", ["its metadata", "mapped", "copied", "listed"])
def test_autogenerate_neither_creates_nor_drops_them(db, how, include_schemas):
    """With `include_object`, wherever an application has them; without it, it proposes changes."""
    own = sa.MetaData()
    target = {"its metadata": own, "mapped": own, "copied": own, "listed": [own, tables.metadata]}[how]
    if how == "mapped":
        base = type("Base", (DeclarativeBase,), {"metadata": own})
        type("Delivery", (base,), {"__table__": tables.deliveries})
    if how == "copied":
        tables.deliveries.to_metadata(own)
        tables.deliveries.to_metadata(own, schema=None)
    with db.engine.connect() as connection:
        # This schema is that of the tests' own tables.
        options = {"include_schemas": include_schemas, "include_name": lambda name, *_: name != "witness"}
        without = compare_metadata(MigrationContext.configure(connection, opts=options), target)
        proposed = compare_metadata(MigrationContext.configure(connection, opts=options | OPTIONS), target)
    assert without
    assert proposed == []


LATE = """
import os, socket, sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise SystemExit(f"connected at import: {event}")

sys.addaudithook(refuse)
from mailglass_reconcile.tables import deliveries
names = ("alembic", "celery", "click", "opentelemetry", "psycopg", "redis", "rich", "sqlalchemy.orm")
print(deliveries, [name for name in names if name in sys.modules])
from mailglass_reconcile import runtime
os.environ["MAILGLASS_DATABASE_URL"] = "postgresql://nowhere.invalid/late"
print(runtime.get_engine().url)
"""


def test_importing_them_loads_no_more_than_sqlalchemy_and_fixes_no_other_setting():
    """An application may read its `.env` after its imports."""
    result = processes.run(["-c", LATE], {"PATH": "", "MAILGLASS_DATABASE_SCHEMA": "mail"})
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "mail.mailglass_deliveries []",
        "postgresql+psycopg://nowhere.invalid/late",
    ]
