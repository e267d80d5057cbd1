"""Incidents: how each is caused, and what doctor, status, metrics, dashboard and Django's check report."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import unescape
from importlib import import_module
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy.engine import make_url

import django_project
import granting
import mailglass_reconcile
import sweeping
from browsing import Visitor, app
from diagnosing import heal, worst_finding
from factories import delivery, delivery_row, insert, insert_pairs, orphan_row, postmark
from handling import handle
from mailglass_reconcile.ops import status
from mailglass_reconcile.ops.checks import ERROR, OK, WARNING, server
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.migration import runner
from mailglass_reconcile.store.schema import revision
from mailglass_reconcile.store.tables import refusals
from marking import nightly_unless, slow_unless
from recording import event, record
from scraping import scrape, value

RUN = """
INSERT INTO mailglass_reconcile_runs (started_at, finished_at, kind, origin, status, error)
VALUES (now() - make_interval(mins => :minutes), now() - make_interval(mins => :minutes), 'full', :origin, :status,
        CASE :status WHEN 'failed' THEN 'DatabaseRefusedError' END)
"""


PRUNED = """
INSERT INTO mailglass_reconcile_runs (id, started_at, finished_at, kind, origin, status) OVERRIDING SYSTEM VALUE
VALUES (-1, now() - make_interval(days => :days), now() - make_interval(days => :days), 'prune', 'beat', :status)
"""
SEEN = """
UPDATE mailglass_handled_types SET seen_at = now()::timestamp - make_interval(mins => :minutes)
 WHERE handler = 'old one'
"""
JOB = """
INSERT INTO mailglass_handler_outbox (event_id, handler, delivery_id, type, state, attempts, next_at, inserted_at)
VALUES (gen_random_uuid(), 'suppress', gen_random_uuid(), 'bounced', :state, :attempts,
        now() - make_interval(secs => :due), now())
