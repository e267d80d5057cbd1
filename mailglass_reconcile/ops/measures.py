"""What `/metrics` says: totals of the history of runs, and facts of the moment, by statements that cost little."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from mailglass_reconcile.ops import health
from mailglass_reconcile.ops.silence import Silence, by_label
from mailglass_reconcile.rules.event_types import PROVIDER_TYPES
from mailglass_reconcile.store import runs
from mailglass_reconcile.store.database import Database, array_literal

TIMEOUT_MS = 2_000

SAMPLE = 200
"""Deliveries that are looked at: the last ones that are 10 to 70 minutes old."""

# Ids are UUIDv7, whose first 48 bits are the millisecond in UTC; `inserted_at` may be the local time of its session.
_LATELY = """
SELECT (SELECT extract(epoch FROM arrived_at)::float8 FROM {schema}.mailglass_open_orphans
         ORDER BY arrived_at DESC, event_id DESC LIMIT 1) AS last_orphan, s.deliveries, s.reported
  FROM (SELECT count(*) AS deliveries,
               count(*) FILTER (WHERE d.last_event_type = ANY (CAST(:reports AS text[]))) AS reported
          FROM (SELECT last_event_type
                  FROM {schema}.mailglass_deliveries,
                       (SELECT (extract(epoch FROM now()) * 1000)::bigint AS now_ms) AS clock
                 WHERE id >= (lpad(to_hex(now_ms - 4200000), 12, '0') || '00000000000000000000')::uuid
                   AND id < (lpad(to_hex(now_ms - 600000), 12, '0') || '00000000000000000000')::uuid
                 ORDER BY id DESC LIMIT :sample) AS d) AS s
"""

# A tenant's newest deliveries stand together in an index of Mailglass's; a hundred of each are looked at.
_UNLINKED_TENANTS = """
SELECT count(*)
  FROM unnest(CAST(:tenants AS text[])) AS t (tenant_id)
 WHERE NOT EXISTS (
         SELECT FROM (SELECT last_event_type, last_event_at FROM {schema}.mailglass_deliveries
                       WHERE tenant_id = t.tenant_id ORDER BY last_event_at DESC LIMIT 100) AS d
          WHERE d.last_event_type = ANY (CAST(:reports AS text[]))
            AND d.last_event_at > now()::timestamp - interval '24 hours')
"""


class Lately(NamedTuple):
    """When the newest open orphan arrived; how many deliveries were made, and how many of them were reported on."""

    last_orphan: float | None
    deliveries: int
    reported: int


@dataclass(frozen=True, slots=True)
class Measures:
    """What is known; times are seconds since 1970.

    Attributes:
        totals: The history of runs, added up by kind and status.
        last_success: When a run of each kind last ended well; of full sweeps, one over all tenants.
        counted_at: When a full sweep last counted what is open, or None.
        states: Eligible open orphans at that time, by state.
        linkable_since: Since when an orphan has been open although its delivery exists, or None.
        triggers: Whether the triggers on the ledger exist and are enabled.
        hooks_waiting: Events that wait for their handlers.
        hooks_dead: Events of which a handler has failed for the last time.
        hooks_failing: Those of them that wait whose handlers have failed three times or more.
        hooks_overdue_seconds: For how long the first of those that wait has been due.
        hooks_unseen: How many types of events have handlers that no dispatcher has named for an hour.
        lately: What has arrived, and what deliveries have heard.
        silence: What deliveries lack, by provider.
        unlinked_tenants: Tenants with open orphans of which no delivery has got a provider's event for 24 hours.
    """

    totals: list[runs.Total]
    last_success: dict[str, float]
    counted_at: float | None
    states: dict[str, int]
    linkable_since: float | None
    triggers: bool
    hooks_waiting: int
    hooks_dead: int
    hooks_failing: int
    hooks_overdue_seconds: float
    hooks_unseen: int
    lately: Lately
    silence: dict[str, Silence]
    unlinked_tenants: int


def measure(database: Database) -> Measures:
    """Read all of it, by statements whose cost does not depend on what is open.

    Raises:
        MailglassReconcileError: The database cannot be reached, refuses, or is not migrated.
    """
    with database.connect() as connected:
        with connected.reading(TIMEOUT_MS) as tx:
            known, totals = health.facts(tx), runs.totals(tx)
        groups = known.groups or []
        tenants = array_literal(sorted({group["tenant_id"] for group in groups if group["tenant_id"] is not None}))
        reports = array_literal(PROVIDER_TYPES)
        with connected.reading(TIMEOUT_MS) as tx:
            lately = Lately(*tx.execute(_LATELY, {"reports": reports, "sample": SAMPLE}).one())
            unlinked = tx.execute(_UNLINKED_TENANTS, {"tenants": tenants, "reports": reports}).scalar_one()
    states: Counter[str] = Counter()
    for group in groups:
        states[group["state"]] += group["orphans"]
    now = dt.datetime.fromisoformat(known.now).timestamp()
    last_success = {kind: _epoch(time) or 0.0 for kind, time in known.last_success.items() if kind != "full"}
    if known.success_age is not None:
        last_success["full"] = now - known.success_age
    return Measures(
        totals,
        last_success,
        _epoch(known.counted_at),
        dict(states),
        now - known.lag_seconds if known.lag_seconds else None,
        known.triggers,
        known.hooks_waiting,
        known.hooks_dead,
        known.hooks_failing,
        known.hooks_overdue_seconds,
        len(known.unseen),
        lately,
        by_label(known.reports),
        unlinked,
    )


def _epoch(time: str | None) -> float | None:
    """Return a time in seconds since 1970; None for one that Python does not have, such as a far year."""
    try:
        return dt.datetime.fromisoformat(time or "").timestamp()
    except ValueError:
        return None
