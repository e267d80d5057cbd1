"""Checks of open orphans: late links, webhooks of a wrong tenant, ids that no rule finds, oversized documents.

States are those that the last sweep stored.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator

from mailglass_reconcile.errors import docs_url
from mailglass_reconcile.ops.checks.check import CheckContext, Finding, check, error, ok, warning
from mailglass_reconcile.ops.checks.sweeps import DATABASE_CHECKS, WORKER_CHECKS
from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.rules.humanize import format_duration, n_of_m, pluralize, sanitize, verb
from mailglass_reconcile.rules.remedy import TENANT_ARGUMENTS
from mailglass_reconcile.rules.times import format_time
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.queries.orphan_lists import OVERSIZED_SHOWN, NewestGroup
from mailglass_reconcile.store.tables import ledger

NEWEST = "newest open event"
SEVERAL = 3
"""Fewer events of another tenant may be single ones, sent to the wrong place."""
MANY = 10
"""Fewer events without a usable id may be single ones with a fault."""
SEND_AGAIN = "then let the provider send the webhooks again, because stored events stay as they are"


@check("linking", fast=True)
def linking(context: CheckContext) -> Iterator[Finding]:
    """Nothing stays open for long although its delivery exists."""
    lag = context.history.lag_seconds
    if lag > context.max_lag_seconds:
        message = f"an event has been open for {format_duration(lag)} although its delivery exists"
        step = "run `mailglass-reconcile sweep`, which links it or says why not"
        if holder := context.late_holder:
            since = f" since {format_time(holder.since)}" if holder.since else ""
            message += f": {holder.name} has locked it or the event{since}"
            step = f"{holder.remedy}; the next sweep links it"
        yield error(
            message,
            step,
            (*DATABASE_CHECKS, *WORKER_CHECKS, "beat", "sweeps"),
        )
    else:
        yield ok("no event is late that can be linked")


@check("tenants", fast=True)
def tenants(context: CheckContext) -> Iterator[Finding]:
    """Webhooks carry the tenant of their deliveries."""
    groups = context.newest_orphans
    astray = [group for group in groups if group.state == "tenant_mismatch" and not group.is_repeated]
    number, total = sum(group.orphans for group in astray), sum(group.orphans for group in groups)
    if not number:
        yield ok(f"none of the {pluralize(total, 'newest open event')} is of a wrong tenant, or it was sent again")
        return
    tenant_ids = ", ".join(map(sanitize, sorted({group.tenant_id for group in astray})[:3]))
    message = (
        f"{n_of_m(number, total, 'newest open event')} {'matches' if number == 1 else 'match'} only another tenant's"
        f" deliveries; the events' tenant is {tenant_ids}"
    )
    step = f"route these webhooks to the tenant of their deliveries: {TENANT_ARGUMENTS}"
    if context.is_made_by_mailglass:
        step = "implement resolve_webhook_tenant in Mailglass, which stamps every webhook with `default` otherwise"
    step += f"; then record the stored events again for it: {docs_url('trouble.md#everything-is-tenant_mismatch')}"
    if unlinked := _find_unlinked_tenants(context.tx, astray):
        names = ", ".join(map(sanitize, unlinked[:3]))
        yield error(f"{message}, and since the first of them no event of {names} was linked", step)
    else:
        yield warning(message, step)


def _find_unlinked_tenants(tx: Transaction, astray: Iterable[NewestGroup]) -> list[str]:
    """Return the tenants of several events of *astray* that have had no link since the first of these events."""
    orphans, age_seconds = Counter[str](), dict[str, float]()
    for group in astray:
        orphans[group.tenant_id] += group.orphans
        age_seconds[group.tenant_id] = max(group.age_seconds, age_seconds.get(group.tenant_id, 0.0))
    latest_links = ledger.load_latest_links(tx, max(age_seconds.values()))
    return sorted(
        tenant_id
        for tenant_id, number in orphans.items()
        if number >= SEVERAL and latest_links.get(tenant_id, math.inf) > age_seconds[tenant_id]
    )


@check("key_rules", fast=True)
def key_rules(context: CheckContext) -> Iterator[Finding]:
    """The ids of the newest open events are where the rule of their provider looks."""
    with_id: Counter[str | None] = Counter()
    without_id: Counter[str | None] = Counter()
    for group in context.newest_orphans:
        if group.state != "unmatchable":
            with_id[group.provider] += group.orphans
        elif not group.is_oversized and not provider_rules.may_lack_id(group.provider, group.type):
            without_id[group.provider] += group.orphans
    names = {**with_id, **without_id}
    findings = [finding for name in names if (finding := _find_provider_fault(name, with_id[name], without_id[name]))]
    yield from findings or [ok("the ids of the newest open events are where their key rules look")]


def _find_provider_fault(name: str | None, with_id: int, without_id: int) -> Finding | None:
    if name is None:
        events = pluralize(without_id, "newest open event names", "newest open events name")
        step = f"give provider in the metadata, or to record_webhook(); {SEND_AGAIN}"
        return warning(f"{events} no provider", step) if without_id else None
    if hint := provider_rules.mistyped(name):
        step = f"correct the name where your webhooks are recorded; {SEND_AGAIN}"
        return warning(f"{hint} ({pluralize(with_id + without_id, 'newest open event')})", step)
    if with_id or not without_id:
        return None
    message = f"of {pluralize(without_id, 'newest open event')} of the provider {sanitize(name)}, none has a usable id"
    step = "`mailglass-reconcile explain EVENT_ID` shows where its rule looks; check what the webhook stores"
    if name not in provider_rules.rules():
        message += ", and this process has no key rule for it"
        step = "register one with key_rule; its module must be in MAILGLASS_IMPORTS for every process"
    return (error if without_id >= MANY else warning)(message, step)


@check("documents", fast=True)
def documents(context: CheckContext) -> Iterator[Finding]:
    """No event has a document that is too long to be read."""
    total = sum(group.orphans for group in context.newest_orphans)
    oversized = sum(group.orphans for group in context.newest_orphans if group.is_oversized)
    if not oversized:
        yield ok(f"none of {pluralize(total, NEWEST)} has more than 64 kB of text")
        return
    least = "at least " if oversized >= OVERSIZED_SHOWN else ""
    message = (
        f"{least}{n_of_m(oversized, total, NEWEST)} {verb(oversized, 'has', 'have')} more than 64 kB of text in"
        " metadata or normalized_payload, which no sweep reads, so no delivery is found"
    )
    step = "keep both columns below 64 kB: store the raw webhook elsewhere, and only ids and reasons in the event"
    yield (error if oversized >= MANY else warning)(message, step)