"""


@dataclass(frozen=True)
class Incident:
    """An incident.

    Attributes:
        check: The check that finds it.
        plant: Brings it about in a database in which all is well.
        words: What each place says.
        heal: Takes the step that the finding names.
        level: The level of the finding.
        remedy: Words of the step that the finding names.
        merged: The check that found it, if its finding is merged into that of `check`.
    """

    check: str
    plant: Callable[[Any], object]
    words: str
    heal: Callable[[Any], object]
    level: str = ERROR
    remedy: str = ""
    merged: str = ""


def drop_object(object_name: str) -> Callable[[Any], object]:
    """Drop an object of the schema."""
    return lambda db: (db.broken.add("I13"), db.run(f"DROP {object_name}"))


def migrate(db: Any) -> None:
    """Run the command that the finding names."""
    runner.migrate(db.engine, db.settings, lambda line: None)


def run(minutes: int, origin: str, status: str) -> Callable[[Any], object]:
    """Leave one full sweep as the only run in the history."""

    def plant(db: Any) -> None:
        db.run("DELETE FROM mailglass_reconcile_runs")
        db.run(RUN, minutes=minutes, origin=origin, status=status)

    return plant


def sweep(db: Any) -> None:
    """Run a sweep of all tenants."""
    mailglass_reconcile.reconcile()


def send(number: int, hours_ago: int, **columns: object) -> Callable[[Any], object]:
    """Record sends that were dispatched so long ago and never reported."""

    def plant(db: Any) -> None:
        at = str(db.value(f"SELECT now()::timestamp - interval '{hours_ago} hours'"))
        sent = {
            "dispatched_at": at,
            "last_event_at": at,
            "age_seconds": hours_ago * 3_600,
            "provider": "postmark",
            **columns,
        }
        insert(db, [delivery_row(f"sent-{n}", **sent) for n in range(number)])

    return plant


def receive(db: Any) -> None:
    """Store events whose ids no delivery has, and sweep."""
    send(20, 2)(db)
    insert(db, [], [orphan_row(postmark(f"other-{n}")) for n in range(20)])
    sweep(db)


REFUSALS = """
INSERT INTO mailglass_reconcile_refusals (provider, since, last_at, refused, failed, cause)
VALUES ('postmark', now()::timestamp - interval '25 minutes', now()::timestamp, 10, 2, :cause)
"""


def refuse(cause: str, *, with_mail: bool = False) -> Callable[[Any], object]:
    """Store that webhooks are refused, and record a send without a report before and, *with_mail*, one since."""

    def plant(db: Any) -> None:
        db.run(REFUSALS, cause=cause)
        at = str(db.value(f"SELECT now()::timestamp - interval '{15 if with_mail else 30} minutes'"))
        insert(db, [delivery_row("m", dispatched_at=at, last_event_at=at, provider="postmark", age_seconds=900)])

    return plant


def accept(db: Any) -> None:
    """Store that a webhook was accepted since."""
    with db.database.writing() as tx:
        refusals.accept(tx, [refusals.Source("postmark", "")])


def report(db: Any) -> None:
    """Add a report for each send."""
    db.broken.update({"I2", "I7"})
    db.run("UPDATE mailglass_deliveries SET last_event_type = 'delivered', last_event_at = now(), delivered_at = now()")


def astray(number: int) -> Callable[[Any], object]:
    """Store events under another tenant than their deliveries, and sweep."""

    def plant(db: Any) -> None:
        rows = [orphan_row(postmark(f"m-{n}"), tenant_id="x") for n in range(number)]
        insert(db, [delivery_row(f"m-{n}") for n in range(number)], rows)
        sweep(db)

    return plant


def foreign(number: int, provider: str = "acme") -> Callable[[Any], object]:
    """Store events of a provider without a rule, and sweep."""

    def plant(db: Any) -> None:
        insert(db, [], [orphan_row({"provider": provider, "its": {"id": str(n)}}) for n in range(number)])
        sweep(db)

    return plant


def swell(number: int) -> Callable[[Any], object]:
    """Store events with a whole raw webhook in their metadata, and sweep."""

    def plant(db: Any) -> None:
        insert(db, [], [orphan_row(postmark(f"large-{n}", body="x" * 66_000)) for n in range(number)])
        sweep(db)

    return plant


def forget(minutes: int) -> Callable[[Any], object]:
    """Register handlers, of which one was last seen so many minutes ago."""

    def plant(db: Any) -> None:
        handle(db, ("audit", "bounced"), ("old one", "bounced"), ("old one", "opened"))
        db.run(SEEN, minutes=minutes)

    return plant


def expire(db: Any) -> None:
    """Age all open orphans beyond the maximum age."""
    db.broken.update({"I13", "I6"})
    db.run("UPDATE mailglass_open_orphans SET arrived_at = arrived_at - interval '8 days'")


def leave(db: Any) -> None:
    """Simulate a sweep that left a linkable event long after its delivery came."""
    rows = [orphan_row(postmark(f"m-{n}"), age_seconds=9_000) for n in range(2)]
    insert(db, [delivery_row(f"m-{n}") for n in range(2)], rows)
    db.run("UPDATE mailglass_deliveries SET inserted_at = inserted_at - interval '1 hour'")
    with sweeping.held(db.engine, free=1):
        mailglass_reconcile.reconcile()


def enqueue(state: str, attempts: int, due_seconds: int) -> Callable[[Any], object]:
    """Leave a job of a handler in the outbox, due so many seconds ago."""

    def plant(db: Any) -> None:
        db.broken.add("I14")
        handle(db, ("suppress", "bounced"))
        db.run(JOB, state=state, attempts=attempts, due=due_seconds)

    return plant


def empty_outbox(db: Any) -> None:
    """Mark all jobs as done."""
    db.run("DELETE FROM mailglass_handler_outbox")


def prune(days: int, status: str) -> Callable[[Any], object]:
    """Record one prune, so many days ago."""
    return lambda db: db.run(PRUNED, days=days, status=status)


def mute(db: Any) -> None:
    """Record a full sweep whose messages Redis refused."""
    db.run("UPDATE mailglass_reconcile_runs SET published = 0, publish_failed = 2 WHERE kind = 'full'")


def outdate(db: Any) -> None:
    """Set another revision."""
    db.run("UPDATE mailglass_reconcile_version SET version_num = '0000'")


def update(db: Any) -> None:
    """Restore the revision."""
    db.run("UPDATE mailglass_reconcile_version SET version_num = :version", version=revision.VERSION)


REFUSED = "every webhook of postmark for 25 minutes was refused: 12, the last one because of another topic; the mail"
INCIDENTS = [
    Incident("schema", outdate, "the database is at revision 0000", update),
    Incident(
        "names",
        lambda db: db.run(
            "CREATE FUNCTION mailglass_reconcile_iso_v1(text) RETURNS text LANGUAGE sql AS 'SELECT $1';"
            " ALTER FUNCTION mailglass_reconcile_iso_v1(text) OWNER TO pg_monitor"
        ),
        "FUNCTION public.mailglass_reconcile_iso_v1(text) exists with other arguments, owned by pg_monitor",
        lambda db: heal(db, worst_finding("names").remedy),
        remedy="DROP FUNCTION public.mailglass_reconcile_iso_v1(text)",
    ),
    Incident("triggers", drop_object("TRIGGER mailglass_open_orphans_add ON mailglass_events"), "is missing", migrate),
    Incident(
        "functions", drop_object("FUNCTION mailglass_reconcile_after_commit_v1"), "after_commit_v1 is missing", migrate
    ),
    Incident(
        "indexes", drop_object("INDEX mailglass_events_idempotency_key_idx"), "idempotency_key_idx is missing", migrate
    ),
    Incident("sweeps", run(40, "beat", "ok"), "no run that beat queued has ended for 40 minutes", sweep, merged="beat"),
    Incident("sweeps", run(40, "command", "ok"), "no full sweep has succeeded for 40 minutes", sweep),
    Incident(
        "sweeps", run(1, "command", "failed"), "the last full sweep failed 1 minute ago (DatabaseRefusedError)", sweep
    ),
    Incident("prune", prune(3, "failed"), "nothing was pruned for 3 days", lambda db: mailglass_reconcile.prune()),
    Incident("linking", leave, "although its delivery exists", sweep),
    Incident("broadcasts", mute, "Redis accepted none of the 2 broadcasts of the last full sweep", sweep),
    Incident("handlers", enqueue("dead", 9, 0), "1 job of a handler is dead", empty_outbox, remedy="dispatch --retry"),
    Incident(
        "handlers",
        enqueue("waiting", 0, 400),
        "an event has waited 6 minutes for a handler",
        empty_outbox,
        remedy="dispatch` with the handlers' module",
    ),
    Incident("handlers", enqueue("waiting", 3, -60), "1 job of a handler has failed 3 times", empty_outbox),
    Incident("webhooks", refuse("topic", with_mail=True), REFUSED, accept, remedy="compare the topic's ARN"),
    Incident("webhooks", refuse("clock"), "the last one because of a wrong clock", accept, WARNING, "set the clock"),
    Incident("reports", send(20, 30), "no webhook of postmark has ever arrived", report),
    Incident("reports", send(3, 30), "no webhook of postmark has ever arrived", report, WARNING),
    Incident("nothing_links", receive, "webhooks of postmark name other message ids than its sends", report),
    Incident("tenants", astray(5), "5 of 5 newest open events match only another tenant's deliveries", expire),
    Incident(
        "key_rules",
        foreign(12),
        "of 12 newest open events of the provider acme, none has a usable id",
        expire,
        remedy="register one with key_rule",
    ),
    Incident("documents", swell(12), "12 of 12 newest open events have more than 64 kB of text", expire),
    Incident("documents", swell(1), "1 of 1 newest open event has more than 64 kB of text", expire, WARNING),
    Incident(
        "handled_types",
        forget(120),
        "no dispatcher has had the handler old one (bounced, opened) for 2 hours",
        lambda db: db.run("UPDATE mailglass_handled_types SET seen_at = now()::timestamp"),
        remedy="dispatch --forget --handler 'old one'`",
    ),
]


def is_quick(incident: Incident) -> bool:
    """Return True if `make test` plants an incident: one for each kind of remedy, and a warning."""
    return incident.words in {
        "is missing",
        "no run that beat queued has ended for 40 minutes",
        "1 job of a handler is dead",
        "webhooks of postmark name other message ids than its sends",
        "1 of 1 newest open event has more than 64 kB of text",
    }


def djangos(check: str) -> list[str]:
    """Return the messages of `manage.py check --database` about one check, warnings and errors."""
    checks = import_module("mailglass_reconcile.contrib.django.checks")  # Django is set up by now
    messages = checks.check_database(databases=["default"])
    ids = (f"mailglass_reconcile.{check}", f"mailglass_reconcile.{check}.error")
    return [f"{message.msg} {message.hint}" for message in messages if message.id in ids]


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize(
    "incident",
    nightly_unless(lambda incident: incident.check == "sweeps", INCIDENTS, is_quick),
    ids=lambda incident: f"{incident.check}: {incident.words}"[:50],
)
def test_an_incident_is_the_same_finding_everywhere_until_it_is_healed(db, incident):
    """Doctor, `status --check`, dashboard and Django print the same sentence; the metric has its check and level."""
    assert_the_same_everywhere(db, incident)


def assert_the_same_everywhere(db: Any, incident: Incident) -> None:
    """Assert that an incident is the same finding on each surface, and none after it is healed."""
    sweep(db)
    incident.plant(db)
    finding = worst_finding(incident.check)
    assert (finding.status, incident.words in finding.message) == (incident.level, True), finding
    assert incident.remedy in (finding.remedy or "")
    problems = [sentence for sentence in status.load_problems(db.database) if incident.words in sentence]
    assert bool(problems) == (incident.level == ERROR)
    assert value(scrape(db), "findings", check=incident.check, status=incident.level) >= 1
    assert [incident.words in message for message in djangos(incident.check)].count(True) == 1
    page = unescape(Visitor(app(db)).get("/").text)
    assert incident.words in page or incident.words[:1].upper() + incident.words[1:] in page
    incident.heal(db)
    assert worst_finding(incident.check).status == OK
    assert value(scrape(db), "findings", check=incident.check, status=incident.level) == 0
    assert djangos(incident.check) == []


@contextmanager
def documented_role(db: Any, admin: Any, name: str) -> Iterator[str]:
    """Create a documented role with its grants, and yield the URL of its login."""
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'")
    try:
        schema = db.settings.database_schema
        grants = (grant for grant in granting.STATEMENTS[name] if "mailglass_reconcile_prune_" not in grant)
        db.run("".join(grants).replace("ON SCHEMA public", f"ON SCHEMA {schema}"))
        url = make_url(db.url).set(username=name, password="secret")  # noqa: S106
        yield url.render_as_string(hide_password=False)
    finally:
        mailglass_reconcile.configure(engine=db.engine, settings=db.settings)
        db.run(f"DROP OWNED BY {name}")
        with admin.connect() as connection:
            connection.exec_driver_sql(f"DROP ROLE {name}")


def revoke(db: Any, privilege: str, role: str, check: str) -> Incident:
    """Return the incident that a role lacks a privilege; the owner of the tables plants and heals it."""
    return Incident(
        check,
        lambda _: db.run(f"REVOKE {privilege} FROM {role}"),
        f"role {role} lacks {privilege}",
        lambda _: db.run(f"GRANT {privilege} TO {role}"),
        remedy="GRANT ",
    )


@pytest.mark.slow
@pytest.mark.usefixtures("app")
def test_a_privilege_that_another_role_lacks_is_the_same_finding_everywhere(db, admin):
    """The receiver's webhooks would be answered with 503."""
    with documented_role(db, admin, "mailglass_recorder"):
        assert_the_same_everywhere(db, revoke(db, "INSERT on mailglass_events", "mailglass_recorder", "roles"))


