"""Links e-mail webhook events that arrived before their delivery had committed."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a name is loaded when it is first used: see _MODULES
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
    from mailglass_reconcile.ops.attempts import Orphan, attempt_link, find_orphans
    from mailglass_reconcile.ops.pruner import PruneResult, prune
    from mailglass_reconcile.pubsub import Missed, Update, events_channel
    from mailglass_reconcile.record.after_commit import Recorded, RecordedDelivery, broadcast, broadcast_async
    from mailglass_reconcile.record.by_hand import link
    from mailglass_reconcile.record.erasing import Erased, erase
    from mailglass_reconcile.record.events import append
    from mailglass_reconcile.record.sends import Sent, record_send
    from mailglass_reconcile.record.webhooks import record_webhook
    from mailglass_reconcile.rules.events import DeliveryEvent, WebhookEvent
    from mailglass_reconcile.rules.handlers import on_event
    from mailglass_reconcile.rules.providers import key_rule
    from mailglass_reconcile.runtime import available, configure, subscribe, subscribe_async
    from mailglass_reconcile.schedule import BeatEntry, make_beat_schedule
    from mailglass_reconcile.settings import Settings
    from mailglass_reconcile.store.schema import include_object
    from mailglass_reconcile.sweep.recent import reconcile_recent
    from mailglass_reconcile.sweep.reconciler import reconcile
    from mailglass_reconcile.sweep.result import SweepResult

    beat_schedule: dict[str, BeatEntry]
    """The default entries for an app's `beat_schedule`: `make_beat_schedule()`."""

__version__ = "0.1.0"

__all__ = [
    "ConfigurationError",
    "DatabaseRefusedError",
    "DatabaseUnavailableError",
    "DeliveryEvent",
    "Erased",
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
    "broadcast_async",
    "configure",
    "dispatch",
    "erase",
    "events_channel",
    "find_orphans",
    "include_object",
    "key_rule",
    "link",
    "make_beat_schedule",
    "on_event",
    "prune",
    "reconcile",
    "reconcile_recent",
    "record_send",
    "record_webhook",
    "subscribe",
    "subscribe_async",
]

_MODULES = {
    "mailglass_reconcile.errors": (
        "ConfigurationError DatabaseRefusedError DatabaseUnavailableError InvalidEventError LedgerImmutableError"
        " MailglassReconcileError RedisUnavailableError SchemaOutdatedError"
    ),
    "mailglass_reconcile.hooks.dispatcher": "dispatch",
    "mailglass_reconcile.ops.attempts": "Orphan attempt_link find_orphans",
    "mailglass_reconcile.ops.pruner": "PruneResult prune",
    "mailglass_reconcile.pubsub": "Missed Update events_channel",
    "mailglass_reconcile.record.after_commit": "Recorded RecordedDelivery broadcast broadcast_async",
    "mailglass_reconcile.record.by_hand": "link",
    "mailglass_reconcile.record.erasing": "Erased erase",
    "mailglass_reconcile.record.events": "append",
    "mailglass_reconcile.record.sends": "Sent record_send",
    "mailglass_reconcile.record.webhooks": "record_webhook",
    "mailglass_reconcile.rules.events": "DeliveryEvent WebhookEvent",
    "mailglass_reconcile.rules.handlers": "on_event",
    "mailglass_reconcile.rules.providers": "key_rule",
    "mailglass_reconcile.runtime": "available configure subscribe subscribe_async",
    "mailglass_reconcile.schedule": "make_beat_schedule",
    "mailglass_reconcile.settings": "Settings",
    "mailglass_reconcile.store.schema": "include_object",
    "mailglass_reconcile.sweep.recent": "reconcile_recent",
    "mailglass_reconcile.sweep.reconciler": "reconcile",
    "mailglass_reconcile.sweep.result": "SweepResult",
}
"""The module of each public name, as for type checkers above; loading all of them takes half a second."""

if not TYPE_CHECKING:  # a type checker would accept every misspelled name

    def __getattr__(name: str) -> Any:
        """Load a public name; `beat_schedule` is made here, because without Celery it logs a warning."""
        if name == "beat_schedule":
            value = __getattr__("make_beat_schedule")()
        else:
            home = next((module for module, names in _MODULES.items() if name in names.split()), None)
            if home is None:
                raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
            value = getattr(import_module(home), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """Name what is loaded and what can be."""
        return sorted({*globals(), *__all__})
