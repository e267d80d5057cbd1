"""Which open orphans a sweep looks at: its window of arrival, how many there are, and the ids of those to judge.

What has current keys and names no delivery never leaves the database. The ids of all others come in one go, 16 bytes
each, so that one pass over the tables serves a whole sweep.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

from mailglass_reconcile.errors import SchemaOutdatedError
from mailglass_reconcile.store import deliveries, privileges, runs, schema
from mailglass_reconcile.store.database import Transaction, array_literal, by_scans, columns
from mailglass_reconcile.store.open_orphans import LAST, Place

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
       ({triggers}) AS triggers,
       coalesce((SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:index)), false) AS indexed,
       -- Of a full sweep only: who else may create objects here, and where the last one stopped.
       CASE WHEN :full THEN ({creators}) END AS creators,
       CASE WHEN :full THEN ({position}) END AS position,
       -- TRUNCATE takes all events at once: that of the oldest open orphan stands for the others.
       :full AND EXISTS (SELECT FROM (SELECT event_id FROM {schema}.mailglass_open_orphans
                                       ORDER BY arrived_at, event_id LIMIT 1) AS oldest
                          WHERE NOT EXISTS (SELECT FROM {schema}.mailglass_events
                                             WHERE id = oldest.event_id OFFSET 0)) AS emptied,
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
_SURVEY = _SURVEY.replace("{triggers}", schema.TRIGGERS_ENABLED)
_SURVEY = _SURVEY.replace("{creators}", privileges.CREATORS).replace("{position}", runs.POSITION)

# With very many tenants, small groups are added up under no name, so that memory stays bounded.
_GROUPED = """
SELECT rule, refused, CASE WHEN place <= 500 THEN tenant_id END, CASE WHEN place <= 500 THEN provider END,
       place > 500 AS small, sum(orphans)::bigint, sum(unmatchable)::bigint, sum(superseded)::bigint, sum(fresh)::bigint
  FROM (SELECT o.rule, o.refused > 0 AS refused, o.tenant_id, o.provider, count(*) AS orphans,
               count(*) FILTER (WHERE o.ids = 0 AND NOT o.superseded) AS unmatchable,
               count(*) FILTER (WHERE o.superseded) AS superseded,
               count(*) FILTER (WHERE o.fresh) AS fresh,
               row_number() OVER (ORDER BY count(*) DESC, o.tenant_id, o.provider) AS place
          FROM (SELECT rule, refused, ids, provider, tenant_id,
                       coalesce(rule = :any_rule AND provider = ANY (CAST(:known AS text[])), false) AS superseded,
                       (arrived_at, event_id) > (CAST(:fresh_time AS timestamp), CAST(:fresh_event AS uuid)) AS fresh
                  FROM {eligible}) AS o
         GROUP BY o.rule, o.refused > 0, o.tenant_id, o.provider) AS g
 GROUP BY 1, 2, 3, 4, 5
"""
_GROUPS = _GROUPED.replace(
    "{eligible}",
    """
unnest(CAST(:afters AS timestamp[]), CAST(:untils AS timestamp[])) AS r (after_time, until_time)
                 CROSS JOIN LATERAL (
       SELECT * FROM {schema}.mailglass_open_orphans
        WHERE (arrived_at, event_id)
              > (r.after_time, CAST('ffffffff-ffff-ffff-ffff-ffffffffffff' AS uuid))
          AND arrived_at <= r.until_time
        ORDER BY arrived_at, event_id LIMIT ALL) AS w
                 WHERE CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id""",
)
# Without the index: each row of the table once.
_GROUPS_OF_MANY = _GROUPED.replace(
    "{eligible}",
    """
{schema}.mailglass_open_orphans
                 WHERE arrived_at > CAST(:window_after AS timestamp) AND arrived_at <= CAST(:window_until AS timestamp)
 AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)""",
)

# Row by row along the index of arrival; each row's ids are probed for. A scalar subquery, because the planner turns an
# EXISTS into one pass over all ids for a hash table, however small the slice. Ids of which only the hashes are equal do
# no harm: the judge compares the ids.
_IDS_BY_PROBES = """
SELECT string_agg(uuid_send(o.event_id), CAST('' AS bytea))
  FROM (SELECT w.event_id
          FROM unnest(CAST(:afters AS timestamp[]), CAST(:untils AS timestamp[])) AS r (after_time, until_time)
         CROSS JOIN LATERAL (
                 SELECT event_id FROM {schema}.mailglass_open_orphans AS c
                  WHERE (arrived_at, event_id) > (greatest(r.after_time, CAST(:after_time AS timestamp)),
                                                  CASE WHEN r.after_time < :after_time THEN CAST(:after_event AS uuid)
                                                       ELSE 'ffffffff-ffff-ffff-ffff-ffffffffffff' END)
                    AND arrived_at <= least(r.until_time, CAST(:until_time AS timestamp))
                    AND (arrived_at, event_id) <= (CAST(:until_time AS timestamp), CAST(:until_event AS uuid))
                    AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
                    AND (refused > 0) = :refused
                    AND (rule IS NULL OR rule = ANY (CAST(:outdated AS text[]))
                         OR rule = :any_rule AND provider = ANY (CAST(:known AS text[]))
                         OR ids > 0
                        AND (SELECT true
                               FROM {schema}.mailglass_open_orphan_ids AS k
                               JOIN {schema}.mailglass_deliveries AS d
                                 ON hashtextextended(d.provider_message_id, 0) = hashtextextended(k.candidate_id, 0)
                              WHERE k.event_id = c.event_id LIMIT 1))
                  ORDER BY arrived_at, event_id LIMIT :size) AS w
         LIMIT :size) AS o
