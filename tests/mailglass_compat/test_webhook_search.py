"""Batches that Mailglass stored before 1.0, whose events do not name their raw webhook."""

import base64
import os
import time
from contextlib import contextmanager
from uuid import UUID

import pytest

import factories
import mailglass_reconcile
import meter
import raw_webhooks
from diagnosing import sweeper
from mailglass_reconcile import Sent, reconcile, record_send, runtime
from mailglass_reconcile.mailglass_compat import recipients, webhook_search
from mailglass_reconcile.mailglass_compat.raw_webhooks import BYTES_AT_ONCE, MAX_BYTES
from mailglass_reconcile.ops.explanation import explain
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.database import array_literal

TO, CC = "to@example.com", "cc@example.com"
CONTENTS = "jsonb_array_elements"
"""A part of the only statement that reads the contents of raw webhooks."""


class Batch:
    """A batch of SendGrid; every second event is a bounce of the To, the others are of the Cc."""

    def __init__(
        self,
        number: int = 2,
        *,
        name: str = "a",
        ago: float = 300.0,
        addresses: tuple[str, ...] = (TO, CC),
        min_bytes: int = 0,
    ):
        example = raw_webhooks.payload("sendgrid", "bounced")
        self.at = time.time() - ago
        self.padding = base64.b64encode(os.urandom(min_bytes * 3 // 4 + 3)).decode()  # it cannot be compressed
        self.ids = [f"{name}{n}==" for n in range(number)]
        self.raw = [
            {**example, "sg_event_id": id_, "sg_message_id": f"{name}{n // 2}.filter1", "email": addresses[n % 2]}
            for n, id_ in enumerate(self.ids)
        ]
        self.events = [
            factories.orphan_row(
                {
                    "provider": "sendgrid",
                    "provider_event_id": body["sg_event_id"],
                    "event": "bounce",
                    "sg_message_id": body["sg_message_id"],
                },
                # Mailglass inserts event by event, some milliseconds each.
                id=raw_webhooks.uuid7(self.at + 0.003 * (n + 1)),
                age_seconds=ago,
                type="bounced",
            )
            for n, body in enumerate(self.raw)
        ]
        self.deliveries = [factories.delivery_row(f"{name}{n}", recipient=TO) for n in range((number + 1) // 2)]

    def insert_raw(self, connection, *, seconds_before=0.0):
        """Insert the raw webhook."""
        raw_webhooks.insert(
            connection,
            {"_batch": self.raw, "padding": self.padding},
            id_=raw_webhooks.uuid7(self.at - seconds_before),
            provider="sendgrid",
            at=self.at - seconds_before,
        )

    def insert(self, db, **raw):
        """Insert raw webhook and events in one transaction, and the deliveries of the To."""
        with db.engine.begin() as connection:
            self.insert_raw(connection, **raw)
            factories.insert(connection, events=self.events)
        factories.insert(db, self.deliveries)


@contextmanager
def reading(db, monkeypatch, *, size):
    """Let a sweep read that many bytes for a slice, and collect the statements that read contents."""
    monkeypatch.setattr(recipients.SWEEP, "size", size)
    with meter.statements(db.engine) as statements:
        yield lambda: [statement for statement in statements if CONTENTS in statement]


def counts():
    """Sweep, and return the linked, those of them by the id alone, the mismatches and the ambiguous."""
    result = reconcile()
    return result.linked, result.linked_unchecked, result.recipient_mismatch, result.ambiguous


def test_every_bounce_of_a_cc_in_a_batch_of_500_leaves_the_delivery_of_the_to(mailglass_db):
    """The last event is stored one and a half seconds after the raw webhook, which is read once."""
    Batch(500).insert(mailglass_db)
    with meter.statements(mailglass_db.engine) as statements:
        assert counts() == (250, 0, 250, 0)
    assert len([statement for statement in statements if CONTENTS in statement]) == 1


def test_the_webhook_of_a_slow_transaction_is_found(mailglass_db):
    """Its event was stored nine minutes later; other webhooks came in between."""
    batch = Batch()
    batch.insert(mailglass_db, seconds_before=540)
    Batch(name="b", ago=350).insert(mailglass_db)
    assert counts() == (2, 0, 2, 0)


def test_an_event_written_in_a_savepoint_is_found_by_its_id(mailglass_db):
    """A savepoint has a transaction id of its own."""
    batch = Batch()
    with mailglass_db.engine.begin() as connection:
        batch.insert_raw(connection)
        with connection.begin_nested():
            factories.insert(connection, events=batch.events)
    factories.insert(mailglass_db, batch.deliveries)
    assert (
        mailglass_db.value(
            "SELECT count(*) FROM mailglass_events AS e JOIN mailglass_webhook_events AS w ON w.xmin = e.xmin"
        )
        == 0
    )
    assert counts() == (1, 0, 1, 0)


def test_the_event_of_a_webhook_that_was_updated_later_is_found_by_its_id(mailglass_db):
    """The update gives the row another transaction."""
    Batch().insert(mailglass_db)
    mailglass_db.run("UPDATE mailglass_webhook_events SET status = 'succeeded'")
    assert counts() == (1, 0, 1, 0)


def test_the_event_s_id_decides_among_webhooks_of_one_transaction(mailglass_db):
    """After a restore, all rows may be of one."""
    batches = [Batch(name=name, ago=300 + number) for number, name in enumerate("abcdef")]
    with mailglass_db.engine.begin() as connection:
        for batch in batches:
            batch.insert_raw(connection)
            factories.insert(connection, batch.deliveries, batch.events)
    assert counts() == (6, 0, 6, 0)


def test_a_webhook_of_another_tenant_or_provider_names_no_recipient(mailglass_db):
    """Even if it was written by the same transaction."""
    batch = Batch()
    with mailglass_db.engine.begin() as connection:
        for columns in ({"tenant_id": "other"}, {"provider": "postmark"}):
            raw_webhooks.insert(
                connection,
                {"_batch": batch.raw},
                id_=raw_webhooks.uuid7(batch.at),
                **{"provider": "sendgrid", **columns},
            )
        factories.insert(connection, batch.deliveries, batch.events)
    assert counts() == (2, 2, 0, 0)


def test_for_a_role_that_may_not_read_webhooks_the_id_alone_decides(mailglass_db, admin):
    Batch(40).insert(mailglass_db)
    with sweeper(mailglass_db, admin) as settings:
        mailglass_reconcile.configure(engine=engines.create_engine(settings), settings=settings)
        assert counts() == (40, 40, 0, 0)
    mailglass_db.broken.add("I5")


@pytest.mark.parametrize("is_gone", [True, False])
def test_an_event_waits_until_every_webhook_that_may_be_its_own_was_read(mailglass_db, monkeypatch, is_gone):
    """Here one at a time, the newest first: each sweep continues where the one before has stopped."""
    batch = Batch(1, addresses=(CC, CC), min_bytes=BYTES_AT_ONCE)
    factories.insert(mailglass_db, batch.deliveries, batch.events)
    for number in range(4):
        Batch(name=f"other{number}-", ago=301 + number, min_bytes=BYTES_AT_ONCE).insert_raw(mailglass_db)
    if not is_gone:
        batch.insert_raw(mailglass_db, seconds_before=500)
    with reading(mailglass_db, monkeypatch, size=1) as contents:
        webhooks = 4 if is_gone else 5
        results = [counts() for _ in range(webhooks)]
        assert len(contents()) == webhooks
    assert results[:-1] == [(0, 0, 0, 1)] * (webhooks - 1)
    assert results[-1] == ((1, 1, 0, 0) if is_gone else (0, 0, 1, 0))


def test_while_an_event_waits_explain_says_that_its_raw_webhook_has_not_been_read(mailglass_db, monkeypatch):
    """Its state is ambiguous, until a sweep reads on."""
    batch = Batch(1, addresses=(CC, CC))
    monkeypatch.setattr(recipients.SWEEP, "size", 0)
    monkeypatch.setattr(recipients.CALL, "rows", 0)
    batch.insert(mailglass_db)
    assert counts() == (0, 0, 0, 1)
    assert mailglass_db.value("SELECT state FROM mailglass_open_orphans") == "ambiguous"
    explanation = explain(mailglass_db.database, UUID(batch.events[0]["id"]))
    assert explanation.state == "ambiguous"
    assert "its raw webhook has not been read" in explanation.sentence
    assert "full sweep" in explanation.remedy[0]
    monkeypatch.undo()
    assert counts() == (0, 0, 1, 0)


def test_a_role_that_may_not_read_raw_webhooks_explains_that_an_event_waits(mailglass_db, admin, monkeypatch):
    """A reader's; but a sweep with such a role links, as it does without a privilege on them."""
    monkeypatch.setattr(recipients.SWEEP, "size", 0)
    batch = Batch(1)
    batch.insert(mailglass_db)
    assert counts() == (0, 0, 0, 1)
    with sweeper(mailglass_db, admin) as settings:
        mailglass_reconcile.configure(engine=engines.create_engine(settings), settings=settings)
        explanation = explain(runtime.database(), UUID(batch.events[0]["id"]))
        assert "its raw webhook has not been read" in explanation.sentence
        assert counts() == (1, 1, 0, 0)


def test_a_send_leaves_an_event_whose_webhook_was_not_read_to_the_next_sweep(mailglass_db, monkeypatch):
    """In a caller's transaction, less is read."""
    batch = Batch(1, addresses=(CC, CC))
    with mailglass_db.engine.begin() as connection:
        batch.insert_raw(connection)
        factories.insert(connection, events=batch.events)
    assert reconcile().unmatched == 1
    monkeypatch.setattr(recipients.CALL, "rows", 0)
    with mailglass_db.engine.begin() as connection:
        sent = [Sent(recipient=TO, message_id="a0")]
        [recorded] = record_send(connection, tenant_id=factories.TENANT, provider="sendgrid", sent=sent)
    assert recorded.linked == 0
    assert counts() == (0, 0, 1, 0)


def test_an_event_whose_webhook_is_too_large_or_gone_is_linked_by_the_first_sweep(mailglass_db):
    """Nothing readable is left that may be its own."""
    Batch(20, min_bytes=MAX_BYTES).insert(mailglass_db)
    gone = Batch(1, name="gone", ago=200)
    factories.insert(mailglass_db, gone.deliveries, gone.events)
    assert counts() == (21, 21, 0, 0)


def test_an_event_that_stays_ambiguous_is_searched_once(mailglass_db, monkeypatch):
    """Its webhook is gone, and two deliveries have its id."""
    gone = Batch(1)
    factories.insert(mailglass_db, [*gone.deliveries, factories.delivery_row("a0", recipient=CC)], gone.events)
    Batch(name="other").insert(mailglass_db)
    with reading(mailglass_db, monkeypatch, size=1_000_000) as contents:
        assert counts()[3] == 1
        assert len(contents()) > 0
    with reading(mailglass_db, monkeypatch, size=1_000_000) as contents:
        assert counts()[3] == 1
        assert contents() == []


MANY = """
INSERT INTO mailglass_webhook_events (id, tenant_id, provider, provider_event_id, event_type_raw, status, raw_payload,
                                      received_at, inserted_at, updated_at)
SELECT (lpad(to_hex(CAST(:ms AS bigint) + n), 12, '0') || '70008000' || lpad(to_hex(n), 12, '0'))::uuid,
       :tenant_id, 'sendgrid', gen_random_uuid()::text, 'bounce', 'succeeded', '{"_batch": []}', now(), now(), now()
  FROM generate_series(1, :number) AS n
"""


def insert_many(db, number, *, at):
    """Insert raw webhooks of SendGrid, one each millisecond from a time on."""
    db.run(MANY, number=number, ms=int(at * 1000), tenant_id=factories.TENANT)


def test_an_event_is_found_at_once_among_thousands_of_webhooks_of_these_minutes(mailglass_db):
    """The search begins at the event's time; webhooks that came later are not looked at."""
    batch = Batch()
    insert_many(mailglass_db, 10_000, at=batch.at - 20)
    insert_many(mailglass_db, 10_000, at=batch.at + 2)
    batch.insert(mailglass_db)
    with meter.statements(mailglass_db.engine) as statements:
        assert counts() == (1, 0, 1, 0)
    assert len([statement for statement in statements if "transaction_id IN" in statement]) == 1
    assert len([statement for statement in statements if CONTENTS in statement]) == 1


@pytest.mark.parametrize("transactions", [list(map(str, range(3, 5_000))), None])
def test_a_page_of_webhooks_costs_what_it_has_whatever_lies_behind_it(mailglass_db, transactions):
    """There are 100 ranges of 30 webhooks each; a page has 90, and thousands of transactions are compared."""
    starts = [1_700_000_000 + 10 * number for number in range(100)]
    for start in starts:
        insert_many(mailglass_db, 30, at=start)
    parameters = {
        "first_ids": array_literal(webhook_search._first_id_of(1_000 * start) for start in reversed(starts)),
        "end_ids": array_literal(webhook_search._first_id_of(1_000 * start + 900) for start in reversed(starts)),
        "provider": "sendgrid",
        "tenant_ids": array_literal([factories.TENANT]),
        "transaction_ids": transactions and array_literal(transactions),
        "rows": 90,
    }
    with mailglass_db.database.reading() as tx:
        plan = meter.plan_of(tx, lambda: tx.execute(webhook_search._NEXT, parameters).all())
    assert (plan.indexes, dict(plan.whole)) == ({"mailglass_webhook_events_pkey"}, {})
    assert plan.read < 5 * 30
    assert plan.most <= 2 * 5_000
