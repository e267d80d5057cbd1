"""Whether somebody has to act: judged by what the runs have left in the database, never by a process that is alive."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import sqlalchemy as sa

from mailglass_reconcile.errors import hint
from mailglass_reconcile.ops import handlers, silence
from mailglass_reconcile.ops.handlers import Problem
from mailglass_reconcile.rules import providers
from mailglass_reconcile.rules.humanize import age, counted, shown
from mailglass_reconcile.schedule import PRUNE_LATE_SECONDS
from mailglass_reconcile.store import handled, ledger, outbox, reports, schema
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.handled import Unseen
from mailglass_reconcile.store.reports import Reports

LATELY_DAYS = 7
"""As long as an orphan of a wrong tenant stays open: links of that time are what their number is compared with."""
UNUSABLE_ORPHANS = 10
"""Fewer without a usable id may be single events that something is wrong with."""
ASTRAY_ORPHANS = 3
"""Fewer of another tenant may be single events that somebody sent to the wrong place."""

# The last full sweeps of all tenants. One that was cut into ranges is over when all of them have added their counts.
# What it left although it could be linked is late until sweeps of some tenants or events have linked as many. One that
# broke off, by its deadline or Ctrl-C, has not succeeded.
_FACTS = """
SELECT to_json(now()::timestamp) #>> '{}' || 'Z' AS now,
       (SELECT max(version_num) FROM {schema}.mailglass_reconcile_version) AS version,
       ({triggers}) AS triggers,
       extract(epoch FROM now()::timestamp - success.finished_at)::float8 AS success_age,
       success.origin AS success_origin,
       CASE WHEN greatest(1, ok.skipped + ok.failed)
                 > (SELECT coalesce(sum(linked), 0) FROM {schema}.mailglass_reconcile_runs
                     WHERE id > ok.id AND (kind = 'targeted' OR kind = 'full' AND tenant_id IS NOT NULL))
            THEN extract(epoch FROM now()::timestamp - ok.linkable_since)::float8 END AS lag_seconds,
       to_json(counted.finished_at) #>> '{}' || 'Z' AS counted_at, counted.open_groups AS groups,
       last.status, last.error, last.ranges, last.ranges_done,
       extract(epoch FROM now()::timestamp - uncovered.since)::float8 AS uncovered_seconds,
       extract(epoch FROM now()::timestamp - last.finished_at)::float8 AS last_age,
       last.scanned, last.linked, last.unmatched, last.unmatchable, last.tenant_mismatch, last.failed, last.published,
       last.publish_failed,
       CASE WHEN last.tenant_mismatch >= :astray
            THEN (SELECT coalesce(sum(linked), 0)::bigint FROM {schema}.mailglass_reconcile_runs
                   WHERE finished_at > now()::timestamp - make_interval(days => :lately_days)) END AS swept_lately,
       pruned.finished_at IS NOT NULL AS pruned,
       extract(epoch FROM now()::timestamp
                        - coalesce(pruned.finished_at, first.started_at))::float8 AS unpruned_seconds,
       (SELECT coalesce(jsonb_object_agg(k.kind, s.at), '{}')
          FROM unnest(ARRAY['full', 'recent', 'range', 'targeted', 'prune']) AS k (kind)
         CROSS JOIN LATERAL (
                 SELECT to_json(finished_at) #>> '{}' || 'Z' AS at FROM {schema}.mailglass_reconcile_runs
                  WHERE kind = k.kind AND {succeeded} AND (kind <> 'full' OR tenant_id IS NULL)
                  ORDER BY id DESC LIMIT 1) AS s) AS last_success
  FROM (SELECT) AS one
  LEFT JOIN LATERAL (
         SELECT * FROM {schema}.mailglass_reconcile_runs
          WHERE kind = 'full' AND tenant_id IS NULL AND status IN ('ok', 'partial')
            AND ranges_done >= coalesce(ranges, 0) ORDER BY id DESC LIMIT 1) AS ok ON true
  LEFT JOIN LATERAL (
         SELECT finished_at, origin FROM {schema}.mailglass_reconcile_runs
          WHERE kind = 'full' AND tenant_id IS NULL AND {succeeded} ORDER BY id DESC LIMIT 1) AS success ON true
  LEFT JOIN LATERAL (
         SELECT * FROM {schema}.mailglass_reconcile_runs
          WHERE kind = 'full' AND tenant_id IS NULL AND open_groups IS NOT NULL
            AND ranges_done >= coalesce(ranges, 0) ORDER BY id DESC LIMIT 1) AS counted ON true
  LEFT JOIN LATERAL (
         SELECT * FROM {schema}.mailglass_reconcile_runs
          WHERE kind = 'full' AND tenant_id IS NULL AND status <> 'duplicate' ORDER BY id DESC LIMIT 1) AS last ON true
  LEFT JOIN LATERAL (
         SELECT min(started_at) AS since FROM {schema}.mailglass_reconcile_runs
          WHERE kind = 'full' AND tenant_id IS NULL AND NOT covered AND remaining IS NOT NULL
            AND id > coalesce((SELECT id FROM {schema}.mailglass_reconcile_runs
                                WHERE kind = 'full' AND tenant_id IS NULL AND covered AND status <> 'duplicate'
                                ORDER BY id DESC LIMIT 1), 0)) AS uncovered ON true
  LEFT JOIN LATERAL (
         SELECT finished_at FROM {schema}.mailglass_reconcile_runs
          WHERE kind = 'prune' AND status IN ('ok', 'partial') ORDER BY id DESC LIMIT 1) AS pruned ON true
  LEFT JOIN LATERAL (
         SELECT started_at FROM {schema}.mailglass_reconcile_runs ORDER BY id LIMIT 1) AS first ON true
