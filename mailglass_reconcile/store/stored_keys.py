"""The keys that are stored with open orphans, so that no later sweep computes them again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from mailglass_reconcile.rules.matching import Keys
from mailglass_reconcile.store.database import Transaction, array_literal

# Ids that an outdated rule has stored. Those that another session has replaced by then stay: this statement would not
# see the new ones.
_FORGET_OUTDATED = """
WITH outdated AS MATERIALIZED (
  SELECT o.event_id
    FROM unnest(CAST(:event_ids AS uuid[]), CAST(:rules AS text[])) AS k (event_id, rule)
   CROSS JOIN LATERAL (SELECT event_id FROM {schema}.mailglass_open_orphans
                        WHERE event_id = k.event_id AND rule = k.rule FOR UPDATE SKIP LOCKED) AS o
), forgotten AS (
  DELETE FROM {schema}.mailglass_open_orphan_ids WHERE event_id = ANY (ARRAY(SELECT event_id FROM outdated))
)
UPDATE {schema}.mailglass_open_orphans SET rule = NULL, ids = NULL
 WHERE event_id = ANY (ARRAY(SELECT event_id FROM outdated))
"""

_STORE = """
-- Orphans without keys that no other session holds. Of two sessions, the second one finds keys and does nothing. Each
-- is looked up by its id: with statistics from a time when all had keys, a join would begin at `rule IS NULL`.
WITH held AS MATERIALIZED (
  SELECT k.*, EXISTS (SELECT FROM {schema}.mailglass_events AS r
                       WHERE r.idempotency_key = 'reconciled:' || o.event_id AND r.type = 'reconciled'
                         AND r.tenant_id IS NOT DISTINCT FROM o.tenant_id) AS settled
    FROM unnest(CAST(:event_ids AS uuid[]), CAST(:providers AS text[]), CAST(:recipients AS text[]),
                CAST(:rules AS text[]), CAST(:ids AS text[]), CAST(:lost AS boolean[]), CAST(:states AS text[]))
         AS k (event_id, provider, recipient, rule, ids, lost, state)
   CROSS JOIN LATERAL (SELECT event_id, tenant_id FROM {schema}.mailglass_open_orphans
                        WHERE event_id = k.event_id AND rule IS NULL FOR UPDATE SKIP LOCKED) AS o
-- Its `reconciled` event was there before it.
), closed AS (
  DELETE FROM {schema}.mailglass_open_orphans
   WHERE event_id = ANY (ARRAY(SELECT event_id FROM held WHERE settled))
-- What is lost stays lost: these keys may have been computed from a recipient that was erased meanwhile.
), stored AS (
  UPDATE {schema}.mailglass_open_orphans AS o
     SET provider = k.provider, rule = k.rule, state = k.state,
         recipient = CASE WHEN NOT o.recipient_lost THEN coalesce(o.recipient, k.recipient) END,
         recipient_lost = o.recipient_lost OR (o.recipient IS NULL AND k.lost),
         ids = cardinality(string_to_array(k.ids, E'\\x1f'))
    FROM held AS k
   WHERE o.event_id = k.event_id AND NOT k.settled
  RETURNING o.event_id, k.ids
-- In their order, which spares the index random pages.
), named AS (
  INSERT INTO {schema}.mailglass_open_orphan_ids (event_id, position, candidate_id)
  SELECT k.event_id, c.position, c.id
    FROM stored AS k CROSS JOIN LATERAL unnest(string_to_array(k.ids, E'\\x1f')) WITH ORDINALITY AS c (id, position)
   ORDER BY c.id
)
SELECT event_id::text FROM held WHERE settled
"""

# Without ids and rule, the next sweep computes them again; the recipient that a writer left is kept nowhere else.
FORGET = """
WITH forgotten AS (
  UPDATE {schema}.mailglass_open_orphans SET rule = NULL, ids = NULL, provider = NULL, state = NULL
   WHERE event_id = ANY (ARRAY(
           SELECT event_id FROM {schema}.mailglass_open_orphans
            WHERE rule IS NOT NULL LIMIT :size FOR UPDATE SKIP LOCKED))
  RETURNING event_id
), ids AS (
  DELETE FROM {schema}.mailglass_open_orphan_ids WHERE event_id = ANY (ARRAY(SELECT event_id FROM forgotten))
)
SELECT event_id FROM forgotten
"""
"""For `in_batches`."""


class Known(NamedTuple):
    """What is stored with an orphan: its keys, and the state that they have led to."""

    keys: Keys
    state: str


def store(tx: Transaction, computed: Mapping[str, Known], outdated: Mapping[str, str] | None = None) -> list[str]:
    """Store keys and states with the orphans that are still open, and return the ids of those that were settled.

    An orphan whose `reconciled` event was there before it is closed here. One that another session holds, or has stored
    keys with, is left alone. *outdated* are the rules whose keys orphans had until now, by the orphan's id.
    """
    if outdated:
        rules = {"event_ids": array_literal(outdated), "rules": array_literal(outdated.values())}
        tx.execute(_FORGET_OUTDATED, rules)
    return list(tx.execute(_STORE, _parameters(computed)).scalars())


def _parameters(computed: Mapping[str, Known]) -> dict[str, str]:
    """Return keys and states by event id as the parameters of a statement that stores them."""
    keys = [one.keys for one in computed.values()]
    return {
        "event_ids": array_literal(computed),
        "providers": array_literal(one.provider for one in keys),
        "recipients": array_literal(one.recipient for one in keys),
        "rules": array_literal(one.rule for one in keys),
        "ids": array_literal("\x1f".join(one.candidate_ids) for one in keys),
        "lost": array_literal(str(one.lost) for one in keys),
        "states": array_literal(one.state for one in computed.values()),
    }
