"""A sweep reads a bounded amount from the database."""

import json
import logging
import uuid

import pytest
import sqlalchemy as sa

import factories
import mailglass_reconcile
from mailglass_reconcile import key_rule, reconcile
from mailglass_reconcile.rules import providers
from mailglass_reconcile.store import engines
from mailglass_reconcile.sweep import reconciler


def test_a_type_of_a_megabyte_is_linked_and_its_message_stays_small(db, subscriber):
    """The ledger does not limit a text; a message has the first 512 characters of a type."""
    factories.delivery(db, "m")
    factories.orphan(db, factories.postmark("m"), type="x" * 1_000_000)
    assert reconcile().linked == 1
    message = next(m for m in iter(lambda: subscriber.get_message(timeout=5), None) if m["type"] == "pmessage")
    assert len(message["data"]) < 2_000
    assert json.loads(message["data"])["meta"]["type"] == "x" * 512


@pytest.mark.parametrize(
    "tenant",
    ["a\x00b", *(pytest.param(name, marks=pytest.mark.slow) for name in ("half \ud800", "x" * 2_000, "line\nend"))],
)
def test_a_tenant_id_that_no_row_can_have_is_swept_and_finds_nothing(db, tenant):
    """There is no traceback, and other tenants are not swept."""
    factories.delivery(db, "m")
    factories.orphan(db, factories.postmark("m"))
    result = reconciler.prepare(tenant).run()
    assert (result.status, result.scanned, result.remaining) == ("ok", 0, 0)


def test_a_missing_privilege_ends_a_sweep_with_one_line_that_has_the_grant(db, admin, caplog):
    """It is not bad data: no orphan is retried alone or marked as refused."""
    numbers = [str(n) for n in range(20)]
    factories.insert(
        db, map(factories.delivery_row, numbers), [factories.orphan_row(factories.postmark(n)) for n in numbers]
    )
    role = f"mgtest_role_{uuid.uuid4().hex[:12]}"
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {role}")
    try:
        db.run(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}")
        db.run(f"REVOKE INSERT ON mailglass_events FROM {role}")
        acting = engines.create_engine(db.settings)
        sa.event.listen(acting, "connect", lambda raw, _: (raw.execute(f"SET ROLE {role}"), raw.commit()))
        mailglass_reconcile.configure(engine=acting, settings=db.settings)
        with caplog.at_level(logging.ERROR, "mailglass_reconcile"):
            result = reconcile()
    finally:
        mailglass_reconcile.configure(engine=db.engine, settings=db.settings)
        db.run(f"DROP OWNED BY {role}")
        with admin.connect() as connection:
            connection.exec_driver_sql(f"DROP ROLE {role}")
    assert (result.status, result.linked, result.failed) == ("failed", 0, 0)
    (line,) = [record.message for record in caplog.records]
    assert line.endswith(f"run GRANT INSERT ON public.mailglass_events TO {role}")
    assert db.value("SELECT max(refused) FROM mailglass_open_orphans") == 0


TRANSACTIONS = """
SELECT count(*) FROM pg_stat_activity
 WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid()
"""


def test_a_sweep_computes_keys_outside_of_its_transactions(db, monkeypatch):
    """A slow rule must not hold up those who alter the tables."""
    monkeypatch.setattr(providers, "_rules", dict(providers._rules))
    open_transactions = []

    @key_rule("postmark", reads=("metadata/message_id",))
    def read_slowly(message_id):
        open_transactions.append(db.value(TRANSACTIONS))
        return [message_id]

    factories.insert_pairs(db, 3)
    assert reconcile().linked == 3
    assert open_transactions == [0] * 3


def test_all_statements_of_a_reading_transaction_see_the_same_rows(db):
    """A delivery that is committed between two statements is seen by neither."""
    count = "SELECT count(*) FROM {schema}.mailglass_deliveries"
    with db.database.reading() as tx:
        before = tx.execute(count).scalar_one()
        factories.delivery(db)
        assert tx.execute(count).scalar_one() == before
