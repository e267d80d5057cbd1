"""Looking deliveries up by message id, at a cost that does not grow with the deliveries of one id."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.model import Named, array_literal

INDEX = "mailglass_deliveries_reconcile_idx"

FEW = 10
"""An id of at most this many deliveries is read whole; of a wider one, only what an event asks for."""

_OF_IDS = """
SELECT c.id, d.delivery_id::text, d.tenant_id, d.provider, d.recipient
  FROM unnest(CAST(:ids AS text[])) AS c (id)
 CROSS JOIN LATERAL (
         SELECT id AS delivery_id, tenant_id, provider, left(recipient, 1000) AS recipient
           FROM {schema}.mailglass_deliveries
          WHERE provider_message_id = c.id LIMIT :few + 1) AS d
"""

# The address as the index has it. Of one provider, one id names at most one delivery (a unique index says so), so
# that a look for a delivery without a provider passes few others; num_nulls, because the other index serves
# IS NULL, and would read every delivery of the id to find one of another tenant.
_OF_WIDE_IDS = """
SELECT q.number - 1, q.id, d.id::text, d.tenant_id, d.provider, left(d.recipient, 1000)
  FROM unnest(CAST(:ids AS text[]), CAST(:tenants AS text[]), CAST(:spellings AS text[]),
              CAST(:recipients AS text[])) WITH ORDINALITY AS q (id, tenant_id, spellings, recipient, number)
 CROSS JOIN LATERAL (
        (SELECT id, tenant_id, provider, recipient FROM {schema}.mailglass_deliveries
          WHERE provider_message_id = q.id AND tenant_id = q.tenant_id
            AND lower(btrim(CASE WHEN right(btrim(recipient), 1) = '>'
                                 THEN coalesce(substring(recipient FROM '<([^<>]*)>\\s*$'), recipient)
                                 ELSE recipient END)) = lower(q.recipient) LIMIT :few + 1)
         UNION ALL
        (SELECT d.* FROM unnest(string_to_array(q.spellings, E'\\x1f')) AS s (provider)
          CROSS JOIN LATERAL (
                  SELECT id, tenant_id, provider, recipient FROM {schema}.mailglass_deliveries
                   WHERE provider = s.provider AND provider_message_id = q.id LIMIT 1) AS d)
         UNION ALL
        (SELECT id, tenant_id, provider, recipient FROM {schema}.mailglass_deliveries
          WHERE provider_message_id = q.id AND tenant_id = q.tenant_id AND num_nulls(provider) = 1 LIMIT 2)
         UNION ALL
        (SELECT id, tenant_id, provider, recipient FROM {schema}.mailglass_deliveries
          WHERE provider_message_id = q.id AND tenant_id < q.tenant_id AND num_nulls(provider) = 1 LIMIT 1)
         UNION ALL
        (SELECT id, tenant_id, provider, recipient FROM {schema}.mailglass_deliveries
          WHERE provider_message_id = q.id AND tenant_id > q.tenant_id AND num_nulls(provider) = 1 LIMIT 1)) AS d
"""


class Question(NamedTuple):
    """What one event asks of a wide id."""

    candidate_id: str
    tenant_id: str
    spellings: tuple[str, ...]
    recipient: str | None


def of_ids(tx: Transaction, ids: Iterable[str]) -> list[Named]:
    """Return the deliveries that carry one of *ids*, at most `FEW` and one of each."""
    rows = tx.execute(_OF_IDS, {"ids": array_literal(ids), "few": FEW})
    return [Named(*row) for row in rows.all()]


def of_wide_ids(tx: Transaction, questions: Sequence[Question]) -> list[tuple[int, Named]]:
    """Return the few deliveries that decide each question, with its number; a delivery may be there twice."""
    rows = tx.execute(
        _OF_WIDE_IDS,
        {
            "ids": array_literal(q.candidate_id for q in questions),
            "tenants": array_literal(q.tenant_id for q in questions),
            "spellings": array_literal("\x1f".join(q.spellings) for q in questions),
            "recipients": array_literal(q.recipient for q in questions),
            "few": FEW,
        },
    )
    return [(number, Named(*delivery)) for number, *delivery in rows.all()]
