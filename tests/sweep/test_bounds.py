"""What leaves the database in a sweep is bounded, and who else may create in the schema is warned of."""

import json
import logging

import pytest

import factories
from mailglass_reconcile import reconcile
from mailglass_reconcile.sweep import reconciler


def test_a_type_of_a_megabyte_is_linked_and_its_message_stays_small(db, subscriber):
    """The ledger bounds no text; a message holds 512 characters of a type."""
    factories.delivery(db, "m")
    factories.orphan(db, factories.postmark("m"), type="x" * 1_000_000)
    assert reconcile().linked == 1
    message = next(m for m in iter(lambda: subscriber.get_message(timeout=5), None) if m["type"] == "pmessage")
    assert len(message["data"]) < 2_000
    assert json.loads(message["data"])["meta"]["type"] == "x" * 512


def test_a_sweep_warns_if_anybody_else_may_create_in_the_schema(db, caplog):
    """As PUBLIC may up to PostgreSQL 14."""
    with caplog.at_level(logging.WARNING):
        reconcile()
    assert not [record for record in caplog.records if "may create objects" in record.message]
    db.run("GRANT CREATE ON SCHEMA public TO PUBLIC")
    reconcile()
    (warned,) = [record.message for record in caplog.records if "may create objects" in record.message]
    assert warned == "PUBLIC may create objects in schema public: REVOKE CREATE ON SCHEMA public FROM PUBLIC"


@pytest.mark.parametrize("tenant", ["a\x00b", "half \ud800", "x" * 2_000, "line\nend"])
def test_a_tenant_that_nothing_can_have_is_swept_and_finds_nothing(db, tenant):
    """As it was given, without a traceback; other tenants are left alone."""
    factories.delivery(db, "m")
    factories.orphan(db, factories.postmark("m"))
    result = reconciler.prepare(tenant).run()
    assert (result.status, result.scanned, result.remaining) == ("ok", 0, 0)
