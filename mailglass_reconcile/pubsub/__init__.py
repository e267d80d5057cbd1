"""Redis pub/sub: the names of the channels, the client, publishing, subscribing."""

from mailglass_reconcile.pubsub.background import flush
from mailglass_reconcile.pubsub.channels import TEST_MESSAGE, events_channel
from mailglass_reconcile.pubsub.client import (
    TIMEOUT_SECONDS,
    create_client,
    reason,
    require_timeouts,
    server_of,
)
from mailglass_reconcile.pubsub.publisher import CHUNK_LINKS, Message, Published, Publisher
from mailglass_reconcile.pubsub.subscriber import AsyncSubscription, Missed, Subscription, Update

__all__ = [
    "CHUNK_LINKS",
    "TEST_MESSAGE",
    "TIMEOUT_SECONDS",
    "AsyncSubscription",
    "Message",
    "Missed",
    "Published",
    "Publisher",
    "Subscription",
    "Update",
    "create_client",
    "events_channel",
    "flush",
    "reason",
    "require_timeouts",
    "server_of",
]
