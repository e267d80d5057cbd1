"""The grants of `migrate --grants` are enough for each role's work."""

import datetime as dt
import re
import uuid
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

import commands
import granting
import mailglass_reconcile
import processes
import raw_webhooks
from backdating import batch
from browsing import TOKEN, Visitor
from catalog import client, installation, live, url_of
from factories import delivery, orphan, postmark
from handling import leaving
from mailglass_reconcile import (
    DatabaseUnavailableError,
    Sent,
    WebhookEvent,
    append,
    record_send,
    record_webhook,
    runtime,
)
from mailglass_reconcile.ops.explanation import explain
from mailglass_reconcile.record import erasure
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.database import Database
from mailglass_reconcile.store.migration import runner
from mailglass_reconcile.web import create_app
from mailglass_reconcile.webhooks import SignatureError, refusal
from marking import nightly_unless, slow_unless
from roles import temporary_role
from shapes import make_mailglass_tables
from waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def acting(db, admin) -> Iterator:
    """Return a function that grants a role's documented privileges to a new login, and returns its settings."""
    yield from acting_in(db, admin)


@pytest.fixture
def acting_in_mailglass(mailglass_db, admin) -> Iterator:
    """Return the same function for each version of Mailglass's schema."""
    yield from acting_in(mailglass_db, admin)


def acting_in(db, admin) -> Iterator:
    """Yield the function of `acting`, and drop the logins at the end."""
    roles: list[str] = []
    schema = db.settings.database_schema

    def act(documented: str, **more: object) -> Settings:
        role = f"mgtest_role_{uuid.uuid4().hex[:12]}"
        roles.append(role)
        with admin.connect() as connection:
            connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
        with db.engine.begin() as connection:
            sql = (
                "".join(granting.STATEMENTS[documented])
                .replace("ON SCHEMA public", f"ON SCHEMA {schema}")
                .replace(documented, role)
            )
            if db.value("SELECT to_regproc('mailglass_reconcile_prune_events_v1') IS NULL"):  # as on Mailglass's
                sql = re.sub(r"GRANT EXECUTE\s+ON FUNCTION mailglass_reconcile_prune_.*?;", "", sql, flags=re.DOTALL)
            connection.exec_driver_sql(sql)
        url = make_url(db.url).set(username=role, password="secret").render_as_string(hide_password=False)  # noqa: S106
        redis_url = db.settings.redis_url.get_secret_value()
        settings = Settings(database_url=url, database_schema=schema, redis_url=redis_url, **more)
        mailglass_reconcile.configure(engine=engines.create_engine(settings), settings=settings)
        return settings

    yield act
    mailglass_reconcile.configure(engine=db.engine, settings=db.settings)
    for role in roles:
        with db.engine.begin() as connection:
            connection.exec_driver_sql(f"DROP OWNED BY {role}")
        with admin.connect() as connection:
            connection.exec_driver_sql(f"DROP ROLE {role}")


MAY = """SELECT has_column_privilege(:role, 'mailglass_webhook_events', 'raw_payload', 'SELECT'),
                has_table_privilege(:role, 'mailglass_events', 'INSERT')"""


@pytest.mark.parametrize("shape", ["ours", "2.x"])
def test_psql_runs_the_file_whichever_roles_exist_and_whoever_made_the_tables(empty_database_url, admin, shape):
    """Grants to missing roles, and those on tables of the other kind, are skipped."""
    schema = "mailglass" if shape == "2.x" else "public"
    tables = live(empty_database_url, schema, shape) if shape == "2.x" else installation(empty_database_url)
    tables.migrate()
    suffix = f"_{uuid.uuid4().hex[:12]}"
    sweeper = f"mailglass_sweeper{suffix}"
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {sweeper}")
    mailglass_reconcile.configure(engine=tables.engine, settings=tables.settings)
    script = granting.for_roles(commands.run_here("migrate", "--grants").output, suffix)
    psql = [client("psql", tables), "--no-psqlrc", "--quiet", url_of(tables)]
    process = processes.run(psql, stdin=script)
    try:
        assert (process.returncode, process.stderr) == (0, "")
        with tables.writing("SET LOCAL TIME ZONE 'UTC'") as connection:
            may_read, may_append = connection.execute(sa.text(MAY), {"role": sweeper}).one()
        assert (may_read, may_append) == (shape == "2.x", True)
    finally:
        tables.run(f"DROP OWNED BY {sweeper}")
        with admin.connect() as connection:
            connection.exec_driver_sql(f"DROP ROLE {sweeper}")


