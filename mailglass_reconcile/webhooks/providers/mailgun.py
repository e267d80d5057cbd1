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
from mailglass_reconcile.rules.addresses import bare
from mailglass_reconcile.rules.events import WebhookEvent
from mailglass_reconcile.rules.providers import MessageIds
from mailglass_reconcile.webhooks import wire
from mailglass_reconcile.webhooks.provider import Field, Kind, Provider, Table, computed
from mailglass_reconcile.webhooks.wire import Authentication, Request, Signature, Signed, dug

MAX_EVENT_BYTES = 256 * 1024
"""How long an event may be, which is parsed before its signature is checked."""
MAX_AGE_SECONDS = 86_400
"""How old a signature may be."""
MAX_TOKENS = 100_000
"""Tokens that are remembered, about 30 MB: more than most receive in a day, and after a day a signature is too old."""

_REASONS = {"bounce": "bounced"}
_LEGACY = (
    "it is a form, as of Mailgun's legacy webhooks, which are not read: add the webhook again on the page Send,"
    " Webhooks of Mailgun's console"
)


def _elements(request: Request) -> list[Any]:
    """Return the request's only event, with its signature."""
    if not _is_json(request):
        raise InvalidWebhookError(_LEGACY)
    return [request.object()]


def _events(element: Any, request_id: str | None) -> Iterable[WebhookEvent]:
    data = wire.as_object(wire.as_object(element, "the event").get("event-data"), "event-data")
    made = PROVIDER.table.read(data)
    return () if made is None else (made,)


def _is_json(request: Request) -> bool:
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


def _refine(data: Mapping[str, Any], kind: Kind) -> Kind:
    if "reason" not in data or kind is _KINDS.get(f"failed/{data['reason']}"):
        return kind
    return kind._replace(reason=_REASONS.get(str(data["reason"]), "other"))


def _recipient(data: Mapping[str, Any]) -> object:
    """Return the recipient; of what was rejected, the only address of the header `To`, without a display name."""
    if recipient := data.get("recipient"):
        return recipient
    to = dug(data, "message", "headers", "to") if data.get("event") == "rejected" else None
    return bare(to) if isinstance(to, str) and "," not in to else None


def _message_id(data: Mapping[str, Any]) -> object:
    id_ = dug(data, "message", "headers", "message-id")
    return f"<{id_}>" if isinstance(id_, str) and id_ and not id_.startswith("<") else id_


def _id(data: Mapping[str, Any]) -> str | None:
    """Return the event's own id, which is unique within a day, and its time.

    The token of the signature is not used, because it belongs to the request.
    """
    return f"{data['id']}/{data.get('timestamp')}" if data.get("id") else None


def _reply(data: Mapping[str, Any]) -> object:
    """Return what the recipient's server replied; codes from 600 are Mailgun's own."""
    status = data.get("delivery-status")
    if not isinstance(status, dict):
        return None
    return wire.with_code(status.get("code"), status.get("enhanced-code") or status.get("message"))


def _kept(data: Mapping[str, Any]) -> Mapping[str, bool] | None:
    """Return whether a machine opened or clicked."""
    return wire.MACHINE if dug(data, "client-info", "bot") else None


class _Signature(NamedTuple):
    at: str
    token: str
    given: Sequence[str]

    @property
    def signed(self) -> str:
        """What the signature covers. Nothing separates time and token, so only both together belong to a body."""
        return f"{self.at}{self.token}"


_DECIMAL = re.compile(r"[0-9]{1,12}")


def _verify(request: Request, secret: str, now: float) -> None:
    """Check the signature, its age, and that its token does not belong to another body.

    A webhook of a subaccount is also signed with the primary account's key.
    """
    found = _signature(request)
    expected = wire.hex_hmac(found.signed.encode("utf-8", "replace"), secret)
    wire.require(any(wire.equal(given, expected) for given in found.given))
    wire.fresh(found.at, now, MAX_AGE_SECONDS)
    _tokens.require(found.signed, request.body)


def claim(request: Request) -> AbstractContextManager[None]:
    """Let the token of a verified request belong to its body while it is recorded, and afterwards if that succeeds.

    The signature covers the token only: with another body, it could be anybody's.
    """
    return _tokens.claimed(_signature(request).signed, request.body)


def _signature(request: Request) -> _Signature:
    if not _is_json(request):
        raise SignatureError(_LEGACY)
    try:
        signature = wire.as_object(request.object().get("signature"), "signature")
    except InvalidWebhookError:
        raise SignatureError("the webhook has no signature") from None
    texts = {name: value for name, value in signature.items() if isinstance(value, str)}
    if not {"timestamp", "token", "signature"} <= texts.keys():
        raise SignatureError("the webhook has no signature")
    if not _DECIMAL.fullmatch(texts["timestamp"]):
        raise SignatureError("the time of the signature is no number")
    given = [texts[name] for name in ("signature", "parent-signature") if name in texts]
    return _Signature(texts["timestamp"], texts["token"], given)


