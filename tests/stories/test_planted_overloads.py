"""What a role has planted that may create objects in `public` is never called, whoever uses the package and however.

Postgres takes the better match of a function or an operator from any schema of the search path. So each statement that
runs before a transaction has our search path, and each function of the schema, names Postgres's own with `pg_catalog`.
"""

import dataclasses
import os
import uuid
from collections.abc import Iterator

import httpx
import pytest
import sqlalchemy as sa
from django.apps import apps
from django.core.management import call_command
from django.db import connection as djangos
from pydantic import SecretStr
from sqlalchemy.engine import make_url

import commands
import factories
import granting
import handling
import mailglass_reconcile
import overloads
import processes
import receivers
from anymail_sends import ANN, STORY, Message
from anymail_webhooks import POSTMARK
from browsing import TOKEN, Visitor
from catalog import client, installation, url_of
from database import Database
from drivers import Driver
from every_command import COMMANDS, ELSEWHERE, IDS
from installation import QUEUE
from mailglass_reconcile import (
    DeliveryEvent,
    Sent,
    append,
    attempt_link,
    erase,
    find_orphans,
    link,
    on_event,
    record_send,
)
from mailglass_reconcile.contrib.django import migration_operations
from mailglass_reconcile.rules import handlers as registry
from mailglass_reconcile.schedule import DISPATCH_TASK, PRUNE_TASK, RECENT_TASK, SWEEP_TASK
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.schema import script
from mailglass_reconcile.store.schema.revision import VERSION
from mailglass_reconcile.testing.databases import Databases
from mailglass_reconcile.web import create_app
from marking import nightly_unless
from recording import NOW, event, record
from waiting import PATIENCE, settle, wait_until

pytestmark = pytest.mark.slow

PASSWORD = "secret"  # noqa: S105
ROLES = tuple(granting.STATEMENTS)
DAY = 86_400


@dataclasses.dataclass(frozen=True)
class Planted:
    """A migrated database with rows and overloads, to copy: its name, the planter's role, and a login for each role."""

    template: str
    planter: str
    logins: dict[str, str]


@pytest.fixture(scope="module")
def planted(mailglass_databases: Databases, template: str, redis_url: str, admin: sa.Engine) -> Iterator[Planted]:
    """Plant the overloads in a database whose `public` schema others may create objects in."""
    suffix = uuid.uuid4().hex[:12]
    planter = f"mgtest_planter_{suffix}"
    logins = {role: f"mgtest_{role.removeprefix('mailglass_')}_{suffix}" for role in ROLES}
    with admin.connect() as connection:
        for role in (planter, *logins.values()):
            connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
    with mailglass_databases.copy(template, redis_url) as database:
        db = Database(database.url, database.settings, database.engine, None)
        _insert_rows(db)
        for role, login in logins.items():
            db.run("; ".join(granting.STATEMENTS[role]).replace(role, login))
        db.run(f"GRANT CREATE ON SCHEMA public TO {planter}")
        url = make_url(database.url).set(drivername="postgresql+psycopg", username=planter, password=PASSWORD)
        assert overloads.plant(db.engine, sa.create_engine(url, poolclass=sa.NullPool)) > 5_000
        db.engine.dispose()
        yield Planted(str(make_url(database.url).database), planter, logins)
    with admin.connect() as connection:
        for role in (planter, *logins.values()):
            connection.exec_driver_sql(f"DROP ROLE {role}")


def _insert_rows(db: Database) -> None:
    """Insert a job's type, deliveries, and orphans of several states and ages."""
    handling.handle(db, ("audit", "delivered"), ("old", "bounced"))
    db.run("UPDATE mailglass_handled_types SET seen_at = seen_at - interval '25 minutes' WHERE handler = 'old'")
    factories.delivery(db, "m-1", id=IDS["delivery"])
    factories.orphan(db, factories.postmark("m-1"), id=IDS["orphan"])
    factories.orphan(db, factories.postmark("m-2"), id=IDS["lone"])
    factories.orphan(db, factories.postmark("m-1"), tenant_id="other")
    factories.orphan(db, factories.postmark("m-3"), age_seconds=8 * DAY)


DEFAULT_PATH = '"$user", public'
PUBLIC_FIRST = "public, pg_catalog"


