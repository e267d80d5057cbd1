"""The definition of a provider: its facts, and the table that parses its events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mailglass_reconcile.providers import wire
from mailglass_reconcile.providers.signatures import Authentication, Signature
from mailglass_reconcile.providers.sns import NotificationService
from mailglass_reconcile.providers.wire import WebhookRequest
from mailglass_reconcile.rules.events import Bounce, WebhookEvent
from mailglass_reconcile.rules.provider_rules import MessageIds

MAX_BYTES = 5 * 1024 * 1024
"""Greatest size of a webhook's body."""

Payload = Mapping[str, Any]
"""The part of a webhook's body that describes one event."""
ValueFunction = Callable[[Any], Any]


class EventKind(NamedTuple):
    """A row of an event table: one kind of the provider's events.

    Attributes:
        type: Our event type, which is Anymail's.
        reason: Why a message was rejected or bounced.
        bounce: `hard` or `soft` for a bounce, if known.
    """

    type: str
    reason: str | None = None
    bounce: Bounce | None = None


NO_EVENT = EventKind("")
"""The row of a payload that gives no event, such as inbound mail."""
UNKNOWN = EventKind("unknown")


FieldSource = str | tuple[str, ...] | ValueFunction
"""The source of a value: a path such as `msg/email`, several paths (the first with a value counts), or a function."""


def to_reader(source: FieldSource) -> ValueFunction:
    """Return the function that reads a value from a payload."""
    if isinstance(source, str):
        return _reader(tuple(source.split("/")))
    if isinstance(source, tuple):
        readers = [to_reader(path) for path in source]
        return lambda payload: next((value for read in readers if (value := read(payload))), None)
    return source


def _reader(path: tuple[str, ...]) -> ValueFunction:
    if len(path) == 1:
        (key,) = path
        return lambda payload: payload.get(key)
    return lambda payload: wire.get_path(payload, *path)


def epoch_field(path: str) -> ValueFunction:
    """Return a function that reads a Unix timestamp."""
    return lambda payload: wire.parse_epoch(payload.get(path))


def iso_field(*paths: str) -> ValueFunction:
    """Return a function that reads a time in ISO 8601, in UTC if it names no zone."""
    read = to_reader(paths)
    return lambda payload: wire.parse_iso(read(payload))


