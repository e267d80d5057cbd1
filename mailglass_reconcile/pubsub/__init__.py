"""Redis pub/sub: the names of the channels, the client, publishing, listening."""

from mailglass_reconcile.pubsub.channels import events_channel
from mailglass_reconcile.pubsub.client import PATIENCE_SECONDS, create_client, impatient, reason, server_of, within
from mailglass_reconcile.pubsub.publisher import CHUNK_LINKS, Message, Published, Publisher
from mailglass_reconcile.pubsub.subscriber import Missed, Subscription, Update

__all__ = [
    "CHUNK_LINKS",
    "PATIENCE_SECONDS",
    "Message",
    "Missed",
    "Published",
    "Publisher",
    "Subscription",
    "Update",
    "create_client",
    "events_channel",
    "impatient",
    "reason",
    "server_of",
    "within",
]