@pytest.mark.slow
@pytest.mark.usefixtures("app")
def test_a_privilege_that_the_own_role_lacks_is_the_same_finding_everywhere(db, admin):
    """Each surface connects as the sweeper."""
    with documented_role(db, admin, "mailglass_sweeper") as url:
        settings = db.settings.model_copy(update={"database_url": SecretStr(url)})
        as_sweeper = replace(db, url=url, settings=settings, engine=engines.create_engine(settings))
        mailglass_reconcile.configure(engine=as_sweeper.engine, settings=settings)
        incident = revoke(db, "DELETE on mailglass_handler_outbox", "mailglass_sweeper", "privileges")
        with django_project.databases_name(url):
            assert_the_same_everywhere(as_sweeper, incident)


@pytest.mark.slow
@pytest.mark.usefixtures("app")
def test_a_server_that_is_too_old_is_the_same_finding_everywhere(db, monkeypatch):
    """No such server is at hand, so the oldest version is raised."""
    oldest = server.OLDEST_SERVER
    plant, heal = (
        lambda _, value=value: monkeypatch.setattr(server, "OLDEST_SERVER", value) for value in (10**9, oldest)
    )
    assert_the_same_everywhere(db, Incident("server", plant, "is too old", heal))


@pytest.mark.slow
@pytest.mark.usefixtures("anymail_django")
def test_recipients_that_no_sweep_may_read_are_the_same_finding_everywhere(mailglass_db, admin):
    """Only Mailglass's tables have raw webhooks with recipients."""
    with documented_role(mailglass_db, admin, "mailglass_sweeper"), django_project.databases_name(mailglass_db.url):
        incident = Incident(
            "recipients",
            lambda db: db.run("REVOKE SELECT ON mailglass_webhook_events FROM mailglass_sweeper"),
            "role mailglass_sweeper cannot read raw webhooks",
            lambda db: heal(db, worst_finding("recipients").remedy),
            WARNING,
            "GRANT SELECT (",
        )
        assert_the_same_everywhere(mailglass_db, incident)


