"""Deliveries as people read them: each with a one-sentence summary and its events, by id, address or message."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import sqlalchemy as sa

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import format_command
from mailglass_reconcile.ops import orphans
from mailglass_reconcile.rules import event_types, provider_rules, times
from mailglass_reconcile.rules.addresses import contains_address, normalize_address
from mailglass_reconcile.rules.humanize import format_ago, pluralize, sanitize
from mailglass_reconcile.rules.smtp import smtp_status
from mailglass_reconcile.store.database import Transaction, array_literal, column_arrays
from mailglass_reconcile.store.tables import ledger

MAX_EVENTS = 200
"""The number of latest events that are read of a delivery: a robot may open a mail ten thousand times."""
SOON_SECONDS = 600.0
"""Within ten minutes, a webhook may still be on its way."""
MAX_NAMING_ORPHANS = 20
"""Open orphans that are read at most for a delivery."""

# A `reconciled` event stands for the orphan that it links. A provider has reported if one was linked, or if a webhook's
# event was stored with the delivery.
_READ = """
SELECT d.id::text AS delivery_id, left(d.tenant_id, 1000) AS tenant_id, left(p.provider, 512) AS provider,
       left(d.provider_message_id, 1000) AS message_id, left(d.mailable, 200) AS mailable,
       left(d.last_event_type, 100) AS type,
       {schema}.mailglass_reconcile_iso_v1(d.last_event_at) AS since, d.terminal AS final,
       {schema}.mailglass_reconcile_iso_v1(d.inserted_at) AS stored_at,
       {schema}.mailglass_reconcile_iso_v1(d.dispatched_at) AS dispatched_at,
       {schema}.mailglass_reconcile_iso_v1(d.delivered_at) AS delivered_at,
       {schema}.mailglass_reconcile_iso_v1(d.bounced_at) AS bounced_at,
       {schema}.mailglass_reconcile_iso_v1(d.complained_at) AS complained_at,
       {schema}.mailglass_reconcile_iso_v1(d.suppressed_at) AS suppressed_at,
       left(d.recipient, 1000) AS recipient,
       r.reject_reason, r.bounce, r.smtp_status, coalesce(h.reported, false) AS reported
  FROM unnest(CAST(:ids AS uuid[])) WITH ORDINALITY AS k (id, place)
  JOIN {schema}.mailglass_deliveries AS d ON d.id = k.id
 CROSS JOIN LATERAL {schema}.mailglass_reconcile_provider_of_v1(d.id, d.provider) AS p
  LEFT JOIN LATERAL (
         SELECT bool_or(type = 'reconciled' OR starts_with(idempotency_key, 'webhook:') IS TRUE
                        OR jsonb_exists(metadata, 'provider_event_id')) AS reported
           FROM (SELECT type, idempotency_key, metadata FROM {schema}.mailglass_events
                  WHERE delivery_id = d.id ORDER BY delivery_id DESC, occurred_at DESC LIMIT :latest) AS e) AS h ON true
  LEFT JOIN LATERAL (
         SELECT left(coalesce(o.reject_reason, e.reject_reason), 512) AS reject_reason,
                coalesce(o.metadata, e.metadata) ->> 'bounce' AS bounce,
                left(coalesce(o.metadata, e.metadata) ->> 'smtp_status', 100) AS smtp_status
           FROM (SELECT * FROM {schema}.mailglass_events
                  WHERE delivery_id = d.id ORDER BY delivery_id DESC, occurred_at DESC LIMIT :latest) AS e
           LEFT JOIN {schema}.mailglass_events AS o
             ON o.id = {schema}.mailglass_reconcile_orphan_of_v1(e.type, e.idempotency_key)
            AND o.tenant_id = e.tenant_id
          WHERE coalesce(o.type, e.type) = d.last_event_type
          ORDER BY coalesce(o.occurred_at, e.occurred_at) DESC LIMIT 1) AS r ON true
 ORDER BY k.place
