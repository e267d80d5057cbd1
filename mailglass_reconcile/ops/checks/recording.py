"""Checks of provider reports: webhooks arrive, are recorded, and match the sends."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter

from mailglass_reconcile.ops.checks.check import CheckContext, Finding, check, error, ok, warning
from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.rules.humanize import format_duration, n_of_m, pluralize, sanitize, sanitize_tenant, verb
from mailglass_reconcile.store.queries.provider_reports import ProviderReports
from mailglass_reconcile.store.tables import refusals
from mailglass_reconcile.store.tables.refusals import RefusalPeriod

MANY = 20
"""Fewer deliveries without a report, or events without a delivery, may be a first trial or mail of other software."""

BOUNCES_ONLY = "if your webhooks report bounces only, set MAILGLASS_SILENCE_HOURS=infinity"
REMEDY = (
    "look at the webhook in the provider's dashboard, and whether your endpoint answers 200; if silence is normal for"
    f" you, raise MAILGLASS_SILENCE_HOURS; {BOUNCES_ONLY}"
)
OTHER_IDS = (
    "compare the message id that you record with your sends with those that `mailglass-reconcile orphans"
    f" --state unmatched` shows; {BOUNCES_ONLY}"
)

CAUSES: Mapping[str, tuple[str, str]] = {
    "signature": ("a wrong signature or password", "compare the provider's secret with the receiver's"),
    "topic": ("another topic", "compare the topic's ARN with the receiver's secret"),
    "clock": ("a wrong clock", "set the clock of the machine that receives webhooks"),
    "certificate": ("a certificate that cannot be fetched", "let the receiver reach the provider over HTTPS"),
    "unreadable": ("a body that cannot be read", "upgrade this package, or report it"),
    "too large": ("a body that is too large", "report it"),
    "database": ("the database", "look for the SQLSTATE"),
    "other": ("an error of the application", "look for it"),
}
"""By the stored word: what it means, and the step that helps."""


@check("webhooks", fast=True)
def refused_webhooks(context: CheckContext) -> Iterator[Finding]:
    """No provider's webhooks are all refused: an error if mail has no report since; else a stranger may have posted."""
    lasting = refusals.load_lasting(context.tx)
    for _, group in groupby(lasting, attrgetter("provider")):
        periods = list(group)
        unreported = [period for period in periods if _has_unreported_mail(context.reports, period)]
        message, step = _describe_refusals(unreported or periods)
        if unreported:
            because = ("server", "roles") if unreported[0].cause == "database" else ()
            yield error(f"{message}; the mail sent since then has no report", step, because)
        else:
            yield warning(message, f"if the provider sent them, {step}")
    if not lasting:
        yield ok("no provider's webhooks are all refused")


def _describe_refusals(periods: Sequence[RefusalPeriod]) -> tuple[str, str]:
    """Return the message about a provider's refusals, and the step that helps."""
    first = periods[0]
    others = f" and {len(periods) - 1:,} more" if len(periods) > 1 else ""
    tenant = f" for tenant {sanitize_tenant(first.tenant_id)!r}{others}" if first.tenant_id else ""
    meaning, step = CAUSES.get(first.cause, CAUSES["other"])
    message = (
        f"every webhook of {sanitize(first.provider)}{tenant} for {format_duration(first.seconds)} was refused:"
        f" {first.webhooks:,}, the last one because of {meaning}"
    )
    return message, f"{step}; the receiver's log has a line for each cause"


def _has_unreported_mail(reports: Sequence[ProviderReports], period: RefusalPeriod) -> bool:
    """Return True if a delivery that was sent since the first refusal has no report."""
    own = next((report for report in reports if report.provider == period.provider), None)
    if own and period.tenant_id:
        own = own.by_tenant.get(period.tenant_id)
    return own is not None and (own.last_unreported_seconds or math.inf) < period.seconds


@check("reports", fast=True)
def missing_reports(context: CheckContext) -> Iterator[Finding]:
    """No provider's webhooks have stopped, or never come, although mail goes out."""
    hours = context.tx.settings.silence_hours
    if hours is None:
        yield ok("missing reports are not looked for (MAILGLASS_SILENCE_HOURS is infinity)")
        return
    reports = [provider for provider in context.reports if provider.deliveries]
    for provider in reports:
        of = _provider_clause(provider)
        unreported = (
            f"{n_of_m(provider.without_report, provider.deliveries, 'delivery', 'deliveries')} checked, dispatched more"
            f" than {format_duration(hours * 3_600)} ago, {verb(provider.without_report, 'has', 'have')} no report"
        )
        silent_tenants = sorted(tenant for tenant, own in provider.by_tenant.items() if _never_reports(own))
        if provider.has_stopped:
            since = format_duration(provider.silent_seconds or 0)
            yield error(f"no webhook{of} has arrived for {since}, although mail goes out: {unreported}", REMEDY)
        elif provider.silent_seconds is not None:
            finding = error if _never_reports(provider) else warning
            yield finding(f"no webhook{of} has ever arrived, although mail goes out: {unreported}", REMEDY)
        elif silent_tenants:
            others = f" and {len(silent_tenants) - 1:,} more" if len(silent_tenants) > 1 else ""
            count = sum(provider.by_tenant[tenant].deliveries for tenant in silent_tenants)
            yield error(
                f"no webhook{of} has ever arrived for tenant {sanitize_tenant(silent_tenants[0])!r}{others}, although"
                f" mail goes out: none of {pluralize(count, 'delivery', 'deliveries')} checked has a report",
                REMEDY,
                ("tenants",),
            )
        else:
            yield ok(f"{unreported}{of and f' ({of.strip()})'}")
    if not reports:
        yield ok(f"no delivery of those checked was dispatched more than {format_duration(hours * 3_600)} ago")


def _provider_clause(provider: ProviderReports) -> str:
    return "" if provider.provider is None else f" of {sanitize(provider.provider)}"


def _never_reports(reports: ProviderReports) -> bool:
    """Return True if a provider whose webhooks can report deliveries has reported none of many."""
    can_report = reports.provider in provider_rules.built_in()
    return can_report and reports.has_never_begun and MANY <= reports.deliveries == reports.without_report


@check("nothing_links", fast=True)
def nothing_links(context: CheckContext) -> Iterator[Finding]:
    """Check that webhooks name the message ids under which sends are recorded."""
    unlinked = [
        provider
        for provider in context.reports
        if provider.unmatched_today >= MANY
        and provider.unreported_today >= MANY
        and provider.unreported_today > provider.reported_today
    ]
    for provider in unlinked:
        unreported = pluralize(provider.unreported_today, "delivery", "deliveries")
        events = pluralize(provider.unmatched_today, "event matches", "events match")
        yield error(
            f"webhooks{_provider_clause(provider)} name other message ids than its sends: within 24 hours"
            f" {unreported} got no report, and {events} no delivery",
            OTHER_IDS,
            ("key_rules", "tenants", "sweeps"),
        )
    if not unlinked:
        yield ok("the ids of webhooks are those of sends")
