"""Looking deliveries up by message id, at a cost that does not grow with the deliveries of one id."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from mailglass_reconcile.rules import addresses
from mailglass_reconcile.rules.matching import Candidate
from mailglass_reconcile.store.database import Function, Transaction, array_literal

INDEX = "mailglass_deliveries_reconcile_idx"

FEW = 10
"""An id of at most this many deliveries is read whole; of a wider one, only what an event asks for."""

OF_IDS = Function("mailglass_reconcile_deliveries_of_ids_v1", ("message_ids",), catches=True)

# The recipient's own; those of the event's provider; those without a provider; and one of an earlier and of a later
# tenant, by the order of their hashes. Of one provider, one id names at most one delivery (a unique index guarantees
# it), so looking for a delivery without a provider passes few others; num_nulls, because the other index serves
# IS NULL, and would read every delivery of the id to find one of another tenant.
_OF_WIDE_IDS = r"""
SELECT q.number - 1, q.id, d.id::text, d.tenant_id, d.provider, left(d.recipient, 1000)
  FROM unnest(CAST(:ids AS text[]), CAST(:tenants AS text[]), CAST(:spellings AS text[]),
              CAST(:keys AS text[])) WITH ORDINALITY AS q (id, tenant_id, spellings, recipient_key, number)
 CROSS JOIN LATERAL (
        (SELECT id, tenant_id, provider, recipient FROM {schema}.mailglass_deliveries
          WHERE hashtextextended(provider_message_id, 0) = hashtextextended(q.id, 0)
            AND hashtextextended(tenant_id, 0) = hashtextextended(q.tenant_id, 0)
            -- As the index has it.
            AND pg_catalog.hashtextextended(coalesce(substring(pg_catalog.regexp_replace(
                  pg_catalog.translate(
                    pg_catalog.left(recipient, 1000) COLLATE pg_catalog."C",
                    E'ABCDEFGHIJKLMNOPQRSTUVWXYZ \t\n\x0b\f\r\x1c\x1d\x1e\x1f\u0085\u00a0\u1680\u2000\u2001\u2002'
                    '\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000',
                    'abcdefghijklmnopqrstuvwxyz'),
                  '^.*<([^<>]*)>$', E'\\1') FROM '^[!-;=?A-~]+@(?:(?!.*xn--)[!-;=?A-~]+$)?'), ''), 0)
                = hashtextextended(q.recipient_key, 0)
            AND provider_message_id = q.id AND tenant_id = q.tenant_id LIMIT :few + 1)
         UNION ALL
        (SELECT d.* FROM unnest(string_to_array(q.spellings, E'\x1f')) AS s (provider)
          CROSS JOIN LATERAL (
                  SELECT id, tenant_id, provider, recipient FROM {schema}.mailglass_deliveries
                   WHERE provider = s.provider AND provider_message_id = q.id LIMIT 1) AS d)
         UNION ALL
        (SELECT id, tenant_id, provider, recipient FROM {schema}.mailglass_deliveries
          WHERE hashtextextended(provider_message_id, 0) = hashtextextended(q.id, 0)
            AND hashtextextended(tenant_id, 0) = hashtextextended(q.tenant_id, 0)
            AND provider_message_id = q.id AND tenant_id = q.tenant_id AND num_nulls(provider) = 1 LIMIT 2)
         UNION ALL
        (SELECT id, tenant_id, provider, recipient FROM {schema}.mailglass_deliveries
          WHERE hashtextextended(provider_message_id, 0) = hashtextextended(q.id, 0)
            AND hashtextextended(tenant_id, 0) < hashtextextended(q.tenant_id, 0)
            AND provider_message_id = q.id AND num_nulls(provider) = 1 LIMIT 1)
         UNION ALL
        (SELECT id, tenant_id, provider, recipient FROM {schema}.mailglass_deliveries
          WHERE hashtextextended(provider_message_id, 0) = hashtextextended(q.id, 0)
            AND hashtextextended(tenant_id, 0) > hashtextextended(q.tenant_id, 0)
            AND provider_message_id = q.id AND num_nulls(provider) = 1 LIMIT 1)) AS d
"""

# Addresses outside ASCII may share a key; Python reads all that have it, and compares.
_OF_SHARED_KEYS = r"""
SELECT q.number - 1, q.id, d.id::text, d.tenant_id, d.provider, left(d.recipient, 1000)
  FROM unnest(CAST(:ids AS text[]), CAST(:tenants AS text[]), CAST(:keys AS text[]))
       WITH ORDINALITY AS q (id, tenant_id, recipient_key, number)
 CROSS JOIN LATERAL (
         SELECT id, tenant_id, provider, recipient FROM {schema}.mailglass_deliveries
          WHERE hashtextextended(provider_message_id, 0) = hashtextextended(q.id, 0)
            AND hashtextextended(tenant_id, 0) = hashtextextended(q.tenant_id, 0)
            -- As the index has it.
            AND pg_catalog.hashtextextended(coalesce(substring(pg_catalog.regexp_replace(
                  pg_catalog.translate(
                    pg_catalog.left(recipient, 1000) COLLATE pg_catalog."C",
                    E'ABCDEFGHIJKLMNOPQRSTUVWXYZ \t\n\x0b\f\r\x1c\x1d\x1e\x1f\u0085\u00a0\u1680\u2000\u2001\u2002'
                    '\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000',
                    'abcdefghijklmnopqrstuvwxyz'),
                  '^.*<([^<>]*)>$', E'\\1') FROM '^[!-;=?A-~]+@(?:(?!.*xn--)[!-;=?A-~]+$)?'), ''), 0)
                = hashtextextended(q.recipient_key, 0)
            AND provider_message_id = q.id AND tenant_id = q.tenant_id) AS d