@pytest.fixture(params=[DEFAULT_PATH])
def db(request, planted: Planted, mailglass_databases: Databases, redis_url: str, monkeypatch) -> Iterator[Database]:
    """A copy of the planted database, with a search path; at the end, nothing of what is planted has been called."""
    registry._registered.clear()
    with mailglass_databases.copy(planted.template, redis_url) as database:
        copy = Database(database.url, database.settings, database.engine, None)
        options = {"options": "-c search_path=pg_catalog,public"}
        watching = sa.create_engine(database.engine.url, poolclass=sa.NullPool, connect_args=options)
        watcher = dataclasses.replace(copy, engine=watching)
        watcher.set_default("track_functions", "pl")
        watcher.run(f'ALTER DATABASE "{database.engine.url.database}" SET search_path = {request.param}')
        monkeypatch.setenv("MAILGLASS_DATABASE_URL", copy.url)
        mailglass_reconcile.configure(engine=copy.engine, settings=copy.settings)
        yield copy
        mailglass_reconcile.configure()
        registry._registered.clear()
        settle()
        watcher.wait_until_alone()
        assert overloads.called(watching, planted.planter) == []


def _as_role(db: Database, planted: Planted, role: str) -> Database:
    """Return the database as a login of a role uses it."""
    if role == "superuser":
        return db
    url = make_url(db.url).set(username=planted.logins[role], password=PASSWORD).render_as_string(hide_password=False)
    settings = db.settings.model_copy(update={"database_url": SecretStr(url)})
    return dataclasses.replace(db, url=url, settings=settings, engine=engines.create_engine(settings))


def handle_audits() -> None:
    """Register a handler that does nothing."""

    @on_event("delivered", name="audit")
    def handler(_connection: sa.Connection, _event: DeliveryEvent) -> None:
        pass


def test_every_command_is_tried():
    """A new one must be added."""
    assert {line.split()[0] for line, _ in COMMANDS} == commands.SUBCOMMANDS.keys() - ELSEWHERE


@pytest.mark.parametrize(
    "role",
    nightly_unless("superuser".__eq__, ["superuser", "mailglass_sweeper", "mailglass_recorder", "mailglass_reader"]),
)
def test_a_command(db, planted, role):
    """A role that may not do all of it is refused: one that writes, one that hardly reads, one that only reads."""
    handle_audits()
    retention = {f"MAILGLASS_RETENTION_{name}_DAYS": "30" for name in ("EVENTS", "DELIVERIES")}
    used = _as_role(db, planted, role)
    results = {line: commands.run_unchecked(used, *line.split(), **retention) for line, _ in COMMANDS}
    # Two overloads that match as well as each other are an error instead of a call.
    assert [line for line, result in results.items() if "SQLSTATE 42725" in result.stdout + result.stderr] == []
    if role == "superuser":
        unexpected = [
            f"{line}: {result.returncode}\n{result.stdout}{result.stderr}"
            for line, exit_code in COMMANDS
            if (result := results[line]).returncode != exit_code
        ]
        assert unexpected == []


def test_psql_with_the_grants_of_the_documented_roles(db, planted):
    """It runs as the owner of the tables."""
    script = granting.SCRIPT
    for role, login in planted.logins.items():
        script = script.replace(role, login)
    db.run("REVOKE USAGE ON SCHEMA public FROM PUBLIC")
    tables = installation(db.url)
    psql = [client("psql", tables), "--no-psqlrc", "--quiet", url_of(tables)]
    tables.engine.dispose()
    granted = processes.run(psql, stdin=script)
    assert (granted.returncode, granted.stderr) == (0, "")


WITHOUT_MIGRATION = [(line, code) for line, code in COMMANDS if not line.startswith("migrate")]


def _plant_own(db: Database, planted: Planted, *, with_default: bool) -> None:
    url = make_url(db.url).set(drivername="postgresql+psycopg", username=planted.planter, password=PASSWORD)
    planter = sa.create_engine(url, poolclass=sa.NullPool)
    if with_default:
        overloads.plant_own_with_default(db.engine, planter)
    else:
        assert overloads.plant_own(db.engine, planter) > 500


