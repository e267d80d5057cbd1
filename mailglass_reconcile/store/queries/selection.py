"""The window of a sweep: what it matches, in which order, and what it leaves out.

First, the newest first, comes what no sweep has checked, what matched and was left, and what has outdated keys. Then,
from a random row on, comes what may match: mismatches, failed rules, and what a delivery has an id of by now. What the
database has refused before comes last. What has current keys and names no delivery never leaves the database. Progress
is in the rows themselves, so a sweep that ends early needs no memory, and nothing starves.
"""

from __future__ import annotations

import json
import logging
from binascii import a2b_base64
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

from mailglass_reconcile.errors import SchemaOutdatedError, with_local_names
from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.rules.matching import Keys
from mailglass_reconcile.rules.states import UNSEEN, OpenState
from mailglass_reconcile.store.database import Transaction, array_literal, prefer_scans
from mailglass_reconcile.store.schema import revision
from mailglass_reconcile.store.tables import deliveries
from mailglass_reconcile.store.tables.open_orphans import LAST, Cursor
from mailglass_reconcile.store.tables.runs import OpenGroup

logger = logging.getLogger(__name__)

IDS_PER_ROW = 8_000
ROW_BYTES = 250
"""About as much of the open-orphans table belongs to one orphan."""
PROBE_US, SCAN_US, PAGE_US = 5.0, 0.5, 10.0
"""Microseconds, as measured: to probe for one orphan's ids; to hash one; to read 8 kB of a table."""

FIRST = 0
"""The part that is matched first; 1 is what was checked before, and 2 what was refused."""

_WINDOW = """
SELECT w.after::text, w.until::text,
       (SELECT max(version_num) FROM {schema}.mailglass_reconcile_version
         WHERE to_regclass(:events) IS NOT NULL) AS version,
       (SELECT count(*) = 2 FROM pg_trigger AS t
         WHERE t.tgrelid = to_regclass(:events) AND t.tgenabled IN ('O', 'A')
           AND t.tgname IN ('mailglass_open_orphans_add', 'mailglass_open_orphans_remove')) AS triggers,
       coalesce((SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:index)), false) AS indexed,
       pg_relation_size(to_regclass(:open_orphans)) AS bytes,
       -- What one pass over the tables would read.
       (pg_relation_size(to_regclass(:open_orphans)) + pg_relation_size(to_regclass(:open_orphan_ids))
        + coalesce(nullif((SELECT sum(pg_relation_size(relid)) FROM pg_partition_tree(to_regclass(:deliveries))), 0),
                   pg_relation_size(to_regclass(:deliveries)))) / current_setting('block_size')::bigint AS pages,
       CASE WHEN :counted AND pg_relation_size(to_regclass(:open_orphans)) > :small
            THEN (SELECT count(*)
                    FROM (SELECT FROM {schema}.mailglass_open_orphans
                           WHERE (arrived_at, event_id)
                                 > (w.after, CAST('ffffffff-ffff-ffff-ffff-ffffffffffff' AS uuid))
                             AND arrived_at <= w.until
                           ORDER BY arrived_at, event_id LIMIT :few) AS o) END AS few
  FROM (SELECT greatest(now()::timestamp - make_interval(mins => :max_age_minutes),
                        now()::timestamp - make_interval(secs => :oldest), CAST(:after AS timestamp)) AS after,
               least(now()::timestamp - make_interval(secs => :youngest), CAST(:until AS timestamp)) AS until) AS w
"""

