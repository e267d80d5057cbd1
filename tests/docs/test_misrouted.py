"""The recipe for events of a wrong tenant, run as a reader would."""

import datetime as dt

import factories
import pages
from diagnosing import worst_finding
from mailglass_reconcile import WebhookEvent, record_webhook
from mailglass_reconcile.ops.checks import ERROR, OK

(RECIPE,) = pages.section(pages.ROOT / "docs" / "trouble.md", "Everything is `tenant_mismatch`")
AT = dt.datetime(2026, 5, 6, 7, 8, 9, tzinfo=dt.UTC)

OF_DELIVERIES = """
SELECT d.recipient, d.last_event_type, d.last_event_at, e.reject_reason, e.metadata ->> 'bounce' AS bounce,
       e.metadata ->> 'provider_event_id' AS provider_event_id
  FROM mailglass_deliveries AS d JOIN mailglass_events AS e ON e.delivery_id = d.id ORDER BY 1
"""


def test_events_of_a_wrong_tenant_are_recorded_again_for_the_right_one(db, monkeypatch):
    """Each once, with its time, recipient and reason, also if it is run twice; then the doctor is content."""
    monkeypatch.setenv("MAILGLASS_DATABASE_URL", db.sqlalchemy_url)
    addresses = ["ada@example.com", "bob@example.com", "eve@example.com"]
    for address in addresses:
        factories.delivery(db, "batch", tenant_id="acme", recipient=address)
    events = [
        WebhookEvent(
            type="bounced",
            occurred_at=AT,
            provider_event_id=f"e-{number}",
            message_id="batch",
            recipient=address,
            reject_reason="invalid",
            bounce="hard",
        )
        for number, address in enumerate(addresses)
    ]
    with db.engine.begin() as connection:
        record_webhook(connection, tenant_id="emca", provider="postmark", events=events)
    assert worst_finding("tenants").status == ERROR
    for _ in range(2):
        names: dict = {}
        exec(compile(RECIPE.text, "trouble.md", "exec"), names)  # noqa: S102 - a page of our own
        names["engine"].dispose()
    rows = db.rows(OF_DELIVERIES)
    assert [tuple(row) for row in rows] == [
        (address, "bounced", AT.replace(tzinfo=None), "invalid", "hard", f"e-{number}")
        for number, address in enumerate(addresses)
    ]
    assert worst_finding("tenants").status == OK
