"""Reports that do not come: which provider is silent although mail goes out, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mailglass_reconcile.rules import providers
from mailglass_reconcile.rules.humanize import age, share, shown, verb
from mailglass_reconcile.store.reports import Reports

REMEDY = (
    "look at the webhook in the provider's dashboard, and whether your endpoint answers 200; if silence is normal for"
    " you, raise MAILGLASS_SILENCE_HOURS"
)
OTHERS = "other"
NONE = "none"


class Silence(NamedTuple):
    """What a provider's deliveries lack, for metrics.

    Attributes:
        without_report: Deliveries without a report, of those looked at.
        seconds: For how long no webhook has come although mail goes out; 0 if some come, or none ever did.
    """

    without_report: int
    seconds: float


def problems(found: Sequence[Reports], hours: float | None) -> list[str]:
    """Return a sentence for each provider whose webhooks came and come no longer; none for what never had a report."""
    return [f"{stopped(one, hours or 0)}: {REMEDY}" for one in found if one.stopped]


def stopped(one: Reports, hours: float) -> str:
    """Return that webhooks of a provider have stopped."""
    return (
        f"no webhook{_of(one)} has come for {age(one.silent_seconds or 0)}, although mail goes out:"
        f" {lacking(one, hours)}"
    )


def lacking(one: Reports, hours: float) -> str:
    """Return how many deliveries lack a report."""
    those = share(one.without_report, one.deliveries, "delivery", "deliveries")
    return (
        f"{those} looked at that {verb(one.deliveries, 'was', 'were')} dispatched more than {age(hours * 3_600)} ago"
        f" {verb(one.without_report, 'has', 'have')} no report"
    )


def _of(one: Reports) -> str:
    return "" if one.provider is None else f" of {shown(one.provider)}"


def by_label(found: Sequence[Reports]) -> dict[str, Silence]:
    """Return what metrics say, by a label of few values: a provider that no rule knows is `other`, none is `none`."""
    labels = {NONE: Silence(0, 0.0)}
    for one in found:
        known = one.provider in providers.rules()
        label = NONE if one.provider is None else one.provider if known else OTHERS
        before = labels.get(label, Silence(0, 0.0))
        seconds = one.silent_seconds if one.stopped and one.silent_seconds else 0.0
        labels[label] = Silence(before.without_report + one.without_report, max(before.seconds, seconds))
    return labels
