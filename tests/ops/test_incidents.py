"""Incidents, one row each: how it is planted, and what doctor, `status --check`, `/metrics` and dashboard say."""

from collections.abc import Callable
from dataclasses import dataclass
from html import unescape
from typing import Any

import pytest

import mailglass_reconcile
from browsing import Visitor, app
from diagnosing import of
from factories import delivery_row, insert, orphan_row, postmark
from handling import handle
from mailglass_reconcile.ops import status
from mailglass_reconcile.ops.checks import ERROR, OK, WARNING
from mailglass_reconcile.store.migration import runner
from scraping import scrape, value

RUN = """
INSERT INTO mailglass_reconcile_runs (started_at, finished_at, kind, origin, status, error)
VALUES (now() - make_interval(mins => :minutes), now() - make_interval(mins => :minutes), 'full', :origin, :status,
        CASE :status WHEN 'failed' THEN 'DatabaseRefusedError' END)
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
    """

    check: str
    plant: Callable[[Any], object]
    words: str
    heal: Callable[[Any], object]
    level: str = ERROR


def dropped(what: str) -> Callable[[Any], object]:
    """Drop an object of the schema."""
    return lambda db: (db.broken.add("I13"), db.run(f"DROP {what}"))


def migrate(db: Any) -> None:
    """Run the command that the finding names."""
    runner.migrate(db.engine, db.settings, lambda line: None)


def run(minutes: int, origin: str, ended: str) -> Callable[[Any], object]:
    """Leave nothing in the history but one full sweep."""

    def plant(db: Any) -> None:
        db.run("DELETE FROM mailglass_reconcile_runs")
        db.run(RUN, minutes=minutes, origin=origin, status=ended)

    return plant


def sweep(db: Any) -> None:
    """Run a sweep of all tenants."""
    mailglass_reconcile.reconcile()


def send(number: int, hours_ago: int, **columns: object) -> Callable[[Any], object]:
    """Record sends that were dispatched so long ago, and got no report."""

    def plant(db: Any) -> None:
        at = str(db.value(f"SELECT now()::timestamp - interval '{hours_ago} hours'"))
        sent = {"dispatched_at": at, "last_event_at": at, "provider": "postmark", **columns}
        insert(db, [delivery_row(f"sent-{n}", **sent) for n in range(number)])

    return plant


def receive(db: Any) -> None:
    """Store events whose ids no send has, and sweep."""
    send(20, 2)(db)
    insert(db, [], [orphan_row(postmark(f"other-{n}")) for n in range(20)])
    sweep(db)


def report(db: Any) -> None:
    """Let each send have its report."""
    db.broken.update({"I2", "I7"})
    db.run("UPDATE mailglass_deliveries SET last_event_type = 'delivered', last_event_at = now(), delivered_at = now()")


def astray(db: Any) -> None:
    """Store events under another tenant than their deliveries."""
    insert(
        db,
        [delivery_row(f"m-{n}") for n in range(5)],
        [orphan_row(postmark(f"m-{n}"), tenant_id="x") for n in range(5)],
    )
    sweep(db)


def foreign(db: Any) -> None:
    """Store events of a provider without a rule."""
    insert(db, [], [orphan_row({"provider": "acme", "its": {"id": str(n)}}) for n in range(12)])
    sweep(db)


def swell(number: int) -> Callable[[Any], object]:
    """Store events with a whole raw webhook in their metadata, and sweep."""

    def plant(db: Any) -> None:
        insert(db, [], [orphan_row(postmark(f"large-{n}", body="x" * 66_000)) for n in range(number)])
        sweep(db)

    return plant


def forget(db: Any) -> None:
    """Let a dispatcher have named its handlers long ago."""
    handle(db, ("shop.suppress", "bounced"))
    db.run("UPDATE mailglass_handled_types SET seen_at = now()::timestamp - interval '2 hours'")


def expire(db: Any) -> None:
    """Let all that is open be too old."""
    db.broken.update({"I13", "I6"})
    db.run("UPDATE mailglass_open_orphans SET arrived_at = arrived_at - interval '8 days'")


INCIDENTS = [
    Incident("triggers", dropped("TRIGGER mailglass_open_orphans_add ON mailglass_events"), "is missing", migrate),
    Incident(
        "functions", dropped("FUNCTION mailglass_reconcile_after_commit_v1"), "after_commit_v1 is missing", migrate
    ),
    Incident(
        "indexes", dropped("INDEX mailglass_events_idempotency_key_idx"), "idempotency_key_idx is missing", migrate
    ),
    Incident("beat", run(40, "beat", "ok"), "no run that beat queued has ended for 40 minutes", sweep),
    Incident("sweeps", run(40, "command", "ok"), "no full sweep has succeeded for 40 minutes", sweep),
    Incident("sweeps", run(1, "command", "failed"), "the last full sweep failed 1 minute ago", sweep),
    Incident("reports", send(20, 30), "no webhook of postmark has ever arrived", report),
    Incident("reports", send(3, 30), "no webhook of postmark has ever arrived", report, WARNING),
    Incident("nothing_links", receive, "webhooks of postmark name other message ids than its sends", report),
    Incident("tenants", astray, "5 of 5 newest open events match only another tenant's deliveries", expire),
    Incident("key_rules", foreign, "of 12 newest open events of the provider acme, none has a usable id", expire),
    Incident("documents", swell(12), "12 of 12 newest open events have more than 64 kB of text", expire),
    Incident("documents", swell(1), "1 of 1 newest open event has more than 64 kB of text", expire, WARNING),
    Incident(
        "handled_types",
        forget,
        "no dispatcher has had the handler shop.suppress (bounced) for 2 hours",
        lambda db: db.run("UPDATE mailglass_handled_types SET seen_at = now()::timestamp"),
    ),
]


@pytest.mark.parametrize("incident", INCIDENTS, ids=lambda incident: f"{incident.check}: {incident.words}"[:50])
def test_an_incident_is_the_same_finding_everywhere_until_it_is_healed(db, incident):
    """The doctor, `status --check` and the dashboard have one sentence; the metric has the check and the level."""
    sweep(db)
    incident.plant(db)
    finding = of(incident.check)
    assert (finding.status, incident.words in finding.message) == (incident.level, True), finding
    said = [sentence for sentence in status.check(db.database) if incident.words in sentence]
    assert bool(said) == (incident.level == ERROR)
    assert value(scrape(db), "findings", check=incident.check, status=incident.level) >= 1
    page = unescape(Visitor(app(db)).get("/").text)
    assert incident.words in page or incident.words[:1].upper() + incident.words[1:] in page
    incident.heal(db)
    assert of(incident.check).status == OK
    assert value(scrape(db), "findings", check=incident.check, status=incident.level) == 0


def test_every_check_that_prometheus_reports_is_planted_somewhere(db):
    """Here, or by the tests of its own module, which `elsewhere` names."""
    elsewhere = {
        *("server", "roles", "rights", "schema", "recipients"),  # tests/ops/checks/test_server.py, test_rights.py, …
        *("prune", "linking", "broadcasts", "handlers"),  # tests/ops/checks/test_check.py, tests/monitoring
    }
    planted = {incident.check for incident in INCIDENTS}
    cheap = {check.name for check in mailglass_reconcile.ops.checks.CHECKS if check.cheap}
    assert planted | elsewhere == cheap
