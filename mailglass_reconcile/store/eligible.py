"""What is eligible: the window of a sweep, what is open in it, and whether the schema is as it should be."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import deliveries
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.model import LAST_EVENT, Place, Range, Slice, array_literal

_SURVEY = """
SELECT w.afters, w.untils,
       (SELECT count(*) = 2 FROM pg_trigger AS t
         WHERE t.tgrelid = to_regclass(:events) AND t.tgenabled IN ('O', 'A')
           AND t.tgname IN ('mailglass_open_orphans_add', 'mailglass_open_orphans_remove')) AS triggers,
       (SELECT max(version_num) FROM {schema}.mailglass_reconcile_version) AS version,
       coalesce((SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:index)), false) AS indexed,
       pg_relation_size(to_regclass(:webhooks)) > 0
         AND (SELECT count(*) = 4 FROM pg_attribute AS a
               WHERE a.attrelid = to_regclass(:webhooks) AND has_column_privilege(a.attrelid, a.attnum, 'SELECT')
                 AND a.attname IN ('tenant_id', 'provider', 'provider_event_id', 'raw_payload')) AS raw_webhooks
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

# The statements on a slice walk the index of arrival range by range, in the order in which the ranges are given.
# With very many tenants, small groups are added up under no name, so that memory stays bounded. The sizes of the tables
# are asked for here because a sweep with nothing to do, which gets no row, then does not look them up.
_GROUPS = """
SELECT rule, refused, CASE WHEN place <= 500 THEN tenant_id END, CASE WHEN place <= 500 THEN provider END,
       place > 500 AS small, sum(orphans)::bigint, sum(unmatchable)::bigint, sum(better_known)::bigint,
       (SELECT (pg_relation_size(to_regclass(:deliveries)) + pg_relation_size(to_regclass(:ids)))
               / current_setting('block_size')::bigint)
  FROM (SELECT o.rule, o.refused > 0 AS refused, o.tenant_id, o.provider, count(*) AS orphans,
               count(*) FILTER (WHERE o.ids = 0) AS unmatchable,
               count(*) FILTER (WHERE o.rule = :any AND o.provider = ANY (CAST(:known AS text[]))) AS better_known,
               row_number() OVER (ORDER BY count(*) DESC, o.tenant_id, o.provider) AS place
          FROM unnest(CAST(:afters AS timestamp[]), CAST(:untils AS timestamp[])) AS r (after_time, until_time)
         CROSS JOIN LATERAL (
                 SELECT rule, refused, ids, provider, tenant_id FROM {schema}.mailglass_open_orphans
                  WHERE (arrived_at, event_id) > (greatest(r.after_time, CAST(:after_time AS timestamp)),
                                                  CASE WHEN r.after_time < :after_time THEN CAST(:after_event AS uuid)
                                                       ELSE 'ffffffff-ffff-ffff-ffff-ffffffffffff' END)
                    AND arrived_at <= least(r.until_time, CAST(:until_time AS timestamp))
                    AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)) AS o
         GROUP BY o.rule, o.refused > 0, o.tenant_id, o.provider) AS g
 GROUP BY 1, 2, 3, 4, 5
"""

_COUNT = """
SELECT count(*)
  FROM unnest(CAST(:afters AS timestamp[]), CAST(:untils AS timestamp[])) AS r (after_time, until_time)
 CROSS JOIN LATERAL (
         SELECT FROM {schema}.mailglass_open_orphans
          WHERE (arrived_at, event_id) > (greatest(r.after_time, CAST(:after_time AS timestamp)),
                                          CASE WHEN r.after_time < :after_time THEN CAST(:after_event AS uuid)
                                               ELSE 'ffffffff-ffff-ffff-ffff-ffffffffffff' END)
            AND arrived_at <= least(r.until_time, CAST(:until_time AS timestamp))
            AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)) AS o
"""