"""

# For an id in many orphans: those of the delivery's recipient or of an unknown one, and one of another recipient.
_NAMING = """
SELECT k.number, o.event_id::text, left(o.tenant_id, 1000), o.fits_recipient
  FROM unnest(CAST(:message_ids AS text[]), CAST(:recipients AS text[]))
       WITH ORDINALITY AS k (message_id, recipient, number)
 CROSS JOIN LATERAL (
        (SELECT o.event_id, o.tenant_id, true AS fits_recipient
           FROM {schema}.mailglass_open_orphan_ids AS i
          CROSS JOIN LATERAL (SELECT * FROM {schema}.mailglass_open_orphans WHERE event_id = i.event_id OFFSET 0) AS o
          WHERE i.candidate_id = k.message_id AND (o.recipient IS NULL OR o.recipient = k.recipient)
          LIMIT :most)
         UNION ALL
        (SELECT o.event_id, o.tenant_id, false
           FROM {schema}.mailglass_open_orphan_ids AS i
          CROSS JOIN LATERAL (SELECT * FROM {schema}.mailglass_open_orphans WHERE event_id = i.event_id OFFSET 0) AS o
          WHERE i.candidate_id = k.message_id AND o.recipient <> k.recipient
          LIMIT 1)) AS o
"""

_EVENTS = """
SELECT coalesce(o.id, e.id)::text AS event_id, left(coalesce(o.type, e.type), 100) AS type,
       {schema}.mailglass_reconcile_iso_v1(coalesce(o.occurred_at, e.occurred_at)) AS occurred_at,
       CASE WHEN o.id IS NOT NULL THEN {schema}.mailglass_reconcile_iso_v1(e.inserted_at) END AS linked_at,
       extract(epoch FROM e.inserted_at - o.inserted_at)::float8 AS after_seconds,
       coalesce(o.id IS NOT NULL AND e.metadata ->> 'linked_by' = 'hand', false) AS by_hand
  FROM unnest(CAST(:ids AS uuid[])) AS d (id)
 CROSS JOIN LATERAL (SELECT * FROM {schema}.mailglass_events
                      WHERE delivery_id = d.id ORDER BY delivery_id DESC, occurred_at DESC LIMIT :size) AS e
  LEFT JOIN {schema}.mailglass_events AS o
    ON o.id = {schema}.mailglass_reconcile_orphan_of_v1(e.type, e.idempotency_key) AND o.tenant_id = e.tenant_id
 ORDER BY coalesce(o.occurred_at, e.occurred_at) DESC, coalesce(o.id, e.id) DESC LIMIT :size