"""

_LOCK = """
SELECT id::text FROM {schema}.mailglass_deliveries
 WHERE id = ANY (CAST(:ids AS uuid[])) ORDER BY id FOR NO KEY UPDATE
"""

# Against retention, which deletes deliveries without events: sweeps and other writers are not held up.
_HOLD = """
SELECT true FROM {schema}.mailglass_deliveries
 WHERE id = CAST(:id AS uuid) AND tenant_id IS NOT DISTINCT FROM CAST(:tenant_id AS text) FOR KEY SHARE
"""

_SOME_ERASED = """
SELECT EXISTS (
         SELECT FROM unnest(CAST(:ids AS text[])) AS c (id)
          CROSS JOIN LATERAL (
                  SELECT FROM {schema}.mailglass_deliveries
                   WHERE hashtextextended(provider_message_id, 0) = hashtextextended(c.id, 0)
                     AND hashtextextended(tenant_id, 0) = hashtextextended(:tenant_id, 0)
                     AND provider_message_id = c.id AND tenant_id = :tenant_id
                     AND right(recipient, length(:erased)) = :erased LIMIT 1) AS d)
"""


class Question(NamedTuple):
    """What one event asks of a wide id; `recipient` is an address as it is compared."""

    candidate_id: str
    tenant_id: str
    spellings: tuple[str, ...]
    recipient: str | None

    @property
    def key(self) -> str | None:
        """The recipient's key in our index, which may be that of other addresses too."""
        return None if self.recipient is None else addresses.index_key(self.recipient)


def lock(tx: Transaction, ids: Collection[str]) -> set[str]:
    """Lock deliveries for the caller's transaction, in the order of their ids, and return those that are there."""
    return set(tx.execute(_LOCK, {"ids": array_literal(ids)}).scalars()) if ids else set()


def hold(tx: Transaction, tenant_id: str, id_: str) -> bool:
    """Keep a delivery of the tenant from being deleted until the transaction ends; False if there is none."""
    return tx.execute(_HOLD, {"id": id_, "tenant_id": tenant_id}).scalar_one_or_none() is not None


def some_erased(tx: Transaction, tenant_id: str, ids: Iterable[str]) -> bool:
    parameters = {"ids": array_literal(ids), "tenant_id": tenant_id, "erased": addresses.ERASED}
    return bool(tx.execute(_SOME_ERASED, parameters).scalar_one())


def of_ids(tx: Transaction, ids: Iterable[str]) -> list[Candidate]:
    """Return the deliveries that carry one of *ids*, at most `FEW` and one of each."""
    return list(map(Candidate._make, tx.call(OF_IDS, {"message_ids": array_literal(ids)})))


def of_wide_ids(tx: Transaction, questions: Sequence[Question]) -> list[tuple[int, Candidate]]:
    """Return the few deliveries that decide each question, with its number; a delivery may be there twice."""
    keys = [q.key for q in questions]
    rows = tx.execute(
        _OF_WIDE_IDS,
        {
            "ids": array_literal(q.candidate_id for q in questions),
            "tenants": array_literal(q.tenant_id for q in questions),
            "spellings": array_literal("\x1f".join(q.spellings) for q in questions),
            "keys": array_literal(key if key and addresses.is_exact(key) else None for key in keys),
            "few": FEW,
        },
    )
    found = [(number, Candidate(*delivery)) for number, *delivery in rows.all()]
    shared = [n for n, key in enumerate(keys) if key is not None and not addresses.is_exact(key)]
    return found + (_of_shared_keys(tx, questions, shared) if shared else [])


def _of_shared_keys(
    tx: Transaction, questions: Sequence[Question], numbers: Sequence[int]
) -> list[tuple[int, Candidate]]:
    """Answer the questions whose keys others may share; each key is read once, however many questions have it."""
    positions: dict[tuple[str, str, str | None], dict[str | None, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number in numbers:
        question = questions[number]
        positions[question.candidate_id, question.tenant_id, question.key][question.recipient].append(number)
    rows = tx.execute(
        _OF_SHARED_KEYS,
        {
            "ids": array_literal(id_ for id_, _, _ in positions),
            "tenants": array_literal(tenant_id for _, tenant_id, _ in positions),
            "keys": array_literal(key for _, _, key in positions),
        },
    )
    by_recipient = list(positions.values())
    found: dict[int, list[Candidate]] = defaultdict(list)
    for place, *delivery in rows:
        named = Candidate(*delivery)
        for number in by_recipient[place].get(addresses.address(named.recipient), ()):
            if len(found[number]) <= FEW:
                found[number].append(named)
    return [(number, named) for number, deliveries in found.items() for named in deliveries]
