"""What the demo's mails and webhooks are made of, in the shapes that Mailglass's rows really have.

Nothing here touches a server. A seeded random source makes the ids, so that every run tells the same story.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from mailglass_reconcile.rules.matching import UNMATCHED
from mailglass_reconcile.rules.states import Verdict
from mailglass_reconcile.store import ledger

BASE64URL = string.ascii_letters + string.digits + "-_"


@dataclass(frozen=True)
class Webhook:
    """One event of a provider's webhook.

    Attributes:
        about: What the screen says it is about, such as `mail 1`.
        state: How it must end if no delivery is right for it.
    """

    tenant_id: str
    provider: str
    type: str
    metadata: dict[str, object]
    about: str
    state: Verdict | None = None
    id: str = field(default_factory=ledger.uuid7)


@dataclass(frozen=True)
class Mail:
    """A message that an application sends; its delivery's row commits late, or never."""

    name: str
    tenant_id: str
    message_id: str
    webhooks: tuple[Webhook, ...]
    commits: bool = True
    id: str = field(default_factory=ledger.uuid7)


@dataclass(frozen=True)
class Act:
    """Mails whose transactions are open at the same time, and webhooks about mail that is not among them."""

    mails: Sequence[Mail]
    strays: Sequence[Webhook] = ()

    @property
    def webhooks(self) -> list[Webhook]:
        """All webhooks of the act, in the order in which they arrive."""
        return [webhook for mail in self.mails for webhook in mail.webhooks] + list(self.strays)


class Cast:
    """Makes mails and webhooks with ids as the providers make them."""

    def __init__(self, seed: int = 20) -> None:
        self._random = random.Random(seed)
        self._number = 0

    def guid(self) -> str:
        """Return a Postmark `MessageID`."""
        return str(UUID(int=self._random.getrandbits(128), version=4))

    def text(self, length: int) -> str:
        """Return base64url, as SendGrid's ids are."""
        return "".join(self._random.choices(BASE64URL, k=length))

    def relayed(self, message_id: str) -> str:
        """Return the `sg_message_id` of a webhook: the id at send, a dot, and a relay's suffix."""
        host = f"{self._random.getrandbits(40):010x}-{self._random.getrandbits(20):05x}"
        return f"{message_id}.recvd-{host}-1-{self._random.getrandbits(32):08X}-{self._random.randrange(64):X}.0"

    def postmark(self, tenant_id: str, message_id: str, told: str, about: str, state: Verdict | None = None) -> Webhook:
        """Return an event as Postmark's webhook and Mailglass's ingest leave it; *told* is `RecordType=type`."""
        record_type, type_ = told.split("=")
        event_id = f"{record_type}:{message_id}:{self._random.randrange(10**9)}"
        metadata = {"provider_event_id": event_id, "record_type": record_type, "message_id": message_id}
        return Webhook(tenant_id, "postmark", type_, {"provider": "postmark", **metadata}, about, state)

    def sendgrid(self, tenant_id: str, message_id: str, told: str, about: str, state: Verdict | None = None) -> Webhook:
        """Return an event as SendGrid's webhook and Mailglass's ingest leave it; *told* is `event=type`."""
        event, type_ = told.split("=")
        metadata = {"provider_event_id": self.text(22), "event": event, "sg_message_id": message_id}
        return Webhook(tenant_id, "sendgrid", type_, {"provider": "sendgrid", **metadata}, about, state)

    def postmark_mail(self, tenant_id: str, *told: str, commits: bool = True) -> Mail:
        """Return a mail sent by Postmark, and what its webhooks tell."""
        name, message_id = self._name(), self.guid()
        state: Verdict | None = None if commits else UNMATCHED
        webhooks = tuple(self.postmark(tenant_id, message_id, one, name, state) for one in told)
        return Mail(name, tenant_id, message_id, webhooks, commits)

    def sendgrid_mail(self, tenant_id: str, *told: str) -> Mail:
        """Return a mail sent by SendGrid, and what its webhooks tell."""
        name, message_id = self._name(), self.text(22)
        relayed = self.relayed(message_id)
        webhooks = tuple(self.sendgrid(tenant_id, relayed, one, name) for one in told)
        return Mail(name, tenant_id, message_id, webhooks)

    def twins(self, tenant_id: str) -> tuple[Mail, Mail]:
        """Return the deliveries of one API call to two people: one id, and no webhook of their own."""
        one = self.sendgrid_mail(tenant_id)
        return one, Mail(self._name(), tenant_id, one.message_id, ())

    def _name(self) -> str:
        self._number += 1
        return f"mail {self._number}"