"""

_NEWEST = """
-- To an address in any spelling.
WITH of_recipient AS (
  SELECT id, inserted_at FROM {schema}.mailglass_deliveries
   WHERE {recipient_key} = hashtextextended(CAST(:recipient_key AS text), 0)
     AND (CAST(:tenant_id AS text) IS NULL OR tenant_id IS NOT DISTINCT FROM CAST(:tenant_id AS text))
   LIMIT :most
-- In any spelling of the message's id.
), of_message_ids AS (
  SELECT d.id, d.inserted_at
    FROM unnest(CAST(:message_ids AS text[])) AS c (id)
   CROSS JOIN LATERAL (
           SELECT id, inserted_at FROM {schema}.mailglass_deliveries
            WHERE hashtextextended(provider_message_id, 0) = hashtextextended(c.id, 0) AND provider_message_id = c.id
              AND (CAST(:tenant_id AS text) IS NULL OR tenant_id IS NOT DISTINCT FROM CAST(:tenant_id AS text))) AS d
   LIMIT :most
-- By their own ids.
), of_ids AS (
  SELECT d.id, d.inserted_at
    FROM unnest(CAST(:ids AS uuid[])) AS c (id)
   CROSS JOIN LATERAL (
           SELECT id, inserted_at FROM {schema}.mailglass_deliveries
            WHERE id = c.id
              AND (CAST(:tenant_id AS text) IS NULL OR tenant_id IS NOT DISTINCT FROM CAST(:tenant_id AS text))
           OFFSET 0) AS d
-- All of them first: otherwise the planner may walk a tenant's deliveries by time, and meet few that match.
), matching AS MATERIALIZED (
  SELECT * FROM of_recipient UNION SELECT * FROM of_message_ids UNION SELECT * FROM of_ids
)
SELECT id::text, count(*) OVER () AS number FROM matching ORDER BY inserted_at DESC, id DESC LIMIT :size
"""

# A link's id is a UUIDv7, so the newest ones are at the end of the ledger's primary key, but for random ids, most of
# which are above those of the next minutes.
_RECENT_LINKS = """
WITH latest AS (
  SELECT id, tenant_id, type, delivery_id, idempotency_key, inserted_at FROM {schema}.mailglass_events
   WHERE id < CAST(lpad(to_hex((extract(epoch FROM now() + interval '5 minutes') * 1000)::bigint), 12, '0')
                   || '70008000000000000000' AS uuid)
   ORDER BY id DESC LIMIT :read_at_most
)
SELECT left(r.tenant_id, 512) AS tenant_id, r.delivery_id::text, o.id::text AS event_id, left(o.type, 100) AS type,
       {schema}.mailglass_reconcile_iso_v1(r.inserted_at) AS linked_at,
       extract(epoch FROM r.inserted_at - o.inserted_at)::float8 AS after_seconds
  FROM (SELECT * FROM latest WHERE type = 'reconciled' AND delivery_id IS NOT NULL LIMIT :size) AS r
  JOIN {schema}.mailglass_events AS o
    ON o.id = {schema}.mailglass_reconcile_orphan_of_v1(r.type, r.idempotency_key)
   AND o.tenant_id = r.tenant_id
 ORDER BY r.id DESC
"""


_MEANINGS = {
    "delivered": "the recipient's mail server accepted it",
    "deferred": "the provider tries again",
    "complained": "the recipient marked it as spam",
    "suppressed": "the address is on a suppression list, so it was not sent",
}


@dataclass(frozen=True, slots=True)
class DeliverySummary:
    """A delivery, without its recipient; times are in ISO 8601, UTC.

    Attributes:
        delivery_id: The delivery.
        tenant_id: Its tenant.
        provider: Its provider; that of its send, if its row has none.
        message_id: The provider's id of the message.
        mailable: The kind of message; None if it could hold an address.
        type: The type of the event that it shows, such as `delivered`; None if it shows none.
        since: When that happened.
        final: True if its state is terminal: delivered, bounced and so on.
        stored_at: When it was stored.
        dispatched_at: When the first event of type `dispatched` happened; None without one.
        delivered_at: The same for `delivered`.
        bounced_at: The same for `bounced`.
        complained_at: The same for `complained`.
        suppressed_at: The same for `suppressed`.
        summary: The state of the delivery in one sentence.
        command: The command that shows more; None if there is none.
    """

    delivery_id: str
    tenant_id: str
    provider: str | None
    message_id: str | None
    mailable: str | None
    type: str | None
    since: str | None
    final: bool
    stored_at: str
    dispatched_at: str | None
    delivered_at: str | None
    bounced_at: str | None
    complained_at: str | None
    suppressed_at: str | None
    summary: str
    command: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, as `find --json` and `explain --json` print them."""
        return asdict(self)


class TimelineEvent(NamedTuple):
    """An event of a delivery; for one that was linked later, the orphan.

    Attributes:
        event_id: The event.
        type: Its type.
        occurred_at: When it happened, in ISO 8601, UTC.
        linked_at: When it was linked; None if it was stored with the delivery.
        after_seconds: Seconds between the arrival of the event and its link.
        by_hand: True if a person linked it.
    """

    event_id: str
    type: str
    occurred_at: str
    linked_at: str | None
    after_seconds: float | None
    by_hand: bool


class NamingOrphan(NamedTuple):
    """An orphan that names a delivery's message; `fits_recipient` if it may be about the delivery's recipient."""

    event_id: str
    tenant_id: str
    fits_recipient: bool
    is_expired: bool = False


