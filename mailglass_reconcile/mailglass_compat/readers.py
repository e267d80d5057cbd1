"""Where Mailglass's rows name the recipient that its ledger leaves out: one reader for each provider."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Reader(NamedTuple):
    """Where a provider's raw webhook, as Mailglass stores it, names the recipient of an event.

    Attributes:
        places: Paths `key/key` in the event; the recipient is known if they hold one address together.
        batch: The key of the list that holds the event, if a webhook has several.
        event_id: The key of an event's id in that list; the ledger's row has it as `provider_event_id`.
    """

    places: tuple[str, ...]
    batch: str | None = None
    event_id: str | None = None


READERS: Mapping[str, Reader] = {
    "postmark": Reader(("Recipient", "Email")),
    "sendgrid": Reader(("email",), batch="_batch", event_id="sg_event_id"),
    "mailgun": Reader(("event-data/recipient", "recipient")),
    # Resend names whom the message went to, not whom the event is about.
    "resend": Reader(("data/to", "data/cc", "data/bcc")),
}
"""By the provider's canonical name."""

MOST_PLACES = 3

IN_EVENT_ID = "ses"
"""The provider of which Mailglass appends the recipient to the event's id, so that no raw webhook is needed."""


def in_event_id(provider_event_id: str, notification_id: str) -> str | None:
    """Return the recipient in an SES event's id, `<notification>:<address>`, or None if it has another form."""
    before, colon, recipient = provider_event_id.partition(":")
    return recipient if colon and before == notification_id else None
