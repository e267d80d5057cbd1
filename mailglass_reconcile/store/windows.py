"""Which open orphans a sweep looks at: its window of arrival, how many there are, and the ids of those to judge.

What has current keys and names no delivery never leaves the database. The ids of all others come in one go, 16 bytes
each, so that one pass over the tables serves a whole sweep.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mailglass_reconcile.store import deliveries, revision
from mailglass_reconcile.store.database import Transaction, array_literal, by_scans, columns
from mailglass_reconcile.store.open_orphans import FIRST, LAST, Place

MOST_IDS = 500_000
"""Ids that are in memory at once: 8 MB. What a larger window has beyond them takes another pass."""
SMALL_BYTES = 2**21
"""An open-orphans table of this size is always read along its index of arrival."""
FEW = 20_000
"""So many orphans are counted along the index of arrival; if there are more, the whole table is read instead."""
PROBE_US, SCAN_US, PAGE_US = 5.0, 0.5, 10.0
"""Microseconds, as measured: to probe for one orphan's ids; to hash one; to read 8 kB of a table."""

_SURVEY = """
SELECT w.afters, w.untils, now()::timestamp::text AS now,
       (SELECT max(version_num) FROM {schema}.mailglass_reconcile_version) AS version,
       (SELECT count(*) = 2 FROM pg_trigger AS t
         WHERE t.tgrelid = to_regclass(:events) AND t.tgenabled IN ('O', 'A')
           AND t.tgname IN ('mailglass_open_orphans_add', 'mailglass_open_orphans_remove')) AS triggers,
       coalesce((SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:index)), false) AS indexed,
       CASE WHEN :counted AND cardinality(w.afters) = 1 AND pg_relation_size(to_regclass(:open_orphans)) > :small
            THEN (SELECT count(*)
                    FROM (SELECT FROM {schema}.mailglass_open_orphans
                           WHERE (arrived_at, event_id) > (CAST(w.afters[1] AS timestamp),
                                                           CAST('ffffffff-ffff-ffff-ffff-ffffffffffff' AS uuid))
                             AND arrived_at <= CAST(w.untils[1] AS timestamp)
                           ORDER BY arrived_at, event_id LIMIT :few) AS o) END AS few
  FROM (SELECT array_agg(r.after_time::text ORDER BY r.after_time) AS afters,
               array_agg(r.until_time::text ORDER BY r.after_time) AS untils
          FROM (SELECT greatest(now()::timestamp - make_interval(mins => :max_age_minutes),
                                now()::timestamp - make_interval(secs => a.oldest),
                                CAST(:after AS timestamp)) AS after_time,
                       least(now()::timestamp - make_interval(secs => a.youngest),
                             CAST(:until AS timestamp)) AS until_time
                  FROM unnest(CAST(:oldest AS float8[]), CAST(:youngest AS float8[])) AS a (oldest, youngest)
               ) AS r) AS w
"""

# With very many tenants, small groups are added up under no name, so that memory stays bounded.
_GROUPS = """
SELECT rule, refused, state, CASE WHEN place <= 500 THEN tenant_id END, CASE WHEN place <= 500 THEN provider END,
       place > 500 AS small, sum(orphans)::bigint, sum(superseded)::bigint
  FROM (SELECT o.rule, o.refused > 0 AS refused, o.state, o.tenant_id, o.provider, count(*) AS orphans,
               count(*) FILTER (WHERE o.rule = :any_rule AND o.provider = ANY (CAST(:known AS text[]))) AS superseded,
               row_number() OVER (ORDER BY count(*) DESC, o.tenant_id, o.provider) AS place
          FROM unnest(CAST(:afters AS timestamp[]), CAST(:untils AS timestamp[])) AS r (after_time, until_time)
         CROSS JOIN LATERAL (
                 SELECT * FROM {schema}.mailglass_open_orphans
                  WHERE (arrived_at, event_id)
                        > (r.after_time, CAST('ffffffff-ffff-ffff-ffff-ffffffffffff' AS uuid))
                    AND arrived_at <= r.until_time
                  ORDER BY arrived_at, event_id LIMIT ALL) AS o
         WHERE CAST(:tenant_id AS text) IS NULL OR o.tenant_id = :tenant_id
         GROUP BY o.rule, o.refused > 0, o.state, o.tenant_id, o.provider) AS g
 GROUP BY 1, 2, 3, 4, 5, 6
"""

