"""The open set: orphans without a `reconciled` event, kept by triggers on the ledger.

A sweep walks it in order of arrival, in slices, so that memory is bounded by a slice whatever is open.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.model import (
    SEPARATOR,
    Claimed,
    Keys,
    Place,
    Slice,
    Survey,
    Values,
    array_literal,
    keys_parameters,
)

SLICE_ORPHANS = 10_000
"""Orphans whose matches are in memory at once: about 10 MB."""

_SURVEY = """
SELECT w.after_time::text AS after, w.until_time::text AS until,
       (SELECT count(*) FROM {schema}.mailglass_open_orphans AS o
         WHERE o.arrived_at > w.after_time AND o.arrived_at <= w.until_time
           AND (CAST(:tenant_id AS text) IS NULL OR o.tenant_id = :tenant_id)) AS eligible,
       (SELECT count(*) = 2 FROM pg_trigger AS t
         WHERE t.tgrelid = to_regclass(:events) AND t.tgenabled IN ('O', 'A')
           AND t.tgname IN ('mailglass_open_orphans_add', 'mailglass_open_orphans_remove')) AS triggers,
       (SELECT max(version_num) FROM {schema}.mailglass_reconcile_version) AS version
  FROM (SELECT now()::timestamp - make_interval(mins => :max_age_minutes) AS after_time,
               now()::timestamp - make_interval(secs => :grace_seconds) AS until_time) AS w
"""

_COUNT = """
SELECT count(*) FROM {schema}.mailglass_open_orphans
 WHERE (arrived_at, event_id) > (CAST(:after_time AS timestamp), CAST(:after_event AS uuid))
   AND (arrived_at, event_id) <= (CAST(:until_time AS timestamp), CAST(:until_event AS uuid))
   AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
"""

_SLICE_END = """
SELECT o.arrived_at::text, o.event_id::text FROM {schema}.mailglass_open_orphans AS o
 WHERE (o.arrived_at, o.event_id) > (CAST(:after_time AS timestamp), CAST(:after_event AS uuid))
   AND (o.arrived_at, o.event_id) <= (CAST(:until_time AS timestamp), CAST(:until_event AS uuid))
   AND (CAST(:tenant_id AS text) IS NULL OR o.tenant_id = :tenant_id)
 ORDER BY o.arrived_at, o.event_id
