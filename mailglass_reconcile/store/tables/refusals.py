"""The refused webhooks of each provider, as the processes that receive webhooks have counted them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from mailglass_reconcile.store.database import Transaction, column_arrays

MAX_PERIODS = 1_000
RETENTION_DAYS = 30

# They begin anew after an accepted webhook, or after an hour without a refused one.
_ADD = """
INSERT INTO {schema}.mailglass_reconcile_refusals AS r
       (provider, tenant_id, since, last_at, refused, failed, cause)
SELECT n.provider, n.tenant_id, now()::timestamp, now()::timestamp, n.refused, n.failed, n.cause
  FROM unnest(CAST(:providers AS text[]), CAST(:tenants AS text[]), CAST(:refused AS bigint[]),
              CAST(:failed AS bigint[]), CAST(:causes AS text[])) AS n (provider, tenant_id, refused, failed, cause)
 ORDER BY n.provider, n.tenant_id
    ON CONFLICT (provider, tenant_id) DO UPDATE
   SET (since, refused, failed) = (
         SELECT CASE WHEN is_new THEN excluded.since ELSE r.since END,
                CASE WHEN is_new THEN 0 ELSE r.refused END + excluded.refused,
                CASE WHEN is_new THEN 0 ELSE r.failed END + excluded.failed
           FROM (SELECT coalesce(r.accepted_at >= r.since, false)
                        OR r.last_at < excluded.last_at - interval '1 hour' AS is_new) AS period),
       last_at = excluded.last_at, cause = excluded.cause
"""

# Without a row, there is no refusal that an accepted webhook ends.
_ACCEPT = """
UPDATE {schema}.mailglass_reconcile_refusals AS r SET accepted_at = now()::timestamp
  FROM unnest(CAST(:providers AS text[]), CAST(:tenants AS text[])) AS n (provider, tenant_id)
 WHERE r.provider = n.provider AND r.tenant_id = n.tenant_id
   AND (r.accepted_at IS NULL OR r.accepted_at < r.since OR r.accepted_at < now()::timestamp - interval '10 minutes')
"""

_LASTING = """
SELECT provider, tenant_id, refused + failed AS webhooks, cause,
       extract(epoch FROM now()::timestamp - since)::float8 AS seconds
  FROM {schema}.mailglass_reconcile_refusals
 WHERE last_at > now()::timestamp - interval '1 hour' AND last_at >= since + interval '10 minutes'
   AND coalesce(accepted_at < since, true)
 ORDER BY provider, since, tenant_id LIMIT :size
"""

DELETE_OLD = """
DELETE FROM {schema}.mailglass_reconcile_refusals
 WHERE ctid = ANY (ARRAY(
         SELECT ctid FROM {schema}.mailglass_reconcile_refusals
          WHERE last_at < now()::timestamp - make_interval(days => CAST(:days AS integer))
          LIMIT :size))
"""
"""For `in_batches`: delete what was last refused more than so many days ago."""


class Source(NamedTuple):
    """A provider's canonical name, and the tenant if the provider's secrets depend on it; otherwise empty."""

    provider: str
    tenant_id: str


class Refused(NamedTuple):
    """Webhooks that were refused for good or until they are repeated, and the last one's cause, in a word of ours."""

    source: Source
    refused: int
    failed: int
    cause: str


class RefusalPeriod(NamedTuple):
    """At least ten minutes in which webhooks were refused, the last one within the hour, and none was accepted.

    Attributes:
        provider: The provider's canonical name.
        tenant_id: The tenant, or empty if the secrets do not depend on it.
        webhooks: Webhooks that were refused.
        cause: The cause of the last one, in a word of ours.
        seconds: Seconds since the first one.
    """

    provider: str
    tenant_id: str
    webhooks: int
    cause: str
    seconds: float


def add(tx: Transaction, refused: Iterable[Refused]) -> None:
    """Add refused webhooks, at least one, by the database's clock."""
    rows = [(*row.source, str(row.refused), str(row.failed), row.cause) for row in refused]
    tx.execute(_ADD, column_arrays(("providers", "tenants", "refused", "failed", "causes"), rows))


def accept(tx: Transaction, sources: Iterable[Source]) -> None:
    """Store that webhooks of *sources*, at least one, were accepted, if some were refused before."""
    tx.execute(_ACCEPT, column_arrays(("providers", "tenants"), sources))


def load_lasting(tx: Transaction) -> list[RefusalPeriod]:
    """Return the refusals that last, by provider; of each the longest first."""
    return [RefusalPeriod(*row) for row in tx.execute(_LASTING, {"size": MAX_PERIODS})]
