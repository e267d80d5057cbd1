"""Links that our rule would not make, on the tables of each version of Mailglass."""

import time

import pytest
from sqlalchemy.engine import make_url

import factories
import mailglass_reconcile
import pages
import raw_webhooks
from diagnosing import heal, sweeper, worst_finding
from mailglass_reconcile import reconcile
from mailglass_reconcile.ops.checks import OK, WARNING
from mailglass_reconcile.store import engines, runs

PAGE = pages.ROOT / "docs" / "with-mailglass.md"
TO, CC = "to@example.com", "cc@example.com"


def bounce(db, recipient, **more):
    """Store a Postmark bounce of a recipient as Mailglass does; return the event's id."""
    raw = {**raw_webhooks.payload("postmark", "bounced"), "Email": recipient}
    event = {"provider_event_id": "Bounce:4", "record_type": "Bounce", "message_id": raw["MessageID"]}
    [event_id] = raw_webhooks.store(db, "postmark", raw, [event], raw_id="Bounce:4", **more)
    return event_id, raw["MessageID"]


def link(db, orphan, delivery, **metadata):
    """Link an orphan as Mailglass's own reconciler does."""
    row = factories.reconciled_row(orphan, delivery, id=raw_webhooks.uuid7(time.time()))
    factories.insert(db, events=[row])
    db.broken.update({"I1", "I2", "I5"})


def test_links_of_our_own_are_those_that_the_rule_makes(mailglass_db):
    """The recipient is read from the raw webhook."""
    _, message_id = bounce(mailglass_db, TO)
    factories.delivery(mailglass_db, message_id, recipient=TO)
    assert reconcile().linked == 1
    assert worst_finding("links").status == OK


@pytest.mark.parametrize(
    ("difference", "columns"),
    [
        ("another tenant's (1) or recipient's (0)", {"tenant_id": "other"}),
        ("another tenant's (0) or recipient's (1)", {"recipient": CC}),
    ],
)
def test_a_link_to_another_tenant_s_or_recipient_s_delivery_is_reported(mailglass_db, difference, columns):
    """Mailglass's reconciler compares neither."""
    orphan, message_id = bounce(mailglass_db, TO)
    link(mailglass_db, orphan, factories.delivery(mailglass_db, message_id, **{"recipient": TO, **columns}))
    finding = worst_finding("links")
    assert (finding.status, difference in finding.message) == (WARNING, True)


def test_a_recipient_that_cannot_be_read_is_no_fault(mailglass_db):
    """The message id alone decides then; the doctor does not claim to have compared the recipient."""
    orphan, message_id = bounce(mailglass_db, TO, is_stored=False)
    link(mailglass_db, orphan, factories.delivery(mailglass_db, message_id, recipient=CC))
    finding = worst_finding("links")
    assert finding.status == OK
    assert finding.message == "the 1 newest link is to the right tenant; the recipient of 1 cannot be read"


def test_a_wrong_link_of_a_sweep_that_could_not_read_the_recipient_is_not_another_reconciler_s(mailglass_db, admin):
    """The privilege was granted after the link, so no other reconciler has to be removed."""
    with sweeper(mailglass_db, admin) as settings:
        _, message_id = bounce(mailglass_db, CC)
        factories.delivery(mailglass_db, message_id, recipient=TO)
        mailglass_reconcile.configure(engine=engines.create_engine(settings), settings=settings)
        assert reconcile().linked_unchecked == 1
    mailglass_db.broken.add("I5")
    finding = worst_finding("links")
    assert (finding.status, "another reconciler" in finding.message) == (WARNING, False)
    assert "1 of 1 newest link is to another recipient's delivery" in finding.message
    assert "Oban" not in finding.remedy


def test_a_sweeper_that_cannot_read_recipients_is_a_warning(mailglass_db, admin):
    """Its links are unchecked and permanent; the remedy is the one missing privilege."""
    assert worst_finding("recipients").status == OK
    with sweeper(mailglass_db, admin) as settings:
        mailglass_reconcile.configure(engine=engines.create_engine(settings), settings=settings)
        finding = worst_finding("recipients")
        assert (finding.status, "cannot be undone" in finding.message) == (WARNING, True)
        heal(mailglass_db, finding.remedy)
        assert worst_finding("recipients").status == OK


def test_the_page_grants_what_a_sweeper_lacks(mailglass_db, admin):
    """The page's GRANT is run as it is, but for the schema and the role."""
    section = pages.section(PAGE, "Before the first link: recipients")
    [grant] = [block.text for block in section if block.language == "sql"]
    with sweeper(mailglass_db, admin) as settings:
        role = make_url(settings.database_url.get_secret_value()).username
        mailglass_db.run(
            grant.replace("mailglass.mailglass_", f"{settings.database_schema}.mailglass_").replace(
                "mailglass_sweeper", role
            )
        )
        mailglass_reconcile.configure(engine=engines.create_engine(settings), settings=settings)
        assert worst_finding("recipients").status == OK


def test_without_mailglass_a_sweeper_reads_no_raw_webhooks(db, admin):
    """Our writers store the recipient themselves."""
    with sweeper(db, admin) as settings:
        mailglass_reconcile.configure(engine=engines.create_engine(settings), settings=settings)
        assert worst_finding("recipients").status == OK


def add_sweep(db, linked, unchecked, days_ago=0):
    """Add a sweep to the history."""
    with db.database.writing() as tx:
        counts = {"scanned": linked, "linked": linked, "linked_unchecked": unchecked}
        runs.add(tx, runs.Run("full", "beat", counts=counts, began=time.monotonic() - 1))
    db.run(
        "UPDATE mailglass_reconcile_runs SET finished_at = finished_at - make_interval(days => :days)", days=days_ago
    )


@pytest.mark.parametrize(("linked", "unchecked", "is_reported"), [(100, 10, True), (110, 10, False), (90, 90, False)])
def test_a_tenth_of_a_day_s_links_by_the_message_id_alone_is_a_warning(mailglass_db, linked, unchecked, is_reported):
    add_sweep(mailglass_db, 1_000, 1_000, days_ago=2)
    add_sweep(mailglass_db, linked - 1, unchecked - 1)
    add_sweep(mailglass_db, 1, 1)
    finding = worst_finding("links")
    assert (finding.status == WARNING) is is_reported
    assert ("10 of 100 links of the last day were made by the message id alone" in finding.message) is is_reported


def test_links_by_the_message_id_alone_are_reported_once_if_the_role_cannot_read_recipients(mailglass_db, admin):
    """The finding on the privilege has the cure."""
    add_sweep(mailglass_db, 100, 100)
    with sweeper(mailglass_db, admin) as settings:
        mailglass_reconcile.configure(engine=engines.create_engine(settings), settings=settings)
        assert worst_finding("recipients").status == WARNING
        assert worst_finding("links").status == OK
