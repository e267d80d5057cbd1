"""The SQL statement by which an application in another language records a send."""

import datetime as dt
import re

import pytest

import mailglass_reconcile
import pages
from mailglass_reconcile import WebhookEvent, broadcast, pubsub, record_webhook
from mailglass_reconcile.store.migration import privileges

pytestmark = pytest.mark.version_independent

(STATEMENT,) = [
    block.text for block in pages.blocks(pages.ROOT / "docs" / "record-and-receive.md") if block.language == "sql"
]


def receive(db) -> None:
    """Record a webhook about the statement's message, as `receive` does."""
    event = WebhookEvent(
        type="delivered", occurred_at=dt.datetime.now(dt.UTC), provider_event_id="e-1", message_id="m-1",
        recipient="ada@example.com",
    )  # fmt: skip
    with db.engine.begin() as connection:
        recorded = record_webhook(connection, provider="postmark", events=[event])
    broadcast(recorded)
    pubsub.flush()  # a sweep skips what the thread has claimed


@pytest.mark.parametrize("webhook_first", [False, True])
def test_a_send_that_the_statement_records_is_found_by_its_webhook(db, webhook_first):
    """A later webhook is attached, and a sweep links an earlier one."""
    if webhook_first:
        receive(db)
    db.run(STATEMENT)
    if webhook_first:
        assert mailglass_reconcile.reconcile_recent().linked == 1
    else:
        receive(db)
    assert db.value("SELECT last_event_type FROM mailglass_deliveries") == "delivered"


def test_the_recorder_may_run_the_statement():
    """The role has each column that it writes."""
    columns = re.search(r"mailglass_deliveries\s+\(([^)]*)\)", STATEMENT)[1]
    granted = {
        required.privilege: required.columns
        for required in privileges.documented_privileges()
        if (required.role, required.object) == ("mailglass_recorder", "mailglass_deliveries")
    }
    assert set(re.findall(r"\w+", columns)) <= set(granted["INSERT"])
    assert "id" in granted["SELECT"]  # for RETURNING