# Without the index: each row of the table once.
_GROUPS_OF_MANY = """
SELECT rule, refused, state, CASE WHEN place <= 500 THEN tenant_id END, CASE WHEN place <= 500 THEN provider END,
       place > 500 AS small, sum(orphans)::bigint, sum(superseded)::bigint
  FROM (SELECT o.rule, o.refused > 0 AS refused, o.state, o.tenant_id, o.provider, count(*) AS orphans,
               count(*) FILTER (WHERE o.rule = :any_rule AND o.provider = ANY (CAST(:known AS text[]))) AS superseded,
               row_number() OVER (ORDER BY count(*) DESC, o.tenant_id, o.provider) AS place
          FROM {schema}.mailglass_open_orphans AS o
         WHERE o.arrived_at > CAST(:window_after AS timestamp) AND o.arrived_at <= CAST(:window_until AS timestamp)
           AND (CAST(:tenant_id AS text) IS NULL OR o.tenant_id = :tenant_id)
         GROUP BY o.rule, o.refused > 0, o.state, o.tenant_id, o.provider) AS g
 GROUP BY 1, 2, 3, 4, 5, 6
"""

# What comes first, the newest first: what no sweep has checked, what matched and was left, and outdated keys.
_FIRST = """
WITH first AS MATERIALIZED (
  SELECT w.arrived_at, w.event_id
    FROM unnest(CAST(:afters AS timestamp[]), CAST(:untils AS timestamp[])) AS r (after_time, until_time)
   CROSS JOIN LATERAL (
           SELECT arrived_at, event_id FROM {schema}.mailglass_open_orphans
            WHERE (arrived_at, event_id) > (r.after_time, CAST('ffffffff-ffff-ffff-ffff-ffffffffffff' AS uuid))
              AND (arrived_at, event_id) < (CAST(:before_time AS timestamp), CAST(:before_event AS uuid))
              AND arrived_at <= r.until_time
              AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
              AND refused = 0
              AND (state IS NULL OR state = 'matched' OR rule = ANY (CAST(:outdated AS text[]))
                   OR rule = :any_rule AND provider = ANY (CAST(:known AS text[])))
            ORDER BY arrived_at DESC, event_id DESC LIMIT :size) AS w
   LIMIT :size
)
SELECT string_agg(uuid_send(event_id), CAST('' AS bytea) ORDER BY arrived_at DESC, event_id DESC),
       min(arrived_at)::text
  FROM first
"""

# The same without the index.
_FIRST_OF_MANY = """
WITH first AS MATERIALIZED (
  SELECT arrived_at, event_id FROM {schema}.mailglass_open_orphans
   WHERE (arrived_at, event_id) < (CAST(:before_time AS timestamp), CAST(:before_event AS uuid))
     AND arrived_at > CAST(:window_after AS timestamp) AND arrived_at <= CAST(:window_until AS timestamp)
     AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
     AND refused = 0
     AND (state IS NULL OR state = 'matched' OR rule = ANY (CAST(:outdated AS text[]))
          OR rule = :any_rule AND provider = ANY (CAST(:known AS text[])))
   ORDER BY arrived_at DESC, event_id DESC LIMIT :size
)
SELECT string_agg(uuid_send(event_id), CAST('' AS bytea) ORDER BY arrived_at DESC, event_id DESC),
       min(arrived_at)::text
  FROM first
"""

