"""Refused webhooks are stored, whoever receives them, with nothing of the request; an accepted one ends them."""

import logging
from collections import Counter

import pytest
import sqlalchemy as sa

import mailglass_reconcile
import meter
import senders
from django_project import databases_name
from mailglass_reconcile import Sent, broadcast, record_send, telemetry
from mailglass_reconcile.ops import pruner
from mailglass_reconcile.ops.checks.recording import CAUSES
from mailglass_reconcile.providers import sns
from mailglass_reconcile.receiver import results
from mailglass_reconcile.receiver.results import RequestResult
from mailglass_reconcile.record import after_commit
from mailglass_reconcile.store.tables import refusals
from mailglass_reconcile.webhooks import refusal
from receivers import SECRETS, by_application, by_django, by_receive, first, mount_receiver, now, post, setting
from receivers import published as _published  # noqa: F401 - a fixture of every test
from waiting import wait_until

ROWS = """
SELECT provider, tenant_id, refused, failed, cause, accepted_at > since AS ended FROM mailglass_reconcile_refusals
 ORDER BY provider, tenant_id
"""
AGE = """
UPDATE mailglass_reconcile_refusals
   SET since = since - make_interval(mins => :minutes), last_at = last_at - make_interval(mins => :minutes),
       accepted_at = accepted_at - make_interval(mins => :minutes)
"""


@pytest.fixture(autouse=True)
def counts(monkeypatch) -> Counter:
    """Write at once what earlier tests have left, and count anew."""
    wait_until(mailglass_reconcile.flush)
    monkeypatch.setitem(telemetry._counts_of_providers, "webhooks", Counter())
    return telemetry._counts_of_providers["webhooks"]


def stored(db) -> list[tuple]:
    """Return the rows after what the background thread has to write."""
    wait_until(mailglass_reconcile.flush)
    rows = [tuple(row) for row in db.rows(ROWS)]
    assert {row[4] for row in rows} <= CAUSES.keys(), "the check can explain each cause"
    return rows


WAYS = pytest.mark.parametrize("post_webhook", [by_application, by_django, by_receive])


@WAYS
@pytest.mark.usefixtures("app", "anymail_settings")
def test_refused_webhooks_are_stored_until_one_is_accepted(db, counts, post_webhook):
    """A provider that is not known, or has no secret, is counted only."""
    setting(db, ",".join(f"{provider}={secret}" for provider, secret in SECRETS.items() if provider != "brevo"))
    right = first("postmark")
    unsigned = right._replace(headers={"Content-Type": "application/json"})
    for request in (unsigned, right._replace(body=b"{")) * 2:
        post_webhook(db, "Postmark", request)
    post_webhook(db, "pigeon", right)
    assert stored(db) == [("postmark", "", 4, 0, "unreadable", None)]
    assert counts == {("postmark", "refused"): 4, ("unknown", "refused"): 1}
    post_webhook(db, "postmark", right)
    assert stored(db) == [("postmark", "", 4, 0, "unreadable", True)]
    assert counts["postmark", "received"] == 1
    post_webhook(db, "postmark", unsigned)
    assert stored(db) == [("postmark", "", 1, 0, "signature", False)], "they did not begin anew"


@WAYS
@pytest.mark.usefixtures("app", "anymail_settings")
def test_a_database_that_refuses_to_record_is_a_cause_that_can_still_be_stored(db, post_webhook):
    """As a `statement_timeout` of the role, or a missing GRANT does."""
    setting(db, f"postmark={SECRETS['postmark']}")
    db.run("ALTER TABLE mailglass_events RENAME TO hidden")
    for _ in range(2):
        post_webhook(db, "postmark", first("postmark"))
    db.run("ALTER TABLE hidden RENAME TO mailglass_events")
    assert stored(db) == [("postmark", "", 0, 2, "database", None)]


@pytest.mark.parametrize(
    ("provider", "secret", "hours", "cause"),
    [
        ("ses", f"{senders.ARN}-other", 0, "topic"),
        ("resend", SECRETS["resend"], 55, "clock"),
        ("ses", senders.ARN, 0, "certificate"),
    ],
)
def test_the_cause_is_a_word_of_ours(db, monkeypatch, provider, secret, hours, cause):
    """With a wrong secret, it is the signature."""
    monkeypatch.setattr(sns, "fetch", lambda url: 1 / 0)
    payload = senders.load_payloads(provider)[0].payload
    signed_at = now() - senders.dt.timedelta(hours=hours)
    (request,) = senders.make_requests(provider, [payload], at=signed_at)
    post(mount_receiver(secrets={provider: secret}), f"/webhooks/{provider}", request)
    failed = cause == "certificate"
    assert stored(db) == [(provider, "", not failed, failed, cause, None)]


def test_a_tenant_is_stored_only_if_it_has_secrets_of_its_own(db):
    """Strangers may name any other."""
    request = first("postmark")
    secrets = {"acme": {"postmark": "user:another"}, "emca": {"postmark": SECRETS["postmark"]}}
    shop = mount_receiver(secrets=secrets, tenant=lambda path: path.split("/")[-2])
    for tenant in ("acme", "emca", "nobody"):
        post(shop, f"/webhooks/{tenant}/postmark", request, request._replace(headers={}))
    post(mount_receiver(tenant=lambda path: "acme"), "/webhooks/postmark", request._replace(headers={}))
    assert [row[:3] for row in stored(db)] == [("postmark", "", 1), ("postmark", "acme", 2), ("postmark", "emca", 1)]


