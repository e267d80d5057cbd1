"""Links e-mail webhook events that arrived before their delivery had committed."""

from mailglass_reconcile.errors import (
    ConfigurationError,
    DatabaseRefusedError,
    DatabaseUnavailableError,
    InvalidEventError,
    LedgerImmutableError,
    MailglassReconcileError,
    SchemaOutdatedError,
)
from mailglass_reconcile.finder import Orphan, attempt_link, find_orphans
from mailglass_reconcile.pubsub import events_channel
from mailglass_reconcile.recorder import Recorded, WebhookEvent, append, record_webhook
from mailglass_reconcile.runtime import available, configure, prune, reconcile
from mailglass_reconcile.settings import Settings

__all__ = [
    "ConfigurationError",
    "DatabaseRefusedError",
    "DatabaseUnavailableError",
    "InvalidEventError",
    "LedgerImmutableError",
    "MailglassReconcileError",
    "Orphan",
    "Recorded",
    "SchemaOutdatedError",
    "Settings",
    "WebhookEvent",
    "append",
    "attempt_link",
    "available",
    "configure",
    "events_channel",
    "find_orphans",
    "prune",
    "reconcile",
    "record_webhook",
]