# Row by row along the index of arrival; each row's ids are probed for. A scalar subquery, because the planner turns an
# EXISTS into one pass over all ids for a hash table, however small the slice. Ids of which only the hashes are equal do
# no harm: the judge compares the ids.
_RING = """
WITH ring AS MATERIALIZED (
  SELECT w.arrived_at, w.event_id
    FROM unnest(CAST(:afters AS timestamp[]), CAST(:untils AS timestamp[])) AS r (after_time, until_time)
   CROSS JOIN LATERAL (
           SELECT arrived_at, event_id FROM {schema}.mailglass_open_orphans AS c
            WHERE (arrived_at, event_id) > (greatest(r.after_time, CAST(:after_time AS timestamp)),
                                            CASE WHEN r.after_time < :after_time THEN CAST(:after_event AS uuid)
                                                 ELSE 'ffffffff-ffff-ffff-ffff-ffffffffffff' END)
              AND arrived_at <= least(r.until_time, CAST(:until_time AS timestamp))
              AND (arrived_at, event_id) <= (CAST(:until_time AS timestamp), CAST(:until_event AS uuid))
              AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
              AND refused = 0
              AND (rule IS NULL OR rule <> ALL (CAST(:outdated AS text[])))
              AND (rule = :any_rule AND provider = ANY (CAST(:known AS text[]))) IS NOT TRUE
              AND (state IN ('ambiguous', 'tenant_mismatch', 'recipient_mismatch')
                   -- Its rule has failed.
                   OR state = 'unmatchable' AND rule IS NULL
                   OR state = 'unmatched' AND ids > 0
                  AND (SELECT true
                         FROM {schema}.mailglass_open_orphan_ids AS k
                         JOIN {schema}.mailglass_deliveries AS d
                           ON hashtextextended(d.provider_message_id, 0) = hashtextextended(k.candidate_id, 0)
                        WHERE k.event_id = c.event_id LIMIT 1))
            ORDER BY arrived_at, event_id LIMIT :size) AS w
   LIMIT :size
)
SELECT string_agg(uuid_send(event_id), CAST('' AS bytea) ORDER BY arrived_at, event_id) FROM ring
"""

# Each table once, compared by hashing: a join would make a row of each orphan with each delivery of a wide id. What the
# census has none of is not looked for, which spares a pass.
_RING_OF_MANY = """
-- Materialized, so that parallel workers share this pass over the ids; as a part of the query each would do it whole.
WITH named AS MATERIALIZED (
  SELECT event_id FROM {schema}.mailglass_open_orphan_ids
   WHERE candidate_id IN (SELECT provider_message_id FROM {schema}.mailglass_deliveries)
-- The mismatches and failed rules, and what is named.
), ring AS MATERIALIZED (
  SELECT o.arrived_at, o.event_id
    FROM (SELECT arrived_at, event_id FROM {schema}.mailglass_open_orphans
           WHERE (arrived_at, event_id) > (CAST(:after_time AS timestamp), CAST(:after_event AS uuid))
             AND (arrived_at, event_id) <= (CAST(:until_time AS timestamp), CAST(:until_event AS uuid))
             AND arrived_at > CAST(:window_after AS timestamp) AND arrived_at <= CAST(:window_until AS timestamp)
             AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
             AND refused = 0 AND CAST(:stuck AS boolean)
             AND (rule IS NULL OR rule <> ALL (CAST(:outdated AS text[])))
             AND (rule = :any_rule AND provider = ANY (CAST(:known AS text[]))) IS NOT TRUE
             AND (state IN ('ambiguous', 'tenant_mismatch', 'recipient_mismatch')
                  OR state = 'unmatchable' AND rule IS NULL)
           UNION ALL
          SELECT arrived_at, event_id FROM {schema}.mailglass_open_orphans
           WHERE (arrived_at, event_id) > (CAST(:after_time AS timestamp), CAST(:after_event AS uuid))
             AND (arrived_at, event_id) <= (CAST(:until_time AS timestamp), CAST(:until_event AS uuid))
             AND arrived_at > CAST(:window_after AS timestamp) AND arrived_at <= CAST(:window_until AS timestamp)
             AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
             AND refused = 0 AND CAST(:unmatched AS boolean)
             AND rule <> ALL (CAST(:outdated AS text[]))
             AND NOT (rule = :any_rule AND provider = ANY (CAST(:known AS text[])))
             AND state = 'unmatched' AND ids > 0
             AND event_id IN (SELECT event_id FROM named)) AS o
   ORDER BY o.arrived_at, o.event_id LIMIT :size
)
SELECT string_agg(uuid_send(event_id), CAST('' AS bytea) ORDER BY arrived_at, event_id) FROM ring
"""

