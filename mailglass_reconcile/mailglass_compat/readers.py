"""The place of the recipient in Mailglass's rows, for each provider; its ledger leaves recipients out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class RecipientReader(NamedTuple):
    """The place of an event's recipient in a provider's raw webhook, as Mailglass stores it.

    Attributes:
        places: Paths `key/key` in the event; the recipient is known if they have one address together.
        batch: The key of the list of events, if a webhook has several.
        event_id: The key of an event's id in that list; the ledger's row has it as `provider_event_id`.
    """

    places: tuple[str, ...]
    batch: str | None = None
    event_id: str | None = None


READERS: Mapping[str, RecipientReader] = {
    "postmark": RecipientReader(("Recipient", "Email")),
    "sendgrid": RecipientReader(("email",), batch="_batch", event_id="sg_event_id"),
    "mailgun": RecipientReader(("event-data/recipient", "recipient")),
    # Resend names the recipients of the message, not that of the event.
    "resend": RecipientReader(("data/to", "data/cc", "data/bcc")),
}
"""Readers by the provider's canonical name."""

MAX_PLACES = 3
"""The most places that a reader has."""

RECIPIENT_IN_EVENT_ID = "ses"
"""The provider whose event ids contain the recipient, because Mailglass appends it; no raw webhook is needed."""


def recipient_in_event_id(provider_event_id: str, notification_id: str) -> str | None:
    """Return the recipient in an SES event's id, `<notification>:<address>`, or None if it has another form."""
    before, colon, recipient = provider_event_id.partition(":")
    return recipient if colon and before == notification_id else None
