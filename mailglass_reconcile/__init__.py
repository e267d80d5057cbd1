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
from mailglass_reconcile.pubsub import events_channel
from mailglass_reconcile.runtime import available, configure, prune, reconcile
from mailglass_reconcile.settings import Settings

__all__ = [
    "ConfigurationError",
    "DatabaseRefusedError",
    "DatabaseUnavailableError",
    "InvalidEventError",
    "LedgerImmutableError",
    "MailglassReconcileError",
    "SchemaOutdatedError",
    "Settings",
    "available",
    "configure",
    "events_channel",
    "prune",
    "reconcile",
]