# In any state: the database has refused to read or to link them before.
_REFUSED = """
SELECT string_agg(uuid_send(o.event_id), CAST('' AS bytea) ORDER BY o.arrived_at, o.event_id)
  FROM (SELECT arrived_at, event_id FROM {schema}.mailglass_open_orphans AS c
         WHERE arrived_at > CAST(:window_after AS timestamp) AND arrived_at <= CAST(:window_until AS timestamp)
           AND EXISTS (SELECT FROM unnest(CAST(:afters AS timestamp[]), CAST(:untils AS timestamp[]))
                                   AS r (after_time, until_time)
                        WHERE c.arrived_at > r.after_time AND c.arrived_at <= r.until_time)
           AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
           AND refused > 0
         ORDER BY arrived_at, event_id LIMIT :size) AS o
"""

# Where a ring of very many begins.
_ANY_PLACE = """
SELECT o.arrived_at::text, o.event_id::text FROM {schema}.mailglass_open_orphans AS o
 WHERE o.arrived_at > CAST(:window_after AS timestamp) AND o.arrived_at <= CAST(:window_until AS timestamp)
 ORDER BY o.arrived_at, o.event_id OFFSET floor(random() * :orphans) LIMIT 1
"""

# What one pass over the tables would read.
_PAGES = """
SELECT (pg_relation_size(to_regclass(:open_orphans)) + pg_relation_size(to_regclass(:open_orphan_ids))
        + coalesce(nullif((SELECT sum(pg_relation_size(relid)) FROM pg_partition_tree(to_regclass(:deliveries))), 0),
                   pg_relation_size(to_regclass(:deliveries)))) / current_setting('block_size')::bigint
"""

_CUTS = """
SELECT arrived_at::text
  FROM (SELECT arrived_at, row_number() OVER (ORDER BY arrived_at, event_id) AS number
          FROM {schema}.mailglass_open_orphans
         WHERE arrived_at > CAST(:after_time AS timestamp) AND arrived_at <= CAST(:until_time AS timestamp)
           AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)) AS o
 WHERE number % :size = 0 AND number < :open ORDER BY number
"""

# Since when the first of what no sweep has checked, or what matched and was left, has been past its grace.
_FIRST_UNSEEN = """
SELECT (min(arrived_at) + make_interval(secs => :grace_seconds))::text FROM {schema}.mailglass_open_orphans
 WHERE arrived_at > CAST(:window_after AS timestamp) AND arrived_at <= CAST(:window_until AS timestamp)
   AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
   AND state IS NULL
"""

_WAITING = """
SELECT count(*) FROM {schema}.mailglass_open_orphans
 WHERE arrived_at > now()::timestamp - make_interval(secs => :grace_seconds)
   AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
"""


class Range(NamedTuple):
    """A range of arrival: after one time and until another; no orphans if the second is not the later one."""

    after: str
    until: str


@dataclass(frozen=True, slots=True)
class Slice:
    """Open orphans after one place, up to another, of one tenant or, with None, of all.

    Only what arrived in one of `ranges`, which are disjoint and in order.
    """

    after: Place
    until: Place
    ranges: tuple[Range, ...]
    tenant_id: str | None = None

    def parameters(self) -> dict[str, object]:
        """Return the parameters that every statement on a slice has."""
        return {
            "after_time": self.after.arrived_at,
            "after_event": self.after.event_id,
            "until_time": self.until.arrived_at,
            "until_event": self.until.event_id,
            "window_after": self.ranges[0].after,
            "window_until": self.ranges[-1].until,
            **columns(("afters", "untils"), self.ranges),
            "tenant_id": self.tenant_id,
        }


