"""Mailgun: one event a request, as JSON; an HMAC over time and token, which are in the body.

Followed: https://documentation.mailgun.com/docs/mailgun/user-manual/webhooks/webhook-payloads,
https://documentation.mailgun.com/docs/mailgun/user-manual/webhooks/securing-webhooks (the signature, and that it may
arrive late), https://help.mailgun.com/hc/en-us/articles/202236504-Webhooks (it tries again for eight hours),
https://documentation.mailgun.com/docs/mailgun/user-manual/tracking-messages/tracking-messages (opens by machines) and
https://help.mailgun.com/hc/en-us/articles/14048832145051-Legacy-Webhooks (forms, which are not read: they have been
read-only since April 2023). Not documented: whether a repeated webhook keeps its token, and the values of `reason`:
`suppress-…` are in https://documentation.mailgun.com/en/latest/api-stats.html, `old` in
https://feedback.mailgun.com/forums/914635-general-feedback/suggestions/37219720.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

from mailglass_reconcile.errors import InvalidWebhookError, SignatureError
from mailglass_reconcile.providers import signatures, wire
from mailglass_reconcile.providers.provider import EventKind, EventTable, PayloadField, Provider, computed_field
from mailglass_reconcile.providers.signatures import Authentication, Signature, SignedRequest
from mailglass_reconcile.providers.wire import WebhookRequest, get_path
from mailglass_reconcile.rules.addresses import strip_display_name
from mailglass_reconcile.rules.events import WebhookEvent
from mailglass_reconcile.rules.provider_rules import MessageIds

MAX_EVENT_BYTES = 256 * 1024
"""Greatest size of an event, which is parsed before its signature is verified."""
MAX_AGE_SECONDS = 86_400
"""Greatest age of a signature."""
MAX_TOKENS = 100_000
"""Greatest number of stored tokens, about 30 MB: more than most receive within `MAX_AGE_SECONDS`."""

_REASONS = {"bounce": "bounced"}
_LEGACY = (
    "it is a form, as of Mailgun's legacy webhooks, which are not read: add the webhook again on the page Send,"
    " Webhooks of Mailgun's console"
)


def _elements(request: WebhookRequest) -> list[Any]:
    """Return the request's only event, with its signature."""
    if not _is_json(request):
        raise InvalidWebhookError(_LEGACY)
    return [request.object()]


def _events(element: Any, request_id: str | None) -> Iterable[WebhookEvent]:
    data = wire.require_object(wire.require_object(element, "the event").get("event-data"), "event-data")
    event = PROVIDER.table.read(data)
    return () if event is None else (event,)


def _is_json(request: WebhookRequest) -> bool:
    kind = request.content_type.lower()
    return "json" in kind or ("form" not in kind and request.body.lstrip()[:1] == b"{")


def _kind(data: Mapping[str, Any]) -> str:
    """Return the event's name, with the reason or the severity of a failure."""
    event, reason = str(data.get("event")), data.get("reason")
    if event != "failed":
        return event
    if isinstance(reason, str) and f"failed/{reason}" in _KINDS:
        return f"failed/{reason}"
    return "failed/temporary" if data.get("severity") == "temporary" else "failed"


def _refine(data: Mapping[str, Any], kind: EventKind) -> EventKind:
    if "reason" not in data or kind is _KINDS.get(f"failed/{data['reason']}"):
        return kind
    return kind._replace(reason=_REASONS.get(str(data["reason"]), "other"))


def _recipient(data: Mapping[str, Any]) -> object:
    """Return the recipient; for a rejected message, the only address of the header `To`, without a display name."""
    if recipient := data.get("recipient"):
        return recipient
    to = get_path(data, "message", "headers", "to") if data.get("event") == "rejected" else None
    return strip_display_name(to) if isinstance(to, str) and "," not in to else None


def _message_id(data: Mapping[str, Any]) -> object:
    id_ = get_path(data, "message", "headers", "message-id")
    return f"<{id_}>" if isinstance(id_, str) and id_ and not id_.startswith("<") else id_


