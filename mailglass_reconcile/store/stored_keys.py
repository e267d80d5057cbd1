"""The keys that are stored with open orphans, so that no later sweep computes them again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from mailglass_reconcile.rules.matching import Keys
from mailglass_reconcile.store.database import Transaction, array_literal, text_or_none

# Orphans whose keys still have the rank that was read with them; None is an orphan without keys. What another
# session has locked keeps its keys.
_CLAIM = """
SELECT o.event_id::text
  FROM unnest(CAST(:event_ids AS uuid[]), CAST(:ranks AS bigint[])) AS k (event_id, rank)
 CROSS JOIN LATERAL (SELECT event_id FROM {schema}.mailglass_open_orphans
                      WHERE event_id = k.event_id AND rank IS NOT DISTINCT FROM k.rank FOR UPDATE SKIP LOCKED) AS o
"""

# The next orphans that have keys, in the order of their ids; waits for what another session has locked.
_CLAIM_NEXT = """
SELECT event_id::text FROM {schema}.mailglass_open_orphans
 WHERE event_id > CAST(:after AS uuid) AND rank IS NOT NULL ORDER BY event_id LIMIT :size FOR UPDATE
"""

# A statement after the claim, whose snapshot has the ids that other sessions stored until then.
_DELETE_IDS = "DELETE FROM {schema}.mailglass_open_orphan_ids WHERE event_id = ANY (CAST(:event_ids AS uuid[]))"

# The recipient that a writer left is stored nowhere else.
_CLEAR = """
UPDATE {schema}.mailglass_open_orphans SET rank = NULL, ids = NULL, provider = NULL, state = NULL
 WHERE event_id = ANY (CAST(:event_ids AS uuid[]))
"""

# What is lost stays lost: these keys may have been computed from a recipient that was erased meanwhile.
_STORE = """
WITH stored AS (
  UPDATE {schema}.mailglass_open_orphans AS o
     SET provider = k.provider, rank = k.rank, state = k.state,
         recipient = CASE WHEN NOT o.recipient_lost THEN coalesce(o.recipient, k.recipient) END,
         recipient_lost = o.recipient_lost OR (o.recipient IS NULL AND k.lost),
         ids = cardinality(string_to_array(k.ids, E'\\x1f'))
    FROM unnest(CAST(:event_ids AS uuid[]), CAST(:providers AS text[]), CAST(:recipients AS text[]),
                CAST(:ranks AS bigint[]), CAST(:ids AS text[]), CAST(:lost AS boolean[]), CAST(:states AS text[]))
         AS k (event_id, provider, recipient, rank, ids, lost, state)
   WHERE o.event_id = k.event_id
  RETURNING o.event_id, k.ids
)
-- In their order, which spares the index random pages.
INSERT INTO {schema}.mailglass_open_orphan_ids (event_id, position, candidate_id)
SELECT k.event_id, c.position, c.id
  FROM stored AS k CROSS JOIN LATERAL unnest(string_to_array(k.ids, E'\\x1f')) WITH ORDINALITY AS c (id, position)
 ORDER BY c.id
"""


class StoredKeys(NamedTuple):
    """The keys stored with an orphan, and the state they led to."""

    keys: Keys
    state: str


def store(
    tx: Transaction, computed: Mapping[str, StoredKeys], ranks_before: Mapping[str, int | None] | None = None
) -> None:
    """Replace the keys and states of open orphans.

    One that another session has locked, or has stored keys with since it was read, is left alone.

    Args:
        tx: A writing transaction.
        computed: The new keys and states, by the orphan's id.
        ranks_before: The rank of the keys that each orphan was read with; None, or no entry, if it had none.
    """
    ranks = [text_or_none((ranks_before or {}).get(event_id)) for event_id in computed]
    claim = {"event_ids": array_literal(computed), "ranks": array_literal(ranks)}
    claimed = tx.execute(_CLAIM, claim).scalars().all()
    if claimed:
        _delete_ids(tx, claimed)
        tx.execute(_STORE, _parameters({event_id: computed[event_id] for event_id in claimed}))


def clear(tx: Transaction, after: str, size: int) -> Sequence[str]:
    """Clear the keys and states of the next *size* orphans after an id, and return their ids, in order.

    The next sweep computes them again. Waits for orphans that another session has locked.
    """
    claimed = tx.execute(_CLAIM_NEXT, {"after": after, "size": size}).scalars().all()
    if claimed:
        _delete_ids(tx, claimed)
        tx.execute(_CLEAR, {"event_ids": array_literal(claimed)})
    return claimed


def _delete_ids(tx: Transaction, event_ids: Iterable[str]) -> None:
    tx.execute(_DELETE_IDS, {"event_ids": array_literal(event_ids)})


def _parameters(computed: Mapping[str, StoredKeys]) -> dict[str, str]:
    """Return keys and states by event id as the parameters of a statement that stores them."""
    keys = [stored.keys for stored in computed.values()]
    return {
        "event_ids": array_literal(computed),
        "providers": array_literal(orphan_keys.provider for orphan_keys in keys),
        "recipients": array_literal(orphan_keys.recipient for orphan_keys in keys),
        "ranks": array_literal(text_or_none(orphan_keys.rank) for orphan_keys in keys),
        "ids": array_literal("\x1f".join(orphan_keys.candidate_ids) for orphan_keys in keys),
        "lost": array_literal(str(orphan_keys.lost) for orphan_keys in keys),
        "states": array_literal(stored.state for stored in computed.values()),
    }
