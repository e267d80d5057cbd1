"""The session whose open transaction has locked an open orphan or its delivery, so that sweeps leave the orphan open.

Nothing is locked to find out. A session is not found if its lock is shared with another one (a MultiXact), if it took
the lock in a savepoint that it has released, or if its transaction was prepared for two-phase commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mailglass_reconcile.linking import matcher
from mailglass_reconcile.linking.matcher import OrphanMatch
from mailglass_reconcile.rules.humanize import sanitize
from mailglass_reconcile.rules.matching import MATCHED
from mailglass_reconcile.store.database import Transaction, column_arrays
from mailglass_reconcile.store.tables import open_orphans

ORPHANS_READ = 10_000
"""Open orphans among which late ones are looked for."""
LATE_ORPHANS = 20
"""Late orphans whose locks are looked for."""

_MAY_READ = """
SELECT has_column_privilege(to_regclass(:deliveries), 'xmax', 'SELECT')
       AND has_column_privilege(to_regclass(:open_orphans), 'xmax', 'SELECT')
"""

# A transaction leaves its id in `xmax` of the rows that it has locked or changed, and holds a lock of that id while it
# runs.
_HOLDER = """
SELECT l.pid, a.usename AS role, a.application_name AS application, a.state,
       {schema}.mailglass_reconcile_iso_v1(a.xact_start::timestamp) AS since
  FROM unnest(CAST(:event_ids AS uuid[]), CAST(:delivery_ids AS uuid[])) AS k (event_id, delivery_id)
 CROSS JOIN LATERAL (SELECT xmax FROM {schema}.mailglass_open_orphans WHERE event_id = k.event_id
                      UNION ALL
                     SELECT xmax FROM {schema}.mailglass_deliveries WHERE id = k.delivery_id) AS r (transaction_id)
  JOIN pg_locks AS l ON l.locktype = 'transactionid' AND l.transactionid = r.transaction_id AND l.granted
  JOIN pg_stat_activity AS a ON a.pid = l.pid
 ORDER BY a.xact_start, l.pid LIMIT 1
"""

# Backwards from the time since which an event could have been linked. A locked orphan keeps the state that it had.
_LATE = """
SELECT event_id::text
  FROM (SELECT event_id, state FROM {schema}.mailglass_open_orphans
         WHERE arrived_at <= now()::timestamp - make_interval(secs => CAST(:age_seconds AS float8))
         ORDER BY arrived_at DESC, event_id DESC LIMIT :read_limit) AS o
 WHERE state = 'matched' OR state IS NULL LIMIT :size
"""


@dataclass(frozen=True, slots=True)
class LockHolder:
    """A session whose transaction has locked an open orphan or its delivery.

    Attributes:
        pid: The id of its server process.
        role: The role that it has logged in with.
        application: The name that it gave itself; empty if none.
        state: Its state, such as `idle in transaction`; None if this role may not see it.
        since: When its transaction began, in ISO 8601, UTC; None if this role may not see it.
    """

    pid: int
    role: str | None
    application: str | None
    state: str | None
    since: str | None

    @property
    def name(self) -> str:
        """The session in words, without the time."""
        facts = (f"role {self.role}" if self.role else None, self.application or None, self.state)
        return f"session {self.pid} ({', '.join(sanitize(fact) for fact in facts if fact)})"

    @property
    def remedy(self) -> str:
        """The step that ends its transaction."""
        return f"end its transaction, in the program or with `SELECT pg_terminate_backend({self.pid})`"


def find_holder(tx: Transaction, matches: Sequence[OrphanMatch]) -> LockHolder | None:
    """Return the session with the oldest transaction that has locked one of the orphans or its delivery.

    A delivery counts if a sweep has left the orphan as matched: a foreign key's check locks it too, but no sweep skips
    it for that.

    Args:
        tx: A transaction.
        matches: Orphans that match a delivery.

    Returns:
        The session; None if there is none, if it is not found (as above), or if this role may not read `xmax`.
    """
    if not matches or not tx.execute(_MAY_READ, tx.names_of("deliveries", "open_orphans")).scalar_one():
        return None
    pairs = [
        (match.orphan.event_id, match.result.delivery_id if match.orphan.state == MATCHED else None)
        for match in matches
    ]
    row = tx.execute(_HOLDER, column_arrays(("event_ids", "delivery_ids"), pairs)).one_or_none()
    return None if row is None else LockHolder(*row)


def find_holder_of_late(tx: Transaction, lag_seconds: float) -> LockHolder | None:
    """Return the session that holds up what could have been linked for *lag_seconds*, as `find_holder` does."""
    parameters = {"age_seconds": lag_seconds - 1, "read_limit": ORPHANS_READ, "size": LATE_ORPHANS}
    event_ids = list(tx.execute(_LATE, parameters).scalars())
    matches = matcher.match_orphans(tx.reading, open_orphans.read(tx.reading, event_ids)) if event_ids else []
    return find_holder(tx, [match for match in matches if match.result.delivery_id])
