"""The open orphans: those of the ledger without a `reconciled` event, kept by triggers on it.

A sweep walks them in order of arrival, in slices, so that memory is bounded by a slice whatever is open. Its cost
follows the orphans and the deliveries: what matches nothing is found out by the database and never leaves it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import deliveries
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.model import LAST_EVENT, Keys, Open, Place, Range, Slice, array_literal

SLICE_ORPHANS = 10_000
"""Orphans whose keys and matches are in memory at once: about 10 MB."""

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

_PAGES = """
SELECT (pg_relation_size(to_regclass(:deliveries)) + pg_relation_size(to_regclass(:ids)))
       / current_setting('block_size')::bigint
"""

# The statements on a slice walk the index of arrival range by range, in the order in which the ranges are given.
# A database of very many tenants has its small groups added up under no name, so that memory stays bounded.
_GROUPS = """
SELECT rule, refused, CASE WHEN place <= 500 THEN tenant_id END, CASE WHEN place <= 500 THEN provider END,
       place > 500 AS small, sum(orphans)::bigint, sum(unmatchable)::bigint, sum(better_known)::bigint
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

# What an orphan waits for since when: its grace, or its delivery if that came later.
_LINKABLE_SINCE = """
SELECT min(greatest(o.arrived_at + make_interval(secs => :grace_seconds),
                    least(d.inserted_at, now()::timestamp)))::text
  FROM unnest(CAST(:event_ids AS uuid[]), CAST(:delivery_ids AS uuid[])) AS k (event_id, delivery_id)
 CROSS JOIN LATERAL (SELECT arrived_at FROM {schema}.mailglass_open_orphans WHERE event_id = k.event_id) AS o
 CROSS JOIN LATERAL (SELECT inserted_at FROM {schema}.mailglass_deliveries WHERE id = k.delivery_id) AS d
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

_WITHOUT_KEYS = """
SELECT o.event_id::text, o.tenant_id, o.arrived_at::text, o.provider, NULL, o.recipient, o.rule, o.recipient_lost
  FROM unnest(CAST(:afters AS timestamp[]), CAST(:untils AS timestamp[])) AS r (after_time, until_time)
 CROSS JOIN LATERAL (
         SELECT * FROM {schema}.mailglass_open_orphans
          WHERE (arrived_at, event_id) > (greatest(r.after_time, CAST(:after_time AS timestamp)),
                                          CASE WHEN r.after_time < :after_time THEN CAST(:after_event AS uuid)
                                               ELSE 'ffffffff-ffff-ffff-ffff-ffffffffffff' END)
            AND arrived_at <= least(r.until_time, CAST(:until_time AS timestamp))
            AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
            AND (refused > 0) = :refused
            AND (rule IS NULL OR rule = ANY (CAST(:stale AS text[]))
                 OR rule = :any AND provider = ANY (CAST(:known AS text[])))
          ORDER BY arrived_at, event_id LIMIT :size) AS o
 LIMIT :size
"""

_ANY_OF = """
SELECT event_id::text, tenant_id, arrived_at::text, provider, NULL, recipient, rule, recipient_lost
  FROM {schema}.mailglass_open_orphans AS o
 WHERE (arrived_at, event_id) > (CAST(:after_time AS timestamp), CAST(:after_event AS uuid))
   AND arrived_at <= CAST(:until_time AS timestamp)
 ORDER BY o.arrived_at, o.event_id LIMIT :size
"""

# Row by row in order of arrival, which ends as soon as enough are found; with scans allowed, by hashing both tables.
_NAMING = """
SELECT o.event_id::text, o.tenant_id, o.arrived_at::text, o.provider,
       ARRAY(SELECT candidate_id FROM {schema}.mailglass_open_orphan_ids AS k
              WHERE k.event_id = o.event_id ORDER BY k.position), o.recipient, o.rule, o.recipient_lost
  FROM unnest(CAST(:afters AS timestamp[]), CAST(:untils AS timestamp[])) AS r (after_time, until_time)
 CROSS JOIN LATERAL (
         SELECT * FROM {schema}.mailglass_open_orphans
          WHERE (arrived_at, event_id) > (greatest(r.after_time, CAST(:after_time AS timestamp)),
                                          CASE WHEN r.after_time < :after_time THEN CAST(:after_event AS uuid)
                                               ELSE 'ffffffff-ffff-ffff-ffff-ffffffffffff' END)
            AND arrived_at <= least(r.until_time, CAST(:until_time AS timestamp))
            AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
            AND (refused > 0) = :refused AND ids > 0
            AND rule <> ALL (CAST(:stale AS text[]))
            AND NOT (rule = :any AND provider = ANY (CAST(:known AS text[])))
            AND EXISTS (SELECT FROM {schema}.mailglass_open_orphan_ids AS k
                          JOIN {schema}.mailglass_deliveries AS d ON d.provider_message_id = k.candidate_id
                         WHERE k.event_id = mailglass_open_orphans.event_id)
          ORDER BY arrived_at, event_id LIMIT :size) AS o
 LIMIT :size
