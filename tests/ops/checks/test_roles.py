"""A documented role without a privilege is found by every other role, with its GRANT, and gets no other role's."""

import datetime as dt
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

import factories
import granting
import mailglass_reconcile
from database import Database
from diagnosing import heal, report, use_settings, worst_finding
from mailglass_reconcile import WebhookEvent, record_webhook
from mailglass_reconcile.errors import DatabaseRefusedError
from mailglass_reconcile.ops.checks import ERROR, OK
from mailglass_reconcile.ops.status import load_problems, load_status
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.migration import privileges
from marking import slow_unless

pytestmark = pytest.mark.slow


@pytest.fixture
def documented(db: Database, admin: sa.Engine) -> Iterator[Callable[..., str]]:
    """Create documented roles under their own names, with their grants; return the URL of one."""
    names: list[str] = []

    def create(name: str) -> str:
        names.append(name)
        with admin.connect() as connection:
            connection.exec_driver_sql(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'")
        db.run("".join(granting.STATEMENTS[name]))
        url = make_url(db.url).set(username=name, password="secret")  # noqa: S106
        return url.render_as_string(hide_password=False)

    yield create
    mailglass_reconcile.configure(engine=db.engine, settings=db.settings)
    for name in names:
        db.run(f"DROP OWNED BY {name}")
        with admin.connect() as connection:
            connection.exec_driver_sql(f"DROP ROLE {name}")


def test_a_recorder_that_lacks_privileges_is_found_by_doctor_and_status_of_other_roles(db, documented):
    """Webhooks would be answered with 503 while all the others work."""
    documented("mailglass_recorder")
    sweeper, reader = documented("mailglass_sweeper"), documented("mailglass_reader")
    use_settings(db, database_url=sweeper)
    mailglass_reconcile.reconcile()
    assert worst_finding("roles").status == OK
    db.run(
        "REVOKE UPDATE (last_event_type) ON mailglass_deliveries FROM mailglass_recorder;"
        "REVOKE INSERT ON mailglass_open_orphan_ids FROM mailglass_recorder"
    )
    finding = worst_finding("roles")
    assert (finding.status, finding.message, finding.remedy) == (
        ERROR,
        "role mailglass_recorder lacks UPDATE (last_event_type) on mailglass_deliveries;"
        " INSERT on mailglass_open_orphan_ids",
        "GRANT UPDATE (last_event_type) ON public.mailglass_deliveries TO mailglass_recorder;"
        " GRANT INSERT ON public.mailglass_open_orphan_ids TO mailglass_recorder",
    )
    use_settings(db, database_url=reader)
    assert finding.message in str(load_problems(mailglass_reconcile.runtime.database()))
    heal(db, finding.remedy)
    assert not load_problems(mailglass_reconcile.runtime.database())


def test_a_sweep_whose_role_may_not_read_the_window_leaves_the_counts_of_the_sweep_before_it(db, documented):
    """It has counted nothing; status once showed no open events after it."""
    factories.orphan(db, factories.postmark("m-1"))
    use_settings(db, database_url=documented("mailglass_sweeper"))
    mailglass_reconcile.reconcile()
    db.run("REVOKE SELECT ON mailglass_reconcile_version FROM mailglass_sweeper")
    with pytest.raises(mailglass_reconcile.MailglassReconcileError):
        mailglass_reconcile.reconcile()
    status = load_status(db.database)
    assert (status.last_runs[0]["status"], status.eligible, status.newer) == ("failed", 1, 0)


@pytest.mark.parametrize("role", privileges.documented_roles())
def test_each_privilege_of_a_documented_role_is_missed_and_granted_by_the_remedy(db, documented, role):
    """Every second one is revoked, then the others: a role without any privilege is not checked."""
    documented(role)
    mailglass_reconcile.reconcile()
    revocable = [
        (str(required), required.object)
        for required in privileges.documented_privileges()
        if required.role == role
        and required.condition != "made_by_mailglass"
        and not required.object.startswith("mailglass_reconcile_prune_")
    ]
    if len(revocable) == 1:
        db.run(f"GRANT SELECT ON {revocable[0][1]} TO {role}")
    for revoked in filter(None, (revocable[::2], revocable[1::2])):
        for privilege, name in revoked:
            db.run(f"REVOKE {privilege} ON {'FUNCTION ' * (privilege == 'EXECUTE')}{name} FROM {role}")
        finding = worst_finding("roles")
        beginning, _, lacking = finding.message.partition(" lacks ")
        assert (finding.status, beginning) == (ERROR, f"role {role}")
        assert sorted(lacking.split("; ")) == sorted(f"{privilege} on {name}" for privilege, name in revoked)
        heal(db, finding.remedy)
    assert worst_finding("roles").status == OK


def test_a_documented_role_that_is_used_for_another_database_only_is_no_fault(db, documented):
    """Roles belong to the server, and this one was granted nothing in this database."""
    documented("mailglass_recorder")
    db.run("DROP OWNED BY mailglass_recorder")
    assert worst_finding("roles").status == OK


def test_row_level_security_that_would_hide_rows_from_a_documented_role_is_found(db, documented):
    """A policy applies to every writer's statements, also to those that are not ours."""
    documented("mailglass_recorder")
    documented("mailglass_writer")
    db.run("ALTER TABLE mailglass_events ENABLE ROW LEVEL SECURITY")
    [result] = [finding for finding in report() if finding.check == "roles" and finding.status == ERROR]
    assert "row-level security of mailglass_events would hide rows from role mailglass_recorder" in result.message
    heal(db, result.remedy)
    assert worst_finding("roles").status == OK


@pytest.mark.guard
@pytest.mark.parametrize(
    "name",
    slow_unless(
        "mailglass_recorder".__eq__,
        ["mailglass_recorder", "mailglass_reader", "mailglass_eraser", "mailglass_dispatcher"],
    ),
)
def test_doctor_offers_no_role_a_privilege_that_the_document_does_not_give_it(db, documented, name):
    """For a role other than the sweeper, one finding says who runs doctor, without a GRANT."""
    use_settings(db, database_url=documented(name))
    [result] = [finding for finding in report() if finding.status == ERROR]
    assert result.message.startswith(f"doctor needs the privileges of mailglass_sweeper, and role {name} has others")
    assert not [finding for finding in report() if "GRANT" in str(finding.remedy)]


def test_a_prune_as_the_recorder_is_refused_without_a_grant(db, documented):
    """The remedy would have given it DELETE on five tables."""
    use_settings(db, database_url=documented("mailglass_recorder"))
    failures = mailglass_reconcile.prune().failures
    assert failures
    for sentence in failures.values():
        assert "role mailglass_recorder may not sweep or prune (SQLSTATE 42501)" in sentence
        assert "GRANT" not in sentence


def test_a_reader_is_told_which_of_its_own_privileges_is_missing(db, documented):
    """`status --check` reads the history of runs."""
    use_settings(db, database_url=documented("mailglass_reader"))
    db.run("REVOKE SELECT ON mailglass_reconcile_runs FROM mailglass_reader")
    output = str(load_problems(mailglass_reconcile.runtime.database()))
    assert "role mailglass_reader lacks SELECT on mailglass_reconcile_runs" in output
    assert "GRANT SELECT ON public.mailglass_reconcile_runs TO mailglass_reader" in output


def test_a_login_gets_its_privileges_through_the_documented_role_that_it_has(db, documented, admin):
    """The GRANT is to the documented role, and is named once; the login itself gets BYPASSRLS."""
    documented("mailglass_sweeper")
    with admin.connect() as connection:
        connection.exec_driver_sql("CREATE ROLE mgtest_worker LOGIN PASSWORD 'secret' IN ROLE mailglass_sweeper")
    try:
        db.run("REVOKE INSERT ON mailglass_events FROM mailglass_sweeper")
        url = make_url(db.url).set(username="mgtest_worker", password="secret")  # noqa: S106
        use_settings(db, database_url=url.render_as_string(hide_password=False))
        [result] = [
            finding for finding in report() if finding.check in ("roles", "privileges") and finding.status == ERROR
        ]
        assert result.remedy == "GRANT INSERT ON public.mailglass_events TO mailglass_sweeper"
        heal(db, result.remedy)
        db.run("ALTER TABLE mailglass_deliveries ENABLE ROW LEVEL SECURITY")
        heal(db, worst_finding("privileges").remedy)
        assert worst_finding("privileges").status == OK
    finally:
        with admin.connect() as connection:
            connection.exec_driver_sql("DROP ROLE mgtest_worker")


@pytest.mark.guard
def test_a_missing_privilege_names_role_and_object(db, documented):
    """Our engine and a caller's print it alike, without a value of a row."""
    url = documented("mailglass_recorder")
    db.run("REVOKE INSERT ON mailglass_events FROM mailglass_recorder")
    event = WebhookEvent(
        type="opened",
        occurred_at=dt.datetime.now(dt.UTC),
        provider_event_id="1",
        message_id="m-1",
        recipient="ada@example.com",
    )
    callers = sa.create_engine(make_url(url).set(drivername="postgresql+psycopg"), poolclass=sa.NullPool)
    settings = db.settings.model_copy(
        update={"database_url": mailglass_reconcile.Settings(database_url=url).database_url}
    )
    for engine in (engines.create_engine(settings), callers):
        with pytest.raises(DatabaseRefusedError) as refused, engine.begin() as connection:
            record_webhook(connection, tenant_id="acme", provider="postmark", events=[event])
        assert str(refused.value).startswith(
            "permission denied for role mailglass_recorder on mailglass_events: the role lacks a privilege"
        )
        assert "docs/roles.md" in str(refused.value)
