"""Faults planted one at a time in a healthy database: the doctor names each, and its remedy fixes it."""

import uuid
from typing import NoReturn
from unittest.mock import Mock

import pytest
import sqlalchemy as sa
from celery import Celery, _state
from pydantic import SecretStr

import factories
import invariants
import mailglass_reconcile
import meter
import revisions
from database import Database
from diagnosing import heal, report, worst_finding
from factories import delivery, orphan, postmark
from mailglass_reconcile.ops import checks
from mailglass_reconcile.ops.checks import ERROR, OK, WARNING, workers
from mailglass_reconcile.ops.checks.workers import Cluster
from mailglass_reconcile.schedule import DISPATCH_TASK, PRUNE_TASK, SWEEP_TASK, make_beat_schedule
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.schema import revision, script
from recording import event, record

pytestmark = pytest.mark.slow

OF_THE_DATABASE = "server clock roles privileges schema names indexes triggers functions"
DISABLED = "ALTER TABLE mailglass_events DISABLE TRIGGER {}"
OF_THE_RUNS = (
    "sweeps beat prune broadcasts linking tenants key_rules documents handlers handled_types webhooks reports"
    " nothing_links"
)
OF_THE_LEDGER = "open_set other_reconciler recipients links"
REDIS = "redis redis_privileges lock_privileges"
CHECKS = f"settings imports database {REDIS} celery {OF_THE_DATABASE} {OF_THE_RUNS} {OF_THE_LEDGER}"


@pytest.mark.guard
def test_an_installation_that_is_well_has_no_finding_that_is_not_ok(db: Database) -> None:
    """The installation has links, a waiting orphan and an event of other software; each check prints one finding."""
    delivery(db, "one")
    for message in ("one", "nobody's"):
        orphan(db, postmark(message))
    mailglass_reconcile.reconcile()
    findings = report()
    assert [finding for finding in findings if finding.check != "settings" and finding.status != OK] == []
    assert [finding.check for finding in findings] == CHECKS.split()
    assert not [finding for finding in findings if finding.status == OK and finding.remedy]


@pytest.mark.parametrize("trigger", script.steps_of_kind("trigger"))
def test_a_trigger_that_is_disabled(db: Database, trigger: str) -> None:
    """Orphans arrive meanwhile; `migrate` restores the trigger and adds them."""
    db.run(DISABLED.format(trigger))
    orphan(db, postmark("meanwhile"))
    finding = worst_finding("triggers")
    assert (finding.status, trigger in finding.message) == (ERROR, True)
    heal(db, finding.remedy)
    assert (worst_finding("triggers").status, worst_finding("open_set").status) == (OK, OK)


@pytest.mark.guard
def test_an_open_set_that_lacks_orphans_is_repaired(db: Database) -> None:
    """Without repair they are named; with it they are open again."""
    for number in range(3):
        orphan(db, postmark(f"m-{number}"))
    db.run("DELETE FROM mailglass_open_orphans WHERE event_id IN (SELECT event_id FROM mailglass_open_orphans LIMIT 2)")
    finding = worst_finding("open_set")
    assert (finding.status, "2 of 3 orphans" in finding.message, "--repair" in finding.remedy) == (ERROR, True, True)
    now, repaired = [finding for finding in report(repair=True) if finding.check == "open_set"]
    assert repaired.message == "repaired: 2 open orphans added, 0 removed"
    assert (repaired.status, now.status) == (OK, OK)


def test_an_open_set_with_rows_too_many_is_repaired(db: Database) -> None:
    """The surplus rows are a reconciled orphan, one that the ledger does not have, and ids without an orphan."""
    linked, delivery_id = orphan(db, postmark("one")), delivery(db, "one")
    mailglass_reconcile.reconcile()
    for event_id in (linked, factories.new_id()):
        db.run("INSERT INTO mailglass_open_orphans VALUES (CAST(:id AS uuid), 'acme', now())", id=event_id)
    db.run("INSERT INTO mailglass_open_orphan_ids VALUES (CAST(:id AS uuid), 1, 'x')", id=delivery_id)
    finding = worst_finding("open_set")
    assert (finding.status, "2 of 2 orphans that are reconciled" in finding.message) == (WARNING, True)
    assert "1 of 1 id without an orphan" in finding.message
    assert worst_finding("open_set", repair=True).status == OK