class _Pair:
    """A body's digest, how many requests with it are under way, and whether one of them was recorded."""

    __slots__ = ("digest", "recorded", "under_way")

    def __init__(self, digest: bytes) -> None:
        self.digest, self.under_way, self.recorded = digest, 0, False


class Tokens:
    """The body that each token belongs to: the first that came with it. Beyond a bound, the oldest is forgotten."""

    def __init__(self) -> None:
        self._pairs: dict[bytes, _Pair] = {}
        self._lock = threading.Lock()

    def require(self, token: str, body: bytes) -> None:
        """Raise `SignatureError` if a token belongs to another body."""
        with self._lock:
            self._require(self._pairs.get(_digest(_encoded(token))), _digest(body))

    @contextmanager
    def claimed(self, token: str, body: bytes) -> Iterator[None]:
        """Let a token belong to a body for as long as the block runs, and then for good, unless the block raises."""
        key, digest = _digest(_encoded(token)), _digest(body)
        with self._lock:
            pair = self._pairs.get(key)
            self._require(pair, digest)
            if pair is None:
                pair = self._pairs[key] = _Pair(digest)
                while len(self._pairs) > MAX_TOKENS:
                    del self._pairs[next(iter(self._pairs))]
            pair.under_way += 1
        try:
            yield
            pair.recorded = True
        finally:
            with self._lock:
                pair.under_way -= 1
                if not (pair.recorded or pair.under_way) and self._pairs.get(key) is pair:
                    del self._pairs[key]

    @staticmethod
    def _require(pair: _Pair | None, digest: bytes) -> None:
        if pair is not None and pair.digest != digest:
            raise SignatureError("its token belongs to another webhook, which came first")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()[:16]


_tokens = Tokens()


def _sign(body: bytes, secret: str, at: float, url: str | None) -> Signed:
    """Return a request with an event, as Mailgun sends it."""
    time = str(int(at))
    token = hashlib.sha256(time.encode() + body).hexdigest()[:50]
    signature = {"timestamp": time, "token": token, "signature": wire.hex_hmac(f"{time}{token}".encode(), secret)}
    return wire.as_json(b'{"signature": ' + json.dumps(signature).encode() + b', "event-data": ' + body + b"}")


def _failed(reason: str, severity: str = "permanent", code: int = 605) -> dict[str, Any]:
    return {"event": "failed", "reason": reason, "severity": severity, "delivery-status": {"code": code}}


_KINDS = {
    "accepted": Kind("queued", payload={"event": "accepted"}),
    "delivered": Kind("delivered", payload={"event": "delivered", "delivery-status": {"code": 250}}),
    "failed/temporary": Kind("deferred", payload=_failed("generic", "temporary", 450)),
    "failed": Kind("bounced", None, "hard", _failed("bounce", "permanent", 550)),
    "failed/old": Kind("bounced", "timed_out", "soft", _failed("old", "permanent", 602)),  # after eight hours
    # Mailgun did not send, because the address is on one of its lists
    "failed/suppress-bounce": Kind("suppressed", "bounced", None, _failed("suppress-bounce", code=605)),
    "failed/suppress-unsubscribe": Kind("suppressed", "unsubscribed", None, _failed("suppress-unsubscribe", code=606)),
    "failed/suppress-complaint": Kind("suppressed", "spam", None, _failed("suppress-complaint", code=607)),
    "rejected": Kind(
        "rejected", "other", None,
        {"event": "rejected", "reject": {"reason": "Sandbox subdomains are for test purposes only"}},
    ),
    "opened": Kind("opened", payload={"event": "opened"}),
    "clicked": Kind("clicked", payload={"event": "clicked"}),
    "complained": Kind("complained", payload={"event": "complained"}),
    "unsubscribed": Kind("unsubscribed", payload={"event": "unsubscribed"}),
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
    documentation="https://documentation.mailgun.com/docs/mailgun/user-manual/webhooks/webhook-payloads",
    boxes="all event types",
    retries="for 8 hours, at growing intervals, but none for `delivered` and none after a 406",
    authentication=Authentication(Signature.IN_BODY, "HMAC-SHA256 over time and token", _verify, sign=_sign),
    max_bytes=MAX_EVENT_BYTES,
    claim=claim,
    elements=_elements,
    events=_events,
    table=Table(
        kind=_kind,
        kinds=_KINDS,
        refine=_refine,
        at=Field(lambda data: wire.epoch(data.get("timestamp")), ("timestamp",), lambda at: at.timestamp()),
        id=computed(_id, "id"),
        message_id=computed(_message_id, "message/headers/message-id", lambda id_: id_.strip("<>")),
        recipient=computed(_recipient, "recipient"),
        reply=_reply,
        tags="tags",
        kept=_kept,
    ),
)
