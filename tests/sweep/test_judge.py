"""The rule of matching: for many events at once and for one, beside the oracle."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import factories
import oracle
from lending import Uncommitted
from mailglass_reconcile.rules.matching import Keys
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.sweep import judge

TENANTS = st.sampled_from(["a", "b"])
RECIPIENTS = st.sampled_from(["Ada@Example.com", " ada@example.com ", "Ada <ADA@example.com>", "eve@example.com"])
DELIVERIES = st.lists(
    st.tuples(
        TENANTS,
        st.sampled_from(["postmark", "Postmark", None, None, "mailgun"]),
        st.sampled_from(["m1", "m2"]),
        RECIPIENTS,
    ),
    max_size=20,
    unique_by=lambda d: (d[1], d[2]) if d[1] else object(),
)
ORPHANS = st.tuples(
    TENANTS,
    st.lists(st.sampled_from(["m1", "m2", "m3"]), max_size=3, unique=True),
    st.none() | RECIPIENTS.map(str.strip),
    st.booleans(),
)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(deliveries=DELIVERIES, orphan=ORPHANS)
def test_a_match_and_a_decision_are_what_the_oracle_says(
    tx: Uncommitted, deliveries: list[tuple[str, str | None, str, str]], orphan: tuple[str, list[str], str | None, bool]
) -> None:
    """With ids of few deliveries and of more than are read whole; nothing of it is committed."""
    rows = [
        factories.delivery_row(id_, tenant_id=tenant, provider=provider, recipient=recipient)
        for tenant, provider, id_, recipient in deliveries
    ]
    tenant, candidates, recipient, lost = orphan
    known = Keys("postmark", tuple(candidates), recipient, lost=lost and recipient is None)
    transaction = Transaction(tx.connection, tx.settings)
    with tx.connection.begin_nested() as example:
        factories.insert(tx, rows)
        found = judge.match(transaction, [judge.Event("", tenant, known), judge.Event("", "b", known)])
        decision = judge.decide(transaction, factories.new_id(), tenant, known)
        example.rollback()
    read = {"provider": "postmark", "candidate_ids": candidates, "recipient": recipient, "recipient_lost": known.lost}
    stored = [{**row, "provider_message_id": row["message_id"]} for row in rows]
    expected = [oracle.match({**read, "tenant_id": whose}, stored) for whose in (tenant, "b")]
    assert [tuple(verdict) for verdict in found] == expected
    assert (decision.state, decision.delivery_id) == expected[0]


@pytest.mark.parametrize(("own", "state"), [(0, "tenant_mismatch"), (1, "matched"), (2, "ambiguous")])
def test_an_id_of_many_tenants_is_decided_by_ones_own_however_many_there_are(
    tx: Uncommitted, own: int, state: str
) -> None:
    """A decision reads a few of three hundred deliveries; none of the orphan's own tenant is cut off."""
    others = [factories.delivery_row("shared", tenant_id=f"tenant {n}") for n in range(300)]
    factories.insert(tx, [*others, *(factories.delivery_row("shared") for _ in range(own))])
    transaction = Transaction(tx.connection, tx.settings)
    decision = judge.decide(transaction, factories.new_id(), factories.TENANT, Keys("postmark", ("shared",), None))
    assert decision.state == state
    assert len(decision.named) <= 20