def test_what_has_expired_is_not_missing(db: Database) -> None:
    """The prune removes it from the open set, and the ledger keeps it."""
    for age in (8, 20):
        orphan(db, postmark(f"m-{age}"), age_seconds=age * 86_400)
    mailglass_reconcile.prune()
    assert worst_finding("open_set").status == OK


def test_a_provider_whose_name_is_mistyped(db: Database) -> None:
    """The id may be found all the same, where most providers put it; the finding suggests the right name."""
    orphan(db, {"provider": "sendgird", "message_id": "m-1"})
    mailglass_reconcile.reconcile()
    finding = worst_finding("key_rules")
    assert (finding.status, "no rule knows sendgird; did you mean sendgrid?" in finding.message) == (WARNING, True)


def test_events_without_a_provider_or_without_an_id(db: Database) -> None:
    """The finding names both and is no error, because all other events are linked."""
    orphan(db, {"message_id": "m-1"})
    orphan(db, {"provider": "postmark", "message": "m-1"})
    mailglass_reconcile.reconcile()
    findings = [finding for finding in report() if finding.check == "key_rules"]
    assert [finding.status for finding in findings] == [WARNING, WARNING]
    assert "1 newest open event names no provider" in " ".join(finding.message for finding in findings)
    assert "postmark" in " ".join(finding.message for finding in findings)


def test_events_that_never_have_an_id_are_no_fault(mailglass_db: Database) -> None:
    """SendGrid's asynchronous bounces and Mandrill's list changes have none; a delivered event without an id is a
    fault.
    """
    for _ in range(12):
        orphan(mailglass_db, factories.sendgrid(None), type="bounced")
        orphan(mailglass_db, {"provider": "mandrill"}, type="unknown")
    mailglass_reconcile.reconcile()
    assert worst_finding("key_rules").status == OK
    orphan(mailglass_db, factories.sendgrid(None), type="delivered")
    mailglass_reconcile.reconcile()
    finding = worst_finding("key_rules")
    assert (finding.status, "sendgrid" in finding.message) == (WARNING, True)


def test_all_webhooks_under_another_tenant(mailglass_db: Database) -> None:
    """Mailglass without resolve_webhook_tenant does this; it is an error until they have reached their deliveries."""
    for number in range(3):
        delivery(mailglass_db, f"m-{number}", tenant_id="acme")
        orphan(mailglass_db, postmark(f"m-{number}"), tenant_id="default")
    assert worst_finding("tenants").status == OK, "nothing has looked at them yet"
    mailglass_reconcile.reconcile()
    finding = worst_finding("tenants")
    assert (finding.status, "tenant is default" in finding.message) == (ERROR, True)
    assert "resolve_webhook_tenant" in finding.remedy
    for number in range(4):
        delivery(mailglass_db, f"n-{number}", tenant_id="acme")
        orphan(mailglass_db, postmark(f"n-{number}"), tenant_id="acme")
    mailglass_reconcile.reconcile()
    assert worst_finding("tenants").status == ERROR
    for number in range(3):
        orphan(mailglass_db, postmark(f"m-{number}"), tenant_id="acme")
    mailglass_reconcile.reconcile()
    assert worst_finding("tenants").status == OK


@pytest.mark.parametrize("order", ["send first", "webhook first"])
def test_the_finding_about_tenants_ends_when_the_repeated_webhooks_have_reached_their_deliveries(
    db: Database, order: str
) -> None:
    for number in range(2):
        delivery(db, f"m-{number}", tenant_id="acme")
        orphan(db, postmark(f"m-{number}"), tenant_id="default")
    mailglass_reconcile.reconcile()
    assert worst_finding("tenants").status == WARNING
    with db.engine.begin() as connection:
        record(connection, event("m-0", "opened"), tenant_id="acme")
    assert "2 of 2 newest open events match" in worst_finding("tenants").message, "of another type"
    for number, left in enumerate(["1 of 2 newest open events matches", "or it was sent again"]):
        if order == "webhook first":
            orphan(db, postmark(f"m-{number}"), tenant_id="acme")
            mailglass_reconcile.reconcile()
        else:
            with db.engine.begin() as connection:
                record(connection, event(f"m-{number}", provider_event_id=f"e-{number}"), tenant_id="acme")
        assert left in worst_finding("tenants").message
    assert worst_finding("tenants").status == OK


