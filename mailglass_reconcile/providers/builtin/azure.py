"""Azure Communication Services Email: batches through Event Grid, in its schema or as CloudEvents; a static header.

Followed: https://learn.microsoft.com/azure/event-grid/communication-services-email-events (both events),
https://learn.microsoft.com/javascript/api/@azure/eventgrid/knownacsemaildeliveryreportstatus (what a status means),
https://learn.microsoft.com/azure/event-grid/end-point-validation-event-grid-events-schema and
https://learn.microsoft.com/azure/event-grid/delivery-and-retry (it never repeats after 400, 401, 403 and 413). Not
documented: which of several recipients has opened, what `deliveryStatusDetails` holds (in practice words, or the
server's reply); whether a message in quarantine can be told from one that was refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mailglass_reconcile.errors import ConfigurationError, SignatureError
from mailglass_reconcile.providers import signatures, sns, wire
from mailglass_reconcile.providers.provider import NO_EVENT, EventKind, EventTable, Provider
from mailglass_reconcile.providers.signatures import Authentication, Signature, SignedRequest
from mailglass_reconcile.providers.wire import WebhookRequest, get_path
from mailglass_reconcile.rules.smtp import smtp_status

_REPORT = "Microsoft.Communication.EmailDeliveryReportReceived"
_ENGAGEMENT = "Microsoft.Communication.EmailEngagementTrackingReportReceived"
_VALIDATION = "Microsoft.EventGrid.SubscriptionValidationEvent"
_VALIDATION_URL = re.compile(r"https://[a-z0-9-]+(?:\.[a-z0-9-]+)?\.eventgrid\.azure\.net(?::553)?/\S*")
_TIMES = (
    ("data", "deliveryAttemptTimeStamp"),
    ("data", "deliveryAttemptTimestamp"),
    ("data", "userActionTimeStamp"),
    ("data", "userActionTimestamp"),
    ("eventTime",),
    ("time",),
)
"""Both spellings are documented."""


def _elements(request: WebhookRequest) -> list[Any]:
    """Return the batch, or the only event."""
    body = request.json
    return body if isinstance(body, list) else [wire.require_object(body, "the body")]


def _type(event: Mapping[str, Any]) -> object:
    """Return the event's type, in Event Grid's own schema or in that of CloudEvents."""
    return event.get("eventType", event.get("type"))


def _kind(event: Mapping[str, Any]) -> str:
    """Return the status of a report, or the type of an engagement."""
    type_ = _type(event)
    if type_ == _REPORT:
        status = str(get_path(event, "data", "status")).lower()
        return "failed/refused" if status == "failed" and _is_refused_by_server(event) else status
    if type_ == _ENGAGEMENT:
        return str(get_path(event, "data", "engagementType")).lower()
    return "other"


def _is_refused_by_server(event: Mapping[str, Any]) -> bool:
    """Return True if the recipient's server has refused the message, by its reply or because it is named."""
    details = get_path(event, "data", "deliveryStatusDetails")
    return bool(get_path(details, "recipientMailServerHostName") or smtp_status(get_path(details, "statusMessage")))


def _verify(request: WebhookRequest, secret: str, now: float) -> None:
    """Verify the header that the event subscription adds to each request, also to the one that validates it."""
    if not signatures.constant_time_equal(request.header("Authorization"), secret):
        raise SignatureError("the header Authorization has another value")


def _validate_secret(secret: str) -> None:
    if len(secret) < signatures.MIN_HEADER_SECRET:
        raise ConfigurationError(
            f"the secret is the whole value of a header: choose at least {signatures.MIN_HEADER_SECRET} characters"
        )


def _sign(body: bytes, secret: str, at: float, url: str | None) -> SignedRequest:
    return signatures.json_request(body, Authorization=secret)


def _handshake(request: WebhookRequest) -> str | None:
    """Return the code that the response must contain, if a verified request validates this address."""
    code = get_path(_validation(request), "validationCode")
    return code if isinstance(code, str) else None


def _confirm(request: WebhookRequest) -> None:
    """Confirm the event subscription of a verified request with one GET, where no response can contain a code."""
    validation = _validation(request)
    if validation is None:
        return
    url = get_path(validation, "validationUrl")
    if not isinstance(url, str) or not _VALIDATION_URL.fullmatch(url):
        raise SignatureError("the subscription is not confirmed at Event Grid")
    sns.fetch_or_unavailable(url, "Event Grid")


def _validation(request: WebhookRequest) -> object:
    events = [event for event in _elements(request) if isinstance(event, dict)]
    return next((event.get("data") for event in events if _type(event) == _VALIDATION), None)


PROVIDER = Provider(
    name="azure",
    title="Azure Communication Services",
    spellings=("Azure", "azure_communication_services", "acs"),
    authentication=Authentication(Signature.IN_HEADERS, _verify, _validate_secret, _sign),
    rejection_status=503,
    handshake=_handshake,
    confirm=_confirm,
    elements=_elements,
    table=EventTable(
        kind=_kind,
        kinds={
            "delivered": EventKind("delivered"),
            "expanded": EventKind("sent"),  # a distribution list; its members' servers have not answered yet
            "bounced": EventKind("bounced", "bounced", "hard"),
            "suppressed": EventKind("suppressed", "bounced"),
            # a filter's verdict is about the message, not about the address
            "quarantined": EventKind("bounced", "spam", "soft"),
            "filteredspam": EventKind("bounced", "spam", "soft"),
            "failed": EventKind("failed"),
            # Azure has no status of its own for it, and does not say whether the address exists
            "failed/refused": EventKind("bounced", "blocked", "soft"),
            "view": EventKind("opened"),
            "click": EventKind("clicked"),
            "other": NO_EVENT,
        },
        at=lambda event: next(filter(None, (wire.parse_iso(get_path(event, *path)) for path in _TIMES)), None),
        id="id",
        message_id="data/messageId",
        recipient="data/recipient",
        reply="data/deliveryStatusDetails/statusMessage",
        smtp_message_id="data/internetMessageId",
    ),
)