def check_refused(settings, statement):
    """Check that Postgres refuses a login the statement for lack of a privilege."""
    with (
        pytest.raises(sa.exc.ProgrammingError, match="permission denied"),
        engines.create_engine(settings).begin() as connection,
    ):
        connection.exec_driver_sql(statement)


def test_on_a_hardened_schema_the_file_fails_with_the_grant_that_a_superuser_runs_first(empty_database_url, admin):
    """The documented owner of the tables does not own the schema; afterwards the file is silent."""
    suffix = f"_{uuid.uuid4().hex[:12]}"
    owner, sweeper = f"mailglass_owner{suffix}", f"mailglass_sweeper{suffix}"
    as_superuser = installation(empty_database_url)
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {owner} LOGIN PASSWORD 'secret'; CREATE ROLE {sweeper}")
    as_superuser.run(f"GRANT USAGE, CREATE ON SCHEMA public TO {owner}; REVOKE USAGE ON SCHEMA public FROM PUBLIC")
    url = make_url(empty_database_url).set(username=owner, password="secret")  # noqa: S106
    tables = installation(url.render_as_string(hide_password=False))
    tables.migrate()
    script = granting.for_roles(granting.SCRIPT, suffix)
    psql = [client("psql", tables), "--no-psqlrc", "--quiet", url_of(tables)]
    try:
        refused = processes.run(psql, stdin=script)
        needed = f"GRANT USAGE ON SCHEMA public TO {sweeper}"
        assert (refused.returncode, needed in refused.stderr) == (3, True)
        as_superuser.run(needed)
        granted = processes.run(psql, stdin=script)
        assert (granted.returncode, granted.stderr) == (0, "")
    finally:
        as_superuser.run(f"DROP OWNED BY {sweeper}, {owner} CASCADE")
        with admin.connect() as connection:
            connection.exec_driver_sql(f"DROP ROLE {sweeper}; DROP ROLE {owner}")


def test_a_role_without_privileges_closes_nothing(db, acting):
    """The function deletes with its owner's privileges."""
    settings = acting("mailglass_writer")
    with Database(engines.create_engine(settings), settings).writing() as tx, pytest.raises(sa.exc.ProgrammingError):
        tx.execute("SELECT {schema}.mailglass_reconcile_close_v1('{}', '{}')")


@pytest.mark.guard
def test_a_sweeper_sweeps_and_prunes(db, acting):
    """It links, stores keys, and repairs the open set."""
    delivery(db, "m-1")
    orphan(db, postmark("m-1"))
    orphan(db, postmark("m-2"))
    orphan(db, postmark("m-3"), age_seconds=8 * 86_400)
    acting("mailglass_sweeper")
    assert mailglass_reconcile.reconcile().linked == 1
    assert mailglass_reconcile.prune().expired == 1


@pytest.mark.parametrize("granted", [True, False])
def test_a_sweeper_reads_a_recipient_where_it_may_and_else_links_by_the_message_id(db, acting, granted):
    raw = raw_webhooks.payload("postmark", "bounced") | {"Email": "cc@example.com"}
    raw_webhooks.store(db, "postmark", raw, [{"provider_event_id": "b", "message_id": raw["MessageID"]}], raw_id="b")
    delivery(db, raw["MessageID"], recipient="to@example.com")
    role = make_url(acting("mailglass_sweeper").database_url.get_secret_value()).username
    if granted:
        db.run(granting.RAW_WEBHOOKS.replace("mailglass_sweeper", role))
    result = mailglass_reconcile.reconcile()
    assert (result.linked, result.recipient_mismatch, result.linked_unchecked) == ((0, 1, 0) if granted else (1, 0, 1))


def test_a_sweeper_links_manually(db, acting):
    """It links open and expired events."""
    to = delivery(db)
    events = [orphan(db, {}), orphan(db, {}, age_seconds=8 * 86_400)]
    settings = acting("mailglass_sweeper")
    mailglass_reconcile.prune()
    for event in events:
        with engines.create_engine(settings).begin() as connection:
            mailglass_reconcile.link(connection, event, to, reason="ticket 4711")
    assert db.count_links() == 2