class Survey(NamedTuple):
    """What a sweep sees when it begins: its ranges of arrival, and the state of the schema.

    `few` is how many are open in its one range, at most `FEW`; None if there are several ranges, or the table is small.
    """

    afters: list[str]
    untils: list[str]
    now: str
    version: str | None
    triggers: bool
    indexed: bool
    few: int | None

    def whole(self, tenant_id: str | None) -> Slice:
        """Return all that the sweep looks at, as one slice."""
        ranges = tuple(map(Range, self.afters, self.untils))
        return Slice(Place(self.afters[0], LAST.event_id), Place(self.untils[-1], LAST.event_id), ranges, tenant_id)


class Outdated(NamedTuple):
    """Which stored keys must be computed again: those with one of `marks`, and those of the rule `any_rule`, which
    serves every provider without a rule, if their provider is among `known`, which have one."""

    marks: Collection[str]
    any_rule: str
    known: Collection[str]

    def parameters(self) -> dict[str, object]:
        """Return the parameters of the statements that distinguish current keys from outdated ones."""
        marks, known = array_literal(self.marks), array_literal(self.known)
        return {"outdated": marks, "any_rule": self.any_rule, "known": known}


class Group(NamedTuple):
    """Eligible orphans of one tenant and provider with one stored state, whose keys have one mark.

    A rule of None is those without keys, a state of None what no sweep has checked. `small` ones are those of many
    tenants, added up under no name. `superseded` ones have keys of the rule for any provider, although their provider
    has one of its own.
    """

    rule: str | None
    refused: bool
    state: str | None
    tenant_id: str | None
    provider: str | None
    small: bool
    orphans: int
    superseded: int


class Ids(NamedTuple):
    """Ids of orphans, 16 bytes each, in the order in which to judge them; `last` is where the next ones begin.

    `last` is None unless there may be more than these.
    """

    packed: bytes
    last: Place | None = None


def survey(
    tx: Transaction,
    *,
    ages: Sequence[tuple[float, float]] | None = None,
    bounds: tuple[str | None, str | None] = (None, None),
    counted: bool = False,
) -> Survey:
    """Return the window of a sweep by the database's clock, cut to what arrived after and until the times of *bounds*.

    *ages* are ranges of age in seconds, each its older and its younger end, disjoint, the oldest first; None is what is
    past the grace. If *counted*, what is in one window of a large table is counted, up to `FEW`.

    Raises:
        SchemaOutdatedError: The database lacks what this version needs.
    """
    settings = tx.settings
    eligible = ((settings.max_age_minutes * 60, settings.grace_seconds),)
    oldest, youngest = zip(*(eligible if ages is None else ages), strict=True)
    parameters = {
        **tx.names_of("events", "open_orphans"),
        "index": tx.name_of(deliveries.INDEX),
        "after": bounds[0],
        "until": bounds[1],
        "oldest": array_literal(map(str, oldest)),
        "youngest": array_literal(map(str, youngest)),
        "max_age_minutes": settings.max_age_minutes,
        "counted": counted,
        "few": FEW,
        "small": SMALL_BYTES,
    }
    found = Survey._make(tx.execute(_SURVEY, parameters).one())
    revision.require(found.version)
    return found


def groups(tx: Transaction, whole: Slice, outdated: Outdated, few: int | None) -> list[Group]:
    """Return how many orphans of *whole* are open, by stored state, the mark of their keys, tenant and provider.

    *few* is as the survey has it.
    """
    if not is_possible(whole.tenant_id):
        return []
    parameters = {**whole.parameters(), **outdated.parameters()}
    if few == FEW:
        with by_scans(tx):
            return list(map(Group._make, tx.execute(_GROUPS_OF_MANY, parameters)))
    return list(map(Group._make, tx.execute(_GROUPS, parameters)))


def first_ids(tx: Transaction, whole: Slice, outdated: Outdated, before: Place, *, many: bool) -> Ids:
    """Return what a sweep looks at first, the newest first, before a place in the order of arrival.

    That is what no sweep has checked, what matched and was left, and what has outdated keys.
    """
    parameters = {**whole.parameters(), **outdated.parameters(), "size": MOST_IDS}
    parameters |= {"before_time": before.arrived_at, "before_event": before.event_id}
    if many:
        with by_scans(tx):
            return _ids(*tx.execute(_FIRST_OF_MANY, parameters).one())
    return _ids(*tx.execute(_FIRST, parameters).one())


