"""What the writers return, with what has to be done after the caller's commit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

from mailglass_reconcile.pubsub import Message


class Look(NamedTuple):
    """What to look for once more after the commit: open events for message ids, and open events themselves."""

    tenant_id: str
    message_ids: tuple[str, ...] = ()
    event_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of an event.

    Attributes:
        event_id: Its id, or None if it was recorded before.
        delivery_id: Its delivery, or None if it is an orphan.
        messages: What `broadcast` will publish; empty if there is nothing, or if a Session publishes it by itself.
        look: What `broadcast` will look for once more; None if there is nothing, or if a Session does it by itself.
    """

    event_id: UUID | None
    delivery_id: UUID | None
    messages: tuple[Message, ...] = field(default=(), repr=False)
    look: Look | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class RecordedDelivery:
    """The delivery of one recipient.

    Attributes:
        delivery_id: Its id.
        linked: How many events that came before it were linked to it now.
        messages: What `broadcast` will publish; empty if there is nothing, or if a Session publishes it by itself.
        look: What `broadcast` will look for once more; None if there is nothing, or if a Session does it by itself.
    """

    delivery_id: UUID
    linked: int
    messages: tuple[Message, ...] = field(default=(), repr=False)
    look: Look | None = field(default=None, repr=False)