def test_without_mailglass_no_remedy_names_it(db: Database) -> None:
    """Without Mailglass, its function for the tenant does not exist."""
    delivery(db, "m-1", tenant_id="acme")
    orphan(db, postmark("m-1"), tenant_id="default")
    mailglass_reconcile.reconcile()
    finding = worst_finding("tenants")
    assert (finding.status, "record_webhook" in finding.remedy) == (WARNING, True)
    assert "ailglass" not in finding.remedy.replace("MAILGLASS_TENANT", "")


def test_a_thousand_events_of_other_software_are_no_fault(db: Database) -> None:
    """Mail that somebody else sends through the same account never matches, before and after a sweep."""
    delivery(db, "ours")
    rows = [factories.orphan_row(postmark(str(uuid.uuid4())), age_seconds=86_400) for _ in range(1_000)]
    mailglass_reconcile.reconcile()
    factories.insert(db, events=rows)
    for _ in range(2):
        assert [finding for finding in report() if finding.check != "settings" and finding.status != OK] == []
        mailglass_reconcile.reconcile()


def test_a_lost_revision_is_restored_or_our_tables_are_made_again(db: Database) -> None:
    """`migrate` refuses, so it is not the remedy."""
    db.run("DELETE FROM mailglass_reconcile_version")
    finding = worst_finding("schema")
    assert (finding.status, "the database has no revision" in finding.message) == (ERROR, True)
    assert finding.remedy.startswith(
        "restore mailglass_reconcile_version from a backup, or run `mailglass-reconcile migrate"
    )
    db.run("INSERT INTO mailglass_reconcile_version VALUES (:version)", version=revision.VERSION)


def test_a_schema_that_is_outdated_newer_or_missing(db: Database) -> None:
    """This version works on a newer one of its major; the last finding names the setting."""
    db.run("UPDATE mailglass_reconcile_version SET version_num = :version", version=revisions.UNRELEASED)
    finding = worst_finding("schema")
    assert (finding.status, f"this one needs {revision.VERSION}" in finding.message) == (ERROR, True)
    for version, status in (("9999", ERROR), (revisions.NEXT, WARNING)):
        db.run("UPDATE mailglass_reconcile_version SET version_num = :version", version=version)
        finding = worst_finding("schema")
        assert (finding.status, "install the newer" in finding.remedy) == (status, True)
    db.run("UPDATE mailglass_reconcile_version SET version_num = :version", version=revision.VERSION)
    assert worst_finding("schema").status == OK
    elsewhere = db.settings.model_copy(update={"database_schema": "elsewhere"})
    mailglass_reconcile.configure(engine=db.engine, settings=elsewhere)
    finding = worst_finding("schema")
    assert (finding.status, "MAILGLASS_DATABASE_SCHEMA to public" in finding.remedy) == (ERROR, True)


@pytest.mark.parametrize("index", ["mailglass_deliveries_reconcile_idx", "mailglass_open_orphans_arrival_idx"])
def test_an_index_that_an_interrupted_build_left(db: Database, index: str) -> None:
    """The indexes are one on Mailglass's table and one on ours."""
    mailglass_reconcile.reconcile()
    before = db.value("SELECT pg_get_indexdef(to_regclass(:index))", index=index)
    db.run("UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass(:index)", index=index)
    finding = worst_finding("indexes")
    assert (finding.status, f"{index} is invalid" in finding.message) == (ERROR, True)
    assert finding.message.endswith("no sweep runs" if "deliveries" in index else "statements read whole tables")
    heal(db, finding.remedy)
    assert worst_finding("indexes").status == OK
    assert db.value("SELECT pg_get_indexdef(to_regclass(:index))", index=index) == before