_CUTS = """
SELECT arrived_at::text
  FROM (SELECT arrived_at, row_number() OVER (ORDER BY arrived_at, event_id) AS number
          FROM {schema}.mailglass_open_orphans
         WHERE arrived_at > CAST(:after_time AS timestamp) AND arrived_at <= CAST(:until_time AS timestamp)
           AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)) AS o
 WHERE number % :size = 0 AND number < :open ORDER BY number
"""


class Survey(NamedTuple):
    """What a sweep sees when it begins: its window, and the state of the schema."""

    afters: list[str]
    untils: list[str]
    triggers: bool
    version: str | None
    indexed: bool
    raw_webhooks: bool

    def window(self, tenant_id: str | None) -> Slice:
        """Return all that the sweep looks at, as one slice."""
        ranges = tuple(map(Range, self.afters, self.untils))
        return Slice(Place(self.after, LAST_EVENT), Place(self.until, LAST_EVENT), tenant_id, ranges=ranges)

    @property
    def after(self) -> str:
        """After when the first orphans of the window arrived."""
        return self.afters[0]

    @property
    def until(self) -> str:
        """Until when the last orphans of the window arrived."""
        return self.untils[-1]


class Group(NamedTuple):
    """Eligible orphans of one tenant and provider whose keys have one mark; None is those without keys.

    `small` ones are those of many tenants, added up under no name. `better_known` ones have keys of the rule for any
    provider, although their provider has one of its own. `pages`, the same in all, is how many pages the deliveries
    and the stored ids have together.
    """

    rule: str | None
    refused: bool
    tenant_id: str | None
    provider: str | None
    small: bool
    orphans: int
    unmatchable: int
    better_known: int
    pages: int


class Marks(NamedTuple):
    """Which stored keys are out of date: marks that are no longer right, and providers with a rule of their own."""

    stale: Collection[str]
    any_provider: str
    known: Collection[str]

    def parameters(self) -> dict[str, object]:
        """Return the parameters of the statements that tell orphans with keys from those without."""
        return {"stale": array_literal(self.stale), "any": self.any_provider, "known": array_literal(self.known)}


def survey(
    tx: Transaction,
    settings: Settings,
    *,
    ages: Sequence[tuple[float, float]] | None = None,
    after: str | None = None,
    until: str | None = None,
) -> Survey:
    """Return the window of a sweep by the database's clock, cut to what arrived after and until a time.

    Args:
        tx: A transaction.
        settings: Grace and maximum age.
        ages: Ranges of age in seconds, each its older and its younger end, disjoint, the oldest first; None is what
            is past the grace.
        after: A time as Postgres writes it, or None.
        until: Another.
    """
    wanted = [(settings.max_age_minutes * 60, settings.grace_seconds)] if ages is None else ages
    window = {
        "events": tx.name_of("mailglass_events"),
        "index": tx.name_of(deliveries.INDEX),
        "webhooks": tx.name_of("mailglass_webhook_events"),
        "after": after,
        "until": until,
        "oldest": array_literal(str(older) for older, _ in wanted),
        "youngest": array_literal(str(younger) for _, younger in wanted),
        "max_age_minutes": settings.max_age_minutes,
    }
    return Survey(*tx.execute(_SURVEY, window).one())


def groups(tx: Transaction, piece: Slice, marks: Marks) -> list[Group]:
    """Return how many orphans of *piece*, refused or not, are open, by the mark of their keys, tenant and provider."""
    names = {"deliveries": tx.name_of("mailglass_deliveries"), "ids": tx.name_of("mailglass_open_orphan_ids")}
    rows = tx.execute(_GROUPS, {**piece.parameters(), **marks.parameters(), **names})
    return [Group(*row) for row in rows.all()]


def count(tx: Transaction, piece: Slice) -> int:
    """Return how many orphans of *piece*, refused or not, are open."""
    return int(tx.execute(_COUNT, piece.parameters()).scalar_one())


def cuts(tx: Transaction, piece: Slice, size: int, open_now: int) -> list[str]:
    """Return when every *size*-th of the *open_now* orphans of *piece* arrived, except for the last, in one walk."""
    rows = tx.execute(_CUTS, {**piece.parameters(), "size": size, "open": open_now})
    return list(rows.scalars().all())
