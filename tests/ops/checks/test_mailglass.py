"""What is checked beside Mailglass only, on the tables of each version of it."""

import time

import pytest

import mailglass_reconcile
from diagnosing import heal, sweeper, worst_finding
from mailglass_reconcile.ops.checks import OK, WARNING
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.tables import runs


def test_a_sweeper_that_cannot_read_recipients_is_a_warning(mailglass_db, admin):
    """Its links are unchecked and permanent; the remedy is the one missing privilege."""
    assert worst_finding("recipients").status == OK
    with sweeper(mailglass_db, admin) as settings:
        mailglass_reconcile.configure(engine=engines.create_engine(settings), settings=settings)
        finding = worst_finding("recipients")
        assert (finding.status, "cannot be undone" in finding.message) == (WARNING, True)
        heal(mailglass_db, finding.remedy)
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
