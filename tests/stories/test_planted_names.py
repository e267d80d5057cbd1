"""What another role has planted under our names is never read and never called, whatever a superuser runs.

On a database that was never migrated, and on one of which a table was dropped, or that has Mailglass's tables only.
"""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

import commands
import factories
import mailglass_reconcile
from catalog import MAILGLASS
from database import Database
from every_command import COMMANDS
from mailglass_reconcile import Sent, on_event, record_send
from mailglass_reconcile.errors import MailglassReconcileError
from mailglass_reconcile.rules import handlers as registry
from mailglass_reconcile.store.schema import revision
from mailglass_reconcile.testing.databases import Databases
from marking import nightly_unless
from planted_names import NAMES, Planter
from recording import event, record
from roles import temporary_role

PASSWORD = "secret"  # noqa: S105
OURS = (*revision.TABLES, revision.VERSION_TABLE)
SETTINGS = {
    **{f"MAILGLASS_RETENTION_{name}_DAYS": "30" for name in ("EVENTS", "DELIVERIES", "SUCCEEDED", "DEAD", "FAILED")},
    "MAILGLASS_DATABASE_SCHEMA": "public",
    "MAILGLASS_TENANT": "acme",
    "MAILGLASS_SILENCE_HOURS": "24",
}
READING = ("status", "orphans", "find m-1", "sweep --yes", "prune", "prune --dry-run", "migrate --plan")


@pytest.fixture
def planter_role(admin: sa.Engine) -> Iterator[str]:
    with temporary_role(admin, f"LOGIN PASSWORD '{PASSWORD}'") as role:
        yield role


@pytest.fixture
def plant(request, planter_role, mailglass_databases: Databases, template, redis_url, monkeypatch):
    """Return a database in a state, and a planter in it; at the end, none of its programs has run."""
    state = request.param
    name = template if state not in ("empty", "Mailglass's tables only") else "template0"
    with mailglass_databases.copy(name, redis_url) as copy, mailglass_databases.copy(template, redis_url) as migrated:
        db = Database(copy.url, copy.settings, copy.engine, None)
        if state == "Mailglass's tables only":
            db.run(MAILGLASS)
        elif state != "empty":
            db.run(f"DROP TABLE {state} CASCADE")
        db.run(f"GRANT CREATE ON SCHEMA public TO {planter_role}")
        url = make_url(copy.url).set(drivername="postgresql+psycopg", username=planter_role, password=PASSWORD)
        planter = Planter(migrated.engine, lambda: sa.create_engine(url, poolclass=sa.NullPool))
        migrated.engine.dispose()
        monkeypatch.setenv("MAILGLASS_DATABASE_URL", copy.url)
        mailglass_reconcile.configure(engine=copy.engine, settings=copy.settings)
        yield db, planter, state
        mailglass_reconcile.configure()
        db.engine.dispose()
        called = planter.called()
        planter.close()
        assert called == ""


STATES = ("empty", "Mailglass's tables only", *OURS, *sorted(revision.MAILGLASS_TABLES))
# Who owns the ledger owns the installation, so a stranger's is not among the tables.
KINDS = [
    (kind, state) for kind in ("views", "tables") for state in STATES if (kind, state) != ("tables", "mailglass_events")
]
QUICK = [("views", "empty"), ("tables", "empty"), ("tables", "mailglass_reconcile_runs")]
IN_CI = [*QUICK, ("views", "Mailglass's tables only"), ("tables", "Mailglass's tables only")]


@pytest.mark.guard
@pytest.mark.parametrize(
    ("kind", "plant"), nightly_unless(IN_CI.__contains__, KINDS, is_quick=QUICK.__contains__), indirect=["plant"]
)
def test_no_command_reads_what_is_planted_and_each_says_whose_it_is(plant, kind, planter_role):
    db, planter, state = plant
    missing = {"empty": NAMES, "Mailglass's tables only": OURS}.get(state, (state,))
    names = [name for name in missing if kind == "views" or name != "mailglass_events"]
    (planter.plant_views if kind == "views" else planter.plant_tables)(names)
    if state in ("empty", "Mailglass's tables only"):
        planter.plant_functions()
    # The grants are a file.
    lines = READING if (kind, state) in QUICK else [line for line, _ in COMMANDS if line != "migrate --grants"]
    results = {line: commands.run_unchecked(db, *line.split(), **SETTINGS) for line in lines}
    outputs = {line: result.stdout + result.stderr for line, result in results.items()}
    assert [line for line in results if "Traceback" in outputs[line]] == []
    assert [line for line, result in results.items() if result.returncode == 0] == []
    words = ("not migrated", "mailglass_events", planter_role)
    assert [line for line, text in outputs.items() if not any(word in text for word in words)] == []
    _record(db)


def _record(db: Database) -> None:
    """Record in the ways of an application, which are refused."""
    with db.engine.connect() as connection:
        with pytest.raises(MailglassReconcileError), connection.begin():
            record(connection, event("m-1"))
        sent = [Sent(recipient="ada@example.com", message_id="m-1")]
        with pytest.raises(MailglassReconcileError), connection.begin():
            record_send(connection, tenant_id=factories.TENANT, provider="postmark", sent=sent)
    registry._registered.clear()
    on_event("delivered", name="audit")(lambda _connection, _event: None)
    for function in (mailglass_reconcile.reconcile, mailglass_reconcile.dispatch, mailglass_reconcile.prune):
        with pytest.raises(MailglassReconcileError):
            function()
    registry._registered.clear()