""".replace("{triggers}", schema.TRIGGERS_ENABLED).replace(
    "{succeeded}", "ranges_done >= coalesce(ranges, 0) AND status IN ('ok', 'partial') AND covered"
)


class Facts(NamedTuple):
    """What a few queries say: the schema, the last full sweeps, the outbox, and the reports of providers."""

    now: str
    version: str | None
    triggers: bool
    success_age: float | None
    lag_seconds: float
    counted_at: str | None
    groups: list[dict[str, Any]] | None
    last: dict[str, Any] | None
    unpruned_seconds: float | None
    last_success: dict[str, str]
    hooks_waiting: int
    hooks_dead: int
    hooks_failing: int
    hooks_overdue_seconds: float
    handlers: list[Problem]
    unseen: list[Unseen]
    reports: list[Reports]
    silence_hours: float | None


def last_sweeps(tx: Transaction) -> sa.Row[Any]:
    """Return what the history knows of the last full sweeps: one query, whose cost does not depend on what is open."""
    bounds = {"events": tx.name_of("mailglass_events"), "astray": ASTRAY_ORPHANS, "lately_days": LATELY_DAYS}
    return tx.execute(_FACTS, bounds).one()


def facts(tx: Transaction) -> Facts:
    """Return the facts, by a few queries whose cost does not depend on what is open."""
    row, waiting, unseen = last_sweeps(tx), outbox.facts(tx), handled.unseen(tx)
    last = None if row.status is None else dict(row._mapping)
    if last is not None and row.swept_lately is not None:  # sweeps count their own links; our writers link most
        last["linked_lately"] = max(row.swept_lately, ledger.newest_links(tx, LATELY_DAYS * 86_400))
    return Facts(
        row.now,
        row.version,
        row.triggers,
        row.success_age,
        max(0.0, row.lag_seconds or 0.0),
        row.counted_at,
        None if row.groups is None else added_up(row.groups),
        last,
        row.unpruned_seconds,
        row.last_success,
        waiting.waiting,
        waiting.dead,
        waiting.failing,
        max(0.0, waiting.overdue_seconds),
        handlers.problems(waiting, unseen),
        unseen,
        reports.missing(tx),
        tx.settings.silence_hours,
    )


def added_up(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return groups of open orphans, the largest first; ranges of a fan-out have counted the same ones."""
    counts: Counter[tuple[str, str | None, str | None]] = Counter()
    for group in groups:
        # What a later version stored in another form is left out.
        if isinstance(group, dict) and isinstance(group.get("state"), str) and isinstance(group.get("orphans"), int):
            counts[group["state"], group.get("tenant_id"), group.get("provider")] += group["orphans"]
    return [
        {"state": state, "tenant_id": tenant_id, "provider": provider, "orphans": orphans}
        for (state, tenant_id, provider), orphans in counts.most_common()
    ]