"""

# OFFSET 0, so that each row is probed for, whatever the planner believes of the tables; and no more of one id than a
# batch, because a hundred thousand may be open for it.
_WANTED = """
SELECT o.event_id::text, o.tenant_id, o.arrived_at::text, o.provider,
       ARRAY(SELECT candidate_id FROM {schema}.mailglass_open_orphan_ids AS i
              WHERE i.event_id = o.event_id ORDER BY i.position), o.recipient, o.rule, o.recipient_lost
  FROM (SELECT i.event_id
          FROM unnest(CAST(:ids AS text[])) AS c (id)
         CROSS JOIN LATERAL (SELECT event_id FROM {schema}.mailglass_open_orphan_ids
                              WHERE candidate_id = c.id LIMIT :size) AS i
         UNION
        SELECT event_id FROM unnest(CAST(:event_ids AS uuid[])) AS e (event_id)) AS k
 CROSS JOIN LATERAL (SELECT * FROM {schema}.mailglass_open_orphans WHERE event_id = k.event_id OFFSET 0) AS o
 WHERE o.tenant_id = :tenant_id AND o.refused = 0
   AND o.arrived_at > now()::timestamp - make_interval(mins => :max_age_minutes)
 LIMIT :size
"""

_CLOSE = "DELETE FROM {schema}.mailglass_open_orphans WHERE event_id = ANY (CAST(:event_ids AS uuid[]))"
_FORGET_IDS = "DELETE FROM {schema}.mailglass_open_orphan_ids WHERE event_id = ANY (CAST(:event_ids AS uuid[]))"

# Only for a moment: what is not linked then, the prune removes again.
_REOPEN = """
INSERT INTO {schema}.mailglass_open_orphans (event_id, tenant_id, arrived_at)
SELECT e.id, e.tenant_id, least(e.inserted_at, now()::timestamp)
  FROM unnest(CAST(:event_ids AS uuid[])) AS k (id)
  JOIN {schema}.mailglass_events AS e ON e.id = k.id
 WHERE e.needs_reconciliation AND e.delivery_id IS NULL
   AND NOT EXISTS (SELECT FROM {schema}.mailglass_events AS r
                    WHERE r.idempotency_key = 'reconciled:' || e.id
                      AND r.type = 'reconciled' AND r.tenant_id IS NOT DISTINCT FROM e.tenant_id)
    ON CONFLICT DO NOTHING