# Row by row along the index of arrival, or each table once: `by_scans` chooses, because statistics may be stale, and
# the one-time filters leave the branches of the other path out. Ids of which only the hashes are equal do no harm: the
# matcher compares the ids.
_SELECT = """
-- The open orphans of the window. Keys of a rank below that of their provider's rule are outdated: few providers have a
-- rule above the lowest rank, so the JSON is rarely looked into.
WITH of_window AS NOT MATERIALIZED (
  SELECT event_id, arrived_at, tenant_id, provider, state, ids, rank, refused, refused > 0 AS is_refused,
         -- Without keys and with a state, its rule has failed.
         rank IS NULL AS has_no_keys,
         (rank < :lowest_rank OR provider = ANY (CAST(:higher AS text[])))
         AND rank < coalesce(CAST(CAST(:ranks AS jsonb) ->> provider AS bigint), :any_rank) AS is_outdated
    FROM {schema}.mailglass_open_orphans
   WHERE arrived_at > CAST(:after AS timestamp) AND arrived_at <= CAST(:until AS timestamp)
     AND (CAST(:before_time AS timestamp) = 'infinity'
          OR (arrived_at, event_id) < (CAST(:before_time AS timestamp), CAST(:before_event AS uuid)))
     AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
-- Those that pass the filter; whether others' keys would, is known when they are computed.
), orphan AS NOT MATERIALIZED (
  SELECT event_id, arrived_at, tenant_id, provider, state, ids, rank, refused, is_refused,
         state IS NULL OR state = 'matched' OR is_outdated AS is_first,
         state IN ('ambiguous', 'recipient_mismatch') OR has_no_keys AS may_match
    FROM of_window
   WHERE has_no_keys OR is_outdated
      OR (CAST(:provider AS text) IS NULL OR provider = :provider)
         AND (CAST(:message_ids AS text[]) IS NULL
              OR (event_id IN (SELECT event_id FROM {schema}.mailglass_open_orphan_ids
                                WHERE candidate_id = ANY (CAST(:message_ids AS text[])))) IS TRUE)
-- The groups, and whether a sweep matches orphans of each whatever deliveries there are. Filters on this let a branch
-- that would select nothing read nothing.
), open_group AS MATERIALIZED (
  SELECT state, tenant_id, provider, count(*) AS orphans,
         state IS NULL OR state IN ('matched', 'ambiguous', 'recipient_mismatch')
         OR count(rank) < count(*) OR max(refused) > 0
         OR min(rank) < coalesce(CAST(CAST(:ranks AS jsonb) ->> provider AS bigint), :any_rank) AS is_matched
    FROM orphan GROUP BY 1, 2, 3
-- By scans: what some delivery has an id of, and of tenant mismatches what a delivery of their own tenant has. By
-- hashing, not as a join, which would make a row of each orphan with each delivery of a wide id; materialized, so that
-- parallel workers share the pass.
), named AS MATERIALIZED (
  SELECT event_id, 'unmatched' AS state FROM {schema}.mailglass_open_orphan_ids
   WHERE :by_scans AND candidate_id IN (SELECT provider_message_id FROM {schema}.mailglass_deliveries)
   UNION ALL
  SELECT o.event_id, 'tenant_mismatch'
    FROM orphan AS o JOIN {schema}.mailglass_open_orphan_ids AS k ON k.event_id = o.event_id
   WHERE :by_scans AND (SELECT bool_or(state = 'tenant_mismatch') FROM open_group) AND o.state = 'tenant_mismatch'
     AND (k.candidate_id, o.tenant_id) IN (SELECT provider_message_id, tenant_id FROM {schema}.mailglass_deliveries)
-- By scans: the tenant mismatches that still name a delivery without a provider, or with theirs.
), mismatched AS MATERIALIZED (
  SELECT o.event_id
    FROM orphan AS o JOIN {schema}.mailglass_open_orphan_ids AS k ON k.event_id = o.event_id
   WHERE :by_scans AND (SELECT bool_or(state = 'tenant_mismatch') FROM open_group) AND o.state = 'tenant_mismatch'
     AND k.candidate_id IN (SELECT provider_message_id FROM {schema}.mailglass_deliveries WHERE provider IS NULL)
   UNION ALL
  SELECT o.event_id
    FROM orphan AS o JOIN {schema}.mailglass_open_orphan_ids AS k ON k.event_id = o.event_id
   WHERE :by_scans AND (SELECT bool_or(state = 'tenant_mismatch') FROM open_group) AND o.state = 'tenant_mismatch'
     AND (k.candidate_id, o.provider)
         IN (SELECT provider_message_id,
                    coalesce(CAST(:spellings AS jsonb) ->> lower(btrim(provider)), lower(btrim(provider)))
               FROM {schema}.mailglass_deliveries)
-- What is matched, each row in one branch.
), to_match AS MATERIALIZED (
  SELECT event_id, arrived_at, tenant_id, provider, state,
         CASE WHEN is_refused THEN 2 WHEN is_first THEN 0 ELSE 1 END AS part
    FROM orphan
   WHERE :by_scans AND (SELECT bool_or(is_matched) FROM open_group) AND (is_first OR is_refused OR may_match)
   UNION ALL
  SELECT event_id, arrived_at, tenant_id, provider, state, 1
    FROM orphan
   WHERE :by_scans AND EXISTS (SELECT FROM named) AND ids > 0 AND NOT (is_first OR is_refused OR may_match)
     AND (event_id, state) IN (SELECT event_id, state FROM named)
   UNION ALL
  -- Tenant mismatches whose deliveries are gone.
  SELECT event_id, arrived_at, tenant_id, provider, state, 1
    FROM orphan AS o
   WHERE :by_scans AND (SELECT bool_or(state = 'tenant_mismatch') FROM open_group) AND state = 'tenant_mismatch'
     AND NOT (is_first OR is_refused OR may_match)
     AND NOT EXISTS (SELECT FROM mismatched AS m WHERE m.event_id = o.event_id)
   UNION ALL
  -- Scalar subqueries, because the planner turns an EXISTS into one pass over all ids, however small the window. One
  -- for each state, on the index by hashes: with an OR, a tenant mismatch would read every delivery of its id.
  SELECT event_id, arrived_at, tenant_id, provider, state,
         CASE WHEN is_refused THEN 2 WHEN is_first THEN 0 ELSE 1 END
    FROM orphan AS o
   WHERE NOT :by_scans
     AND (is_first OR is_refused OR may_match
          OR ids > 0
             AND CASE state
                 WHEN 'unmatched' THEN
                   (SELECT true
                      FROM {schema}.mailglass_open_orphan_ids AS k
                      JOIN {schema}.mailglass_deliveries AS d
                        ON hashtextextended(d.provider_message_id, 0) = hashtextextended(k.candidate_id, 0)
                     WHERE k.event_id = o.event_id LIMIT 1)
                 WHEN 'tenant_mismatch' THEN
                   (SELECT true
                      FROM {schema}.mailglass_open_orphan_ids AS k
                      JOIN {schema}.mailglass_deliveries AS d
                        ON hashtextextended(d.provider_message_id, 0) = hashtextextended(k.candidate_id, 0)
                       AND hashtextextended(d.tenant_id, 0) = hashtextextended(o.tenant_id, 0)
                     WHERE k.event_id = o.event_id LIMIT 1)
                   OR (SELECT true  -- if its deliveries are gone, it is unmatched
                         FROM {schema}.mailglass_open_orphan_ids AS k
                         JOIN {schema}.mailglass_deliveries AS d
                           ON hashtextextended(d.provider_message_id, 0) = hashtextextended(k.candidate_id, 0)
                          AND coalesce(CAST(:spellings AS jsonb) ->> lower(btrim(d.provider)), lower(btrim(d.provider)),
                                       o.provider) = o.provider
                        WHERE k.event_id = o.event_id LIMIT 1) IS NULL
                 END)
-- Where the rotation of a part begins; what is limited goes by arrival.
), start AS MATERIALIZED (
  (SELECT part, arrived_at, event_id FROM to_match
    WHERE part = 1 AND CAST(:most_checked AS bigint) IS NULL ORDER BY random() LIMIT 1)
   UNION ALL
  (SELECT part, arrived_at, event_id FROM to_match
    WHERE part = 2 AND CAST(:most_checked AS bigint) IS NULL ORDER BY random() LIMIT 1)
), placed AS MATERIALIZED (
  SELECT c.*,
         row_number() OVER (PARTITION BY c.part
                            ORDER BY (c.arrived_at, c.event_id) < (s.arrived_at, s.event_id),
                                     CASE WHEN s.part IS NULL THEN c.arrived_at END DESC,
                                     CASE WHEN s.part IS NULL THEN c.event_id END DESC,
                                     c.arrived_at, c.event_id) - 1 AS place
    FROM to_match AS c LEFT JOIN start AS s ON s.part = c.part
), selected AS NOT MATERIALIZED (
  SELECT * FROM placed WHERE part <> 1 OR CAST(:most_checked AS bigint) IS NULL OR place < :most_checked
-- Of each group, how many orphans are open, and how many of them are selected.
), grouped AS (
  SELECT state, tenant_id, provider, sum(orphans)::bigint AS orphans, sum(selected)::bigint AS selected,
         row_number() OVER (ORDER BY sum(orphans) DESC, tenant_id, provider) > :named_groups AS is_small
    FROM (SELECT state, tenant_id, provider, orphans, 0 AS selected FROM open_group
           UNION ALL
          SELECT state, tenant_id, provider, 0, count(*) FROM selected GROUP BY 1, 2, 3) AS g
   GROUP BY 1, 2, 3
)
-- In base64, because the client has all of a result in memory, and bytea takes half as much again.
SELECT part, encode(string_agg(uuid_send(event_id), CAST('' AS bytea) ORDER BY place), 'base64') AS packed,
       min(arrived_at)::text AS last,
       NULL::text AS state, NULL::text AS tenant_id, NULL::text AS provider, NULL::bigint AS orphans,
       NULL::bigint AS selected, place / :per_row AS number
  FROM selected WHERE place < :size GROUP BY part, place / :per_row
 UNION ALL
-- Since when the first that no sweep has checked has been past its grace.
SELECT NULL, NULL,
       (SELECT min(arrived_at) + make_interval(secs => :grace_seconds) FROM selected WHERE state IS NULL)::text,
       state, CASE WHEN NOT is_small THEN tenant_id END, CASE WHEN NOT is_small THEN provider END,
       sum(orphans)::bigint, sum(selected)::bigint, NULL
  FROM grouped GROUP BY 4, 5, 6
 ORDER BY part, number
"""

