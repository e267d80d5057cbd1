"""The public names; each is loaded from its module when it is first used."""

from .errors import (
    ConfigurationError as ConfigurationError,
    DatabaseRefusedError as DatabaseRefusedError,
    DatabaseUnavailableError as DatabaseUnavailableError,
    InvalidEventError as InvalidEventError,
    LedgerImmutableError as LedgerImmutableError,
    MailglassReconcileError as MailglassReconcileError,
    RedisUnavailableError as RedisUnavailableError,
    SchemaOutdatedError as SchemaOutdatedError,
)
from .handlers.dispatcher import (
    DispatchResult as DispatchResult,
    dispatch as dispatch,
)
from .ops.orphans import (
    Orphan as Orphan,
    attempt_link as attempt_link,
    find_orphans as find_orphans,
)
from .ops.pruner import (
    PruneResult as PruneResult,
    prune as prune,
)
from .pubsub import (
    AsyncSubscription as AsyncSubscription,
    Missed as Missed,
    Subscription as Subscription,
    Update as Update,
    events_channel as events_channel,
    flush as flush,
)
from .record.after_commit import (
    Recorded as Recorded,
    RecordedDelivery as RecordedDelivery,
    broadcast as broadcast,
    broadcast_async as broadcast_async,
)
from .record.manual_link import link as link
from .record.erasure import (
    Erased as Erased,
    erase as erase,
)
from .record.events import append as append
from .record.sends import (
    Sent as Sent,
    record_send as record_send,
)
from .record.webhooks import record_webhook as record_webhook
from .rules.events import (
    DeliveryEvent as DeliveryEvent,
    WebhookEvent as WebhookEvent,
)
from .rules.handlers import on_event as on_event
from .rules.provider_rules import key_rule as key_rule
from .runtime import (
    available as available,
    configure as configure,
    subscribe as subscribe,
    subscribe_async as subscribe_async,
)
from .schedule import (
    beat_schedule as beat_schedule,
    make_beat_schedule as make_beat_schedule,
)
from .settings import Settings as Settings
from .store.installed import include_object as include_object
from .linking.matcher import EventMatch as EventMatch
from .sweep.recent import reconcile_recent as reconcile_recent
from .sweep.reconciler import reconcile as reconcile
from .sweep.result import SweepResult as SweepResult

__version__: str