"""

_REFUSE = """
UPDATE {schema}.mailglass_open_orphans AS o SET refused = least(o.refused + 1, 32767)
  FROM (SELECT h.event_id FROM {schema}.mailglass_open_orphans AS h
         WHERE h.event_id = ANY (CAST(:event_ids AS uuid[])) FOR UPDATE SKIP LOCKED) AS held
 WHERE o.event_id = held.event_id
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
        """Return all that the sweep is to look at as one slice."""
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
    provider, although their provider has one of its own.
    """

    rule: str | None
    refused: bool
    tenant_id: str | None
    provider: str | None
    small: bool
    orphans: int
    unmatchable: int
    better_known: int


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


def pages(tx: Transaction) -> int:
    """Return how many pages the deliveries and the stored ids have together."""
    names = {"deliveries": tx.name_of("mailglass_deliveries"), "ids": tx.name_of("mailglass_open_orphan_ids")}
    return int(tx.execute(_PAGES, names).scalar_one())


def groups(tx: Transaction, piece: Slice, marks: Marks) -> list[Group]:
    """Return how many orphans of *piece*, refused or not, are open, by the mark of their keys, tenant and provider."""
    rows = tx.execute(_GROUPS, {**piece.parameters(), **marks.parameters()})
    return [Group(*row) for row in rows.all()]


def linkable_since(tx: Transaction, pairs: Sequence[tuple[str, str]], grace_seconds: float) -> str | None:
    """Return since when, in UTC, the first of *pairs* of orphan and delivery that is still open could be linked."""
    parameters = {
        "event_ids": array_literal(event_id for event_id, _ in pairs),
        "delivery_ids": array_literal(delivery_id for _, delivery_id in pairs),
        "grace_seconds": grace_seconds,
    }
    since: str | None = tx.execute(_LINKABLE_SINCE, parameters).scalar_one()
    return since


def count(tx: Transaction, piece: Slice) -> int:
    """Return how many orphans of *piece*, refused or not, are open."""
    return int(tx.execute(_COUNT, piece.parameters()).scalar_one())


def cuts(tx: Transaction, piece: Slice, size: int, open_now: int) -> list[str]:
    """Return when every *size*-th of the *open_now* orphans of *piece* arrived, except for the last, in one walk."""
    rows = tx.execute(_CUTS, {**piece.parameters(), "size": size, "open": open_now})
    return list(rows.scalars().all())


def without_keys(tx: Transaction, piece: Slice, marks: Marks, size: int = SLICE_ORPHANS) -> list[Open]:
    """Return the first *size* orphans of *piece* that have no keys, or keys that are out of date."""
    rows = tx.execute(_WITHOUT_KEYS, {**piece.parameters(), **marks.parameters(), "size": size})
    return [_open(*row) for row in rows.all()]


def any_of(tx: Transaction, piece: Slice, size: int = SLICE_ORPHANS) -> list[Open]:
    """Return the first *size* orphans of *piece*, with their mark but without their ids."""
    return [_open(*row) for row in tx.execute(_ANY_OF, {**piece.parameters(), "size": size}).all()]


def naming(tx: Transaction, piece: Slice, marks: Marks, size: int = SLICE_ORPHANS) -> list[Open]:
    """Return the first *size* orphans of *piece* with keys of which one names a delivery, of whatever tenant."""
    rows = tx.execute(_NAMING, {**piece.parameters(), **marks.parameters(), "size": size})
    return sorted((_open(*row) for row in rows.all()), key=lambda orphan: orphan.place)


def wanted(
    tx: Transaction, tenant_id: str, ids: Collection[str], event_ids: Collection[str], settings: Settings
) -> list[Open]:
    """Return a tenant's open orphans with keys, in their grace or not, that a writer asks for; at most a batch.

    Those that are expired, or that the database has refused before, are left out.

    Args:
        tx: A transaction of this package's scope.
        tenant_id: The tenant.
        ids: Message ids: what has one of them among its keys.
        event_ids: The orphans themselves.
        settings: The maximum age, and the size of a batch.
    """
    parameters = {
        "ids": array_literal(ids),
        "event_ids": array_literal(event_ids),
        "tenant_id": tenant_id,
        "max_age_minutes": settings.max_age_minutes,
        "size": settings.batch_size,
    }
    return [_open(*row) for row in tx.execute(_WANTED, parameters).all()]


def _open(
    event_id: str,
    tenant_id: str,
    arrived_at: str,
    provider: str | None,
    ids: Sequence[str] | None,
    recipient: str | None,
    rule: str | None,
    lost: bool,
) -> Open:
    return Open(event_id, tenant_id, arrived_at, Keys(provider, tuple(ids or ()), recipient, rule, lost))


def close(tx: Transaction, event_ids: Sequence[str], keyed: Sequence[str]) -> None:
    """Take settled orphans out of the open set; *keyed* are those of them that have ids stored."""
    if keyed:
        tx.execute(_FORGET_IDS, {"event_ids": array_literal(keyed)})
    if event_ids:
        tx.execute(_CLOSE, {"event_ids": array_literal(event_ids)})


def refuse(tx: Transaction, event_ids: Sequence[str]) -> None:
    """Note that the database refused to read or link orphans: later sweeps look at them last."""
    tx.execute(_REFUSE, {"event_ids": array_literal(event_ids)})


def reopen(tx: Transaction, event_ids: Sequence[str]) -> None:
    """Put expired orphans back that nothing has reconciled, so that a batch can claim them."""
    tx.execute(_REOPEN, {"event_ids": array_literal(event_ids)})
