"""What happened to a delivery, in one sentence, and where to look next: for `explain`, the page and Django's admin."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from mailglass_reconcile.errors import as_called
from mailglass_reconcile.rules import event_types, providers
from mailglass_reconcile.rules.addresses import address, holds_address
from mailglass_reconcile.rules.humanize import ago, counted, shown
from mailglass_reconcile.rules.smtp import smtp_status
from mailglass_reconcile.store.database import Transaction, array_literal, columns

LATEST = 200
"""Events of a delivery among which the one is found that it shows."""
SOON_SECONDS = 600.0
"""Within ten minutes, a webhook may still be on its way."""
NAMING = 20
"""Open orphans that are looked at for one delivery."""

# A `reconciled` event stands for the orphan that it links. A provider has reported if one was linked, or if a webhook's
# event was stored with the delivery.
_FACTS = """
SELECT d.id::text AS id, d.tenant_id,
       -- That of its send, where its row may have none.
       left(coalesce(d.provider,
                     (SELECT CASE jsonb_typeof(e.metadata -> 'provider')
                                  WHEN 'string' THEN e.metadata ->> 'provider' END
                        FROM {schema}.mailglass_events AS e
                       WHERE e.delivery_id = d.id AND e.type IN ('dispatched', 'failed', 'rejected')
                       ORDER BY e.delivery_id, e.occurred_at LIMIT 1)), 512) AS provider,
       left(d.last_event_type, 100) AS type,
       extract(epoch FROM now()::timestamp - CASE WHEN isfinite(d.last_event_at) THEN d.last_event_at END)::float8
         AS seconds,
       extract(epoch FROM now()::timestamp - CASE WHEN isfinite(d.delivered_at) THEN d.delivered_at END)::float8
         AS delivered_seconds,
       d.provider_message_id AS message_id, left(d.recipient, 1000) AS recipient,
       r.reject_reason, r.bounce, r.smtp_status, coalesce(h.reported, false) AS reported
  FROM unnest(CAST(:ids AS uuid[])) AS k (id)
  JOIN {schema}.mailglass_deliveries AS d ON d.id = k.id
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
             ON o.id = CASE WHEN e.type = 'reconciled'
                             AND e.idempotency_key ~ '^reconciled:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
                        THEN CAST(substr(e.idempotency_key, 12) AS uuid) END
            AND o.tenant_id = e.tenant_id
          WHERE coalesce(o.type, e.type) = d.last_event_type
          ORDER BY coalesce(o.occurred_at, e.occurred_at) DESC LIMIT 1) AS r ON true
"""

# Of an id that names many, those of the recipient, or of an unknown one.
_NAMING = """
SELECT k.number, o.event_id::text, left(o.tenant_id, 1000)
  FROM unnest(CAST(:message_ids AS text[]), CAST(:recipients AS text[]))
       WITH ORDINALITY AS k (message_id, recipient, number)
 CROSS JOIN LATERAL (
         SELECT o.event_id, o.tenant_id
           FROM {schema}.mailglass_open_orphan_ids AS i
          CROSS JOIN LATERAL (SELECT * FROM {schema}.mailglass_open_orphans WHERE event_id = i.event_id OFFSET 0) AS o
          WHERE i.candidate_id = k.message_id AND (o.recipient IS NULL OR o.recipient = k.recipient)
          LIMIT :most) AS o
"""

_MEANINGS = {
    "delivered": "the recipient's mail server accepted it",
    "deferred": "the provider tries again",
    "complained": "the recipient marked it as spam",
    "suppressed": "the address is on a suppression list, so it was not sent",
}


class Verdict(NamedTuple):
    """What happened to a delivery.

    Attributes:
        sentence: In one sentence, without an address.
        command: The command that shows more; None if there is none.
    """

    sentence: str
    command: str | None = None


def of(tx: Transaction, delivery_ids: Sequence[str]) -> dict[str, Verdict]:
    """Return what happened to each of a few deliveries, by id; without those that do not exist."""
    facts = tx.execute(_FACTS, {"ids": array_literal(delivery_ids), "latest": LATEST}).all()
    naming = _naming(tx, [one for one in facts if one.type in event_types.OWN_TYPES and not one.reported])
    return {one.id: _verdict(one, naming.get(one.id, [])) for one in facts}


def _naming(tx: Transaction, facts: Sequence[sa.Row[Any]]) -> dict[str, list[tuple[str, str]]]:
    """Return the open orphans, with their tenants, that name the message of each delivery."""
    asked = [one for one in facts if one.message_id]
    if not asked:
        return {}
    rows = [(one.message_id, address(one.recipient)) for one in asked]
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for number, event_id, tenant_id in tx.execute(
        _NAMING, {**columns(("message_ids", "recipients"), rows), "most": NAMING}
    ):
        found[asked[number - 1].id].append((event_id, tenant_id))
    return found


def _verdict(one: sa.Row[Any], naming: Sequence[tuple[str, str]]) -> Verdict:
    if one.type in event_types.OWN_TYPES:
        return _unreported(one, naming)
    bounce = one.bounce if one.bounce in ("hard", "soft") else None
    reason = (
        None if one.reject_reason is None or holds_address(one.reject_reason) else f"reason {shown(one.reject_reason)}"
    )
    details = filter(None, (bounce, smtp_status(one.smtp_status), reason, _ago(one.seconds)))
    if one.type in ("opened", "clicked") and one.delivered_seconds is not None:
        return Verdict(f"{one.type} {_ago(one.seconds)}, delivered {_ago(one.delivered_seconds)}")
    meaning = _MEANINGS.get(one.type)
    return Verdict(f"{', '.join((shown(one.type), *details))}{f': {meaning}' if meaning else ''}")


def _unreported(one: sa.Row[Any], naming: Sequence[tuple[str, str]]) -> Verdict:
    """Return the verdict on a delivery of which no provider has reported an end."""
    when = f"{shown(one.type)} {_ago(one.seconds)}"
    log = f"{providers.title(one.provider)}'s log" if one.provider else "your provider's log"
    if one.reported:
        return Verdict(f"{when}, as the last webhook says: look at {log}")
    if naming:
        others = [each for each in naming if each[1] != one.tenant_id]
        event_id, tenant_id = (others or naming)[0]
        whose = f" of tenant {shown(tenant_id)}" if others else ""
        names = "names" if len(naming) == 1 else "name"
        return Verdict(
            f"{when}; {counted(len(naming), 'open event')}{whose} {names} its message id",
            as_called(f"mailglass-reconcile explain {event_id}"),
        )
    if one.type == "queued":
        return Verdict(f"{when}, and not sent yet: look at the log of the process that sends")
    if not one.message_id:
        return Verdict(f"{when} without a message id, so no webhook can be linked to it: record the id with the send")
    if one.seconds is not None and one.seconds < SOON_SECONDS:
        return Verdict(f"{when}, no webhook has arrived yet")
    return Verdict(f"{when}, no webhook has arrived: look at {log}, and whether its webhook is set up and enabled")


def _ago(seconds: float | None) -> str:
    return "at an unknown time" if seconds is None else ago(seconds)