_CUTS = """
SELECT arrived_at::text
  FROM (SELECT arrived_at, row_number() OVER (ORDER BY arrived_at, event_id) AS number
          FROM {schema}.mailglass_open_orphans
         WHERE arrived_at > CAST(:after AS timestamp) AND arrived_at <= CAST(:until AS timestamp)
           AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)) AS o
 WHERE number % :size = 0 AND number < :open ORDER BY number
"""

_COUNT = """
SELECT count(*) FROM {schema}.mailglass_open_orphans
 WHERE arrived_at > CAST(:after AS timestamp) AND arrived_at <= CAST(:until AS timestamp)
   AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
"""

# The oldest first, because the lag is theirs: of those that no process has compared with deliveries, or that matched.
_NEWER = """
SELECT count(*) AS orphans,
       greatest(0, extract(epoch FROM now()::timestamp - make_interval(secs => :grace_seconds)
                                      - min(arrived_at) FILTER (WHERE state IS NULL OR state = 'matched')))::float8
         AS lag_seconds
  FROM (SELECT arrived_at, state FROM {schema}.mailglass_open_orphans
         WHERE arrived_at > greatest(CAST(:covered_until AS timestamp),
                                     now()::timestamp - make_interval(mins => :max_age_minutes))
           AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
         ORDER BY arrived_at, event_id LIMIT :most) AS o
"""


