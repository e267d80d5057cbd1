"""A recipient that was known and is not any more: its event is never given to somebody else's delivery."""

import datetime as dt
from uuid import UUID

import pytest

import factories
import mailglass_reconcile
from mailglass_reconcile import Settings, WebhookEvent, find_orphans, reconcile, record_webhook
from mailglass_reconcile.ops.explanation import explain
from mailglass_reconcile.store.database import Database
from mailglass_reconcile.store.migration import runner

FLAG = "SELECT metadata -> 'recipient_known' FROM mailglass_events WHERE type = 'bounced'"


def record_bobs_bounce(db) -> UUID:
    """Record a bounce of Bob's as an orphan that is past its grace, and return its id."""
    event = WebhookEvent(
        type="bounced",
        occurred_at=dt.datetime.now(dt.UTC),
        provider_event_id="b-1",
        message_id="m",
        recipient="Bob <bob@example.com>",
    )
    with db.engine.begin() as connection:
        (recorded,) = record_webhook(connection, tenant_id=factories.TENANT, provider="postmark", events=[event])
    db.run("UPDATE mailglass_open_orphans SET arrived_at = arrived_at - interval '2 minutes'")
    return recorded.event_id


def taken_out_and_put_back(db) -> None:
    """Take out what is ours, and migrate again: the open orphans come from the ledger."""
    runner.remove(db.engine, db.settings, lambda line: None)
    runner.migrate(db.engine, db.settings, lambda line: None)


def pruned_short_and_long(db) -> None:
    """Prune with a short maximum age, which closes the orphan, and with the default, which opens it again."""
    short = Settings(**{**db.settings.model_dump(), "max_age_minutes": 1})
    mailglass_reconcile.configure(engine=db.engine, settings=short)
    assert mailglass_reconcile.prune().expired == 1
    mailglass_reconcile.configure(engine=db.engine, settings=db.settings)
    mailglass_reconcile.prune()
    assert db.value("SELECT recipient IS NULL FROM mailglass_open_orphans")


@pytest.mark.parametrize("rebuilt", [taken_out_and_put_back, pruned_short_and_long])
def test_a_bounce_of_bob_never_marks_alices_delivery(db, rebuilt):
    """The one delivery of the id is Alice's; without the address nobody can tell, so the orphan stays ambiguous."""
    event_id = record_bobs_bounce(db)
    assert db.value(FLAG) is True
    rebuilt(db)
    factories.delivery(db, "m", recipient="alice@example.com")
    grace = Settings(**{**db.settings.model_dump(), "grace_seconds": 0})
    mailglass_reconcile.configure(engine=db.engine, settings=grace)
    for _ in range(2):  # once from the ledger, once from stored keys
        result = reconcile()
        assert (result.linked, result.ambiguous) == (0, 1)
    with db.engine.connect() as connection:
        (orphan,) = find_orphans(connection)
        assert mailglass_reconcile.attempt_link(connection, orphan).state == "ambiguous"
    found = explain(Database(db.engine, grace), event_id)
    assert (found.state, found.delivery_id) == ("ambiguous", None)
    assert "address is no longer known" in found.sentence


def test_bobs_bounce_is_linked_as_long_as_the_address_is_known(db):
    """To Bob's delivery among two of one id."""
    record_bobs_bounce(db)
    factories.delivery(db, "m", recipient="alice@example.com")
    bob = factories.delivery(db, "m", recipient="BOB@example.com")
    assert reconcile().linked == 1
    assert db.value("SELECT delivery_id::text FROM mailglass_events WHERE type = 'reconciled'") == bob