def test_a_sweeper_deletes_old_events_through_the_functions_alone(db, acting):
    """Without EXECUTE, the error names the function; no role may delete directly."""
    orphan(db, postmark("m-1"), age_seconds=40 * 86_400)
    function = "public.mailglass_reconcile_prune_events_v1(integer, integer, uuid)"
    days = {"retention_events_days": 30, "retention_deliveries_days": 30}
    runner.migrate(db.engine, db.settings.model_copy(update=days), lambda line: None)
    settings = acting("mailglass_sweeper", **days)
    assert mailglass_reconcile.prune().failures == {}
    assert db.value("SELECT count(*) FROM mailglass_events") == 0
    role = settings.database_url.get_secret_value().split("//")[1].split(":")[0]
    db.run(f"REVOKE EXECUTE ON FUNCTION {function} FROM {role}")
    failures = mailglass_reconcile.prune().failures
    quoted = function.replace("public", '"public"')
    assert failures == {
        "events": f"role {role} lacks a privilege (SQLSTATE 42501): GRANT EXECUTE ON FUNCTION {quoted} TO {role}"
    }


def test_a_sweeper_deletes_nothing_that_is_younger_than_the_owner_of_the_tables_allows(db, acting):
    """A stolen password must not empty the ledger, whatever age it passes; without a retention, nothing is deleted."""
    orphan(db, {}, age_seconds=40 * 86_400)
    db.run("DELETE FROM mailglass_open_orphans")  # as a prune does, because it has expired
    sweeper = engines.create_engine(acting("mailglass_sweeper"))

    def delete(days: int) -> None:
        for table in ("events", "deliveries"):
            with sweeper.begin() as connection:
                connection.exec_driver_sql(f"SELECT {batch(table, days)}")

    for allowed in (None, 30):
        days = {"retention_events_days": allowed, "retention_deliveries_days": allowed}
        lines: list[str] = []
        runner.migrate(db.engine, db.settings.model_copy(update=days), lines.append)
        assert ("store the retention" in "\n".join(lines)) == bool(allowed)
        for refused in (2, 29) if allowed else (2, 30, 1000):
            with pytest.raises(sa.exc.ProgrammingError, match="permission denied to delete rows of mailglass_events"):
                delete(refused)
        assert db.value("SELECT count(*) FROM mailglass_events") == 1
    delete(30)
    assert db.value("SELECT count(*) FROM mailglass_events") == 0
    lines.clear()
    runner.migrate(db.engine, db.settings.model_copy(update=days), lines.append)
    assert lines[-1].startswith("nothing to do")


def test_with_mailglass_each_role_does_its_work_in_its_schema(mailglass_db, acting_in_mailglass):
    """A writer inserts, a sweeper sweeps, prunes and links manually, an eraser erases, a reader looks."""
    insert = "INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, needs_reconciliation)"
    with engines.create_engine(acting_in_mailglass("mailglass_writer")).begin() as connection:
        connection.exec_driver_sql(f"{insert} VALUES (gen_random_uuid(), 'acme', 'opened', now(), true)")
    to, by_hand = delivery(mailglass_db, "m-1"), orphan(mailglass_db, {})
    orphan(mailglass_db, postmark("m-1"))
    orphan(mailglass_db, postmark("m-3"), age_seconds=8 * 86_400)
    sweeper = acting_in_mailglass("mailglass_sweeper")
    assert mailglass_reconcile.reconcile().linked == 1
    pruned = mailglass_reconcile.prune()
    assert (pruned.expired, pruned.failures) == (1, {})
    with engines.create_engine(sweeper).begin() as connection:
        mailglass_reconcile.link(connection, by_hand, to, reason="ticket 4711")
    check_refused(sweeper, "SELECT metadata FROM mailglass_deliveries")
    eraser = acting_in_mailglass("mailglass_eraser")
    target = erasure.validate_erasure("somebody@example.com")
    assert erasure.erase_with(Database(engines.create_engine(eraser), eraser), target).deliveries == 0
    acting_in_mailglass("mailglass_reader", web_token=TOKEN)
    visitor = Visitor(create_app())
    assert b"mailglass_reconcile_up 1.0" in visitor.get("/metrics").content
    for path in ("/", "/orphans", f"/deliveries/{to}", f"/events/{by_hand}"):
        assert visitor.get(path).status_code == 200, path


