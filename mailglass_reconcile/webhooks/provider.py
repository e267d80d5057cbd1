"""A provider as one record: what is known of it, and the table that reads its events and makes samples of them."""

from __future__ import annotations

import copy
import datetime as dt
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from mailglass_reconcile.rules.events import Bounce, WebhookEvent
from mailglass_reconcile.rules.providers import MessageIds
from mailglass_reconcile.webhooks import wire
from mailglass_reconcile.webhooks.sns import Service
from mailglass_reconcile.webhooks.wire import Authentication, Request, Signature, Signed

MAX_BYTES = 5 * 1024 * 1024
"""A larger body is refused."""

Payload = Mapping[str, Any]
"""What a provider says of one event."""
Value = Callable[[Any], Any]


class Kind(NamedTuple):
    """A row of a table: how one of the provider's events is read.

    Attributes:
        type: Anymail's name for it.
        reason: Why a message was rejected or bounced.
        bounce: Whether a bounce is hard or soft, if that is known.
        payload: Other values of such a payload, which distinguish it: a sample has them.
    """

    type: str
    reason: str | None = None
    bounce: Bounce | None = None
    payload: Payload = MappingProxyType({})


NO_EVENT = Kind("")
"""The row of a payload that gives no event, such as inbound mail."""
UNKNOWN = Kind("unknown")


@dataclass(frozen=True, slots=True)
class Field:
    """A value of a payload: how it is read, and where and how a sample has it."""

    read: Value
    path: tuple[str, ...] | Callable[[str], tuple[str, ...]] = ()
    """Where a sample has it, in any row or by the row's name."""
    write: Value = lambda value: value


Source = str | tuple[str, ...] | Value | Field | None
"""Where a value is: a path such as `msg/email`, several of which the first one with a value counts, or a function."""


def to_field(source: Source) -> Field:
    """Return the field that a source describes."""
    if isinstance(source, Field):
        return source
    if source is None:
        return Field(lambda _: None)
    if isinstance(source, str):
        path = tuple(source.split("/"))
        return Field(_reader(path), path)
    if isinstance(source, tuple):
        paths = [tuple(path.split("/")) for path in source]
        readers = [_reader(path) for path in paths]
        return Field(lambda payload: next((value for read in readers if (value := read(payload))), None), paths[0])
    return Field(source)


def _reader(path: tuple[str, ...]) -> Value:
    if len(path) == 1:
        (key,) = path
        return lambda payload: payload.get(key)
    return lambda payload: wire.dug(payload, *path)


def epoch(path: str, per_second: int = 1, *, write: type = int) -> Field:
    """Return a time in seconds since 1970, or parts of them."""
    return Field(
        lambda payload: wire.epoch(payload.get(path), per_second),
        (path,),
        lambda at: write(int(at.timestamp() * per_second)),
    )


def iso(*paths: str) -> Field:
    """Return a time in ISO 8601, in UTC if it names no zone."""
    read = to_field(paths)
    return Field(lambda payload: wire.iso(read.read(payload)), read.path, dt.datetime.isoformat)