class Range(NamedTuple):
    """A range of arrival: after one time and until another; no orphans if the second is not the later one."""

    after: str
    until: str


class Window(NamedTuple):
    """The range of arrival that a sweep looks at, the state of the schema, and by which path its orphans are read."""

    after: str
    until: str
    triggers: bool
    indexed: bool
    by_scans: bool

    def warn(self) -> None:
        """Log a warning about missing triggers, before anything is swept."""
        if not self.triggers:
            problem = "a trigger on mailglass_events is missing or disabled: new events are not noticed"
            logger.warning(with_local_names(f"{problem}: run `mailglass-reconcile migrate`"))


class OrphanFilter(NamedTuple):
    """A filter for the open orphans of a targeted sweep; None is all.

    Attributes:
        provider: The provider, in its canonical spelling.
        message_ids: Candidate ids, of which an orphan must have one.
        delivery_id: The only delivery to which an orphan may be linked.
    """

    provider: str | None = None
    message_ids: Collection[str] | None = None
    delivery_id: str | None = None

    def accepts(self, keys: Keys, delivery_id: str | None) -> bool:
        """Return True if an orphan with these keys, matched to this delivery or none, passes."""
        return (
            self.provider in (None, keys.provider)
            and (self.message_ids is None or not set(self.message_ids).isdisjoint(keys.candidate_ids))
            and (self.delivery_id is None or delivery_id in (None, self.delivery_id))
        )


