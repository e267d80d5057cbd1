"""Mailgun: one event a request, as JSON or as the form of its legacy webhooks; an HMAC over time and token.

Followed: https://documentation.mailgun.com/docs/mailgun/user-manual/webhooks/webhook-payloads,
https://documentation.mailgun.com/docs/mailgun/user-manual/webhooks/securing-webhooks (the signature, and that it may
arrive late), https://help.mailgun.com/hc/en-us/articles/202236504-Webhooks (it tries again for eight hours),
https://documentation.mailgun.com/docs/mailgun/user-manual/tracking-messages/tracking-messages (opens by machines) and
https://help.mailgun.com/hc/en-us/articles/14048832145051-Legacy-Webhooks. Not documented: whether a repeated webhook
keeps its token, and the values of `reason`: `suppress-…` are in
https://documentation.mailgun.com/en/latest/api-stats.html, `old` in
https://feedback.mailgun.com/forums/914635-general-feedback/suggestions/37219720.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

from mailglass_reconcile.errors import InvalidWebhookError, SignatureError
from mailglass_reconcile.rules.addresses import bare
from mailglass_reconcile.rules.events import Bounce, WebhookEvent
from mailglass_reconcile.webhooks import wire
from mailglass_reconcile.webhooks.wire import Request, Signed, dug

SIGNATURE = wire.Signature.IN_BODY

MAX_EVENT_BYTES = 256 * 1024
MAX_PARTS_BYTES = 1024 * 1024
"""How long an event may be, which is parsed before its signature is checked, and a legacy one in parts."""
MAX_AGE_SECONDS = 86_400
"""How old a signature may be."""
MAX_TOKENS = 100_000
"""Tokens that are remembered, about 30 MB: more than most receive in a day, and after a day a signature is too old."""

_TYPES = {
    "accepted": "queued",
    "clicked": "clicked",
    "complained": "complained",
    "delivered": "delivered",
    "failed": "bounced",
    "opened": "opened",
    "rejected": "rejected",
    "unsubscribed": "unsubscribed",
}
_LEGACY_TYPES = {
    "bounced": "bounced",
    "clicked": "clicked",
    "complained": "complained",
    "delivered": "delivered",
    "dropped": "rejected",
    "opened": "opened",
    "unsubscribed": "unsubscribed",
}
_SUPPRESSED = {"suppress-bounce": "bounced", "suppress-complaint": "spam", "suppress-unsubscribe": "unsubscribed"}
"""Reasons of a failure that is none of delivery: Mailgun did not send, because the address is on one of its lists."""
_TOO_OLD = "old"
"""The reason of the last failure, after eight hours; its severity was `temporary` once."""
_REASONS = {"bounce": "bounced", _TOO_OLD: "timed_out", **_SUPPRESSED}
_LEGACY_REASONS = {"499": "timed_out", "605": "bounced", "607": "spam"}


def max_bytes(request: Request) -> int:
    """Return how long the body may be."""
    return MAX_PARTS_BYTES if request.is_in_parts() else MAX_EVENT_BYTES


def elements(request: Request) -> list[Any]:
    """Return the request's only event."""
    if _is_json(request):
        return [request.object()]
    fields = request.form()
    if not {"event", "sender"} & {name for name, _ in fields}:
        raise InvalidWebhookError("the form is not a webhook of Mailgun")
    return [fields]


def events(element: object, request: Request) -> Iterable[WebhookEvent]:
    """Read one event; inbound mail gives none."""
    if isinstance(element, dict):
        yield _event(wire.as_object(element.get("event-data"), "event-data"))
    elif isinstance(element, list) and "event" in dict(element):
        yield _legacy(element)


def _is_json(request: Request) -> bool:
    kind = request.content_type.lower()
    return "json" in kind or ("form" not in kind and request.body.lstrip()[:1] == b"{")


def _event(data: dict[str, Any]) -> WebhookEvent:
    type_ = _type(data)
    reason = _REASONS.get(str(data["reason"]), "other") if "reason" in data else None
    whole = {"event-data": data}
    return wire.event(
        data,
        type=type_,
        at=wire.epoch(data.get("timestamp")),
        id=event_id(data),
        message_id=_bracketed(dug(data, "message", "headers", "message-id")),
        recipient=data.get("recipient") or (_addressee(data) if type_ == "rejected" else None),
        reason=reason or ("other" if type_ == "rejected" else None),
        bounce=bounce(whole),
        smtp=smtp(whole),
        tags=data.get("tags"),
        kept=kept(whole),
    )


def _type(data: Mapping[str, Any]) -> str:
    type_ = _TYPES.get(str(data.get("event")), "unknown")
    if type_ != "bounced":
        return type_
    if str(data.get("reason")) in _SUPPRESSED:
        return "suppressed"
    return "deferred" if data.get("severity") == "temporary" and data.get("reason") != _TOO_OLD else type_


def bounce(payload: Mapping[str, Any]) -> Bounce | None:
    """Tell a hard bounce from a soft one, given the whole of a webhook: those of legacy webhooks are hard."""
    data = payload.get("event-data")
    if not isinstance(data, dict):
        return "hard" if payload.get("event") == "bounced" else None
    if _type(data) != "bounced":
        return None
    return "soft" if data.get("reason") == _TOO_OLD else "hard"


def smtp(payload: Mapping[str, Any]) -> object:
    """Return what the recipient's server replied, given the whole of a webhook; codes from 600 are Mailgun's own."""
    status = dug(payload.get("event-data"), "delivery-status")
    if not isinstance(status, dict):
        return payload.get("code")
    return wire.with_code(status.get("code"), status.get("enhanced-code") or status.get("message"))