def _id(data: Mapping[str, Any]) -> str | None:
    """Return the event's own id, which is unique within a day, and its time.

    The token of the signature is not used, because it belongs to the request.
    """
    return f"{data['id']}/{data.get('timestamp')}" if data.get("id") else None


def _reply(data: Mapping[str, Any]) -> object:
    """Return the reply of the recipient's server; codes from 600 are Mailgun's own."""
    status = data.get("delivery-status")
    if not isinstance(status, dict):
        return None
    return wire.join_reply(status.get("code"), status.get("enhanced-code") or status.get("message"))


def _metadata(data: Mapping[str, Any]) -> Mapping[str, bool] | None:
    """Return the mark of an open or a click by a machine, or None."""
    return wire.MACHINE if get_path(data, "client-info", "bot") else None


class _TokenSignature(NamedTuple):
    timestamp: str
    token: str
    signatures: Sequence[str]

    @property
    def signed(self) -> str:
        """The signed text. Nothing separates time and token, so only both together identify a body."""
        return f"{self.timestamp}{self.token}"


_DECIMAL = re.compile(r"[0-9]{1,12}")


def _verify(request: WebhookRequest, secret: str, now: float) -> None:
    """Verify the signature, its age, and that its token does not belong to another body.

    A webhook of a subaccount is also signed with the primary account's key.
    """
    parsed = _signature(request)
    expected = signatures.hex_hmac(parsed.signed.encode("utf-8", "replace"), secret)
    signatures.require_match(
        any(signatures.constant_time_equal(signature, expected) for signature in parsed.signatures)
    )
    signatures.check_timestamp(parsed.timestamp, now, MAX_AGE_SECONDS)
    _tokens.validate(parsed.signed, request.body)


def claim(request: WebhookRequest) -> AbstractContextManager[None]:
    """Claim the token of a verified request for its body while it is recorded, and for good if that succeeds.

    The signature covers the token only, so anybody who has seen a token could sign another body with it.
    """
    return _tokens.claim(_signature(request).signed, request.body)


def _signature(request: WebhookRequest) -> _TokenSignature:
    if not _is_json(request):
        raise SignatureError(_LEGACY)
    try:
        signature = wire.require_object(request.object().get("signature"), "signature")
    except InvalidWebhookError:
        raise SignatureError("the webhook has no signature") from None
    texts = {name: value for name, value in signature.items() if isinstance(value, str)}
    if not {"timestamp", "token", "signature"} <= texts.keys():
        raise SignatureError("the webhook has no signature")
    if not _DECIMAL.fullmatch(texts["timestamp"]):
        raise SignatureError("the time of the signature is no number")
    signatures = [texts[name] for name in ("signature", "parent-signature") if name in texts]
    return _TokenSignature(texts["timestamp"], texts["token"], signatures)


class _TokenClaim:
    """A token's claim: the digest of its body, the requests in flight, and whether one of them was recorded."""

    __slots__ = ("digest", "in_flight", "recorded")

    def __init__(self, digest: bytes) -> None:
        self.digest, self.in_flight, self.recorded = digest, 0, False


class TokenClaims:
    """Each token belongs to the first body that came with it. At *max_tokens*, the oldest claim is evicted."""

    def __init__(self, max_tokens: int = MAX_TOKENS) -> None:
        self._max_tokens = max_tokens
        self._claims: dict[bytes, _TokenClaim] = {}
        self._lock = threading.Lock()

    def validate(self, token: str, body: bytes) -> None:
        """Raise `SignatureError` if a token belongs to another body."""
        with self._lock:
            self._validate(self._claims.get(_digest(_encode(token))), _digest(body))

    @contextmanager
    def claim(self, token: str, body: bytes) -> Iterator[None]:
        """Claim a token for a body while the block runs, and for good unless the block raises."""
        key, digest = _digest(_encode(token)), _digest(body)
        with self._lock:
            claim = self._claims.get(key)
            self._validate(claim, digest)
            if claim is None:
                claim = self._claims[key] = _TokenClaim(digest)
                while len(self._claims) > self._max_tokens:
                    del self._claims[next(iter(self._claims))]
            claim.in_flight += 1
        try:
            yield
            claim.recorded = True
        finally:
            with self._lock:
                claim.in_flight -= 1
                if not (claim.recorded or claim.in_flight) and self._claims.get(key) is claim:
                    del self._claims[key]

    @staticmethod
    def _validate(claim: _TokenClaim | None, digest: bytes) -> None:
        if claim is not None and claim.digest != digest:
            raise SignatureError("its token belongs to another webhook, which came first")


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()[:16]