@pytest.mark.parametrize(
    "role", nightly_unless("superuser".__eq__, ["superuser", "mailglass_sweeper", "mailglass_dispatcher"])
)
def test_a_command_beside_overloads_of_our_own_functions(db, planted, role):
    """None is a better match than ours, and it works as without them."""
    _plant_own(db, planted, with_default=False)
    handle_audits()
    retention = {f"MAILGLASS_RETENTION_{name}_DAYS": "30" for name in ("EVENTS", "DELIVERIES")}
    used = _as_role(db, planted, role)
    codes = {line: commands.run_unchecked(used, *line.split(), **retention).returncode for line, _ in WITHOUT_MIGRATION}
    if role == "superuser":
        # The doctor has an error for each of them.
        assert codes == {line: 1 if line.startswith("doctor") else code for line, code in WITHOUT_MIGRATION}


def test_an_ambiguous_call_is_an_error_that_names_the_overload_its_owner_and_the_remedy(db, planted):
    """Of an overload with a default, no cast makes ours the better match."""
    _plant_own(db, planted, with_default=True)
    handle_audits()
    results = {
        line: commands.run_unchecked(db, *line.split()) for line in ("sweep --yes", "prune", "dispatch", "orphans")
    }
    told = f"exists with other arguments, owned by {planted.planter}: drop it"
    assert [line for line, result in results.items() if told not in result.stdout + result.stderr] == []


PAGES = (
    *("/", "/orphans", "/runs", "/handlers", "/find?q=m-1", "/metrics"),
    *(f"/deliveries/{IDS['delivery']}", f"/events/{IDS['lone']}"),
)


@pytest.mark.parametrize("role", ["superuser", "mailglass_reader"])
def test_the_dashboard(db, planted, role):
    """Each page is answered."""
    used = _as_role(db, planted, role)
    settings = used.settings.model_copy(update={"web_token": SecretStr(TOKEN)})
    mailglass_reconcile.configure(engine=used.engine, settings=settings)
    visitor = Visitor(create_app())
    assert {path: visitor.get(path).status_code for path in PAGES} == dict.fromkeys(PAGES, 200)


def test_following(db):
    """It sweeps and dispatches."""
    with commands.follow(db.environment()):
        wait_until(lambda: db.value("SELECT count(*) FROM mailglass_reconcile_runs"))


@pytest.mark.parametrize("role", ["superuser", "mailglass_recorder"])
def test_the_receiver(db, planted, role, tmp_path):
    """It records webhooks, one of which waits for a certificate."""
    with receivers.receiving(_as_role(db, planted, role), tmp_path) as (address, _):
        for provider in ("postmark", "ses"):
            posted = receivers.first(provider)
            url = f"{address}/webhooks/{provider}"
            wait_until(lambda: httpx.post(url, content=posted.body, headers=posted.headers).status_code == 200)  # noqa: B023


@pytest.mark.parametrize("role", nightly_unless("mailglass_recorder".__eq__, ["superuser", "mailglass_recorder"]))
def test_a_driver(db, planted, driver, role):
    """Sends and webhooks, a late send, and everything else that takes a caller's connection."""
    url = make_url(_as_role(db, planted, role).url)
    used = Driver(url.set(drivername=driver.url.drivername))

    def write(connection):
        recorded = record(connection, event("m-7"), event("m-8", "bounced", recipient="ada@example.com"))
        sent = [Sent(recipient="ada@example.com", message_id=id_) for id_ in ("m-7", "m-9")]
        recorded += record_send(connection, tenant_id=factories.TENANT, provider="postmark", sent=sent)
        append(connection, tenant_id=factories.TENANT, type="sent", occurred_at=NOW)
        return recorded

    assert len(used.run(write)) == 4
    assert len(used.run_session(lambda session: record(session, event("m-9", "opened")))) == 1
    if role == "superuser":
        used.run(_read_and_correct)


def _read_and_correct(connection: sa.Connection) -> None:
    assert {attempt_link(connection, orphan).state for orphan in find_orphans(connection)} >= {"unmatched"}
    link(connection, IDS["lone"], IDS["delivery"], reason="ticket")
    erase(connection, recipient="ada@example.com")


HANDLER = """
from mailglass_reconcile import on_event

@on_event("delivered", name="audit")
def audit(connection, event):
    pass
"""


def test_the_tasks_of_a_worker(site, tmp_path):
    (tmp_path / "handler_of_test.py").write_text(HANDLER)
    path = f"{site.environment['PYTHONPATH']}{os.pathsep}{tmp_path}"
    with site.worker(MAILGLASS_IMPORTS="handler_of_test", PYTHONPATH=path):
        for task in (SWEEP_TASK, RECENT_TASK, DISPATCH_TASK, PRUNE_TASK):
            queue = "mailglass_maintenance" if task == PRUNE_TASK else QUEUE
            sent = site.client.send_task(task, queue=queue)
            # A sweep that links enqueues `dispatch` by itself.
            wait_until(lambda: site.count_in_log(f"{task}[{sent.id}] succeeded in ") == 1, PATIENCE)  # noqa: B023