def kept(payload: Mapping[str, Any]) -> Mapping[str, bool] | None:
    """Return whether a machine opened or clicked, given the whole of a webhook."""
    return wire.MACHINE if dug(payload.get("event-data"), "client-info", "bot") else None


def event_id(data: Mapping[str, Any]) -> str | None:
    """Return the id of an event, given its `event-data`: the event's own, which is unique within a day, and its time.

    The token of the signature is not used, because it belongs to the request.
    """
    return f"{data['id']}/{data.get('timestamp')}" if data.get("id") else None


def _addressee(data: dict[str, Any]) -> str | None:
    """Return the only address of the header `To`, without a display name."""
    to = dug(data, "message", "headers", "to")
    return bare(to) if isinstance(to, str) and "," not in to else None


def _bracketed(id_: object) -> object:
    return f"<{id_}>" if isinstance(id_, str) and id_ and not id_.startswith("<") else id_


def _legacy(fields: Sequence[tuple[str, str]]) -> WebhookEvent:
    """Read a form. Mailgun adds the message's variables to it, so the first value of a field is Mailgun's own."""
    first: dict[str, str] = dict(reversed(fields))
    last: dict[str, str] = dict(fields)
    return wire.event(
        sorted(fields),
        type=_LEGACY_TYPES.get(first.get("event", ""), "unknown"),
        at=wire.epoch(last.get("timestamp")),
        id=last.get("token"),
        message_id=_bracketed(first.get("Message-Id") or first.get("message-id")),
        recipient=first.get("recipient"),
        reason=_legacy_reason(first.get("code")),
        bounce=bounce(first),
        smtp=smtp(first),
        tags=_all(fields, "tag") or _all(fields, "X-Mailgun-Tag"),
    )


def _all(fields: Sequence[tuple[str, str]], wanted: str) -> list[str]:
    return [value for name, value in fields if name == wanted]


def _legacy_reason(code: str | None) -> str | None:
    """Return the reason for an SMTP code, or for an extended one such as `5.1.1`."""
    if code is None:
        return None
    status, dot, _ = code.strip().partition(".")
    if dot:
        return "bounced" if status in ("4", "5") else "other"
    return _LEGACY_REASONS.get(status, "bounced" if status[:1] in ("4", "5") and len(status) == 3 else "other")


_DECIMAL = re.compile(r"[0-9]{1,12}")


class _Signature(NamedTuple):
    at: str
    token: str
    given: Sequence[str]

    @property
    def signed(self) -> str:
        """What the signature covers. Nothing separates time and token, so only both together belong to a body."""
        return f"{self.at}{self.token}"


def verify(request: Request, secret: str, now: float) -> None:
    """Check the signature, its age, and that its token does not belong to another body.

    A webhook of a subaccount is also signed with the primary account's key.
    """
    found = _signature(request)
    expected = wire.hex_hmac(found.signed.encode("utf-8", "replace"), secret)
    wire.require(any(wire.equal(one, expected) for one in found.given))
    wire.fresh(found.at, now, MAX_AGE_SECONDS)
    _tokens.require(found.signed, request.body)


def claimed(request: Request) -> AbstractContextManager[None]:
    """Let the token of a verified request belong to its body while it is recorded, and afterwards if that succeeds.

    The signature covers the token only: with another body, it could be anybody's.
    """
    return _tokens.claimed(_signature(request).signed, request.body)


def _signature(request: Request) -> _Signature:
    try:
        if _is_json(request):
            signature = wire.as_object(request.object().get("signature"), "signature")
        else:
            signature = dict(request.form())
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


def sign(body: bytes, secret: str, at: float, url: str | None) -> Signed:
    """Return a request with an event, as Mailgun sends it."""
    time = str(int(at))
    token = hashlib.sha256(time.encode() + body).hexdigest()[:50]
    signature = {"timestamp": time, "token": token, "signature": wire.hex_hmac(f"{time}{token}".encode(), secret)}
    return wire.as_json(b'{"signature": ' + json.dumps(signature).encode() + b', "event-data": ' + body + b"}")


def samples(message_id: str, recipient: str | None, at: dt.datetime) -> dict[str, Any]:
    """Return for each type an event as Mailgun writes it."""
    failed = {"event": "failed", "reason": "bounce"}
    kinds: dict[str, dict[str, Any]] = {
        "bounced": {**failed, "severity": "permanent", "delivery-status": {"code": 550, "bounce-type": "hard"}},
        "clicked": {"event": "clicked"},
        "complained": {"event": "complained"},
        "deferred": {**failed, "severity": "temporary", "delivery-status": {"code": 450}},
        "delivered": {"event": "delivered", "delivery-status": {"code": 250}},
        "opened": {"event": "opened"},
        "queued": {"event": "accepted"},
        "rejected": {"event": "rejected", "reject": {"reason": "Sandbox subdomains are for test purposes only"}},
        "suppressed": {**failed, "severity": "permanent", "reason": "suppress-bounce"},
        "unsubscribed": {"event": "unsubscribed"},
    }
    message = {"headers": {"message-id": message_id.strip("<>")}}
    common = {"timestamp": at.timestamp(), "recipient": recipient, "message": message}
    return {type_: {**kind, **common, "id": wire.digest([type_, message_id, at])[:22]} for type_, kind in kinds.items()}