def problems(known: Facts, max_lag_seconds: float) -> list[str]:
    """Return what is wrong, a sentence for each, with what to do."""
    if known.version != schema.VERSION:
        return [schema.outdated(known.version)]
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
        found.append(
            f"no full sweep has succeeded for {age(known.success_age)}, {age(allowed)} are allowed: {_ASK_DOCTOR}"
        )
    if known.lag_seconds > max_lag_seconds:
        found.append(
            f"an orphan has been open for {age(known.lag_seconds)} although its delivery exists: {_ASK_DOCTOR}"
        )
    if (known.unpruned_seconds or 0) > PRUNE_LATE_SECONDS:
        found.append(
            f"nothing was pruned for {age(known.unpruned_seconds or 0)}, so tables grow and expired orphans stay open:"
            " run `mailglass-reconcile prune`, daily"
        )
    found += [f"{problem.sentence}: {problem.remedy}" for problem in known.handlers]
    of_last = _of_the_last(known.last, allowed) if known.last else []
    found += silence.problems(known.reports, known.silence_hours)
    found += [*_without_ids(known.groups or []), *of_last]
    return [hint(problem) for problem in found]


_ASK_DOCTOR = "`mailglass-reconcile doctor` says why"


def _without_ids(groups: list[dict[str, Any]]) -> list[str]:
    """Name the providers of which many orphans are open, and none of them has an id that can be used."""
    open_ones: Counter[str | None] = Counter()
    unusable: Counter[str] = Counter()
    for group in groups:
        provider, orphans = group["provider"], group["orphans"]
        open_ones[provider] += orphans
        if group["state"] == "unmatchable" and provider is not None:
            unusable[provider] += orphans
    return [
        f"none of the {number:,} open orphans of the provider {shown(provider)} has an id that can be used, as if its"
        f" key rule were missing: {_ASK_DOCTOR}"
        for provider, number in unusable.items()
        if number == open_ones[provider] and number >= UNUSABLE_ORPHANS and not providers.may_lack_id(provider)
    ]


def _of_the_last(last: dict[str, Any], allowed: float) -> list[str]:
    found = []
    if last["status"] == "failed":
        found.append(f"the last full sweep failed ({last['error'] or 'no error was noted'}): {_ASK_DOCTOR}")
    if (last["uncovered_seconds"] or 0.0) > allowed:
        found.append(
            f"full sweeps have not looked at everything for {age(last['uncovered_seconds'])}: each ends at its deadline"
            " (MAILGLASS_SWEEP_SECONDS); run them more often, or with fan_out on more workers"
        )
    if last["failed"] and not last["linked"]:
        refused = counted(last["failed"], "link")
        found.append(f"the database refused all that the last full sweep tried, {refused}: {_ASK_DOCTOR}")
    matching = last["scanned"] - last["unmatched"] - last["unmatchable"]
    lately = last.get("linked_lately")  # only looked for if there are several
    if lately is not None and last["tenant_mismatch"] > lately and last["tenant_mismatch"] * 2 >= matching:
        astray = counted(last["tenant_mismatch"], "orphan matches", "orphans match")
        found.append(
            f"{astray} another tenant's deliveries only and are not linked, more than were linked within"
            f" {LATELY_DAYS} days: the tenant of your webhooks is probably wrong (MAILGLASS_TENANT, or"
            " resolve_webhook_tenant in Mailglass)"
        )
    if last["publish_failed"] and not last["published"]:
        lost = counted(last["publish_failed"], "broadcast")
        found.append(f"Redis took none of the last sweep's {lost}: check MAILGLASS_REDIS_URL")
    return found
