"""What each open orphan links to, or why it does not: one read-only join, without locks.

The rule: the first candidate id that names a delivery decides; of the deliveries with the event's provider, or
else of those without a provider; only those of the orphan's tenant; where the event knows a recipient, only
that recipient's; and then exactly one.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import NamedTuple

from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.model import Keys, Slice, keys_parameters

MATCHED = "matched"
UNMATCHED = "unmatched"
UNMATCHABLE = "unmatchable"
AMBIGUOUS = "ambiguous"
TENANT_MISMATCH = "tenant_mismatch"
RECIPIENT_MISMATCH = "recipient_mismatch"

_CLASSIFIED = """
WITH piece AS (
  SELECT event_id, arrived_at, tenant_id, provider, candidate_ids, recipient
    FROM {schema}.mailglass_open_orphans
   WHERE candidate_ids IS NOT NULL
     AND (arrived_at, event_id) > (CAST(:after_time AS timestamp), CAST(:after_event AS uuid))
     AND (arrived_at, event_id) <= (CAST(:until_time AS timestamp), CAST(:until_event AS uuid))
     AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
   UNION ALL
  SELECT o.event_id, o.arrived_at, o.tenant_id, k.provider, string_to_array(k.candidate_ids, E'\x1f'),
         coalesce(o.recipient, k.recipient)
    FROM unnest(CAST(:event_ids AS uuid[]), CAST(:providers AS text[]), CAST(:candidate_ids AS text[]),
                CAST(:recipients AS text[])) AS k (event_id, provider, candidate_ids, recipient)
    JOIN {schema}.mailglass_open_orphans AS o ON o.event_id = k.event_id
), classified AS (
  SELECT p.event_id, p.arrived_at, p.tenant_id, p.provider, f.delivery_id,
         CASE WHEN p.candidate_ids = '{}' THEN 'unmatchable'
              WHEN f.named = 0 THEN 'unmatched'
              WHEN f.own = 0 THEN 'tenant_mismatch'
              WHEN f.addressed = 0 THEN 'recipient_mismatch'
              WHEN f.addressed > 1 THEN 'ambiguous'
              ELSE 'matched' END AS state
    FROM piece AS p
   CROSS JOIN LATERAL (
           SELECT count(*) AS named, count(*) FILTER (WHERE own) AS own,
                  count(*) FILTER (WHERE own AND addressed) AS addressed,
                  (array_agg(id) FILTER (WHERE own AND addressed))[1] AS delivery_id
             FROM (SELECT d.id, d.tenant_id = p.tenant_id AS own,
                          p.recipient IS NULL OR lower(btrim(d.recipient)) = lower(p.recipient) AS addressed,
                          (c.position, d.without_provider)
                            = (first_value(c.position) OVER decision, first_value(d.without_provider) OVER decision)
                            AS decides
                     FROM unnest(p.candidate_ids) WITH ORDINALITY AS c (id, position)
                    CROSS JOIN LATERAL (
                            SELECT id, tenant_id, recipient, false AS without_provider
                              FROM {schema}.mailglass_deliveries
                             WHERE provider = p.provider AND provider_message_id = c.id
                             UNION ALL
                            SELECT id, tenant_id, recipient, true AS without_provider
                              FROM {schema}.mailglass_deliveries
                             WHERE provider IS NULL AND provider_message_id = c.id) AS d
                   WINDOW decision AS (ORDER BY c.position, d.without_provider)) AS named
            WHERE decides) AS f
)
"""

_MATCH = (
    _CLASSIFIED
    + """
SELECT state, count(*) AS orphans,
       array_agg(event_id::text ORDER BY arrived_at, event_id) FILTER (WHERE state = 'matched') AS event_ids,
       array_agg(delivery_id::text ORDER BY arrived_at, event_id) FILTER (WHERE state = 'matched') AS delivery_ids
  FROM classified GROUP BY state