EVERYTHING = OrphanFilter()


class Group(NamedTuple):
    """A stored state (None before the first check), a tenant and a provider, whose orphans are counted together.

    The small groups of very many tenants have no tenant.
    """

    state: OpenState | None
    tenant_id: str | None
    provider: str | None


class NewerOrphans(NamedTuple):
    """Open orphans that arrived after the window of a sweep.

    Attributes:
        orphans: Their number, at most `Limits.most_counted`.
        lag_seconds: Seconds for which the oldest that may be linked has been past its grace: it matched, or no process
            has compared it with deliveries. 0 if there is none.
        at_least: True if the number is a lower bound.
    """

    orphans: int
    lag_seconds: float
    at_least: bool


class Part(NamedTuple):
    """Ids to match, 16 bytes each, in order; `last` is the cursor of the next part, None if there is none."""

    priority: int
    packed: list[bytes]
    last: Cursor | None = None

    def slices(self, size: int) -> Iterator[list[str]]:
        """Remove the ids, and yield them in lists of at most *size*.

        Each id is 32 hexadecimal digits, which Postgres reads as a UUID.
        """
        while self.packed:
            row = self.packed.pop(0)
            for start in range(0, len(row), 16 * size):
                yield _unpack(row[start : start + 16 * size])

    @property
    def size(self) -> int:
        """The number of ids."""
        return sum(map(len, self.packed)) // 16

    @property
    def ids(self) -> list[str]:
        """All ids, as `slices` yields them; they stay."""
        return _unpack(b"".join(self.packed))


def _unpack(packed: bytes) -> list[str]:
    digits = packed.hex()
    return [digits[place : place + 32] for place in range(0, len(digits), 32)]


class Selection(NamedTuple):
    """The orphans that a sweep matches, part by part, and by group the number of those and of the others.

    `unseen_since` is the end of the grace of the first orphan that no sweep has checked.
    """

    parts: list[Part]
    selected: Counter[Group]
    left_out: Counter[Group]
    unseen_since: str | None = None

    @property
    def open(self) -> Counter[Group]:
        """The number of open orphans by group."""
        return self.selected + self.left_out


