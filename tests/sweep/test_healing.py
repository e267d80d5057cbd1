"""Stored keys that were wrong: of a rule that was corrected, that failed, or that a process did not have."""

import pytest

import commands
import factories
from factories import orphan_row
from mailglass_reconcile import reconcile
from mailglass_reconcile.rules import providers

pytestmark = pytest.mark.slow

KEYS = "SELECT rule, ids, provider FROM mailglass_open_orphans"
IDS = "SELECT array_agg(candidate_id ORDER BY position) FROM mailglass_open_orphan_ids"


@pytest.fixture(autouse=True)
def rules(monkeypatch):
    """Forget the rules that a test registers."""
    monkeypatch.setattr(providers, "_rules", dict(providers._rules))


@pytest.fixture
def orphan(db):
    """An event of a provider whose rule only its adopter knows."""
    return factories.orphan(db, {"provider": "Acme", "ref": "r-1"})


def know(version=1, read="metadata/ref"):
    """Let this process know the adopter's rule, in a version."""

    @providers.key_rule("acme", reads=[read], version=version)
    def acme(ref):
        return [ref]


@pytest.mark.guard
def test_a_corrected_rule_computes_stored_keys_again(db, orphan):
    """By its version, with no command and no wait."""
    know(version=1, read="metadata/reference")
    assert reconcile().unmatchable == 1
    factories.delivery(db, "r-1")
    assert reconcile().unmatchable == 1
    know(version=2)
    assert reconcile().linked == 1


def test_an_earlier_version_leaves_what_a_later_one_has_stored_until_rekey(db, orphan):
    """Two versions in one deployment do not rewrite each other's keys; after a roll-back, rekey does."""
    know(version=2)
    reconcile()
    know(version=1)
    reconcile()
    assert db.value(KEYS) == "acme/2.own2"
    commands.inside("rekey")
    reconcile()
    assert db.value(KEYS) == "acme/2.own1"


def test_a_process_without_the_rule_leaves_its_keys_alone(db, orphan):
    """A sweep from a terminal neither stores others over them nor forgets them, and links by them."""
    know()
    reconcile()
    before = db.rows(KEYS), db.rows(IDS)
    assert before == ([("acme/2.own1", 1, "acme")], [(["r-1"],)])
    assert commands.started(db, "sweep").returncode == 0
    assert (db.rows(KEYS), db.rows(IDS)) == before
    factories.delivery(db, "r-1")
    assert commands.started(db, "sweep").returncode == 0
    assert db.appended() == 1


def test_a_process_with_the_rule_computes_again_what_one_without_it_has_stored(db, orphan):
    """However long ago that was."""
    assert commands.started(db, "sweep").returncode == 0
    assert db.value(KEYS).startswith("*/")
    factories.delivery(db, "r-1")
    know()
    assert reconcile().linked == 1


@pytest.mark.guard
@pytest.mark.parametrize("answer", [ZeroDivisionError(), None, "r-1", [1], ["r"] * 1_000_000])
def test_keys_of_a_rule_that_failed_are_never_stored(db, orphan, answer, caplog):
    """It costs its own events, with one line in the log, until it is corrected, which needs no new version."""
    factories.insert(db, [], [orphan_row({"provider": "acme", "ref": "r-2"})])

    @providers.key_rule("acme", reads=["metadata/ref"])
    def broken(ref):
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert reconcile().unmatchable == 2
    assert len([record for record in caplog.records if "acme/2.own1" in record.message]) == 1
    assert db.rows("SELECT DISTINCT rule FROM mailglass_open_orphans") == [(None,)]
    know()
    factories.delivery(db, "r-1")
    assert reconcile().linked == 1