def test_mailglass_s_own_reconciler_that_still_runs(mailglass_db: Database) -> None:
    """Its events differ from ours in the moment at which they happened; both at once are no error."""
    for message in ("one", "two"):
        delivery(mailglass_db, message)
    orphan(mailglass_db, postmark("one"))
    mailglass_reconcile.reconcile()
    assert worst_finding("other_reconciler").status == OK
    event_id = orphan(mailglass_db, postmark("two"))
    delivery_id = mailglass_db.value("SELECT id::text FROM mailglass_deliveries WHERE provider_message_id = 'two'")
    factories.insert(mailglass_db, events=[factories.reconciled_row(event_id, delivery_id)])
    finding = worst_finding("other_reconciler")
    assert (finding.status, "made 1 link within" in finding.message, "Oban" in finding.remedy) == (WARNING, True, True)


RUN = """
INSERT INTO mailglass_reconcile_runs (started_at, finished_at, kind, origin, status, error)
VALUES (now() - make_interval(mins => :minutes), now() - make_interval(mins => :minutes), 'full', :origin, :status,
        CASE :status WHEN 'failed' THEN 'DatabaseRefusedError' END)
"""


def test_sweeps_and_a_beat_that_have_stopped(db: Database) -> None:
    """The history shows it: no run yet, none by beat, cron in its place, beat again."""

    def errors() -> dict[str, str]:
        return {finding.check: finding.message for finding in report() if finding.status == ERROR}

    assert errors() == {"sweeps": "no full sweep of all tenants has run yet"}
    db.run(RUN, minutes=40, origin="beat", status="ok")
    assert errors() == {
        "sweeps": "no full sweep has succeeded for 40 minutes (limit 10 minutes); no run that beat queued has ended for"
        " 40 minutes"
    }, "one cause is one finding"
    mailglass_reconcile.reconcile()
    assert errors() == {}
    db.run(RUN, minutes=1, origin="beat", status="duplicate")
    assert errors() == {}


def test_beat_that_dispatches_is_not_to_be_started(db: Database) -> None:
    """It runs, so only sweeps are missing."""
    db.run(RUN, minutes=40, origin="beat", status="ok")
    db.run(RUN.replace("'full'", "'dispatch'"), minutes=1, origin="beat", status="ok")
    assert worst_finding("beat").status == OK
    assert worst_finding("sweeps").status == ERROR


