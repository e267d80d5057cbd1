"""Links e-mail webhook events that arrived before their delivery had committed."""

from typing import TYPE_CHECKING, Any

from mailglass_reconcile.errors import (
    ConfigurationError,
    DatabaseRefusedError,
    DatabaseUnavailableError,
    InvalidEventError,
    LedgerImmutableError,
    MailglassReconcileError,
    RedisUnavailableError,
    SchemaOutdatedError,
)
from mailglass_reconcile.hooks.dispatcher import dispatch
from mailglass_reconcile.ops.orphans import Orphan, attempt_link, find_orphans
from mailglass_reconcile.ops.pruner import PruneResult, prune
from mailglass_reconcile.pubsub import Missed, Update, events_channel
from mailglass_reconcile.record.events import append
from mailglass_reconcile.record.recorded import Recorded, RecordedDelivery
from mailglass_reconcile.record.sends import record_send
from mailglass_reconcile.record.sent import Sent
from mailglass_reconcile.record.telling import broadcast
from mailglass_reconcile.record.webhooks import record_webhook
from mailglass_reconcile.rules.events import DeliveryEvent, WebhookEvent
from mailglass_reconcile.rules.handlers import on_event
from mailglass_reconcile.rules.providers import key_rule
from mailglass_reconcile.runtime import available, configure, subscribe
from mailglass_reconcile.schedule import BeatEntry, make_beat_schedule
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store.schema import include_object
from mailglass_reconcile.sweep.full import reconcile
from mailglass_reconcile.sweep.recent import reconcile_recent
from mailglass_reconcile.sweep.result import SweepResult

__version__ = "0.1.0"

__all__ = [
    "ConfigurationError",
    "DatabaseRefusedError",
    "DatabaseUnavailableError",
    "DeliveryEvent",
    "InvalidEventError",
    "LedgerImmutableError",
    "MailglassReconcileError",
    "Missed",
    "Orphan",
    "PruneResult",
    "Recorded",
    "RecordedDelivery",
    "RedisUnavailableError",
    "SchemaOutdatedError",
    "Sent",
    "Settings",
    "SweepResult",
    "Update",
    "WebhookEvent",
    "__version__",
    "append",
    "attempt_link",
    "available",
    "beat_schedule",
    "broadcast",
    "configure",
    "dispatch",
    "events_channel",
    "find_orphans",
    "include_object",
    "key_rule",
    "make_beat_schedule",
    "on_event",
    "prune",
    "reconcile",
    "reconcile_recent",
    "record_send",
    "record_webhook",
    "subscribe",
]


beat_schedule: dict[str, BeatEntry]
"""The default entries for an app's `beat_schedule`: `make_beat_schedule()`."""

if not TYPE_CHECKING:  # a type checker would take every misspelled name for one that this function knows

    def __getattr__(name: str) -> Any:
        """Make `beat_schedule` when somebody asks for it: without Celery, that is the moment to warn."""
        if name == "beat_schedule":
            globals()[name] = make_beat_schedule()
            return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
