"""Looking deliveries up by message id, at a cost that does not grow with the deliveries of one id."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from mailglass_reconcile.rules.matching import DeliveryRow
from mailglass_reconcile.store.database import Function, Reading, Transaction, array_literal, column_arrays

INDEX = "mailglass_deliveries_reconcile_idx"

FIND = Function(
    "mailglass_reconcile_find_deliveries_v1",
    ("message_ids", "tenants", "recipient_keys"),
    catches=True,
)

_LOCK = """
SELECT id::text FROM {schema}.mailglass_deliveries
 WHERE id = ANY (CAST(:ids AS uuid[])) ORDER BY id FOR NO KEY UPDATE
"""


class Question(NamedTuple):
    """A question for the deliveries of one candidate id.

    Attributes:
        candidate_id: The id.
        tenant_id: The event's tenant.
        recipient_key: The key of its recipient, from `make_index_key`; None if that is unknown.
    """

    candidate_id: str
    tenant_id: str
    recipient_key: str | None


def lock(tx: Transaction, ids: Collection[str]) -> set[str]:
    """Lock deliveries for the caller's transaction, in the order of their ids, and return those that exist."""
    return set(tx.execute(_LOCK, {"ids": array_literal(ids)}).scalars()) if ids else set()


class Answers(NamedTuple):
    """The deliveries that decide questions.

    Attributes:
        by_id: All deliveries of each id that is not wide; those with a provider of each wide id.
        by_question: For each question about a wide id, those without a provider that decide it, by their ids.
    """

    by_id: Mapping[str, Collection[DeliveryRow]]
    by_question: Mapping[Question, Mapping[str, DeliveryRow]]

    def of(self, question: Question) -> Collection[DeliveryRow]:
        """Return the deliveries that decide a question."""
        return (*self.by_id.get(question.candidate_id, ()), *self.by_question.get(question, {}).values())


def find(reading: Reading, questions: Sequence[Question]) -> Answers:
    """Return the deliveries that decide each question, all from one transaction."""
    by_id: dict[str, list[DeliveryRow]] = {}
    by_question: dict[Question, dict[str, DeliveryRow]] = {}
    if not questions:
        return Answers(by_id, by_question)
    parameters = column_arrays(FIND.arguments, questions)
    with reading() as tx:
        rows = tx.call(FIND, parameters)
    for number, *columns in rows:
        delivery = DeliveryRow._make(columns)
        if number is None:
            by_id.setdefault(delivery.candidate_id, []).append(delivery)
        else:
            by_question.setdefault(questions[number - 1], {})[delivery.delivery_id] = delivery
    return Answers(by_id, by_question)
