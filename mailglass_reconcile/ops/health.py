"""Whether somebody has to act: judged by what the runs have left in the database, never by a process that is alive."""

from __future__ import annotations

from typing import Any, NamedTuple

from mailglass_reconcile.store import outbox, schema
from mailglass_reconcile.store.database import Transaction

MAX_LAG_SECONDS = 900.0
"""Three intervals of five minutes; a full sweep has to succeed within two of them."""

# The last full sweeps of all tenants; a fan-out counts as one.
_FACTS = """
SELECT to_json(now()::timestamp) #>> '{}' || 'Z' AS now,
       (SELECT max(version_num) FROM {schema}.mailglass_reconcile_version) AS version,
       (SELECT count(*) = 2 FROM pg_trigger AS t
         WHERE t.tgrelid = to_regclass(:events) AND t.tgenabled IN ('O', 'A')
           AND t.tgname IN ('mailglass_open_orphans_add', 'mailglass_open_orphans_remove')) AS triggers,
       extract(epoch FROM now()::timestamp - ok.finished_at)::float8 AS success_age,
       extract(epoch FROM now()::timestamp - ok.linkable_since)::float8 AS lag_seconds,
       to_json(counted.finished_at) #>> '{}' || 'Z' AS counted_at, counted.open_groups AS groups,
       last.status, last.error, last.scanned, last.linked, last.unmatched, last.unmatchable, last.tenant_mismatch,
       last.published, last.publish_failed,
       (SELECT coalesce(jsonb_object_agg(k.kind, s.at), '{}')
          FROM unnest(ARRAY['full', 'recent', 'range', 'prune']) AS k (kind)
         CROSS JOIN LATERAL (
                 SELECT to_json(finished_at) #>> '{}' || 'Z' AS at FROM {schema}.mailglass_reconcile_runs
                  WHERE kind = k.kind AND status IN ('ok', 'partial') ORDER BY id DESC LIMIT 1) AS s) AS last_success
  FROM (SELECT) AS one
  LEFT JOIN LATERAL (
         SELECT * FROM {schema}.mailglass_reconcile_runs
          WHERE kind = 'full' AND tenant_id IS NULL AND status IN ('ok', 'partial') ORDER BY id DESC LIMIT 1)
            AS ok ON true
  LEFT JOIN LATERAL (
         SELECT * FROM {schema}.mailglass_reconcile_runs
          WHERE kind = 'full' AND tenant_id IS NULL AND open_groups IS NOT NULL ORDER BY id DESC LIMIT 1)
            AS counted ON true
  LEFT JOIN LATERAL (
         SELECT * FROM {schema}.mailglass_reconcile_runs
          WHERE kind = 'full' AND tenant_id IS NULL AND status <> 'duplicate' ORDER BY id DESC LIMIT 1)
            AS last ON true
"""


class Facts(NamedTuple):
    """What two queries say: the schema, the last full sweep that succeeded, the last one, and the outbox."""

    now: str
    version: str | None
    triggers: bool
    success_age: float | None
    lag_seconds: float
    counted_at: str | None
    groups: list[dict[str, Any]] | None
    last: dict[str, Any] | None
    last_success: dict[str, str]
    hooks_waiting: int
    hooks_dead: int


def facts(tx: Transaction) -> Facts:
    """Return the facts, by two queries whose cost does not depend on what is open."""
    row = tx.execute(_FACTS, {"events": tx.name_of("mailglass_events")}).one()
    return Facts(
        row.now,
        row.version,
        row.triggers,
        row.success_age,
        max(0.0, row.lag_seconds or 0.0),
        row.counted_at,
        row.groups,
        None if row.status is None else dict(row._mapping),
        row.last_success,
        *outbox.count(tx),
    )


def problems(known: Facts, max_lag_seconds: float) -> list[str]:
    """Return what is wrong, a sentence for each, with what to do."""
    if known.version != schema.VERSION:
        at = known.version or "none"
        return [
            f"the database is at revision {at}, this version needs {schema.VERSION}: run `mailglass-reconcile migrate`"
        ]
    found = []
    if not known.triggers:
        found.append(
            "the triggers on mailglass_events are missing or disabled, so new orphans are not seen:"
            " run `mailglass-reconcile migrate`, then `mailglass-reconcile prune`"
        )
    allowed = max_lag_seconds * 2 / 3
    if known.success_age is None:
        found.append(f"no full sweep has ever succeeded: {_ASK_DOCTOR}")
    elif known.success_age > allowed:
        minutes = int(known.success_age // 60)
        found.append(
            f"no full sweep has succeeded for {minutes} minutes, {int(allowed // 60)} are allowed: {_ASK_DOCTOR}"
        )
    if known.lag_seconds > max_lag_seconds:
        found.append(
            f"an orphan has been open for {int(known.lag_seconds // 60)} minutes although its delivery is there:"
            f" {_ASK_DOCTOR}"
        )
    if known.hooks_dead:
        found.append(
            f"{known.hooks_dead} events are dead, no handler is tried again: `mailglass-reconcile dispatch --dead`"
        )
    return found + (_of_the_last(known.last) if known.last else [])


_ASK_DOCTOR = "`mailglass-reconcile doctor` says why"


def _of_the_last(last: dict[str, Any]) -> list[str]:
    found = []
    if last["status"] == "failed":
        found.append(f"the last full sweep failed ({last['error'] or 'it broke off'}): {_ASK_DOCTOR}")
    matching = last["scanned"] - last["unmatched"] - last["unmatchable"]
    if last["tenant_mismatch"] > last["linked"] and last["tenant_mismatch"] * 2 >= matching:
        found.append(
            f"{last['tenant_mismatch']} orphans match only another tenant's deliveries and are not linked: the tenant"
            " of your webhooks is probably wrong (MAILGLASS_TENANT, or resolve_webhook_tenant in Mailglass)"
        )
    if last["publish_failed"] and not last["published"]:
        found.append(
            f"Redis took none of the last sweep's {last['publish_failed']} broadcasts: check MAILGLASS_REDIS_URL"
        )
    return found