def computed(function: Value, path: str, write: Value = lambda value: value) -> Field:
    """Return a value that a function reads; a sample has it at a path."""
    return Field(function, tuple(path.split("/")), write)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Reads the payload of one event, and makes samples.

    Attributes:
        kind: The name of the event, which is that of its row.
        kinds: The rows. An event without one is `unknown`.
        refine: Corrects the row of a payload, where it depends on more than a name.
        at: When it happened; without it, the event happened now.
        id: The provider's id of the event.
        digested: What an event without an id is known by: its whole payload, if this is None.
        message_id: The id of the message.
        recipient: Whom it is about.
        reply: What the recipient's server replied.
        smtp_message_id: The Message-ID header, or another id that a sender over SMTP knows.
        tags: The message's tags.
        kept: What else the ledger keeps; it names no person.
        sample: Values that every sample has.
    """

    kind: Source
    kinds: Mapping[str, Kind]
    refine: Callable[[Any, Kind], Kind] | None = None
    at: Source = None
    id: Source = None
    digested: Value | None = None
    message_id: Source = None
    recipient: Source = None
    reply: Source = None
    smtp_message_id: Source = None
    tags: Source = None
    kept: Value | None = None
    sample: Payload = field(default_factory=dict)
    _fields: Mapping[str, Field] = field(init=False, repr=False, default_factory=dict)
    _read: Sequence[tuple[str, Value]] = field(init=False, repr=False, default=())

    def __post_init__(self) -> None:
        names = ("kind", "at", "id", "message_id", "recipient", "reply", "smtp_message_id", "tags")
        object.__setattr__(self, "_fields", {name: to_field(getattr(self, name)) for name in names})
        used = (name for name in names[1:] if getattr(self, name) is not None)
        read = [(name, self._fields[name].read) for name in used]
        object.__setattr__(self, "_read", [*read, ("kept", self.kept)] if self.kept else read)

    def row_of(self, payload: Payload) -> str:
        """Return the name of a payload's row; empty if it has none."""
        name = self._fields["kind"].read(payload)
        return name if isinstance(name, str) else ""

    def read(self, payload: Payload, request_id: str | None = None, **more: Any) -> WebhookEvent | None:
        """Return the event of a payload, if it gives one.

        Args:
            payload: What the provider says of it.
            request_id: The id of the webhook that carries it, if that is the event's.
            more: Values that are not in the payload, or not as the table reads them.
        """
        kind = self.kinds.get(self.row_of(payload), UNKNOWN)
        if self.refine:
            kind = self.refine(payload, kind)
        if kind is NO_EVENT:
            return None
        if more:
            values = {name: read(payload) for name, read in self._read if name not in more} | more
        else:
            values = {name: read(payload) for name, read in self._read}
        if request_id is not None:
            values.setdefault("id", request_id)
        return wire.event(
            self.digested(payload) if self.digested else payload,
            type=kind.type,
            reason=kind.reason,
            bounce=kind.bounce,
            **values,
        )

    def names(self) -> dict[str, str]:
        """Return the first row of each type that a sample can be made of."""
        names: dict[str, str] = {}
        for name, kind in self.kinds.items():
            if kind.type not in ("", "unknown"):
                names.setdefault(kind.type, name)
        return names

    def make_sample(self, name: str, message_id: str, recipient: str | None, at: dt.datetime) -> dict[str, Any]:
        """Return a payload of the row *name*, about a message and a recipient, at a time."""
        values = {
            "kind": name,
            "at": at,
            "id": wire.digest([name, message_id, at])[:24],
            "message_id": message_id,
            "recipient": recipient,
        }
        payload: dict[str, Any] = {}
        for part in (self.sample, self.kinds[name].payload):
            _merge(payload, copy.deepcopy(dict(part)))
        for field_name, value in values.items():
            place = self._fields[field_name]
            nested: Any = place.write(value)
            path = place.path(name) if callable(place.path) else place.path
            for key in reversed(path):
                nested = {key: nested}
            if path:
                _merge(payload, nested)
        return payload


