"""The public names; each is loaded from its module when it is first used."""

from .errors import (
    ConfigurationError as ConfigurationError,
)
from .errors import (
    DatabaseRefusedError as DatabaseRefusedError,
)
from .errors import (
    DatabaseUnavailableError as DatabaseUnavailableError,
)
from .errors import (
    InvalidEventError as InvalidEventError,
)
from .errors import (
    LedgerImmutableError as LedgerImmutableError,
)
from .errors import (
    MailglassReconcileError as MailglassReconcileError,
)
from .errors import (
    RedisUnavailableError as RedisUnavailableError,
)
from .errors import (
    SchemaOutdatedError as SchemaOutdatedError,
)
from .hooks.dispatcher import dispatch as dispatch
from .ops.attempts import (
    Orphan as Orphan,
)
from .ops.attempts import (
    attempt_link as attempt_link,
)
from .ops.attempts import (
    find_orphans as find_orphans,
)
from .ops.pruner import (
    PruneResult as PruneResult,
)
from .ops.pruner import (
    prune as prune,
)
from .pubsub import (
    Missed as Missed,
)
from .pubsub import (
    Update as Update,
)
from .pubsub import (
    events_channel as events_channel,
)
from .record.after_commit import (
    Recorded as Recorded,
)
from .record.after_commit import (
    RecordedDelivery as RecordedDelivery,
)
from .record.after_commit import (
    broadcast as broadcast,
)
from .record.after_commit import (
    broadcast_async as broadcast_async,
)
from .record.by_hand import link as link
from .record.erasing import (
    Erased as Erased,
)
from .record.erasing import (
    erase as erase,
)
from .record.events import append as append
from .record.sends import (
    Sent as Sent,
)
from .record.sends import (
    record_send as record_send,
)
from .record.webhooks import record_webhook as record_webhook
from .rules.events import (
    DeliveryEvent as DeliveryEvent,
)
from .rules.events import (
    WebhookEvent as WebhookEvent,
)
from .rules.handlers import on_event as on_event
from .rules.providers import key_rule as key_rule
from .runtime import (
    available as available,
)
from .runtime import (
    configure as configure,
)
from .runtime import (
    subscribe as subscribe,
)
from .runtime import (
    subscribe_async as subscribe_async,
)
from .schedule import (
    beat_schedule as beat_schedule,
)
from .schedule import (
    make_beat_schedule as make_beat_schedule,
)
from .settings import Settings as Settings
from .store.schema import include_object as include_object
from .sweep.recent import reconcile_recent as reconcile_recent
from .sweep.reconciler import reconcile as reconcile
from .sweep.result import SweepResult as SweepResult

__version__: str
