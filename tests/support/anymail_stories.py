"""What becomes of a message, told by each of Anymail's providers, and the deliveries that it ends in."""

import dataclasses
import datetime as dt

from anymail_answers import accepted
from anymail_payloads import MAILJET, POSTAL
from anymail_wire import BEGIN
from mailglass_reconcile import record_send
from mailglass_reconcile.contrib.anymail import sent

ANN = "Ann@example.org"
BOB = "bob@example.org"
STORY = [("delivered", ANN, 10), ("bounced", BOB, 15), ("opened", ANN, 20), ("opened", ANN, 30), ("clicked", ANN, 40)]
"""What becomes of a message to two people: type, recipient, second."""
DELIVERIES = """
SELECT d.recipient, d.last_event_type, d.last_event_at, d.terminal, d.dispatched_at, d.delivered_at, d.bounced_at,
       (SELECT array_agg(e.type ORDER BY e.occurred_at, e.type)
          FROM mailglass_events AS e
          LEFT JOIN mailglass_events AS r ON r.idempotency_key = 'reconciled:' || e.id
         WHERE e.type <> 'reconciled' AND d.id = coalesce(e.delivery_id, r.delivery_id)) AS events
  FROM mailglass_deliveries AS d WHERE d.provider_message_id = ANY (CAST(:ids AS text[])) ORDER BY d.recipient
"""


@dataclasses.dataclass(frozen=True)
class Message:
    """A message to some people that a provider has accepted."""

    provider: object
    sent: list

    @classmethod
    def accepted(cls, provider, number, to=(ANN, BOB)):
        """Send one by Anymail's backend; the provider names it by a number."""
        if provider in (MAILJET, POSTAL):
            ids = [number * 100 + n for n in range(len(to))]
        else:
            ids = [f"<{number}-{n}@example.com>" for n in range(len(to))]
        return cls.of(provider, accepted(provider.esp_name, to, ids))

    @classmethod
    def of(cls, provider, status):
        """Return the message that has this status."""
        made = sent(None, status)
        at = dt.datetime.fromtimestamp(BEGIN, dt.UTC)
        return cls(provider, [dataclasses.replace(one, occurred_at=at) for one in made])

    @property
    def ids(self):
        """Its ids, by recipient."""
        return {one.recipient: one.message_id for one in self.sent}

    def requests(self, *story):
        """Return what the provider posts about it."""
        told = [
            self.provider.event(self.provider.kind_of(type_), self.ids[to], to, n)
            for type_, to, n in story
            if type_ in self.provider.kinds.values() and to in self.ids
        ]
        return self.provider.requests(told)

    def record(self, db):
        """Record the send, and return how many events it linked."""
        with db.engine.begin() as connection:
            recorded = record_send(connection, provider=self.provider.esp_name, sent=self.sent)
        return sum(one.linked for one in recorded)

    def deliveries(self, db):
        """Return its deliveries, with the types of their events."""
        return [row._asdict() for row in db.rows(DELIVERIES, ids=[str(id_) for id_ in set(self.ids.values())])]