def _merge(payload: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(payload.get(key), dict):
            _merge(payload[key], value)
        else:
            payload[key] = value


def _only_object(request: Request) -> Iterable[Any]:
    return [request.object()]


@dataclass(frozen=True, kw_only=True)
class Provider:
    """What is known of a provider; a module of `providers/` has one, as `PROVIDER`.

    Attributes:
        name: Its canonical name, which is the module's and the last part of the webhook's address.
        title: Its name as it writes it itself.
        spellings: Other names under which deliveries of it may be stored.
        message_ids: Where its events have the id that its send API answers; None is `metadata/message_id`.
        lacks_id: Types of events that may name no message, by its documentation.
        synthetic_ids: Whether Mailglass stores an id that it made up in place of the provider's.
        redelivery: How to let it send one webhook again, if its dashboard can.
        documentation: The page about its webhooks.
        recipient_known: Whether its events say whom they are about, for the documentation.
        boxes: What to tick where a webhook is entered, so that every type that we read is reported.
        retries: How often, and when, it sends a webhook again that was not answered with 200.
        authentication: How a webhook is verified.
        refused: The status for a wrong signature; 503 if it would never send the webhook again after 401.
        busy: The status that makes it send a webhook again; 429 if it gives up after a 5xx.
        max_bytes: How long a body may be: less if the signature stands in it, and its webhooks are small.
        immediate_bytes: How long a body may be whose signature is checked without a thread.
        service: What signs with a certificate that has to be fetched.
        confirm: Confirms the subscription that a verified request without events may ask for.
        handshake: Returns the code that such a request wants back, if the answer can hold one.
        claim: Keeps what a signature covers for a verified request, while it is recorded.
        elements: Returns the parts of a request that are read one by one; raises `InvalidWebhookError` if it has none.
        request_id: Returns the id of a webhook, if that is the id of its event.
        table: Reads one part.
        events: Reads one part where a table is not enough, such as for several recipients.
        batch: Returns the body that carries several payloads; None if each has a request of its own.
        wrap: Returns the body that carries one payload, if that is not the payload itself.
    """

    name: str
    title: str
    spellings: tuple[str, ...] = ()
    message_ids: MessageIds | None = None
    lacks_id: frozenset[str] | None = None
    synthetic_ids: bool = False
    redelivery: str | None = None
    documentation: str = ""
    recipient_known: str = "yes"
    boxes: str = ""
    retries: str = ""
    authentication: Authentication
    refused: int = 401
    busy: int = 503
    max_bytes: int = MAX_BYTES
    immediate_bytes: int = MAX_BYTES
    service: Service | None = None
    confirm: Callable[[Request], None] | None = None
    handshake: Callable[[Request], str | None] | None = None
    claim: Callable[[Request], AbstractContextManager[None]] | None = None
    elements: Callable[[Request], Iterable[Any]] = _only_object
    request_id: Callable[[Request], str | None] | None = None
    table: Table = Table(kind=None, kinds={})
    events: Callable[[Any, str | None], Iterable[WebhookEvent]] | None = None
    batch: Callable[[Sequence[Payload]], Any] | None = None
    wrap: Callable[[Payload], Any] | None = None

    @property
    def signature(self) -> Signature:
        """Where the signature is."""
        return self.authentication.signature

    @property
    def has_private_key(self) -> bool:
        """Whether nobody else can sign a webhook, so that none can be imitated."""
        return self.authentication.sign is None

    def read(self, element: Any, request_id: str | None) -> Sequence[WebhookEvent]:
        """Return the events of one part; an error costs this part only."""
        if self.events is not None:
            return list(self.events(element, request_id))
        made = self.table.read(wire.as_object(element, "the event"), request_id)
        return () if made is None else (made,)

    def bodies(self, payloads: Sequence[Payload]) -> list[bytes]:
        """Return the bodies that carry some payloads, not signed yet: one, if the provider sends batches."""
        each = [self.batch(payloads)] if self.batch else [self.wrap(one) for one in payloads] if self.wrap else payloads
        return [json.dumps(body).encode() for body in each]

    def samples(self, message_id: str, recipient: str | None, at: dt.datetime) -> dict[str, bytes]:
        """Return for each type a body as the provider sends it, not signed yet."""
        return {
            type_: self.bodies([self.table.make_sample(name, message_id, recipient, at)])[0]
            for type_, name in self.table.names().items()
        }

    def sign(self, body: bytes, secret: str, at: float, url: str | None = None) -> Signed:
        """Return the request that carries a body, signed with *secret* at a time in seconds since 1970."""
        if self.authentication.sign is None:
            raise ValueError(f"{self.title} signs with a private key")
        return self.authentication.sign(body, secret, at, url)