def test_a_healthy_installation_with_cron_has_no_warning_and_looks_for_no_worker(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery and Redis count only if Celery ran the last sweep, if beat queues runs, or if nothing sweeps."""
    monkeypatch.setattr(_state._tls, "current_app", None)  # other tests may have created apps

    def looks_for_workers() -> bool:
        cluster: list[str] = []

        def make() -> NoReturn:
            cluster.append("made")
            raise ValueError

        findings = checks.diagnose(make)
        assert bool(cluster) == any(finding.check == "celery" and finding.status == ERROR for finding in findings)
        return bool(cluster)

    assert looks_for_workers()
    for origin, expected in (("call", True), ("command", False), ("follow", False), ("python", False)):
        db.run(RUN, minutes=4, origin=origin, status="ok")
        assert looks_for_workers() == expected
    assert [finding for finding in report() if finding.status != OK] == []
    default = db.settings.model_copy(update={"redis_url": SecretStr("redis://127.0.0.1:1/0")})
    default.model_fields_set.discard("redis_url")
    mailglass_reconcile.configure(engine=db.engine, settings=default)
    assert [finding for finding in report() if finding.status != OK] == []
    db.run(RUN, minutes=1, origin="beat", status="ok")
    assert looks_for_workers()


def test_the_first_doctor_asks_for_no_redis_that_nobody_has_set_up(
    db: Database, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis is not expected before or after `migrate`, or without a database; once Celery has swept, it is."""
    monkeypatch.delenv("CELERY_BROKER_URL", raising=False)
    monkeypatch.setattr(_state._tls, "current_app", None)  # other tests may have created apps
    default = db.settings.model_copy(update={"redis_url": SecretStr("redis://127.0.0.1:1/0")})
    default.model_fields_set.discard("redis_url")

    def errors(engine: sa.Engine) -> set[str]:
        mailglass_reconcile.configure(engine=engine, settings=default)
        return {finding.check for finding in checks.diagnose(Mock(side_effect=ValueError)) if finding.status == ERROR}

    assert errors(sa.create_engine("postgresql+psycopg://127.0.0.1:1/none")) == {"database"}
    assert errors(engines.create_engine(Settings(database_url=empty_database_url))) == {"schema"}
    assert errors(db.engine) == {"sweeps"}
    db.run(RUN, minutes=60, origin="beat", status="ok")
    assert errors(db.engine) >= {"redis", "celery"}


EVENTS = """
INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, metadata, needs_reconciliation, inserted_at)
SELECT gen_random_uuid(), 'acme', 'delivered', now(),
       jsonb_build_object('provider', 'postmark', 'message_id', md5(g::text)), true, now() - make_interval(secs => g)
  FROM generate_series(CAST(:first AS integer), CAST(:last AS integer)) AS g
"""
DELIVERIES = """
INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain, provider_message_id,
                                  last_event_type, last_event_at, inserted_at, updated_at)
SELECT gen_random_uuid(), 'acme', 'Welcome', 'bulk', 'ada@example.com', 'example.com', md5('d' || g),
       'dispatched', now(), now(), now()
  FROM generate_series(CAST(:first AS integer), CAST(:last AS integer)) AS g
"""


def test_the_cost_does_not_grow_with_the_tables(db: Database) -> None:
    """With four times the rows, none of which match, and no statistics, it reads as many blocks as before."""

    def cost() -> int:
        with meter.plans(db.engine) as plan:
            assert {finding.status for finding in report() if finding.check not in ("settings", "sweeps")} == {OK}
        return plan.buffers

    db.broken.update(invariants.ALL)  # its doctor would compare each event with each delivery
    for table in ("events", "deliveries", "open_orphans", "open_orphan_ids"):
        db.run(f"ALTER TABLE mailglass_{table} SET (autovacuum_enabled = off)")  # after a vacuum, a scan reads less
    read = []
    for first, last in ((1, 20_000), (20_001, 80_000)):
        for statement in (EVENTS, DELIVERIES):
            db.run(statement, first=first, last=last)
        read.append(min(cost() for _ in range(2)))
    assert read[1] < 1.5 * read[0]


def test_orphans_whose_tenant_is_too_long_are_counted(db: Database) -> None:
    """They are never linked, and the open set is complete without them."""
    orphan(db, postmark("one"), tenant_id="t" * 1_001)
    finding = worst_finding("open_set")
    assert (finding.status, "1 orphan checked has a tenant of more than 1,000" in finding.message) == (WARNING, True)


def test_a_task_is_expected_in_the_queue_that_its_schedule_names() -> None:
    """`make_beat_schedule(queue=…)` needs a worker with `-Q`, whatever the routes say."""
    app = Celery("adopter", broker="memory://", set_as_current=False)
    app.conf.task_default_queue = "yourapp"
    with Cluster(app) as cluster:
        assert cluster.queues_of(SWEEP_TASK) == ["yourapp"]
        app.conf.beat_schedule = make_beat_schedule(queue="mail")
        assert {task: cluster.queues_of(task) for task in cluster.tasks()} == {
            task: ["mail"] for task in (SWEEP_TASK, PRUNE_TASK, DISPATCH_TASK)
        }


@pytest.mark.parametrize(
    ("routes", "is_overridden"),
    [
        ({}, False),
        ({"mailglass_reconcile.tasks.*": "mail"}, False),
        ({"mailglass_reconcile.tasks.*": {"queue": "sweeps"}, "shop.*": "shop"}, True),
    ],
)
def test_a_queue_of_the_schedule_that_overrides_the_routes_of_the_app_is_a_warning(routes, is_overridden) -> None:
    """A worker that consumes the queue of the routes would never get the scheduled tasks."""
    app = Celery("adopter", broker="memory://", set_as_current=False)
    app.conf.update(task_routes=routes, beat_schedule=make_beat_schedule(queue="mail", dispatch=False))
    with Cluster(app) as cluster:
        findings = list(workers.schedule.run(cluster))
    assert [finding.status for finding in findings] == [WARNING if is_overridden else OK]
    if is_overridden:
        assert f"{SWEEP_TASK} and {PRUNE_TASK} to the queue mail" in findings[0].message
        assert "sweeps" in findings[0].message
