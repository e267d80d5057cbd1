"""Whether providers report on what was sent: the sign that webhooks come and are recorded."""

from __future__ import annotations

from collections.abc import Iterator

from mailglass_reconcile.ops.checks.check import Finding, Look, check, error, ok, warning
from mailglass_reconcile.rules.humanize import age, share, shown, verb

REMEDY = (
    "look at the webhook in the provider's dashboard, and whether your endpoint answers 200; if silence is normal for"
    " you, raise MAILGLASS_SILENCE_HOURS"
)


@check("reports", cheap=True)
def missing(look: Look) -> Iterator[Finding]:
    """No provider's webhooks have stopped, or never come, although mail goes out."""
    hours = look.tx.settings.silence_hours
    if hours is None:
        yield ok("missing reports are not looked for (MAILGLASS_SILENCE_HOURS is infinity)")
        return
    found = [one for one in look.reports if one.deliveries]
    for one in found:
        of = "" if one.provider is None else f" of {shown(one.provider)}"
        lacking = (
            f"{share(one.without_report, one.deliveries, 'delivery', 'deliveries')} checked, dispatched more than"
            f" {age(hours * 3_600)} ago, {verb(one.without_report, 'has', 'have')} no report"
        )
        if one.stopped:
            since = age(one.silent_seconds or 0)
            yield error(f"no webhook{of} has arrived for {since}, although mail goes out: {lacking}", REMEDY)
        elif one.silent_seconds is not None:
            yield warning(f"no webhook{of} has ever arrived, although mail goes out: {lacking}", REMEDY)
        else:
            yield ok(f"{lacking}{of and f' ({of.strip()})'}")
    if not found:
        yield ok(f"no delivery of those checked was dispatched more than {age(hours * 3_600)} ago")
