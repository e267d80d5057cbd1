"""The keys that are stored with open orphans, so that no later sweep computes them again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from mailglass_reconcile.rules.matching import Keys
from mailglass_reconcile.store.database import Transaction, array_literal, text_or_none

# Claims orphans whose keys still have the rank that was read with them; NULL is that of an orphan without keys. What
# another session has locked keeps its keys. What is lost stays lost: these keys may have been computed from a recipient
# that was erased meanwhile.
_STORE = """
UPDATE {schema}.mailglass_open_orphans AS o
   SET provider = k.provider, rank = k.rank, state = k.state, ids = k.ids,
       recipient = CASE WHEN NOT o.recipient_lost THEN coalesce(o.recipient, k.recipient) END,
       recipient_lost = o.recipient_lost OR (o.recipient IS NULL AND k.lost)
  FROM (SELECT k.*
          FROM unnest(CAST(:event_ids AS uuid[]), CAST(:ranks_before AS bigint[]), CAST(:providers AS text[]),
                      CAST(:recipients AS text[]), CAST(:ranks AS bigint[]), CAST(:ids AS smallint[]),
                      CAST(:lost AS boolean[]), CAST(:states AS text[]))
               AS k (event_id, rank_before, provider, recipient, rank, ids, lost, state)
         CROSS JOIN LATERAL (SELECT FROM {schema}.mailglass_open_orphans
                              WHERE event_id = k.event_id AND rank IS NOT DISTINCT FROM k.rank_before
                                FOR UPDATE SKIP LOCKED) AS claimed) AS k
 WHERE o.event_id = k.event_id
RETURNING o.event_id::text
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

# In their order, which spares the index random pages.
_INSERT_IDS = """
INSERT INTO {schema}.mailglass_open_orphan_ids (event_id, position, candidate_id)
SELECT k.event_id, c.position, c.id
  FROM unnest(CAST(:event_ids AS uuid[]), CAST(:ids AS text[])) AS k (event_id, ids)
 CROSS JOIN LATERAL unnest(string_to_array(k.ids, E'\\x1f')) WITH ORDINALITY AS c (id, position)
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

    An orphan that another session has locked, or for which another one has stored keys since it was read, is skipped.

    Args:
        tx: A writing transaction.
        computed: The new keys and states, by the orphan's id.
        ranks_before: The rank of the keys that each orphan was read with; None, or no entry, if it had none.
    """
    keys = [stored.keys for stored in computed.values()]
    parameters = {
        "event_ids": array_literal(computed),
        "ranks_before": array_literal(text_or_none((ranks_before or {}).get(event_id)) for event_id in computed),
        "providers": array_literal(orphan_keys.provider for orphan_keys in keys),
        "recipients": array_literal(orphan_keys.recipient for orphan_keys in keys),
        "ranks": array_literal(text_or_none(orphan_keys.rank) for orphan_keys in keys),
        "ids": array_literal(str(len(orphan_keys.candidate_ids)) for orphan_keys in keys),
        "lost": array_literal(str(orphan_keys.lost) for orphan_keys in keys),
        "states": array_literal(stored.state for stored in computed.values()),
    }
    event_ids = tx.execute(_STORE, parameters).scalars().all()
    if event_ids:
        _delete_ids(tx, event_ids)
        ids = ("\x1f".join(computed[event_id].keys.candidate_ids) for event_id in event_ids)
        tx.execute(_INSERT_IDS, {"event_ids": array_literal(event_ids), "ids": array_literal(ids)})


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