@pytest.mark.guard
@pytest.mark.parametrize("message_id", ["m-1", "m-2"])
def test_a_recorder_records_webhooks(db, acting, message_id):
    """Some have a delivery, others are orphans."""
    delivery(db, "m-1")
    settings = acting("mailglass_recorder")
    event = WebhookEvent(
        type="opened",
        occurred_at=dt.datetime.now(dt.UTC),
        provider_event_id="1",
        message_id=message_id,
        recipient="Ada@Example.com",
    )
    with engines.create_engine(settings).begin() as connection:
        [recorded] = record_webhook(connection, tenant_id="acme", provider="postmark", events=[event])
    assert (recorded.delivery_id is not None) is (message_id == "m-1")


def test_a_recorder_records_sends(db, acting):
    """It records new and repeated sends, links their open events, and appends an event."""
    settings = acting("mailglass_recorder")
    opened = WebhookEvent(type="opened", occurred_at=dt.datetime.now(dt.UTC), provider_event_id="1", message_id="m-1")
    sent = [Sent(recipient="ada@example.com", message_id="m-1"), Sent(recipient="bob@example.com", message_id="m-2")]
    with engines.create_engine(settings).begin() as connection:
        record_webhook(connection, tenant_id="acme", provider="postmark", events=[opened])
        recorded = record_send(connection, tenant_id="acme", provider="postmark", sent=sent[:1])
        recorded += record_send(connection, tenant_id="acme", provider="postmark", sent=sent)
        earlier = {"type": "queued", "occurred_at": dt.datetime(2026, 1, 2, tzinfo=dt.UTC)}
        assert append(connection, tenant_id="acme", delivery_id=recorded[2].delivery_id, **earlier)
    assert [result.linked for result in recorded] == [1, 0, 0]
    assert db.value("SELECT count(*) FROM mailglass_open_orphans") == 0


def test_a_recorder_tells_the_doctor_of_refused_webhooks(db, acting):
    """Even with a `statement_timeout` that lets it record nothing."""
    user = make_url(acting("mailglass_recorder").database_url.get_secret_value()).username
    db.run(f"ALTER ROLE {user} SET statement_timeout = '1ms'")
    for error in (SignatureError("wrong"), DatabaseUnavailableError("SQLSTATE 57014")):
        refusal("postmark", error)
    wait_until(mailglass_reconcile.flush)
    refusals = "SELECT refused, failed, cause FROM mailglass_reconcile_refusals"
    assert [tuple(row) for row in db.rows(refusals)] == [(1, 1, "database")]


def test_an_eraser_erases(db, acting):
    """It erases deliveries, open orphans and raw webhooks, but may not read the ledger or move a delivery."""
    delivery(db, recipient="ada@example.com")
    event = WebhookEvent(type="opened", occurred_at=dt.datetime.now(dt.UTC), provider_event_id="1", message_id="m-1",
                         recipient="ada@example.com")  # fmt: skip
    with db.engine.begin() as connection:
        record_webhook(connection, tenant_id="acme", provider="postmark", events=[event])
    raw_webhooks.insert(db, {"to": "ada@example.com"})
    settings = acting("mailglass_eraser")
    target = erasure.validate_erasure("Ada@Example.com")
    result = erasure.erase_with(Database(engines.create_engine(settings), settings), target)
    assert (result.deliveries, result.open_orphans, result.webhook_events) == (1, 1, 1)
    for statement in (
        "SELECT metadata FROM mailglass_deliveries",
        "SELECT FROM mailglass_events",
        "UPDATE mailglass_deliveries SET tenant_id = 'x'",
        "DELETE FROM mailglass_webhook_events",
    ):
        check_refused(settings, statement)