def test_django(db, app, backends, post, admin_client):
    """Anymail's signals, handlers on Django's connection, models, the admin, the command and our migration.

    Django's own statements, about its own tables, come first and are not counted.
    """
    call_command("migrate", "contenttypes", verbosity=0)
    models = [apps.get_model("mailglass_reconcile", name) for name in ("Delivery", "Event", "OpenOrphan")]
    apps.get_model("contenttypes", "ContentType").objects.get_for_models(*models)
    djangos.close()
    db.wait_until_alone()
    db.run("SELECT pg_stat_reset()")

    handle_audits()
    post(Message.send_accepted(POSTMARK, 1, [ANN]).requests(*STORY))
    mailglass_reconcile.reconcile()
    assert mailglass_reconcile.dispatch().handled
    assert models[0].objects.filter(provider_message_id="m-1").exists()
    for model, id_ in zip(models, (IDS["delivery"], IDS["lone"], IDS["lone"]), strict=True):
        for path in ("", "?q=m-1", f"{id_}/change/"):
            page = f"/admin/mailglass_reconcile/{model._meta.model_name}/{path}"
            assert admin_client.get(page).status_code == 200, page
    with pytest.raises(SystemExit, match="0"):
        call_command("mailglass", "status")
    migration_operations.Migrate(VERSION).database_forwards(
        migration_operations.LABEL, djangos.schema_editor(), None, None
    )


@pytest.mark.parametrize("db", [PUBLIC_FIRST], indirect=True)
def test_a_command_of_a_session_whose_search_path_has_pg_catalog_last(db):
    """Then whatever is not qualified is found in `public` first: types and relations too."""
    handle_audits()
    codes = {line: commands.run_unchecked(db, *line.split()).returncode for line, _ in COMMANDS}
    assert codes == dict(COMMANDS)


CALLS = {
    "arrival_of": f"('{IDS['orphan']}', '2026-01-01')",
    "credible": "('1999-01-01', '2026-01-01')",
    "days_ago": "(30)",
    "failure": "('42501', 'permission denied', NULL)",
    "finish_job": f"('{IDS['lone']}', 'audit', 1, 'KeyError', '{{5}}')",
    "hold_expired": "()",
    "is_expired": "('2026-01-01', 10)",
    "is_old_delivery": "('2026-01-01', '2026-01-01', 30)",
    "is_old_event": f"('{IDS['orphan']}', '2026-01-01', 30)",
    "is_past_retention": "('dead', '2026-01-01', 'dead', 30)",
    "iso": "('2026-01-01')",
    "link_of": f"('{IDS['orphan']}', 'acme')",
    "missing": f"('{IDS['orphan']}', 'acme')",
    "orphan_of": f"('reconciled', 'reconciled:{IDS['orphan']}')",
    "project": f"('{{{IDS['delivery']}}}', '{{delivered}}', '{{2026-03-01}}', '{{2026-03-01}}')",
    "provider_of": f"('{IDS['delivery']}', NULL)",
    "require_age": "('mailglass_events', 30)",
    "senders": "('', '')",
    "settled": f"('{IDS['orphan']}', 'acme')",
    "tenants_of_deliveries": "('')",
    "tenants_of_orphans": "('')",
}
"""A call of each function of the schema that no statement of ours calls without our search path."""


@pytest.mark.parametrize("db", [DEFAULT_PATH, PUBLIC_FIRST], indirect=True)
def test_a_function_of_the_schema_that_a_stranger_calls(db):
    """Its body is parsed under the search path of the session, if it has none of its own."""
    called = [
        step for step in script.steps() if step.kind == "function" and step.name.startswith("mailglass_reconcile_")
    ]
    others = {step.name for step in called if "enable_seqscan" not in step.sql}
    assert {f"mailglass_reconcile_{name}_v1" for name in CALLS} == others
    with db.engine.begin() as connection:
        for name, arguments in CALLS.items():
            connection.exec_driver_sql(f"SELECT * FROM mailglass_reconcile_{name}_v1{arguments}").all()  # noqa: S608
