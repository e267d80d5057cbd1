"""What the shop does after an event; MAILGLASS_IMPORTS names this module."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from mailglass_reconcile import DeliveryEvent, on_event
from shop.models import Suppressed


@on_event("bounced", "complained")
def suppress(connection: sa.Connection, event: DeliveryEvent) -> None:
    """Send no more mail to an address that does not exist or that complained; commits with the job."""
    if event.recipient and (event.type == "complained" or event.bounce == "hard"):
        row = {"address": event.recipient, "reason": event.type}
        connection.execute(insert(Suppressed).values(row).on_conflict_do_nothing())