def test_a_dispatcher_runs_handlers_on_what_a_sweeper_and_a_recorder_have_left(handler_db, acting):
    """Handlers run on the sweeper's links and the recorder's attached events, which are pruned at the end."""
    received = leaving("all")
    handler_db.run("GRANT USAGE ON SCHEMA witness TO PUBLIC; GRANT INSERT ON witness.effects TO PUBLIC")
    delivery(handler_db, "m-1")
    orphan(handler_db, postmark("m-1"))
    acting("mailglass_sweeper")
    assert mailglass_reconcile.reconcile().linked == 1
    opened = WebhookEvent(type="opened", occurred_at=dt.datetime.now(dt.UTC), provider_event_id="1", message_id="m-1")
    with engines.create_engine(acting("mailglass_recorder")).begin() as connection:
        record_webhook(connection, tenant_id="acme", provider="postmark", events=[opened])
    acting("mailglass_dispatcher")
    assert mailglass_reconcile.dispatch().handled == len(received) == 2
    assert handler_db.value("SELECT count(*) FROM mailglass_reconcile_runs WHERE kind = 'dispatch'") == 1
    acting("mailglass_sweeper", retention_succeeded_days=0)
    assert mailglass_reconcile.prune().jobs_done == 2
    handler_db.broken.add("I14")  # the prune has deleted the finished jobs


def test_a_writer_inserts_events(db, acting):
    """It has privileges on the ledger alone."""
    settings = acting("mailglass_writer")
    with engines.create_engine(settings).begin() as connection:
        connection.execute(
            sa.text("""INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, needs_reconciliation)
                       VALUES (gen_random_uuid(), 'acme', 'opened', now(), true)""")
        )
    assert db.value("SELECT count(*) FROM mailglass_open_orphans") == 1


@pytest.mark.parametrize(
    "command",
    nightly_unless(
        ("status", "sweep --dry-run").__contains__,
        [
            "status",
            "orphans",
            "orphans --expired",
            "explain --message-id m-1",
            "find m-1",
            "sweep --dry-run",
            "prune --dry-run",
            "migrate --check",
        ],
    ),
)
def test_a_reader_runs_commands_that_change_nothing(db, acting, redis_url, command):
    """Each command exits with 0."""
    orphan(db, postmark("m-1"))
    url = acting("mailglass_reader").database_url.get_secret_value()
    days = {f"MAILGLASS_RETENTION_{name}_DAYS": "30" for name in ("EVENTS", "DELIVERIES")}
    result = commands.run_forked(db, *command.split(), MAILGLASS_DATABASE_URL=url, **days)
    assert result.returncode == 0, result.stderr


def test_a_reader_serves_every_page(db, acting):
    """SELECT is enough for an open, a linked and an expired event, a delivery, and the health page."""
    sent = delivery(db, "m-1")
    events = [orphan(db, postmark("m-1")), orphan(db, postmark("m-2"))]
    mailglass_reconcile.reconcile()
    orphan(db, postmark("m-3"), age_seconds=8 * 86_400)
    acting("mailglass_reader", web_token=TOKEN)
    visitor = Visitor(create_app())
    assert b"mailglass_reconcile_up 1.0" in visitor.get("/metrics").content
    paths = [
        "/",
        "/?tenant=acme",
        "/orphans",
        "/orphans?state=expired",
        f"/deliveries/{sent}",
        "/find?q=m-1",
        "/readyz",
    ]
    for path in [*paths, *(f"/events/{event}" for event in events)]:
        assert visitor.get(path).status_code in (200, 303), path


def test_the_owner_of_mailglass_s_tables_migrates_without_being_superuser(empty_database_url, admin, shape):
    """It also removes our objects again."""
    database, name = installation(empty_database_url), make_url(empty_database_url).database
    with temporary_role(admin, "LOGIN PASSWORD 'secret'", database) as role:
        database.run(f"GRANT USAGE, CREATE ON SCHEMA public TO {role}; GRANT CREATE ON DATABASE {name} TO {role}")
        url = make_url(empty_database_url).set(username=role, password="secret")  # noqa: S106
        owned = make_mailglass_tables(url.render_as_string(hide_password=False), shape)
        before = owned.objects()
        owned.migrate()
        assert owned.is_current()
        owned.remove()
        assert owned.objects() == before


def test_an_owner_who_is_no_superuser_makes_all_tables(empty_database_url, admin):
    """Mailglass's tables and the functions of retention are made too."""
    database = installation(empty_database_url)
    lines: list[str] = []
    with temporary_role(admin, "LOGIN PASSWORD 'secret'", database) as role:
        database.run(f"GRANT USAGE, CREATE ON SCHEMA public TO {role}")
        url = make_url(empty_database_url).set(username=role, password="secret")  # noqa: S106
        settings = Settings(database_url=url.render_as_string(hide_password=False))
        runner.migrate(engines.create_engine(settings), settings, lines.append)
        assert lines[-1].startswith("done: revision")


