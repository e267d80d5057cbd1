"""The demo's scenario: its messages and the events that providers report about them; some must stay open."""

from __future__ import annotations

from typing import NamedTuple

from mailglass_reconcile.rules.states import MatchState

RELAY = "recvd-7d4f9c5b86-xk2vq-1-65A1B2C3-7.0"  # SendGrid's webhooks append it to a message's id, after a dot


class Mail(NamedTuple):
    """A message, and the types of the events that its provider reports, each in its own webhook.

    `sent` is False for mail of other software. `state` is the final state of its webhooks, None if they are linked. The
    send of a message with a state is rolled back.
    """

    name: str
    tenant_id: str
    provider: str
    message_id: str
    types: tuple[str, ...] = ()
    sent: bool = True
    state: MatchState | None = None

    @property
    def address(self) -> str:
        return f"{self.name.replace(' ', '')}@example.com"

    @property
    def reported_id(self) -> str:
        """The message's id as its webhooks have it."""
        return f"{self.message_id}.{RELAY}" if self.sent and self.provider == "SendGrid" else self.message_id


FIRST, LOST = "883953f4-6105-42a2-a16a-77a8eac79483", "0a129aee-e1cd-480d-b08d-4f48548ff48d"
OTHER, BATCH = "5b0f9a37-6c0e-4d2b-8f51-2e7f1d9c0b64", "14c5d75ce93dGmZUk0fQ7w"

CALLS = Mail("first mail", "acme", "Postmark", "2f1c7f4e-5d0a-4a57-9b3e-6c3b8a0d1e52", ("delivered",))
RACE = [
    Mail("mail 1", "acme", "Postmark", FIRST, ("delivered", "opened")),
    Mail("mail 2", "acme", "Postmark", "b7bc2f4a-e38e-4336-af7d-e6c392c2f817", ("bounced",)),
    Mail("mail 3", "globex", "SendGrid", "9Fq0yVZWR1y3hL2mS5tXjA", ("queued", "delivered")),
]
LINK = [Mail("mail 4", "globex", "SendGrid", "Zk8bT4nQSs6wPz1cD0eGuw", ("delivered", "clicked"))]
OPEN = [
    Mail("mail 5", "globex", "SendGrid", BATCH),
    Mail("mail 6", "globex", "SendGrid", BATCH),
    Mail("mail 7", "acme", "Postmark", LOST, ("delivered",), True, "unmatched"),
    Mail("mail of other software", "acme", "Postmark", OTHER, ("delivered",), False, "unmatched"),
    Mail("one id for mail 5 and 6", "globex", "SendGrid", f"{BATCH}.{RELAY}", ("delivered",), False, "ambiguous"),
    Mail("an id cut down to its suffix", "globex", "SendGrid", RELAY, ("rejected",), False, "unmatchable"),
    Mail("mail 1, but tenant default", "default", "Postmark", FIRST, ("opened",), False, "tenant_mismatch"),
]
