"""SparkPost: batches; HTTP basic authentication, because SparkPost signs nothing.

Followed: https://docs.bird.com/api/email-api/webhooks, https://support.sparkpost.com/docs/tech-resources/webhook-event-reference,
https://support.sparkpost.com/docs/deliverability/bounce-classification-codes and
https://support.sparkpost.com/docs/tech-resources/open-pixel-location. Not documented: an id that a sender over SMTP
could know.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mailglass_reconcile.errors import InvalidWebhookError
from mailglass_reconcile.providers import signatures, wire
from mailglass_reconcile.providers.provider import EventKind, EventTable, Provider, epoch_field
from mailglass_reconcile.rules.events import WebhookEvent
from mailglass_reconcile.rules.provider_rules import MessageIds

_CLASSES = {
    "1": EventKind("bounced", "other"),
    "10": EventKind("bounced", "invalid", "hard"),
    "20": EventKind("bounced", "other", "soft"),
    "21": EventKind("bounced", "other", "soft"),
    "22": EventKind("bounced", "other", "soft"),
    "23": EventKind("bounced", "other", "soft"),
    "24": EventKind("bounced", "timed_out", "soft"),
    "25": EventKind("bounced", "blocked", "hard"),
    "30": EventKind("bounced", "bounced", "hard"),
    "40": EventKind("bounced", "other", "soft"),
    "50": EventKind("bounced", "blocked", "soft"),
    "51": EventKind("bounced", "spam", "soft"),
    "52": EventKind("bounced", "spam", "soft"),
    "53": EventKind("bounced", "other", "soft"),
    "54": EventKind("bounced", "blocked", "soft"),
    "60": EventKind("autoresponded", "other"),
    "70": EventKind("bounced", "other", "soft"),
    "80": EventKind("subscribed", "other"),
    "90": EventKind("unsubscribed", "unsubscribed"),
    "100": EventKind("autoresponded", "other"),
}
"""Bounces by class. Soft and Block are usually temporary; for Hard and Admin, SparkPost suppresses an address."""

_SUPPRESSED = re.compile(r"suppressed due to (?:customer|system) policy")
"""The reason of a message that SparkPost did not send, because the address is on its list or yours."""

_INBOUND = ("relay_message", "relay_event")
_KINDS = {
    "injection": EventKind("queued"),
    "delivery": EventKind("delivered"),
    "delay": EventKind("deferred"),
    "bounce": EventKind("bounced"),
    "out_of_band": EventKind("bounced"),
    "policy_rejection": EventKind("rejected"),
    "generation_rejection": EventKind("rejected"),
    "generation_failure": EventKind("failed"),
    "open": EventKind("opened"),
    "initial_open": EventKind("opened"),
    "amp_open": EventKind("opened"),
    "amp_initial_open": EventKind("opened"),
    "click": EventKind("clicked"),
    "amp_click": EventKind("clicked"),
    "spam_complaint": EventKind("complained"),
    "list_unsubscribe": EventKind("unsubscribed"),
    "link_unsubscribe": EventKind("unsubscribed"),
    "suppressed": EventKind("suppressed", "other"),
    **{f"bounce/{class_}": kind for class_, kind in _CLASSES.items()},
}
"""The pixel of an `initial_open` is at the top of the message, that of an `open` at its end, which may be cut off."""


def _kind(payload: Mapping[str, Any]) -> str:
    """Return the event's type, with the class of a bounce."""
    if _is_suppressed(payload):
        return "suppressed"
    type_ = str(payload.get("type"))
    row = f"bounce/{payload.get('bounce_class')}"
    return row if type_ in ("bounce", "out_of_band") and row in _KINDS else type_


def _is_suppressed(payload: Mapping[str, Any]) -> bool:
    return any(
        isinstance(text, str) and _SUPPRESSED.search(text)
        for text in (payload.get("raw_reason"), payload.get("reason"))
    )


def _refine(payload: Mapping[str, Any], kind: EventKind) -> EventKind:
    """Take reason and type from the bounce class, which events such as delays have too."""
    if "bounce_class" not in payload or kind.type == "suppressed":
        return kind
    row = _CLASSES.get(str(payload["bounce_class"]))
    if row is None:
        return kind._replace(reason="other")
    return kind._replace(reason=row.reason, type=kind.type if row.type == "bounced" else row.type)


def _events(element: Any, request_id: str | None) -> Iterable[WebhookEvent]:
    """Read one event; a ping (an empty one) and inbound mail give none."""
    msys = wire.require_object(wire.require_object(element, "the event").get("msys"), "msys")
    if not msys or any(name in msys for name in _INBOUND):
        return
    if len(msys) > 1:
        raise InvalidWebhookError("msys has several classes of events")
    event = PROVIDER.table.read(wire.require_object(next(iter(msys.values())), "the event"))
    if event is not None:
        yield event


PROVIDER = Provider(
    name="sparkpost",
    title="SparkPost",
    message_ids=MessageIds(
        (  # digits as text or integer; never `message_id`
            "metadata/transmission_id",
            "metadata/msys/message_event/transmission_id",
            "metadata/msys/track_event/transmission_id",
            "metadata/msys/gen_event/transmission_id",
            "metadata/msys/unsubscribe_event/transmission_id",
        )
    ),
    synthetic_ids=True,
    authentication=signatures.BASIC,
    elements=lambda request: wire.require_list(request.json, "the body"),
    events=_events,
    table=EventTable(
        kind=_kind,
        kinds=_KINDS,
        refine=_refine,
        at=epoch_field("timestamp"),
        id="event_id",
        message_id="transmission_id",
        recipient="raw_rcpt_to",
        reply=lambda payload: wire.first_reply(
            payload.get("raw_reason"), payload.get("reason"), payload.get("error_code")
        ),
        smtp_message_id="rcpt_meta/anymail_id",  # from the header X-MSYS-API of a mail over SMTP
        tags="campaign_id",
    ),
)