def ring_ids(
    tx: Transaction, piece: Slice, outdated: Outdated, orphans: int, *, stuck: bool = True, unmatched: bool = True
) -> bytes:
    """Return what a sweep looks at then, in order of arrival: mismatches, failed rules, and what a delivery may match.

    About so many *orphans* are open in *piece*; whether any are `unmatched`, and any others, the census knows.
    """
    parameters = {**piece.parameters(), **outdated.parameters(), "size": MOST_IDS}
    # Each range would read the tables again.
    if len(piece.ranges) == 1 and orphans > FEW // 10 and _scans_cost_less(tx, orphans):
        with by_scans(tx):
            parameters |= {"stuck": stuck, "unmatched": unmatched}
            return bytes(tx.execute(_RING_OF_MANY, parameters).scalar_one() or b"")
    return bytes(tx.execute(_RING, parameters).scalar_one() or b"")


def refused_ids(tx: Transaction, whole: Slice) -> bytes:
    """Return what the database has refused to read or to link before, in order of arrival; at most `MOST_IDS`."""
    parameters = {**whole.parameters(), "size": MOST_IDS}
    return bytes(tx.execute(_REFUSED, parameters).scalar_one() or b"")


def any_place(tx: Transaction, whole: Slice, orphans: int) -> Place:
    """Return the place of a random one of the *orphans* open in *whole*."""
    row = tx.execute(_ANY_PLACE, {**whole.parameters(), "orphans": orphans}).one_or_none()
    return Place(*row) if row else FIRST


def _ids(packed: bytes | None, arrived_at: str | None) -> Ids:
    packed = bytes(packed or b"")
    full = len(packed) == 16 * MOST_IDS and arrived_at is not None
    return Ids(packed, Place(arrived_at or "", packed[-16:].hex()) if full else None)


def _scans_cost_less(tx: Transaction, orphans: int) -> bool:
    """Choose the path from the tables' sizes: statistics may be stale, and then a planner's guess costs minutes."""
    pages = int(tx.execute(_PAGES, tx.names_of("open_orphans", "open_orphan_ids", "deliveries")).scalar_one())
    return orphans * PROBE_US > orphans * SCAN_US + pages * PAGE_US


def unpacked(packed: bytes, size: int) -> Iterator[list[str]]:
    """Yield packed ids in lists of *size*, each id as 32 hexadecimal digits, which Postgres reads as a UUID."""
    for start in range(0, len(packed), 16 * size):
        digits = packed[start : start + 16 * size].hex()
        yield [digits[place : place + 32] for place in range(0, len(digits), 32)]


def cuts(tx: Transaction, whole: Slice, size: int, orphans: int) -> list[str]:
    """Return when every *size*-th of the *orphans* open in *whole* arrived, except for the last, in one walk."""
    rows = tx.execute(_CUTS, {**whole.parameters(), "size": size, "open": orphans})
    return list(rows.scalars().all())


def first_unseen(tx: Transaction, whole: Slice) -> str | None:
    """Return since when the first orphan of *whole* that no sweep has checked has been past its grace, or None."""
    parameters = {**whole.parameters(), "grace_seconds": tx.settings.grace_seconds}
    since: str | None = tx.execute(_FIRST_UNSEEN, parameters).scalar_one()
    return since


def waiting(tx: Transaction, tenant_id: str | None = None) -> int:
    """Return how many open orphans are in their grace, of one tenant or, with None, of all."""
    if not is_possible(tenant_id):
        return 0
    parameters = {"grace_seconds": tx.settings.grace_seconds, "tenant_id": tenant_id}
    return int(tx.execute(_WAITING, parameters).scalar_one())


def is_possible(tenant_id: str | None) -> bool:
    """Whether a row can have this tenant: Postgres stores neither NUL nor half a surrogate pair."""
    return tenant_id is None or not ("\x00" in tenant_id or any("\ud800" <= c <= "\udfff" for c in tenant_id))
