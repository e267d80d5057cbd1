"""Retries of a batch, and warnings about triggers that feed a sweep."""

import logging
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

import factories
import mailglass_reconcile
from mailglass_reconcile.errors import DatabaseRefusedError
from mailglass_reconcile.store.database import Database, Transaction
from mailglass_reconcile.store.tables import ledger
from marking import slow_unless
from recording import NAMELESS, WAITING
from waiting import PATIENCE, wait_until

_COUNTED = """
CREATE SEQUENCE public.attempts;
CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  PERFORM nextval('public.attempts');
  RAISE SQLSTATE '{state}';
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON public.mailglass_events FOR EACH ROW WHEN (NEW.type = 'reconciled')
EXECUTE FUNCTION public.refuse();
"""

_PROBES = "SELECT idx_scan FROM pg_stat_xact_user_tables WHERE relname = 'mailglass_deliveries'"

WORDS = "a trigger on mailglass_events is missing or disabled"


@pytest.mark.parametrize("state", slow_unless("40001".__eq__, ["40001", "40P01"]))
def test_a_batch_is_tried_four_times_and_no_more(db, caplog, state):
    """A sequence counts the attempts, because a rollback does not reset it; each retry is logged."""
    factories.delivery(db, "one")
    factories.orphan(db, factories.postmark("one"))
    db.run(_COUNTED.format(state=state))
    with caplog.at_level(logging.WARNING, "mailglass_reconcile"):
        assert mailglass_reconcile.reconcile().linked == 0
    assert db.value("SELECT last_value FROM attempts") == 4
    assert sum("trying again" in record.message for record in caplog.records) == 3
    db.run("DROP TRIGGER refuse ON mailglass_events")
    assert mailglass_reconcile.reconcile().linked == 1


def test_an_application_s_trigger_that_misses_a_table_is_named(db, caplog):
    """Our statements have only pg_catalog in their search_path: a sweep logs it for each link, a call raises it."""
    factories.delivery(db, "one")
    factories.orphan(db, factories.postmark("one"))
    db.run(NAMELESS)
    assert mailglass_reconcile.reconcile().failed == 1
    sentence = "the trigger function public.audit() of your application names something without its schema"
    assert sentence in caplog.text
    sent = [mailglass_reconcile.Sent(recipient="ada@example.com", message_id="two")]
    with pytest.raises(DatabaseRefusedError, match=re.escape(sentence)) as refused, db.engine.begin() as connection:
        mailglass_reconcile.record_send(connection, provider="postmark", sent=sent)
    assert "ALTER FUNCTION public.audit() SET search_path" in str(refused.value)
    db.run("ALTER FUNCTION public.audit() SET search_path = public, pg_temp")
    assert mailglass_reconcile.reconcile().linked == 1


def test_a_sweep_warns_if_the_triggers_of_the_open_set_are_disabled(db, caplog):
    """Without the triggers new orphans are missed, and a sweep without a warning would look healthy."""
    mailglass_reconcile.reconcile()
    assert not [record for record in caplog.records if WORDS in record.message]
    db.run("ALTER TABLE mailglass_events DISABLE TRIGGER mailglass_open_orphans_add")
    mailglass_reconcile.reconcile()
    warned = [record for record in caplog.records if WORDS in record.message]
    assert [record.levelno for record in warned] == [logging.WARNING]
    assert "mailglass-reconcile migrate" in warned[0].message


def test_a_pair_of_two_tenants_is_not_linked(tx):
    """The rule never matches such a pair; the claim compares the tenants too."""
    pair = factories.orphan(tx, factories.postmark("one")), factories.delivery(tx, "one", tenant_id="other")
    assert ledger.link(Transaction(tx.connection, tx.settings), [pair]) == []


def test_a_delivery_is_projected_with_two_probes_for_all_of_its_links(tx):
    """One to compare and one to update, beside the claim of each link."""
    pairs = []
    for id_ in ("one", "two"):
        delivery_id = factories.delivery(tx, id_)
        pairs += [(factories.orphan(tx, factories.postmark(id_)), delivery_id) for _ in range(20)]
    before = tx.value(_PROBES)
    assert len(ledger.link(Transaction(tx.connection, tx.settings), pairs)) == 40
    assert tx.value(_PROBES) - before == 40 + 2 * 2


def test_an_orphan_that_was_linked_before_is_closed_with_its_ids(db):
    """Its `reconciled` event came while the triggers were disabled; no row of it stays in the open set."""
    event_id = factories.orphan(db, factories.postmark("one"))
    mailglass_reconcile.reconcile()
    assert db.value("SELECT count(*) FROM mailglass_open_orphan_ids") > 0
    delivery_id = factories.delivery(db, "one")
    db.run("ALTER TABLE mailglass_events DISABLE TRIGGER mailglass_open_orphans_remove")
    factories.insert(db, events=[factories.reconciled_row(event_id, delivery_id)])
    db.run("ALTER TABLE mailglass_events ENABLE TRIGGER mailglass_open_orphans_remove")
    assert mailglass_reconcile.reconcile().linked == 0
    assert db.value("SELECT count(*) FROM mailglass_open_orphans") == 0
    assert db.value("SELECT count(*) FROM mailglass_open_orphan_ids") == 0


def test_an_orphan_that_another_session_links_while_a_batch_waits_for_its_key_is_closed(db):
    """The batch's own snapshot does not have the event, and the session's trigger has left the orphan to the batch."""
    event_id = factories.orphan(db, factories.postmark("one"))
    delivery_id = factories.delivery(db, "one")

    def link():
        with Database(db.engine, db.settings).writing() as tx:
            return ledger.link(tx, [(event_id, delivery_id)])

    with ThreadPoolExecutor(1) as threads, db.engine.connect() as other:
        other.execute(sa.text("SET LOCAL mailglass_reconcile.closes_orphans = 'on'"))
        factories.insert(other, events=[factories.reconciled_row(event_id, delivery_id)])
        batch = threads.submit(link)
        wait_until(lambda: db.value(WAITING) == 1)
        other.commit()
        [claimed] = batch.result(timeout=PATIENCE)
    assert (claimed.reconciled_id, claimed.closed) == (None, True)
    assert db.value("SELECT count(*) FROM mailglass_open_orphans") == 0
    db.broken.add("I2")  # the other session has projected nothing


@pytest.mark.parametrize("columns", [{"tenant_id": "other"}, {"type": "delivered"}])
def test_an_orphan_whose_key_an_event_of_another_tenant_or_type_holds_stays_open(db, caplog, columns):
    """It cannot be linked, and no event says that it was."""
    event_id = factories.orphan(db, factories.postmark("one"))
    delivery_id = factories.delivery(db, "one")
    factories.insert(db, events=[{**factories.reconciled_row(event_id, delivery_id), **columns}])
    result = mailglass_reconcile.reconcile()
    assert (result.linked, result.failed, result.status, result.remaining) == (0, 1, "partial", 1)
    assert "another kind of event holds its key" in caplog.text
    assert db.value("SELECT event_id::text FROM mailglass_open_orphans") == event_id