class RecentLink(NamedTuple):
    """A link of an event to a delivery, with its time and the seconds since the event arrived."""

    tenant_id: str
    delivery_id: str
    event_id: str
    type: str
    linked_at: str
    after_seconds: float


def load_deliveries(
    tx: Transaction, delivery_ids: Sequence[str], *, expired: NamingOrphan | None = None
) -> list[DeliverySummary]:
    """Return the deliveries that exist, in the order of *delivery_ids*.

    Expired orphans are not searched: *expired* is one that names the deliveries' message, if the caller knows one.
    """
    runtime.load_imports(only_warn=True)
    rows = tx.execute(_READ, {"ids": array_literal(delivery_ids), "latest": MAX_EVENTS}).all()
    unreported = [row for row in rows if row.type in event_types.SENDER_TYPES and not row.reported and row.message_id]
    naming_orphans = _load_naming_orphans(tx, unreported) if unreported else {}
    known = [] if expired is None else [expired]
    return [_to_delivery(row, naming_orphans.get(row.delivery_id, known)) for row in rows]


def load_events(tx: Transaction, delivery_ids: Iterable[str], limit: int) -> list[TimelineEvent]:
    """Return the latest events of deliveries, the latest first, at most *limit*."""
    rows = tx.execute(_EVENTS, {"ids": array_literal(delivery_ids), "size": limit})
    return list(map(TimelineEvent._make, rows))


def find_newest(
    tx: Transaction,
    *,
    recipient_key: str | None = None,
    message_ids: Iterable[str] = (),
    ids: Iterable[str] = (),
    tenant_id: str | None = None,
    limit: int,
    read_limit: int,
) -> tuple[list[DeliverySummary], int]:
    """Return the deliveries to an address or with one of the ids, the newest first, and how many there are.

    Args:
        tx: A reading transaction.
        recipient_key: The exact key of an address, from `make_index_key`.
        message_ids: Ids of messages, in each spelling.
        ids: Ids of deliveries.
        tenant_id: Only this tenant; None is all tenants.
        limit: At most this many are returned.
        read_limit: At most this many of each kind are read.
    """
    parameters = {
        "tenant_id": tenant_id,
        "recipient_key": recipient_key,
        "message_ids": array_literal(sorted(message_ids)),
        "ids": array_literal(sorted(ids)),
        "most": read_limit,
        "size": limit,
    }
    rows = tx.execute(_NEWEST, parameters).all()
    return (load_deliveries(tx, [row.id for row in rows]), rows[0].number) if rows else ([], 0)


def load_recent_links(tx: Transaction, limit: int) -> list[RecentLink]:
    """Return the links among the newest `ledger.NEWEST_EVENTS` events, the latest first, at most *limit*."""
    rows = tx.execute(_RECENT_LINKS, {"size": limit, "read_at_most": ledger.NEWEST_EVENTS})
    return list(map(RecentLink._make, rows))


def _load_naming_orphans(tx: Transaction, rows: Sequence[sa.Row[Any]]) -> dict[str, list[NamingOrphan]]:
    """Return the open orphans that name the message of each delivery, by delivery."""
    names = [(row.message_id, normalize_address(row.recipient)) for row in rows]
    naming_orphans: dict[str, list[NamingOrphan]] = defaultdict(list)
    for number, *columns in tx.execute(
        _NAMING, {**column_arrays(("message_ids", "recipients"), names), "most": MAX_NAMING_ORPHANS}
    ):
        naming_orphans[rows[number - 1].delivery_id].append(NamingOrphan(*columns))
    unnamed = [row for row in rows if row.delivery_id not in naming_orphans]
    for orphan, keys in orphans.load_without_keys(tx) if unnamed else ():
        for row in unnamed:
            if row.message_id in keys.candidate_ids:
                fits_recipient = keys.recipient in (None, normalize_address(row.recipient))
                naming_orphans[row.delivery_id].append(NamingOrphan(orphan.event_id, orphan.tenant_id, fits_recipient))
    return naming_orphans


