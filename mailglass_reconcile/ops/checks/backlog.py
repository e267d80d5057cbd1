"""What the open orphans say: links that are late, webhooks of a wrong tenant, ids that no rule finds.

Their states are those that the last look has stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from mailglass_reconcile.ops.checks.check import Finding, Look, check, error, ok, warning
from mailglass_reconcile.ops.checks.sweeps import OF_THE_DATABASE, OF_THE_WORKER
from mailglass_reconcile.rules import providers
from mailglass_reconcile.rules.humanize import format_duration, n_of_m, pluralize, sanitize
from mailglass_reconcile.rules.states import UNSEEN
from mailglass_reconcile.store import ledger, schema
from mailglass_reconcile.store.database import Transaction

NEWEST_ORPHANS = 300
SEVERAL = 3
"""Fewer events of another tenant may be single ones, sent to the wrong place."""
MANY = 10
"""Fewer events without a usable id may be single ones with a fault."""
LATELY_DAYS = 7
"""For as long an event of a wrong tenant stays open: the links of that time show whether tenants are right now."""

_NEWEST = """
SELECT n.tenant_id, n.provider, n.state, n.rank IS NOT NULL AS has_keys, left(e.type, 512) AS type,
       count(*)::integer AS orphans
  FROM (SELECT event_id, tenant_id, provider, state, rank FROM {schema}.mailglass_open_orphans
         WHERE arrived_at > now()::timestamp - make_interval(mins => :max_age_minutes)
         ORDER BY arrived_at DESC, event_id DESC LIMIT :size) AS n
  JOIN {schema}.mailglass_events AS e ON e.id = n.event_id
 GROUP BY 1, 2, 3, 4, 5
"""

_SWEPT_LATELY = """
SELECT coalesce(sum(linked), 0)::bigint FROM {schema}.mailglass_reconcile_runs
 WHERE finished_at > now()::timestamp - make_interval(days => :days)
"""


def _newest(look: Look) -> list[sa.Row[Any]]:
    bounds = {"max_age_minutes": look.tx.settings.max_age_minutes, "size": NEWEST_ORPHANS}
    return list(look.tx.execute(_NEWEST, bounds))


@check("linking", cheap=True)
def linking(look: Look) -> Iterator[Finding]:
    """Nothing stays open for long although its delivery exists."""
    lag = look.history.lag_seconds
    if lag > look.max_lag_seconds:
        yield error(
            f"an event has been open for {format_duration(lag)} although its delivery exists",
            "run `mailglass-reconcile sweep`, which links it or says why not",
            (*OF_THE_DATABASE, *OF_THE_WORKER, "beat", "sweeps"),
        )
    else:
        yield ok("no event is late that can be linked")


@check("tenants", cheap=True)
def tenants(look: Look) -> Iterator[Finding]:
    """Webhooks carry the tenant of their deliveries."""
    found = _newest(look)
    astray = [row for row in found if row.state == "tenant_mismatch"]
    number, seen = sum(row.orphans for row in astray), sum(row.orphans for row in found)
    if not number:
        yield ok(f"none of the {pluralize(seen, 'newest open event')} is of a wrong tenant")
        return
    named = ", ".join(map(sanitize, sorted({row.tenant_id for row in astray})[:3]))
    message = (
        f"{n_of_m(number, seen, 'newest open event')} {'matches' if number == 1 else 'match'} only another tenant's"
        f" deliveries; the events' tenant is {named}"
    )
    step = "pass the delivery's tenant to record_webhook(), or set MAILGLASS_TENANT; stored events keep their tenant"
    if schema.made_by_mailglass(look.tx):
        step = "implement resolve_webhook_tenant in Mailglass, which stamps every webhook with `default` otherwise"
    found_match = sum(row.orphans for row in found if row.state not in ("unmatched", "unmatchable", None, UNSEEN))
    if number >= SEVERAL and number * 2 >= found_match and number > _linked_lately(look.tx):
        yield error(f"{message}, and fewer were linked within {LATELY_DAYS} days", step)
    else:
        yield warning(message, step)


def _linked_lately(tx: Transaction) -> int:
    """Sweeps count their own links; our writers link most."""
    swept = int(tx.execute(_SWEPT_LATELY, {"days": LATELY_DAYS}).scalar_one())
    return max(swept, ledger.newest_links(tx, LATELY_DAYS * 86_400))


@check("key_rules", cheap=True)
def key_rules(look: Look) -> Iterator[Finding]:
    """The ids of the newest open events are where the rule of their provider looks."""
    with_id: Counter[str | None] = Counter()
    without: Counter[str | None] = Counter()
    for row in _newest(look):
        if row.state != "unmatchable":
            with_id[row.provider] += row.orphans
        elif not providers.may_lack_id(row.provider, row.type):
            without[row.provider] += row.orphans
    found = [one for name in {**with_id, **without} if (one := _of_provider(name, with_id[name], without[name]))]
    yield from found or [ok("the ids of the newest open events are where their key rules look")]


def _of_provider(name: str | None, with_id: int, without: int) -> Finding | None:
    if name is None:
        those = pluralize(without, "newest open event names", "newest open events name")
        step = "give provider in the metadata, or to record_webhook()"
        return warning(f"{those} no provider", step) if without else None
    if hint := providers.mistyped(name):
        step = "correct the name where your webhooks are recorded; stored events keep their name"
        return warning(f"{hint} ({pluralize(with_id + without, 'newest open event')})", step)
    if with_id or not without:
        return None
    message = f"of {pluralize(without, 'newest open event')} of the provider {sanitize(name)}, none has a usable id"
    step = "`mailglass-reconcile explain EVENT_ID` shows where its rule looks; check what the webhook stores"
    if name not in providers.rules():
        message += ", and this process has no key rule for it"
        step = "register one with key_rule, and name its module in MAILGLASS_IMPORTS for every process"
    return (error if without >= MANY else warning)(message, step)
