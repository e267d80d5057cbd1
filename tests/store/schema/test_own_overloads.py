"""No call of one of our functions can be taken for another role's function of the same name.

Postgres calls the function whose arguments match best, and an overload in our schema is a better match than ours if a
call passes another type. The overloads here are procedures: a call that resolves to one is refused by the parser.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

import factories
import handling
import mailglass_reconcile
import overloads
from database import Database
from mailglass_reconcile import DeliveryEvent, Sent, append, on_event, record_send
from mailglass_reconcile.errors import sqlstate
from mailglass_reconcile.ops import pruner
from mailglass_reconcile.rules import handlers as registry
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.database import Database as Handle
from mailglass_reconcile.store.database import compile_for_psycopg, in_schema
from mailglass_reconcile.store.schema import script
from mailglass_reconcile.testing.databases import Databases
from recording import NOW, event, record
from shapes import settings_of

PACKAGE = Path(mailglass_reconcile.__file__).parent
IS_PROCEDURE = "42809"
DAY = 86_400
MADE = "SELECT DISTINCT proname::text FROM pg_proc WHERE prokind = 'f' AND proname = ANY (:names)"
SENT_TYPES = ("unknown", "smallint", "character varying")
"""How drivers send a parameter: as text of a type that Postgres chooses, a small number, and asyncpg's text."""


@pytest.fixture(params=["made here", pytest.param("0.1.1", marks=pytest.mark.slow), "2.x"])
def planted(request, mailglass_databases: Databases, redis_url: str, template, template_of) -> Iterator[Database]:
    """A migrated database of each kind of tables, with the overloads."""
    shape = request.param
    name = template if shape == "made here" else template_of(shape)
    with mailglass_databases.copy(name, redis_url) as copy:
        settings = copy.settings if shape == "made here" else settings_of(copy.url, shape, redis_url=redis_url)
        db = Database(copy.url, settings, engines.create_engine(settings), None)
        assert overloads.plant_own(db.engine, db.engine, settings.database_schema, as_procedures=True) > 200
        mailglass_reconcile.configure(engine=db.engine, settings=settings)
        yield db
        mailglass_reconcile.configure()
        db.engine.dispose()


def _calling_statements() -> dict[str, str]:
    """Return each statement of the package that calls one of our functions, by its place."""
    return {
        f"{path.relative_to(PACKAGE)}:{node.lineno}": node.value
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.search(r"\{schema\}\.mailglass_\w+_v1\(", node.value)
    }


def _resolve(connection: sa.Connection, statement: str, schema: str) -> list[str | None]:
    """Return the SQLSTATE of parsing a statement, for each type of each parameter; None where there is no error."""
    text = compile_for_psycopg(statement, schema)
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", text)))
    for number, name in enumerate(names, 1):
        text = text.replace(f"%({name})s", f"${number}")
    text, states = text.replace("%%", "%"), []
    for place, type_ in [(0, "unknown"), *((place, type_) for place in range(len(names)) for type_ in SENT_TYPES[1:])]:
        types = [type_ if number == place else "unknown" for number in range(len(names))]
        try:
            with connection.begin_nested():
                head = f"PREPARE resolved ({', '.join(types)})" if types else "PREPARE resolved"
                connection.exec_driver_sql(f"{head} AS {text}", execution_options={"no_parameters": True})
                connection.exec_driver_sql("DEALLOCATE resolved")
            states.append(None)
        except DBAPIError as error:
            states.append(sqlstate(error))
    return states


def test_no_statement_calls_an_overload_whatever_types_a_driver_sends(planted):
    """Whatever else is wrong with a type, no call becomes another role's."""
    statements = _calling_statements()
    assert len(statements) > 25
    with planted.engine.connect() as connection, connection.begin():
        connection.exec_driver_sql("SET LOCAL search_path = pg_catalog, pg_temp")
        schema = planted.settings.database_schema
        states = {place: _resolve(connection, statement, schema) for place, statement in statements.items()}
    assert [place for place, found in states.items() if IS_PROCEDURE in found] == []
    # Only what names a function of retention cannot be parsed on Mailglass's tables.
    assert sum(found[0] is None for found in states.values()) > 20


def test_no_function_in_sql_calls_an_overload(planted):
    """Postgres parses it when it is made."""
    steps = {step.name: step for step in script.steps() if step.kind == "function" and "LANGUAGE sql" in step.sql}
    made = planted.rows(MADE, names=list(steps))
    assert len(made) > 10
    with planted.engine.connect() as connection, connection.begin():
        connection.exec_driver_sql("SET LOCAL check_function_bodies = on")
        for row in made:
            text = in_schema(steps[row.proname].sql, planted.settings.database_schema)
            connection.exec_driver_sql(text, execution_options={"no_parameters": True})


def test_no_function_in_plpgsql_calls_an_overload(planted):
    """Postgres parses each of its statements when it runs: here links, jobs, records, an error and retention do."""
    handling.handle(planted, ("audit", "delivered"))
    registry._registered.clear()

    @on_event("delivered", name="audit")
    def fail(_connection: sa.Connection, _event: DeliveryEvent) -> None:
        raise ValueError

    delivery = factories.delivery(planted, "m-1")
    factories.orphan(planted, factories.postmark("m-1"))
    taken = factories.orphan(planted, factories.postmark("m-1"))
    key = {"idempotency_key": f"reconciled:{taken}", "needs_reconciliation": False}
    factories.insert(planted, events=[factories.orphan_row({}, type="opened", delivery_id=delivery, **key)])
    swept = mailglass_reconcile.reconcile()
    assert (swept.linked, swept.failed) == (1, 1), "another event has the key of one"
    with planted.engine.begin() as connection:
        record(connection, event("m-1"), event("m-2"))
        record_send(
            connection,
            tenant_id=factories.TENANT,
            provider="postmark",
            sent=[Sent(recipient="ada@example.com", message_id="m-3")],
        )
        append(connection, tenant_id=factories.TENANT, type="sent", occurred_at=NOW)
        [refused] = connection.exec_driver_sql("SELECT failure FROM mailglass_reconcile_append_event_v1('x'::text)")
        assert "22P02" in refused[0]
    assert mailglass_reconcile.dispatch().failed
    registry._registered.clear()
    factories.delivery(planted, "m-4", age_seconds=60 * DAY)
    days = {"retention_events_days": 30, "retention_deliveries_days": 30} if made_here(planted) else {}
    settings = planted.settings.model_copy(update=days)
    pruned = pruner.prune_with(Handle(planted.engine, settings))
    assert (pruned.failures, pruned.deliveries) == ({}, int(bool(days)))


def made_here(db: Database) -> bool:
    """Return True if `migrate` made the tables."""
    statement = "SELECT count(*) FROM pg_proc WHERE proname = 'mailglass_reconcile_prune_events_v1' AND prokind = 'f'"
    return bool(db.value(statement))