@pytest.mark.guard
@pytest.mark.parametrize(
    "documented",
    slow_unless("mailglass_sweeper".__eq__, ["mailglass_sweeper", "mailglass_recorder", "mailglass_reader"]),
)
def test_nobody_reads_the_mail_of_a_delivery_or_moves_it_to_another_tenant(db, acting, documented):
    """`metadata` may contain rendered mail; we never change tenant and recipient."""
    settings = acting(documented)
    for statement in (
        "SELECT metadata FROM mailglass_deliveries",
        "UPDATE mailglass_deliveries SET tenant_id = 'x'",
        "UPDATE mailglass_deliveries SET recipient = 'x'",
        "SELECT raw_payload FROM mailglass_webhook_events",
    ):
        check_refused(settings, statement)


@pytest.mark.guard
@pytest.mark.parametrize(
    ("documented", "statements"),
    [
        (
            "mailglass_recorder",
            [
                "UPDATE mailglass_open_orphans SET tenant_id = 'x'",
                "UPDATE mailglass_open_orphans SET event_id = gen_random_uuid()",
                "UPDATE mailglass_open_orphans SET arrived_at = now()",
                "INSERT INTO mailglass_handler_outbox (state) VALUES ('done')",
                "DELETE FROM mailglass_open_orphans",
            ],
        ),
        (
            "mailglass_sweeper",
            [
                "UPDATE mailglass_open_orphans SET tenant_id = 'x'",
                "UPDATE mailglass_handler_outbox SET event_id = gen_random_uuid()",
                "INSERT INTO mailglass_handler_outbox (finished_at) VALUES (now())",
            ],
        ),
        (
            "mailglass_dispatcher",
            [
                "UPDATE mailglass_handler_outbox SET delivery_id = gen_random_uuid()",
                "UPDATE mailglass_handler_outbox SET event_id = gen_random_uuid()",
                "UPDATE mailglass_handler_outbox SET type = 'opened'",
                "INSERT INTO mailglass_handler_outbox (type) VALUES ('opened')",
            ],
        ),
    ],
)
def test_nobody_changes_whose_event_something_is(db, acting, documented, statements):
    """Privileges are on columns: an orphan keeps event, tenant and arrival, a handler's job its delivery."""
    settings = acting(documented)
    for statement in statements:
        check_refused(settings, statement)


@pytest.mark.parametrize("documented", ["mailglass_reader", "mailglass_sweeper"])
def test_a_role_sees_which_session_has_locked_a_delivery_but_not_what_it_does(db, acting, documented):
    delivery(db, "m-1")
    event_id = orphan(db, postmark("m-1"))
    with db.engine.begin() as holder:
        pid = holder.exec_driver_sql("SELECT pg_backend_pid() FROM mailglass_deliveries FOR UPDATE").scalar_one()
        assert mailglass_reconcile.reconcile().skipped_held == 1
        settings = acting(documented)
        held_by = explain(runtime.database(), uuid.UUID(event_id)).held_by
        role = make_url(settings.database_url.get_secret_value()).username
        db.run(f"REVOKE SELECT (xmax) ON mailglass_deliveries FROM {role}")  # noqa: S608
        explanation = explain(runtime.database(), uuid.UUID(event_id))
    assert (held_by.pid, held_by.role, held_by.state, held_by.since) == (pid, "postgres", None, None)
    assert (explanation.state, explanation.held_by) == ("matched", None), "a role without xmax"


def test_a_sweeper_leaves_behind_what_could_be_linked(db, acting):
    """It stores since when the oldest of them could be linked, which it reads from the delivery."""
    for message_id in ("m-1", "m-2"):
        delivery(db, message_id)
        orphan(db, postmark(message_id))
    acting("mailglass_sweeper")
    result = mailglass_reconcile.reconcile(limit=1)
    assert (result.status, result.linked, result.skipped_limit) == ("ok", 1, 1)
    assert db.value("SELECT linkable_since IS NOT NULL FROM mailglass_reconcile_runs ORDER BY id DESC LIMIT 1")