def test_each_check_that_prometheus_reports_has_an_incident():
    """Those without one in the table have a test of their own above."""
    planted = {name for incident in INCIDENTS for name in (incident.check, incident.merged) if name}
    cheap = {check.name for check in mailglass_reconcile.ops.checks.CHECKS if check.is_fast}
    assert planted | {"server", "roles", "privileges", "recipients"} == cheap


def change_sweep(assignments: str) -> Callable[[Any], object]:
    """Change columns of the last full sweep."""
    newest = "(SELECT max(id) FROM mailglass_reconcile_runs WHERE kind = 'full')"
    return lambda db: db.run(f"UPDATE mailglass_reconcile_runs SET {assignments} WHERE id = {newest}")  # noqa: S608


def fail(db: Any) -> None:
    """Record another sweep, which failed."""
    db.run(RUN, minutes=1, origin="command", status="failed")


def cut_short(minutes: int) -> Callable[[Any], object]:
    """Record that each sweep since so many minutes has ended at its deadline."""

    def plant(db: Any) -> None:
        sweep(db)
        started = f"started_at = started_at - interval '{minutes} minutes'"
        change_sweep(f"covered = false, remaining = 1, {started}")(db)

    return plant


def attach_more(db: Any) -> None:
    """Store three events of a wrong tenant, and one of that tenant that is attached when it is recorded."""
    astray(3)(db)
    delivery(db, "m-x", tenant_id="x")
    with db.engine.begin() as connection:
        record(connection, event("m-x"), tenant_id="x")