def open_window(
    tx: Transaction,
    *,
    ages: tuple[float, float] | None = None,
    bounds: tuple[str | None, str | None] = (None, None),
    counted: bool = False,
) -> Window:
    """Return the window of a sweep by the database's clock.

    Args:
        tx: A reading transaction.
        ages: The oldest and the youngest age in seconds; None is from the grace to the maximum age.
        bounds: Only arrivals after the first and until the second time, both as Postgres writes them.
        counted: True to count the rows, which finds the cheaper access path.

    Raises:
        SchemaOutdatedError: The database lacks what this version needs.
    """
    settings, few = tx.settings, tx.limits.few_orphans
    oldest, youngest = ages or (settings.max_age_minutes * 60, settings.grace_seconds)
    parameters = {
        **tx.names_of("events", "open_orphans", "open_orphan_ids", "deliveries"),
        "index": tx.name_of(deliveries.INDEX),
        "after": bounds[0],
        "until": bounds[1],
        "oldest": oldest,
        "youngest": youngest,
        "max_age_minutes": settings.max_age_minutes,
        "counted": counted,
        "few": few,
        "small": tx.limits.small_bytes,
    }
    row = tx.execute(_WINDOW, parameters).one()
    revision.require(row.version)
    orphans = max(few, row.bytes // ROW_BYTES) if row.few == few else row.few or 0
    by_scans = orphans > few // 10 and orphans * PROBE_US > orphans * SCAN_US + float(row.pages) * PAGE_US
    return Window(row.after, row.until, row.triggers, row.indexed, by_scans)


def select_orphans(
    tx: Transaction,
    window: Window,
    tenant_id: str | None = None,
    *,
    only: OrphanFilter = EVERYTHING,
    before: Cursor = LAST,
    most_checked: int | None = None,
) -> Selection:
    """Choose the orphans of a window that a sweep matches, of one tenant or, with None, of all.

    Args:
        tx: A reading transaction, in whose snapshot the window was opened.
        window: The window.
        tenant_id: The tenant.
        only: Only what passes this filter; without current keys, an orphan is selected and counted with the others.
        before: Only orphans before this cursor in the order of arrival.
        most_checked: At most this many orphans that were checked before, the newest; None is all, from a random row on.

    Raises:
        SchemaOutdatedError: The index on deliveries is missing.
    """
    if not window.indexed:
        missing = "the index mailglass_deliveries_reconcile_idx is missing or incomplete"
        raise SchemaOutdatedError(f"{missing}: run `mailglass-reconcile migrate`")
    if not is_storable_tenant(tenant_id):
        return Selection([], Counter(), Counter())
    with prefer_scans(tx) if window.by_scans else nullcontext():
        rows = tx.execute(_SELECT, parameters(tx, window, tenant_id, only, before, most_checked))
        return _to_selection(rows, tx.limits.most_ids)


def parameters(
    tx: Transaction,
    window: Window,
    tenant_id: str | None,
    only: OrphanFilter = EVERYTHING,
    before: Cursor = LAST,
    most_checked: int | None = None,
) -> dict[str, object]:
    """Return the parameters of the statement of `select_orphans`, from the same arguments."""
    ranks = {name: rule.rank for name, rule in provider_rules.rules().items() if name != provider_rules.ANY_PROVIDER}
    lowest = min(ranks.values())
    return {
        "after": window.after,
        "until": window.until,
        "tenant_id": tenant_id,
        "provider": only.provider,
        "message_ids": None if only.message_ids is None else array_literal(only.message_ids),
        "before_time": before.arrived_at,
        "before_event": before.event_id,
        "by_scans": window.by_scans,
        "most_checked": most_checked,
        "named_groups": tx.limits.named_groups,
        "size": tx.limits.most_ids,
        "per_row": IDS_PER_ROW,
        "grace_seconds": tx.settings.grace_seconds,
        "ranks": json.dumps(ranks),
        "any_rank": provider_rules.rank_of(None),
        "spellings": provider_rules.spellings_as_json(),
        "lowest_rank": lowest,
        "higher": array_literal(name for name, rank in ranks.items() if rank > lowest),
    }


def _to_selection(rows: Any, most_ids: int) -> Selection:
    packed: dict[int, list[bytes]] = {}
    last: dict[int, str] = {}
    selection = Selection([], Counter(), Counter())
    for row in rows:
        if row.part is not None:
            packed.setdefault(row.part, []).append(a2b_base64(row.packed))
            last[row.part] = row.last
            continue
        group = Group(row.state, row.tenant_id, row.provider)
        selection = selection._replace(unseen_since=row.last)
        selection.selected[group] += row.selected
        selection.left_out[group] += row.orphans - row.selected
    for part in sorted(packed):
        is_full = part == FIRST and sum(map(len, packed[part])) == 16 * most_ids
        place = Cursor(last[part], packed[part][-1][-16:].hex()) if is_full else None
        selection.parts.append(Part(part, packed[part], place))
    return selection


def select_next_first(
    tx: Transaction, window: Window, tenant_id: str | None, before: Cursor, only: OrphanFilter = EVERYTHING
) -> Part | None:
    """Choose the first part before a cursor in the order of arrival; None if nothing is left."""
    parts = select_orphans(tx, window, tenant_id, only=only, before=before).parts
    return next((part for part in parts if part.priority == FIRST), None)


def make_part(event_ids: Sequence[str]) -> Part:
    """Make a part of *event_ids*."""
    return Part(FIRST, [bytes.fromhex("".join(event_ids).replace("-", ""))])


def as_groups(open_groups: Counter[Group]) -> list[OpenGroup]:
    """Return the groups as `state`, `tenant_id`, `provider` and `orphans`: the largest first, then by name."""
    groups: list[OpenGroup] = [
        {"state": group.state or UNSEEN, "tenant_id": group.tenant_id, "provider": group.provider, "orphans": orphans}
        for group, orphans in open_groups.items()
        if orphans > 0
    ]
    return sorted(groups, key=lambda g: (-g["orphans"], g["state"], g["tenant_id"] or "", g["provider"] or ""))


def range_boundaries(tx: Transaction, window: Window, tenant_id: str | None, size: int, orphans: int) -> list[str]:
    """Return the arrival of every *size*-th of the *orphans* open in the window, except for the last, in one walk."""
    return list(tx.execute(_CUTS, {**_bounds(window, tenant_id), "size": size, "open": orphans}).scalars().all())


def count_open(tx: Transaction, window: Window, tenant_id: str | None) -> int:
    """Count the open orphans of a window, of one tenant or, with None, of all."""
    return int(tx.execute(_COUNT, _bounds(window, tenant_id)).scalar_one()) if is_storable_tenant(tenant_id) else 0


def _bounds(window: Window, tenant_id: str | None) -> dict[str, object]:
    return {"after": window.after, "until": window.until, "tenant_id": tenant_id}


def load_newer(tx: Transaction, covered_until: str | None, tenant_id: str | None = None) -> NewerOrphans:
    """Count the open orphans that arrived after the window of a sweep, of one tenant or, with None, of all.

    Args:
        tx: A reading transaction.
        covered_until: The upper end of that window; None if there was no sweep, for all that a full sweep would check.
        tenant_id: The tenant.
    """
    if not is_storable_tenant(tenant_id):
        return NewerOrphans(0, 0.0, at_least=False)
    parameters = {
        "covered_until": covered_until,
        "tenant_id": tenant_id,
        "grace_seconds": tx.settings.grace_seconds,
        "max_age_minutes": tx.settings.max_age_minutes,
        "most": tx.limits.most_counted,
    }
    row = tx.execute(_NEWER, parameters).one()
    return NewerOrphans(row.orphans, row.lag_seconds, at_least=row.orphans >= tx.limits.most_counted)


def is_storable_tenant(tenant_id: str | None) -> bool:
    """Return True if a row can have this tenant: Postgres stores neither NUL nor half a surrogate pair."""
    return tenant_id is None or not ("\x00" in tenant_id or any("\ud800" <= c <= "\udfff" for c in tenant_id))