_tokens = TokenClaims()


def _sign(body: bytes, secret: str, at: float, url: str | None) -> SignedRequest:
    """Return a signed request for one event, as Mailgun sends it."""
    time = str(int(at))
    token = hashlib.sha256(time.encode() + body).hexdigest()[:50]
    signature = {"timestamp": time, "token": token, "signature": signatures.hex_hmac(f"{time}{token}".encode(), secret)}
    return signatures.json_request(
        b'{"signature": ' + json.dumps(signature).encode() + b', "event-data": ' + body + b"}"
    )


def _failed(reason: str, severity: str = "permanent", code: int = 605) -> dict[str, Any]:
    return {"event": "failed", "reason": reason, "severity": severity, "delivery-status": {"code": code}}


_KINDS = {
    "accepted": EventKind("queued", payload={"event": "accepted"}),
    "delivered": EventKind("delivered", payload={"event": "delivered", "delivery-status": {"code": 250}}),
    "failed/temporary": EventKind("deferred", payload=_failed("generic", "temporary", 450)),
    "failed": EventKind("bounced", None, "hard", _failed("bounce", "permanent", 550)),
    "failed/old": EventKind("bounced", "timed_out", "soft", _failed("old", "permanent", 602)),  # after eight hours
    # Mailgun did not send, because the address is on one of its lists
    "failed/suppress-bounce": EventKind("suppressed", "bounced", None, _failed("suppress-bounce", code=605)),
    "failed/suppress-unsubscribe": EventKind(
        "suppressed", "unsubscribed", None, _failed("suppress-unsubscribe", code=606)
    ),
    "failed/suppress-complaint": EventKind("suppressed", "spam", None, _failed("suppress-complaint", code=607)),
    "rejected": EventKind(
        "rejected", "other", None,
        {"event": "rejected", "reject": {"reason": "Sandbox subdomains are for test purposes only"}},
    ),
    "opened": EventKind("opened", payload={"event": "opened"}),
    "clicked": EventKind("clicked", payload={"event": "clicked"}),
    "complained": EventKind("complained", payload={"event": "complained"}),
    "unsubscribed": EventKind("unsubscribed", payload={"event": "unsubscribed"}),
}  # fmt: skip

PROVIDER = Provider(
    name="mailgun",
    title="Mailgun",
    message_ids=MessageIds(
        (
            "metadata/event-data/message/headers/message-id",
            "metadata/message/headers/message-id",
            "metadata/message-id",
            "metadata/Message-Id",
            "metadata/message_id",
        )
    ),
    authentication=Authentication(
        Signature.IN_BODY,
        "HMAC-SHA256 over time and token",
        _verify,
        signatures.validate_key,
        _sign,
        max_age_seconds=MAX_AGE_SECONDS,
    ),
    max_bytes=MAX_EVENT_BYTES,
    claim=claim,
    elements=_elements,
    events=_events,
    table=EventTable(
        kind=_kind,
        kinds=_KINDS,
        refine=_refine,
        at=PayloadField(
            lambda data: wire.parse_epoch(data.get("timestamp")), ("timestamp",), lambda at: at.timestamp()
        ),
        id=computed_field(_id, "id"),
        message_id=computed_field(_message_id, "message/headers/message-id", lambda id_: id_.strip("<>")),
        recipient=computed_field(_recipient, "recipient"),
        reply=_reply,
        tags="tags",
        metadata=_metadata,
    ),
)