def link_more(db: Any) -> None:
    """Store five events of a wrong tenant, and link one of that tenant."""
    astray(5)(db)
    insert_pairs(db, 1, "x")
    sweep(db)


def misroute_campaign(db: Any) -> None:
    """Store a campaign's events under a wrong tenant after many links of other tenants, and one old link of it."""
    insert_pairs(db, 400)
    insert_pairs(db, 1, "x")
    sweep(db)
    db.broken.add("I3")
    db.run(
        "SET LOCAL session_replication_role = replica; UPDATE mailglass_events"
        " SET inserted_at = inserted_at - interval '10 minutes' WHERE type = 'reconciled' AND tenant_id = 'x'"
    )
    astray(300)(db)


LIMITS = {
    "a sweep 9 minutes ago": ("sweeps", run(9, "command", "ok"), OK),
    "a sweep 11 minutes ago": ("sweeps", run(11, "command", "ok"), ERROR),
    "a failed sweep after one that succeeded": ("sweeps", fail, ERROR),
    "one refused link of two": ("sweeps", change_sweep("failed = 1, linked = 1"), OK),
    "two refused links of two": ("sweeps", change_sweep("failed = 2, linked = 0"), ERROR),
    "cut short for 9 minutes": ("sweeps", cut_short(9), OK),
    "cut short for 11 minutes": ("sweeps", cut_short(11), ERROR),
    "no prune of a new installation": ("prune", lambda _db: None, OK),
    "a prune a day ago": ("prune", prune(1, "ok"), OK),
    "no prune for three days": ("prune", prune(3, "ok"), ERROR),
    "open for 14 minutes": ("linking", change_sweep("linkable_since = now()::timestamp - interval '14 minutes'"), OK),
    "open for 16 minutes": (
        "linking",
        change_sweep("linkable_since = now()::timestamp - interval '16 minutes'"),
        ERROR,
    ),
    "two lost broadcasts of four": ("broadcasts", change_sweep("published = 2, publish_failed = 2"), OK),
    "two lost broadcasts of two": ("broadcasts", change_sweep("published = 0, publish_failed = 2"), ERROR),
    "a dead job": ("handlers", enqueue("dead", 9, 0), ERROR),
    "a job that waits for 290 s": ("handlers", enqueue("waiting", 0, 290), WARNING),
    "a job that waits for 310 s": ("handlers", enqueue("waiting", 0, 310), ERROR),
    "a job that failed twice": ("handlers", enqueue("waiting", 2, -60), WARNING),
    "a job that failed three times": ("handlers", enqueue("waiting", 3, -60), ERROR),
    "two events of another tenant": ("tenants", astray(2), WARNING),
    "three events of another tenant": ("tenants", astray(3), ERROR),
    "five events of another tenant and a link of their tenant": ("tenants", link_more, WARNING),
    "three events of another tenant and one of their tenant attached": ("tenants", attach_more, WARNING),
    "a misrouted campaign on a site with 400 links": ("tenants", misroute_campaign, ERROR),
    "nine events without an id": ("key_rules", foreign(9), WARNING),
    "ten events without an id": ("key_rules", foreign(10), ERROR),
    "twelve events of a misspelled provider": ("key_rules", foreign(12, "mailgunn"), WARNING),
    "a handler that was seen 59 minutes ago": ("handled_types", forget(59), OK),
    "a handler that was seen 61 minutes ago": ("handled_types", forget(61), ERROR),
}
WITHIN = (
    *("a sweep 9 minutes ago", "one refused link of two", "cut short for 9 minutes"),
    *("open for 14 minutes", "a job that waits for 290 s", "a job that failed twice", "two lost broadcasts of two"),
    *("two events of another tenant", "nine events without an id", "three events of another tenant and four attached"),
    *("no prune of a new installation", "a prune a day ago", "a handler that was seen 59 minutes ago"),
)
"""Those that only `make test-all` runs."""


@pytest.mark.parametrize("limit", slow_unless(lambda name: name not in WITHIN, LIMITS))
def test_a_finding_has_the_level_of_its_limit(db, limit):
    check, plant, level = LIMITS[limit]
    sweep(db)
    plant(db)
    assert worst_finding(check).status == level


def test_a_late_beat_explains_late_sweeps(db):
    """It is part of their finding, whose section says what to do."""
    for minutes, is_late in ((14, False), (16, True)):
        run(minutes, "beat", "ok")(db)
        finding = worst_finding("sweeps")
        told = (
            "no run that beat queued has ended" in finding.message,
            "beat, the broker or the worker" in finding.remedy,
        )
        assert told == (is_late, is_late)