def test_no_request_waits_for_the_table_and_a_process_writes_once_a_minute(db, caplog):
    """If it may not write, a line for developers says so, and the webhook is answered."""
    assert results.WRITE_SECONDS == 60
    caplog.set_level(logging.DEBUG, "mailglass_reconcile")
    setting(db, f"postmark={SECRETS['postmark']}")
    request = first("postmark")._replace(headers={})
    with db.engine.begin() as connection:
        connection.execute(sa.text("LOCK TABLE mailglass_reconcile_refusals"))
        with meter.statements(db.engine) as statements:
            for _ in range(3):
                post(mount_receiver(), "/webhooks/postmark", request)
                refusal("postmark", mailglass_reconcile.DatabaseUnavailableError("none"))
        assert statements == []
    assert stored(db) == [("postmark", "", 3, 3, "database", None)]
    db.run("ALTER TABLE mailglass_reconcile_refusals RENAME TO hidden")
    post(mount_receiver(), "/webhooks/postmark", request)
    wait_until(mailglass_reconcile.flush)
    db.run("ALTER TABLE hidden RENAME TO mailglass_reconcile_refusals")
    assert [
        (record.levelname, record.getMessage()) for record in caplog.records if "stored" in record.getMessage()
    ] == [("DEBUG", "the results of webhooks were not stored: ProgrammingError")]


@pytest.mark.slow
def test_counts_that_wait_keep_no_connection_open(db):
    """That of the work after a commit is closed after a second, as without them."""
    with db.engine.begin() as connection:
        recorded = record_send(
            connection, provider="postmark", sent=[Sent(recipient="ada@example.com", message_id="m-1")]
        )
    RequestResult("postmark", db.engine).count("refused", "signature")
    broadcast(recorded)
    wait_until(lambda: after_commit.connections._open)
    wait_until(lambda: not after_commit.connections._open, 5)
    assert results._batches


def test_a_process_without_a_database_of_its_own_counts_only(counts, monkeypatch):
    """A view of one's own may have another engine."""
    for name in ("MAILGLASS_DATABASE_URL", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    mailglass_reconcile.configure()
    assert refusal("postmark", mailglass_reconcile.webhooks.SignatureError("wrong")).status == 401
    assert (counts, results._batches) == ({("postmark", "refused"): 1}, {})


@pytest.mark.usefixtures("app")
def test_what_djangos_tests_have_counted_is_not_written_to_the_database_that_it_has_afterwards(db, empty_database_url):
    """The runner puts the name of the developer's own database back before the process ends."""
    mailglass_reconcile.configure()
    with databases_name(empty_database_url):
        RequestResult("postmark", results.own_engine()).count("refused", "signature")
    assert stored(db) == []
    RequestResult("postmark", results.own_engine()).count("refused", "signature")
    assert len(stored(db)) == 1


def add(db, result: str, cause: str | None = None) -> None:
    """Count a webhook, and write it."""
    RequestResult("postmark", db.engine).count(result, cause)
    wait_until(mailglass_reconcile.flush)


def lasting(db) -> list[tuple]:
    """Return the webhooks of refusals that last."""
    with db.database.reading() as tx:
        return [period.webhooks for period in refusals.load_lasting(tx)]


def test_refusals_last_from_ten_minutes_on_until_an_acceptance_or_an_hour_of_silence(db):
    """One stranger's request does not last, whatever time passes."""
    add(db, "refused", "signature")
    db.run(AGE, minutes=11)
    assert lasting(db) == []
    add(db, "refused", "signature")
    assert lasting(db) == [2]
    add(db, "received")
    assert lasting(db) == []
    db.run(AGE, minutes=11)
    add(db, "failed", "database")
    assert lasting(db) == [], "they begin anew"
    db.run(AGE, minutes=11)
    add(db, "failed", "database")
    assert lasting(db) == [2]
    db.run(AGE, minutes=61)
    assert lasting(db) == []
    add(db, "failed", "database")
    assert (lasting(db), stored(db)) == ([], [("postmark", "", 0, 1, "database", False)])


def test_an_acceptance_without_refusals_stores_nothing_and_a_further_one_ten_minutes_later(db):
    """So the table of a site that is well is empty, and a row is written no more often than necessary."""
    add(db, "received")
    assert stored(db) == []
    add(db, "refused", "signature")
    add(db, "received")
    accepted = "SELECT accepted_at FROM mailglass_reconcile_refusals"
    first_accepted = db.value(accepted)
    add(db, "received")
    assert db.value(accepted) == first_accepted
    db.run(AGE, minutes=11)
    add(db, "received")
    assert db.value(accepted) > first_accepted


def test_a_prune_deletes_refusals_of_a_month_ago(db):
    """Of the newer ones nothing."""
    for provider in ("ses", "postmark"):
        RequestResult(provider, db.engine).count("refused", "signature")
    assert len(stored(db)) == 2
    db.run("UPDATE mailglass_reconcile_refusals SET last_at = last_at - interval '1 day' * length(provider) * 4")
    pruner.prune()
    assert [row[0] for row in stored(db)] == ["ses"]