def _to_delivery(row: sa.Row[Any], naming_orphans: Sequence[NamingOrphan]) -> DeliverySummary:
    """Return the summary of a row of `_READ`, whose first columns are its first fields."""
    fields: list[Any] = [*row[:14], *_summarize(row, naming_orphans)]
    delivery = DeliverySummary(*fields)
    return replace(delivery, mailable=None) if contains_address(delivery.mailable or "") else delivery


def _summarize(row: sa.Row[Any], naming_orphans: Sequence[NamingOrphan]) -> tuple[str, str | None]:
    """Return the summary of a delivery, one sentence, and the command that shows more."""
    if row.type in event_types.SENDER_TYPES:
        return _summarize_unreported(row, naming_orphans)
    bounce = row.bounce if row.bounce in ("hard", "soft") else None
    is_shown = row.reject_reason is not None and not contains_address(row.reject_reason)
    reason = f"reason {sanitize(row.reject_reason)}" if is_shown else None
    details = filter(None, (bounce, smtp_status(row.smtp_status), reason, _ago(row.since)))
    if row.type in ("opened", "clicked") and times.parse(row.delivered_at):
        return f"{row.type} {_ago(row.since)}, delivered {_ago(row.delivered_at)}", None
    meaning = _MEANINGS.get(row.type)
    return f"{', '.join((sanitize(row.type or 'no event yet'), *details))}{f': {meaning}' if meaning else ''}", None


def _summarize_unreported(row: sa.Row[Any], naming_orphans: Sequence[NamingOrphan]) -> tuple[str, str | None]:
    """Return the summary of a delivery whose outcome no provider has reported."""
    last_event = f"{sanitize(row.type)} {_ago(row.since)}"
    log = f"{provider_rules.title(row.provider)}'s log" if row.provider else "your provider's log"
    if row.reported:
        return f"last reported {_ago(row.since)}: {sanitize(row.type)}; check {log}", None
    if naming_orphans:
        return f"{last_event}; {_describe_naming_orphans(row, naming_orphans)}", format_command(
            f"mailglass-reconcile explain {_most_relevant(row, naming_orphans).event_id}"
        )
    if row.type == "queued":
        return f"{last_event}, and not sent yet: check the log of the process that sends", None
    if not row.message_id:
        return (
            f"{last_event} without a message id, so no webhook can be linked to it: record the id with the send",
            None,
        )
    at = times.parse(row.since)
    if at is not None and times.seconds_ago(at) < SOON_SECONDS:
        return f"{last_event}, no webhook has arrived yet", None
    return f"{last_event}, no webhook has arrived: check {log}, and whether its webhook is set up and enabled", None


def _most_relevant(row: sa.Row[Any], naming_orphans: Sequence[NamingOrphan]) -> NamingOrphan:
    """Return the orphan to explain first: preferably about the same recipient, and of another tenant."""
    return min(naming_orphans, key=lambda orphan: (not orphan.fits_recipient, orphan.tenant_id == row.tenant_id))


def _describe_naming_orphans(row: sa.Row[Any], naming_orphans: Sequence[NamingOrphan]) -> str:
    """Return the clause about the open orphans that name a delivery's message."""
    orphan = _most_relevant(row, naming_orphans)
    number = sum(orphan.fits_recipient for orphan in naming_orphans) or 1
    tenant_clause = "" if orphan.tenant_id == row.tenant_id else f" of tenant {sanitize(orphan.tenant_id)}"
    about = "" if orphan.fits_recipient else " about another recipient"
    event = "expired event" if orphan.is_expired else "open event"
    return f"{pluralize(number, event)}{tenant_clause}{about} {'names' if number == 1 else 'name'} its message id"


def _ago(iso: str | None) -> str:
    at = times.parse(iso)
    return "at an unknown time" if at is None else format_ago(times.seconds_ago(at))