"""

# Each table once, compared by hashing: a join would make a row of each orphan with each delivery of a wide id.
_IDS_BY_SCANS = """
-- Materialized, so that parallel workers share this pass over the ids; as a part of the query each would do it whole.
WITH named AS MATERIALIZED (
  SELECT event_id FROM {schema}.mailglass_open_orphan_ids
   WHERE candidate_id IN (SELECT provider_message_id FROM {schema}.mailglass_deliveries)
)
SELECT string_agg(uuid_send(o.event_id), CAST('' AS bytea) ORDER BY o.arrived_at, o.event_id)
  FROM (SELECT arrived_at, event_id FROM {schema}.mailglass_open_orphans
         WHERE (arrived_at, event_id) > (CAST(:after_time AS timestamp), CAST(:after_event AS uuid))
           AND (arrived_at, event_id) <= (CAST(:until_time AS timestamp), CAST(:until_event AS uuid))
           AND arrived_at > CAST(:window_after AS timestamp) AND arrived_at <= CAST(:window_until AS timestamp)
           AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
           AND (refused > 0) = :refused AND :computes
           AND (rule IS NULL OR rule = ANY (CAST(:outdated AS text[]))
                OR rule = :any_rule AND provider = ANY (CAST(:known AS text[])))
         UNION ALL
        SELECT arrived_at, event_id FROM {schema}.mailglass_open_orphans
         WHERE (arrived_at, event_id) > (CAST(:after_time AS timestamp), CAST(:after_event AS uuid))
           AND (arrived_at, event_id) <= (CAST(:until_time AS timestamp), CAST(:until_event AS uuid))
           AND arrived_at > CAST(:window_after AS timestamp) AND arrived_at <= CAST(:window_until AS timestamp)
           AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
           AND (refused > 0) = :refused AND ids > 0
           AND rule <> ALL (CAST(:outdated AS text[]))
           AND NOT (rule = :any_rule AND provider = ANY (CAST(:known AS text[])))
           AND event_id IN (SELECT event_id FROM named)
         ORDER BY arrived_at, event_id LIMIT :size) AS o
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

_FIRST_ELIGIBLE = """
SELECT (arrived_at + make_interval(secs => :grace_seconds))::text FROM {schema}.mailglass_open_orphans AS o
 WHERE (arrived_at, event_id) > (CAST(:after_time AS timestamp), CAST(:after_event AS uuid))
   AND arrived_at <= CAST(:until_time AS timestamp)
   AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
 ORDER BY o.arrived_at, o.event_id LIMIT 1
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

    `refused` ones, whose link the database has refused before, are looked at by themselves and last. Of those in
    between, only what arrived in one of `ranges`, which are disjoint and in order.
    """

    after: Place
    until: Place
    ranges: tuple[Range, ...]
    tenant_id: str | None = None
    refused: bool = False

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
            "refused": self.refused,
        }


class Survey(NamedTuple):
    """What a sweep sees when it begins: its ranges of arrival, and the state of the schema.

    `creators` may put objects into the schema, and `position` is where the last full sweep stopped; both are None
    unless a full sweep begins. `emptied`: the event of the oldest open orphan is gone. `few` is how many are open in
    its one range, at most `FEW`; None if there are several ranges, or the table is small.
    """

    afters: list[str]
    untils: list[str]
    now: str
    version: str | None
    triggers: bool
    indexed: bool
    creators: list[str] | None
    position: dict[str, Any] | None
    emptied: bool
    few: int | None

    def whole(self, tenant_id: str | None) -> Slice:
        """Return all that the sweep looks at, as one slice."""
        ranges = tuple(map(Range, self.afters, self.untils))
        return Slice(Place(self.afters[0], LAST.event_id), Place(self.untils[-1], LAST.event_id), ranges, tenant_id)