OFFSET :size - 1 LIMIT 1
"""

_READ_VALUES = """
SELECT o.event_id::text,
       jsonb_typeof(e.metadata -> 'provider') || ':' || left(e.metadata ->> 'provider', 513) AS provider,
       jsonb_typeof(e.metadata -> 'recipient') || ':' || left(btrim(e.metadata ->> 'recipient'), 513) AS recipient,
       jsonb_typeof(e.metadata -> 'email') || ':' || left(btrim(e.metadata ->> 'email'), 513) AS email,
       ARRAY(SELECT coalesce(jsonb_typeof(value) || ':' || left(btrim(value #>> '{}', E' \\t\\r\\n'), 513), '')
               FROM unnest(string_to_array(
                      coalesce(CAST(:reads AS jsonb) ->> lower(left(e.metadata ->> 'provider', 513)),
                               CAST(:reads AS jsonb) ->> '*'), E'\\x1f')) AS path,
                    -- OFFSET 0: looked up once, and not for its type and its text each
                    LATERAL (SELECT CASE WHEN starts_with(path, 'metadata/') THEN e.metadata
                                         ELSE e.normalized_payload END
                                    #> (string_to_array(path, '/'))[2:] AS value OFFSET 0) AS v) AS ids
  FROM {schema}.mailglass_open_orphans AS o
  JOIN {schema}.mailglass_events AS e ON e.id = o.event_id
 WHERE o.candidate_ids IS NULL
   AND (o.arrived_at, o.event_id) > (CAST(:after_time AS timestamp), CAST(:after_event AS uuid))
   AND (o.arrived_at, o.event_id) <= (CAST(:until_time AS timestamp), CAST(:until_event AS uuid))
   AND (CAST(:tenant_id AS text) IS NULL OR o.tenant_id = :tenant_id)
"""

_STORE_KEYS = """
WITH held AS (
  SELECT k.* FROM unnest(CAST(:event_ids AS uuid[]), CAST(:providers AS text[]), CAST(:candidate_ids AS text[]),
                         CAST(:recipients AS text[])) AS k (event_id, provider, candidate_ids, recipient)
    JOIN {schema}.mailglass_open_orphans AS o ON o.event_id = k.event_id AND o.candidate_ids IS NULL
     FOR UPDATE OF o SKIP LOCKED
)
UPDATE {schema}.mailglass_open_orphans AS o
   SET provider = held.provider, candidate_ids = string_to_array(held.candidate_ids, E'\\x1f'),
       recipient = coalesce(o.recipient, held.recipient)
  FROM held WHERE o.event_id = held.event_id
"""

_CLAIM = """
SELECT o.event_id::text, d.id::text AS delivery_id, o.tenant_id, o.arrived_at::text, e.type,
       to_json(e.occurred_at) #>> '{}' AS occurred_at
  FROM unnest(CAST(:event_ids AS uuid[]), CAST(:delivery_ids AS uuid[])) AS m (event_id, delivery_id)
  JOIN {schema}.mailglass_open_orphans AS o ON o.event_id = m.event_id
  JOIN {schema}.mailglass_events AS e ON e.id = o.event_id
  -- IS NOT DISTINCT FROM, for no index serves it: with stale statistics, one that begins with the tenant looks cheap.
  JOIN {schema}.mailglass_deliveries AS d ON d.id = m.delivery_id AND d.tenant_id IS NOT DISTINCT FROM o.tenant_id
 ORDER BY d.id, o.event_id
   FOR UPDATE OF o SKIP LOCKED
   FOR NO KEY UPDATE OF d SKIP LOCKED
"""

_CLOSE = "DELETE FROM {schema}.mailglass_open_orphans WHERE event_id = ANY (CAST(:event_ids AS uuid[]))"

_REMEMBER = """
INSERT INTO {schema}.mailglass_open_orphans AS o (event_id, tenant_id, arrived_at, provider, candidate_ids, recipient)
VALUES (CAST(:event_id AS uuid), :tenant_id, now()::timestamp, :provider,
        string_to_array(:candidate_ids, E'\\x1f'), :recipient)
    ON CONFLICT (event_id) DO UPDATE
   SET provider = excluded.provider, candidate_ids = excluded.candidate_ids, recipient = excluded.recipient
"""


def survey(tx: Transaction, settings: Settings, tenant_id: str | None) -> Survey:
    """Return the window of eligible orphans by the database's clock, and how many are open in it now."""
    window = {
        "events": tx.name_of("mailglass_events"),
        "tenant_id": tenant_id,
        "grace_seconds": settings.grace_seconds,
        "max_age_minutes": settings.max_age_minutes,
    }
    return Survey(*tx.execute(_SURVEY, window).one())


def count(tx: Transaction, piece: Slice) -> int:
    """Return how many orphans of *piece* are open."""
    return int(tx.execute(_COUNT, piece.parameters()).scalar_one())


def slice_end(tx: Transaction, whole: Slice, size: int = SLICE_ORPHANS) -> Place:
    """Return the place of the *size*-th open orphan of *whole*, or its end where it holds fewer."""
    row = tx.execute(_SLICE_END, {**whole.parameters(), "size": size}).one_or_none()
    return Place(*row) if row else whole.until


def read_values(tx: Transaction, piece: Slice, reads: Mapping[str, Sequence[str]]) -> Iterator[Values]:
    """Yield the values that the keys of those orphans of *piece* are computed from that have none yet.

    Args:
        tx: A transaction of this package's scope.
        piece: The orphans to look at.
        reads: By provider in lower case (`*`: any other), paths `metadata/…` or `normalized_payload/…`; of each
            value no more than its JSON type and 513 characters leave the database.
    """
    paths = {provider: SEPARATOR.join(wanted) for provider, wanted in reads.items()}
    rows = tx.execute(_READ_VALUES, {**piece.parameters(), "reads": json.dumps(paths)})
    return (Values(*row) for row in rows.all())


def store_keys(tx: Transaction, computed: Mapping[str, Keys]) -> None:
    """Store keys with the orphans that are still open, so that no later sweep computes them again."""
    tx.execute(_STORE_KEYS, keys_parameters(computed))


def claim(tx: Transaction, pairs: Sequence[tuple[str, str]]) -> list[Claimed]:
    """Lock those orphans and deliveries of *pairs* that nobody else holds, and return them, by delivery id.

    Waits for nobody. A pair is left out where the orphan is no longer open, the delivery is gone or of another
    tenant, or either is locked.
    """
    parameters = {
        "event_ids": array_literal(event_id for event_id, _ in pairs),
        "delivery_ids": array_literal(delivery_id for _, delivery_id in pairs),
    }
    return [Claimed(*row) for row in tx.execute(_CLAIM, parameters).all()]


def close(tx: Transaction, event_ids: Iterable[str]) -> None:
    """Take settled orphans out of the open set, whoever has settled them."""
    tx.execute(_CLOSE, {"event_ids": array_literal(event_ids)})


def remember(tx: Transaction, event_id: str, tenant_id: str, known: Keys) -> None:
    """Keep with an orphan that was just inserted what its writer knows: its keys, and its recipient."""
    row = {
        "event_id": event_id,
        "tenant_id": tenant_id,
        "provider": known.provider,
        "candidate_ids": SEPARATOR.join(known.candidate_ids),
        "recipient": known.recipient,
    }
    tx.execute(_REMEMBER, row)
