"""Redis pub/sub: the names of the channels, the client, publishing."""

from mailglass_reconcile.pubsub.channels import events_channel
from mailglass_reconcile.pubsub.client import PATIENCE_SECONDS, create_client, impatient, reason, within
from mailglass_reconcile.pubsub.publisher import CHUNK_LINKS, Message, Published, Publisher

__all__ = [
    "CHUNK_LINKS",
    "PATIENCE_SECONDS",
    "Message",
    "Published",
    "Publisher",
    "create_client",
    "events_channel",
    "impatient",
    "reason",
    "within",
]