"""
)


class Group(NamedTuple):
    """What orphans are counted by."""

    state: str
    tenant_id: str
    provider: str | None


class Findings(NamedTuple):
    """What the orphans of a slice came to: how many of each state, and the matched pairs.

    The pairs stand in order of arrival, except that a delivery's stand together, behind its first: one batch
    then projects them onto its row at once.
    """

    states: dict[str, int]
    pairs: list[tuple[str, str]]


def match(tx: Transaction, piece: Slice, computed: Mapping[str, Keys]) -> Findings:
    """Find the delivery of each open orphan of *piece*; nothing is locked or written.

    Args:
        tx: A transaction of this package's scope.
        piece: The orphans to look at.
        computed: Keys of those that have none stored.

    Returns:
        The number of orphans by state, and `(event id, delivery id)` of those that can be linked.
    """
    rows = tx.execute(_MATCH, {**piece.parameters(), **keys_parameters(computed)}).all()
    by_delivery: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        for event_id, delivery_id in zip(row.event_ids or (), row.delivery_ids or (), strict=True):
            by_delivery.setdefault(delivery_id, []).append((event_id, delivery_id))
    return Findings({row.state: row.orphans for row in rows}, list(chain.from_iterable(by_delivery.values())))


_DECIDE = """
SELECT c.position, c.id AS candidate_id, d.id::text AS delivery_id, d.tenant_id, d.provider,
       d.tenant_id = :tenant_id AS own,
       CAST(:recipient AS text) IS NULL OR lower(btrim(d.recipient)) = lower(:recipient) AS addressed
  FROM unnest(CAST(:candidate_ids AS text[])) WITH ORDINALITY AS c (id, position)
 CROSS JOIN LATERAL (
         SELECT id, tenant_id, recipient, provider FROM {schema}.mailglass_deliveries
          WHERE provider = :provider AND provider_message_id = c.id
          UNION ALL
         SELECT id, tenant_id, recipient, provider FROM {schema}.mailglass_deliveries
          WHERE provider IS NULL AND provider_message_id = c.id) AS d
 ORDER BY c.position, d.provider IS NULL, own DESC, addressed DESC, d.id LIMIT 100
"""


class Named(NamedTuple):
    """A delivery that one of the candidate ids names; `own` and `addressed`: of the tenant, of the recipient."""

    position: int
    candidate_id: str
    delivery_id: str
    tenant_id: str
    provider: str | None
    own: bool
    addressed: bool


class Decision(NamedTuple):
    """What one event links to, or why not: the state, the delivery if it is `matched`, and what its ids name."""

    state: str
    delivery_id: str | None
    named: tuple[Named, ...]


def decide(tx: Transaction, tenant_id: str, wanted: Keys) -> Decision:
    """Decide for one event, by the rule of `match`, and say which deliveries its ids name.

    Of those, 100 at most; its own tenant's and recipient's come first, so that none that decides is left out.
    """
    parameters = {
        "tenant_id": tenant_id,
        "provider": wanted.provider,
        "candidate_ids": list(wanted.candidate_ids),
        "recipient": wanted.recipient,
    }
    named = tuple(Named(*row) for row in tx.execute(_DECIDE, parameters))
    if not wanted.candidate_ids:
        return Decision(UNMATCHABLE, None, ())
    if not named:
        return Decision(UNMATCHED, None, ())
    first = named[0]
    deciding = [n for n in named if (n.position, n.provider is None) == (first.position, first.provider is None)]
    own = [n for n in deciding if n.own]
    addressed = [n for n in own if n.addressed]
    if len(addressed) == 1:
        return Decision(MATCHED, addressed[0].delivery_id, named)
    state = AMBIGUOUS if addressed else RECIPIENT_MISMATCH if own else TENANT_MISMATCH
    return Decision(state, None, named)


_BREAKDOWN = (
    _CLASSIFIED
    + """
SELECT state, tenant_id, provider, count(*) AS orphans FROM classified GROUP BY state, tenant_id, provider
"""
)


def breakdown(tx: Transaction, piece: Slice, computed: Mapping[str, Keys]) -> dict[Group, int]:
    """Return how many orphans of *piece* there are of each state, tenant and provider; as `match` finds them."""
    rows = tx.execute(_BREAKDOWN, {**piece.parameters(), **keys_parameters(computed)})
    return {Group(row.state, row.tenant_id, row.provider): row.orphans for row in rows}
