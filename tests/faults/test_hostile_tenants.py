"""Tenants with names that mean something elsewhere: links, messages and counts stay within a tenant."""

import itertools
import logging
import uuid

import pytest

import factories
import mailglass_reconcile
from database import Database
from marking import nightly_unless

pytestmark = [pytest.mark.slow, pytest.mark.version_independent]

OTHER_TENANT = str(uuid.UUID(int=7))
NAMES = (
    "a",
    f"a:{OTHER_TENANT}",
    "a*",
    "*",
    "?",
    "[x]",
    "x",
    "",
    " ",
    "A",
    "a%3A",
    "a\nb",
    "a\x1b[0m",
    "ünïcode",
    "%s{}",
    "'; --",
    "t" * 1_000,
    "a/b",
    "a~b",
    "NULL",
)


def test_no_two_tenants_share_a_channel_or_match_one_another_as_a_pattern() -> None:
    """Names are percent-encoded, except letters, digits, dot, underscore and hyphen."""
    channels = {mailglass_reconcile.events_channel(name) for name in NAMES}
    deliveries = {mailglass_reconcile.events_channel(name, OTHER_TENANT) for name in NAMES}
    assert len(channels | deliveries) == 2 * len(NAMES)
    assert not [c for c in channels | deliveries if set(c) & set("*?[]\n\x1b ^\\")]


def test_orphans_of_hostile_tenants_are_linked_and_published_within_their_own(db: Database) -> None:
    """Every tenant has the same id; each orphan gets its own tenant's delivery, each message its channel."""
    deliveries = {name: factories.delivery(db, "shared", tenant_id=name) for name in NAMES}
    orphans = {name: factories.orphan(db, factories.postmark("shared"), tenant_id=name) for name in NAMES}
    assert mailglass_reconcile.reconcile().linked == len(NAMES)
    linked = db.rows(
        "SELECT tenant_id, delivery_id::text AS delivery, metadata ->> 'reconciled_from_event_id' AS orphan"
        " FROM mailglass_events WHERE type = 'reconciled'"
    )
    assert {(r.tenant_id, r.delivery, r.orphan) for r in linked} == {(n, deliveries[n], orphans[n]) for n in NAMES}


@pytest.mark.parametrize("name", nightly_unless(NAMES[1:4].__contains__, NAMES))
def test_a_sweep_of_one_tenant_counts_and_links_that_tenant_alone(db: Database, name: str) -> None:
    """The tenant's name is compared, never matched as a pattern."""
    for tenant in NAMES:
        factories.delivery(db, "shared", tenant_id=tenant)
        factories.orphan(db, factories.postmark("shared"), tenant_id=tenant)
    result = mailglass_reconcile.reconcile(tenant_id=name)
    assert (result.scanned, result.linked) == (1, 1)
    assert db.value("SELECT tenant_id FROM mailglass_events WHERE type = 'reconciled'") == name


@pytest.mark.guard
def test_another_tenants_id_in_ones_own_webhook_links_nothing_is_counted_and_warned_of(
    db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """For every pair of tenants, the other's deliveries and channels are not touched."""
    caplog.set_level(logging.DEBUG)
    pairs = list(itertools.permutations(NAMES[:8], 2))
    for own, foreign in pairs:
        text = uuid.uuid4().hex
        factories.delivery(db, text, tenant_id=foreign)
        factories.orphan(db, factories.postmark(text), tenant_id=own)
    result = mailglass_reconcile.reconcile()
    assert (result.tenant_mismatch, result.linked) == (len(pairs), 0)
    assert db.witness.messages() == []
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert f"{len(pairs)} events match only another tenant's deliveries" in warnings[0]
    assert db.value("SELECT max(lock_version) FROM mailglass_deliveries") == 1