class Outdated(NamedTuple):
    """Which stored keys must be computed again: those with one of `marks`, and those of the rule `any_rule`, which
    serves every provider without a rule, if their provider is among `known`, which have one. `computes` is false if all
    orphans have current keys: then nothing is searched for those without."""

    marks: Collection[str]
    any_rule: str
    known: Collection[str]
    computes: bool = True

    def parameters(self) -> dict[str, object]:
        """Return the parameters of the statements that distinguish current keys from outdated ones."""
        marks, known = array_literal(self.marks), array_literal(self.known)
        return {"outdated": marks, "any_rule": self.any_rule, "known": known, "computes": self.computes}


class Group(NamedTuple):
    """Eligible orphans of one tenant and provider whose keys have one mark; None is those without keys.

    `small` ones are those of many tenants, added up under no name. `superseded` ones have keys of the rule for any
    provider, although their provider has one of its own. `fresh` ones arrived after what was covered before.
    """

    rule: str | None
    refused: bool
    tenant_id: str | None
    provider: str | None
    small: bool
    orphans: int
    unmatchable: int
    superseded: int
    fresh: int


def survey(
    tx: Transaction,
    *,
    ages: Sequence[tuple[float, float]] | None = None,
    bounds: tuple[str | None, str | None] = (None, None),
    full: bool = False,
    counted: bool = False,
    tenant_id: str | None = None,
) -> Survey:
    """Return the window of a sweep by the database's clock, cut to what arrived after and until the times of *bounds*.

    *ages* are ranges of age in seconds, each its older and its younger end, disjoint, the oldest first; None is what is
    past the grace. A *full* sweep is one of this tenant argument, as the history of runs shows it. If *counted*, what
    is in one window of a large table is counted, up to `FEW`.

    Raises:
        SchemaOutdatedError: The database lacks what this version needs.
    """
    settings = tx.settings
    eligible = ((settings.max_age_minutes * 60, settings.grace_seconds),)
    oldest, youngest = zip(*(eligible if ages is None else ages), strict=True)
    parameters = {
        "schema": tx.schema,
        **tx.names_of("events", "open_orphans"),
        "index": tx.name_of(deliveries.INDEX),
        "after": bounds[0],
        "until": bounds[1],
        "oldest": array_literal(map(str, oldest)),
        "youngest": array_literal(map(str, youngest)),
        "max_age_minutes": settings.max_age_minutes,
        "full": full,
        "counted": counted,
        "tenant_id": tenant_id,
        "few": FEW,
        "small": SMALL_BYTES,
    }
    found = Survey._make(tx.execute(_SURVEY, parameters).one())
    if found.version != schema.VERSION:
        raise SchemaOutdatedError(schema.outdated(found.version))
    return found


def groups(tx: Transaction, whole: Slice, outdated: Outdated, covered: Place, few: int | None) -> list[Group]:
    """Return how many orphans of *whole*, refused or not, are open, by the mark of their keys, tenant and provider.

    Those after *covered* count as fresh; *few* is as the survey has it.
    """
    if not is_possible(whole.tenant_id):
        return []
    parameters = {**whole.parameters(), **outdated.parameters()}
    parameters |= {"fresh_time": covered.arrived_at, "fresh_event": covered.event_id}
    statement, path = (_GROUPS_OF_MANY, by_scans(tx)) if few == FEW else (_GROUPS, nullcontext())
    with path:
        return list(map(Group._make, tx.execute(statement, parameters)))


def ids_to_judge(tx: Transaction, piece: Slice, outdated: Outdated, orphans: int) -> bytes:
    """Return the ids of those orphans of *piece* that a sweep must judge, 16 bytes each, in order of arrival.

    That is those whose keys are missing or outdated, and those that name a delivery, of any tenant; at most `MOST_IDS`.
    About so many *orphans* are open in *piece*.
    """
    parameters = {**piece.parameters(), **outdated.parameters(), "size": MOST_IDS}
    # Each range would read the tables again.
    if len(piece.ranges) == 1 and orphans > FEW // 10 and _scans_cost_less(tx, orphans):
        with by_scans(tx):
            return bytes(tx.execute(_IDS_BY_SCANS, parameters).scalar_one() or b"")
    return bytes(tx.execute(_IDS_BY_PROBES, parameters).scalar_one() or b"")


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


def first_eligible(tx: Transaction, piece: Slice) -> str | None:
    """Return when the first orphan of *piece* was past its grace, or None if none is open."""
    parameters = {**piece.parameters(), "grace_seconds": tx.settings.grace_seconds}
    since: str | None = tx.execute(_FIRST_ELIGIBLE, parameters).scalar_one_or_none()
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