@dataclass(frozen=True, kw_only=True)
class EventTable:
    """Parses the payload of one event.

    Attributes:
        kind: The provider's name of the event, which selects the row.
        kinds: The rows by name. An event without a row is `unknown`.
        refine: Corrects the row of a payload, where it depends on more than a name.
        at: When it happened; without it, the event happened now.
        id: The provider's id of the event.
        digest_source: Returns the part of a payload whose digest is the id of an event without one; None is all of it.
        message_id: The id of the message.
        recipient: The recipient.
        reply: The reply of the recipient's server.
        smtp_message_id: The Message-ID header, or another id that a sender over SMTP knows.
        tags: The message's tags.
        metadata: Returns further metadata for the ledger, without personal data.
    """

    kind: FieldSource
    kinds: Mapping[str, EventKind]
    refine: Callable[[Any, EventKind], EventKind] | None = None
    at: FieldSource | None = None
    id: FieldSource | None = None
    digest_source: ValueFunction | None = None
    message_id: FieldSource | None = None
    recipient: FieldSource | None = None
    reply: FieldSource | None = None
    smtp_message_id: FieldSource | None = None
    tags: FieldSource | None = None
    metadata: ValueFunction | None = None
    _read_kind: ValueFunction = field(init=False, repr=False)
    _readers: Sequence[tuple[str, ValueFunction]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        names = ("at", "id", "message_id", "recipient", "reply", "smtp_message_id", "tags", "metadata")
        sources = ((name, getattr(self, name)) for name in names)
        object.__setattr__(self, "_read_kind", to_reader(self.kind))
        object.__setattr__(self, "_readers", [(name, to_reader(source)) for name, source in sources if source])

    def row_of(self, payload: Payload) -> str:
        """Return the name of a payload's row, or an empty string."""
        name = self._read_kind(payload)
        return name if isinstance(name, str) else ""

    def read(self, payload: Payload, request_id: str | None = None, **more: Any) -> WebhookEvent | None:
        """Return the event of a payload, or None if it gives none.

        Args:
            payload: The payload.
            request_id: The id of the webhook, if that is the event's id.
            more: Values that replace those which the table reads.
        """
        kind = self.kinds.get(self.row_of(payload), UNKNOWN)
        if self.refine:
            kind = self.refine(payload, kind)
        if kind is NO_EVENT:
            return None
        if more:
            values = {name: read(payload) for name, read in self._readers if name not in more} | more
        else:
            values = {name: read(payload) for name, read in self._readers}
        if request_id is not None:
            values.setdefault("id", request_id)
        return wire.build_event(
            self.digest_source(payload) if self.digest_source else payload,
            type=kind.type,
            reason=kind.reason,
            bounce=kind.bounce,
            **values,
        )


def _only_object(request: WebhookRequest) -> Iterable[Any]:
    return [request.object()]


@dataclass(frozen=True, kw_only=True)
class Provider:
    """The definition of a provider; each module of `builtin/` has one, as `PROVIDER`.

    Attributes:
        name: Its canonical name, which is the module's and the last part of the webhook's URL.
        title: The name in the provider's own spelling.
        spellings: Other names under which its deliveries may be stored.
        message_ids: The fields of its events with the id that its send API returned; None is `metadata/message_id`.
        lacks_id: Types of events that may name no message, according to its documentation.
        synthetic_ids: True if Mailglass stores a generated id in place of the provider's.
        redelivery: The steps to make it send one webhook again, if its dashboard can.
        authentication: The verification of a webhook.
        rejection_status: The status for a wrong signature; 503 if it never retries after a 401.
        retry_status: The status that makes it retry; 429 if it gives up after a 5xx.
        max_bytes: Greatest size of a body: smaller if the signature is in the body and its webhooks are small.
        immediate_bytes: Greatest size of a body whose signature is verified on the event loop, without a thread.
        service: The service whose certificate signs, which has to be fetched.
        confirm: Confirms the subscription that a verified request without events may ask for.
        handshake: Returns the code that the response to such a request must contain, if the provider reads one.
        elements: Returns the elements of a request, which are read one by one, or raises `InvalidWebhookError`.
        request_id: Returns the id of a webhook, if that is the id of its event.
        table: Reads one element.
        events: Reads one element where a table is not enough, such as for several recipients.
    """

    name: str
    title: str
    spellings: tuple[str, ...] = ()
    message_ids: MessageIds | None = None
    lacks_id: frozenset[str] | None = None
    synthetic_ids: bool = False
    redelivery: str | None = None
    authentication: Authentication
    rejection_status: int = 401
    retry_status: int = 503
    max_bytes: int = MAX_BYTES
    immediate_bytes: int = MAX_BYTES
    service: NotificationService | None = None
    confirm: Callable[[WebhookRequest], None] | None = None
    handshake: Callable[[WebhookRequest], str | None] | None = None
    elements: Callable[[WebhookRequest], Iterable[Any]] = _only_object
    request_id: Callable[[WebhookRequest], str | None] | None = None
    table: EventTable = EventTable(kind="", kinds={})
    events: Callable[[Any, str | None], Iterable[WebhookEvent]] | None = None

    @property
    def signature(self) -> Signature:
        """The place of the signature."""
        return self.authentication.signature

    @property
    def has_private_key(self) -> bool:
        """True if only the provider can sign a webhook, so that we cannot send a sample."""
        return self.authentication.sign is None

    def read(self, element: Any, request_id: str | None) -> Sequence[WebhookEvent]:
        """Return the events of one element; if this raises, the other elements are still read."""
        if self.events is not None:
            return list(self.events(element, request_id))
        event = self.table.read(wire.require_object(element, "the event"), request_id)
        return () if event is None else (event,)
