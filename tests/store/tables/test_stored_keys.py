"""Keys stored with an open orphan: how they are computed, when again, and by which process never."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

import commands
import factories
import mailglass_reconcile
import raw_webhooks
from factories import delivery_row, insert, orphan_row
from mailglass_reconcile import key_rule, reconcile
from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.rules.matching import Keys
from mailglass_reconcile.store.tables import stored_keys
from mailglass_reconcile.store.tables.stored_keys import StoredKeys
from mailglass_reconcile.sweep import reconciler
from waiting import wait_until

STORED = "SELECT rank, ids FROM mailglass_open_orphans"


@pytest.fixture(autouse=True)
def rules(monkeypatch):
    """Let a test register rules, and remove them afterwards."""
    monkeypatch.setattr(provider_rules, "_rules", dict(provider_rules._rules))


def acme(version, suffix=""):
    """Register a rule of the provider `acme`."""

    @key_rule("acme", reads=("metadata/number",), version=version)
    def rule(number):
        """Add a suffix."""
        return [f"{number}{suffix}"]


def test_keys_of_a_process_without_the_rule_are_replaced_by_one_with_it(db):
    """Somebody may sweep from a terminal without the application's module."""
    insert(db, [delivery_row("7")], [orphan_row({"provider": "acme", "number": 7})])
    assert reconcile().unmatchable == 1
    assert db.value("SELECT rank FROM mailglass_open_orphans") == provider_rules.rank_of(None)
    acme(1)
    assert reconcile().linked == 1


def test_keys_of_a_rule_are_not_overwritten_by_a_process_that_lacks_it(db):
    """It uses them as they are."""
    acme(1)
    insert(db, [], [orphan_row({"provider": "acme", "number": 7})])
    assert reconcile().unmatched == 1
    before = db.rows(STORED)
    del provider_rules._rules["acme"]
    assert reconcile().unmatched == 1
    assert db.rows(STORED) == before
    factories.delivery(db, "7")
    assert reconcile().linked == 1


def test_keys_of_an_adopters_rule_outrank_a_built_in_one_of_a_later_release(db):
    """A release that computes all keys again leaves those of a rule that this process lacks."""
    builtin = provider_rules.rule_of("postmark")
    key_rule("postmark", reads=("metadata/number",))(lambda number: [number])
    insert(db, [], [orphan_row({"provider": "postmark", "number": 7})])
    assert reconcile().unmatched == 1
    db.run("UPDATE mailglass_open_orphans SET rank = :rank", rank=provider_rules.rank_of("postmark") - (1 << 30))
    provider_rules._rules["postmark"] = builtin
    factories.delivery(db, "7")
    assert reconcile().linked == 1


def test_keys_from_before_the_id_over_smtp_was_read_are_computed_again(db):
    """All stored keys are of an earlier generation, an adopter's too."""
    acme(1)
    orphans = [
        orphan_row({"provider": provider, "number": 7, "message_id": "7", "smtp_message_id": f"<{provider}@x.example>"})
        for provider in ("acme", "postal")
    ]
    insert(db, [], orphans)
    assert reconcile().unmatched == 2
    db.run("UPDATE mailglass_open_orphans SET rank = rank - CAST(:generation AS bigint), ids = 1", generation=1 << 30)
    db.run("DELETE FROM mailglass_open_orphan_ids WHERE position > 1")
    for provider in ("acme", "postal"):
        factories.delivery(db, f"{provider}@x.example", provider=provider)
    assert reconcile().linked == 2


def test_a_later_version_of_a_rule_computes_stored_keys_again(db):
    """The first version was wrong."""
    acme(1, suffix="-wrong")
    insert(db, [delivery_row("7")], [orphan_row({"provider": "acme", "number": 7})])
    assert reconcile().unmatched == 1
    acme(2)
    assert reconcile().linked == 1


def test_keys_of_a_later_version_replace_the_stored_ones(db):
    """Otherwise each sweep would compute them again, and a send would not find the event."""
    insert(db, [], [orphan_row({"provider": "acme", "number": 7})])
    for version, suffix in ((1, "-wrong"), (2, "")):
        acme(version, suffix)
        assert reconcile().unmatched == 1
    assert db.rows(STORED) == [(provider_rules.rank_of("acme"), 1)]
    assert db.rows(IDS) == [(["7"],)]


def test_orphans_whose_rule_was_added_are_counted_once(db):
    """Their stored keys have no usable id; they are matched again."""
    insert(db, [], [orphan_row({"provider": "acme", "number": n}) for n in range(12)])
    assert reconcile().unmatchable == 12
    acme(1)
    result = reconcile()
    assert (result.scanned, result.unmatched, result.unmatchable) == (12, 12, 0)


def test_a_rule_that_failed_stores_nothing_and_is_retried(db, caplog):
    """One line in the log has the rule and the number of orphans."""

    @key_rule("acme", reads=("metadata/number",))
    def fails(number):
        """Raise."""
        raise RuntimeError(number)

    insert(db, [delivery_row("7")], [orphan_row({"provider": "acme", "number": 7}) for _ in range(3)])
    assert reconcile().unmatchable == 3
    assert db.rows(STORED) == [(None, None)] * 3
    messages = [record.message for record in caplog.records if "the key rule acme" in record.message]
    assert len(messages) == 1
    assert "(3 orphans)" in messages[0]
    acme(1)
    assert reconcile().linked == 3


def test_rekey_computes_the_keys_again_under_the_same_version(db):
    """A rule was corrected without a new version."""
    acme(1, suffix="-wrong")
    insert(db, [delivery_row("7")], [orphan_row({"provider": "acme", "number": 7})])
    assert reconcile().unmatched == 1
    acme(1)
    assert reconcile().unmatched == 1
    assert commands.run_here("rekey").stdout == "the next sweep reads the message ids of 1 open event again\n"
    assert reconcile().linked == 1


def test_rekey_forgets_no_recipient(db):
    """It is stored nowhere else, and decides between the deliveries of one id."""
    for recipient in ("ada@example.com", "bob@example.com"):
        factories.delivery(db, "m", recipient=recipient)
    event = {"provider": "postmark", "message_id": "none yet"}
    factories.orphan(db, event)
    db.run("UPDATE mailglass_open_orphans SET recipient = 'bob@example.com'")
    assert reconcile().unmatched == 1
    for _ in range(2):  # a second run changes nothing
        commands.run_here("rekey")
    assert db.rows("SELECT rank, ids, recipient FROM mailglass_open_orphans") == [(None, None, "bob@example.com")]
    assert db.value("SELECT count(*) FROM mailglass_open_orphan_ids") == 0
    assert reconcile().unmatched == 1
    assert db.value("SELECT recipient FROM mailglass_open_orphans") == "bob@example.com"


@pytest.mark.slow
def test_the_command_loads_rules_from_the_modules_that_are_named(db, redis_url, tmp_path):
    """`sweep` from a terminal loads what the worker loads; a missing module is one line."""
    (tmp_path / "shop_rules.py").write_text(
        "from mailglass_reconcile import key_rule\n"
        "@key_rule('acme', reads=('metadata/number',))\n"
        "def acme(number):\n    return [number]\n"
    )
    insert(db, [delivery_row("7")], [orphan_row({"provider": "acme", "number": 7})])
    failed = commands.run_forked(db, "sweep", MAILGLASS_IMPORTS="nowhere")
    assert failed.returncode == 1
    assert failed.stderr == "mailglass-reconcile: MAILGLASS_IMPORTS: cannot import nowhere (ModuleNotFoundError)\n"
    handlers = {"MAILGLASS_IMPORTS": " shop_rules, json ", "PYTHONPATH": str(tmp_path)}
    result = commands.run_forked(db, "sweep", "--json", **handlers)
    assert json.loads(result.stdout)["linked"] == 1


def test_a_provider_in_the_normalized_payload_is_found(db):
    """The original reads metadata first, then the payload."""
    insert(db, [delivery_row("m")], [orphan_row({"message_id": "m"}, normalized_payload={"provider": "postmark"})])
    assert reconcile().linked == 1


@pytest.mark.parametrize(("event", "stored"), [("postmark ", "Postmark"), ("Amazon SES", "amazon_ses"), ("ses", "SES")])
def test_a_provider_matches_in_any_spelling(db, event, stored):
    """The event's and the delivery's spellings may differ."""
    insert(db, [delivery_row("m", provider=stored)], [orphan_row({"provider": event, "message_id": "m"})])
    assert mailglass_reconcile.reconcile().linked == 1


def test_a_display_name_does_not_hide_an_address(db):
    """Either side may have one."""
    deliveries = [delivery_row("m", recipient=f"Someone <{name}@Example.com>") for name in ("ada", "bob")]
    insert(db, deliveries, [orphan_row({"provider": "postmark", "message_id": "m", "email": "Ann <BOB@example.com>"})])
    assert reconcile().linked == 1
    assert db.value("SELECT delivery_id::text FROM mailglass_events WHERE type = 'reconciled'") == deliveries[1]["id"]


@pytest.mark.parametrize(("tenant", "linked"), [("acme", 0), ("other", 1)])
def test_a_bounce_of_the_second_recipient_does_not_mark_the_first(db, tenant, linked):
    """Mailglass stores only the first To; the recipient is read from the tenant's raw webhook while it is kept."""
    insert(
        db,
        [delivery_row("m", recipient="first@example.com")],
        [orphan_row({"provider": "postmark", "provider_event_id": "Bounce:m", "message_id": "m"}, type="bounced")],
    )
    body = {"Email": "second@example.com", "MessageID": "m"}
    raw_webhooks.insert(db, body, tenant_id=tenant, event_id="Bounce:m")
    result = reconcile()
    assert (result.linked, result.recipient_mismatch) == (linked, 1 - linked)


KEYS = "SELECT rank, ids, provider FROM mailglass_open_orphans"
IDS = "SELECT array_agg(candidate_id ORDER BY position) FROM mailglass_open_orphan_ids"


@pytest.fixture
def orphan(db):
    """Insert an event of a provider whose rule only its adopter has."""
    return factories.orphan(db, {"provider": "Acme", "ref": "r-1"})


def know(version=1, read="metadata/ref"):
    """Register the adopter's rule in a version."""

    @provider_rules.key_rule("acme", reads=[read], version=version)
    def acme(ref):
        return [ref]


def test_a_corrected_rule_computes_stored_keys_again(db, orphan):
    """Its version is enough, without a command or a wait."""
    know(version=1, read="metadata/reference")
    assert reconcile().unmatchable == 1
    factories.delivery(db, "r-1")
    assert reconcile().unmatchable == 1
    know(version=2)
    assert reconcile().linked == 1


@pytest.mark.slow
def test_an_earlier_version_leaves_what_a_later_one_has_stored_until_rekey(db, orphan):
    """Two versions in one deployment do not rewrite each other's keys; after a rollback, rekey does."""
    know(version=2)
    reconcile()
    know(version=1)
    reconcile()
    assert db.value(KEYS) & 0xFF == 2
    commands.run_here("rekey")
    reconcile()
    assert db.value(KEYS) & 0xFF == 1


@pytest.mark.slow
def test_a_process_without_the_rule_leaves_its_keys_alone(db, orphan):
    """A sweep from a terminal neither replaces nor deletes them, and links by them."""
    know()
    reconcile()
    before = db.rows(KEYS), db.rows(IDS)
    assert before == ([(provider_rules.rank_of("acme"), 1, "acme")], [(["r-1"],)])
    assert commands.run_forked(db, "sweep").returncode == 0
    assert (db.rows(KEYS), db.rows(IDS)) == before
    factories.delivery(db, "r-1")
    assert commands.run_forked(db, "sweep").returncode == 0
    assert db.count_links() == 1


@pytest.mark.slow
def test_a_process_with_the_rule_computes_again_what_one_without_it_has_stored(db, orphan):
    """Their age does not matter."""
    assert commands.run_forked(db, "sweep").returncode == 0
    assert db.value(KEYS) == provider_rules.rank_of(None)
    factories.delivery(db, "r-1")
    know()
    assert reconcile().linked == 1


@pytest.mark.parametrize(
    "answer",
    [
        ZeroDivisionError(),
        *(pytest.param(bad, marks=pytest.mark.slow) for bad in (None, "r-1", [1])),
        ["r"] * 1_000_000,
    ],
)
def test_keys_of_a_rule_that_failed_are_never_stored(db, orphan, answer, caplog):
    """One line in the log says so until the rule is corrected, which needs no new version."""
    factories.insert(db, [], [orphan_row({"provider": "acme", "ref": "r-2"})])

    @provider_rules.key_rule("acme", reads=["metadata/ref"])
    def broken(ref):
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert reconcile().unmatchable == 2
    assert len([record for record in caplog.records if "acme/2.own1" in record.message]) == 1
    assert db.rows("SELECT DISTINCT rank FROM mailglass_open_orphans") == [(None,)]
    know()
    factories.delivery(db, "r-1")
    assert reconcile().linked == 1


def run_before_storing(monkeypatch, action):
    """Run *action* once between what the next sweep reads and what it stores."""
    actions = [action]

    class Interrupted(reconciler.Sweep):
        def _store(self, *arguments):
            if actions:
                actions.pop()()
            return super()._store(*arguments)

    monkeypatch.setattr(reconciler, "Sweep", Interrupted)


def fail_acme(version=1):
    """Register a rule that raises."""

    @provider_rules.key_rule("acme", reads=["metadata/ref"], version=version)
    def broken(ref):
        raise RuntimeError(ref)


STATES = "SELECT rank, ids, state FROM mailglass_open_orphans"


def test_a_rule_that_fails_over_stored_keys_changes_nothing(db, orphan):
    """A version with a bug is deployed and taken back: its events are linked as before."""
    know(version=1)
    assert reconcile().unmatched == 1
    before = db.rows(STATES)
    fail_acme(version=2)
    assert reconcile().unmatchable == 1
    assert db.rows(STATES) == before
    know(version=1)
    factories.delivery(db, "r-1")
    assert reconcile().linked == 1


def test_a_worker_whose_rule_fails_stores_no_state_over_keys_of_another(db, orphan, monkeypatch):
    """Its rule was corrected under the same version, and the other worker was faster."""

    def sweep_corrected():
        know()
        assert reconcile().unmatched == 1

    fail_acme()
    run_before_storing(monkeypatch, sweep_corrected)
    assert reconcile().unmatchable == 1
    assert db.rows(STATES) == [(provider_rules.rank_of("acme"), 1, "unmatched")]
    factories.delivery(db, "r-1")
    assert reconcile().linked == 1


def test_a_worker_with_an_older_rule_does_not_replace_keys_that_a_newer_one_stored_meanwhile(db, orphan, monkeypatch):
    """Both found the orphan without keys."""

    def sweep_with_the_newer_rule():
        know(version=2)
        assert reconcile().unmatched == 1

    know(version=1, read="metadata/other")
    run_before_storing(monkeypatch, sweep_with_the_newer_rule)
    assert reconcile().unmatchable == 1
    assert (db.rows(STATES), db.value(IDS)) == ([(provider_rules.rank_of("acme"), 1, "unmatched")], ["r-1"])


def test_rekey_during_a_sweep_leaves_nothing_that_no_sweep_selects(db, orphan, monkeypatch):
    """A state without its keys would never be checked again."""
    know()
    for recipient in ("ada@example.com", "bob@example.com"):
        factories.delivery(db, "r-1", recipient=recipient)
    assert reconcile().ambiguous == 1
    db.run("DELETE FROM mailglass_deliveries")
    run_before_storing(monkeypatch, lambda: commands.run_here("rekey"))
    assert reconcile().unmatched == 1
    factories.delivery(db, "r-1")
    assert reconcile().linked == 1


def test_rekey_waits_for_orphans_that_a_sweep_has_locked(db):
    """An old worker may be storing their keys."""
    acme(1)
    insert(db, [], [orphan_row({"provider": "acme", "number": number}) for number in range(3)])
    assert reconcile().unmatched == 3
    with db.engine.connect() as connection, ThreadPoolExecutor(1) as pool:
        connection.exec_driver_sql("SELECT event_id FROM mailglass_open_orphans LIMIT 1 FOR UPDATE")
        result = pool.submit(commands.run_here, "rekey")
        wait_until(lambda: result.done() or db.find_waiting())
        connection.rollback()
        assert result.result().stdout == "the next sweep reads the message ids of 3 open events again\n"
    assert db.rows("SELECT DISTINCT rank FROM mailglass_open_orphans") == [(None,)]


def test_ids_that_a_row_without_keys_has_are_replaced(db, orphan):
    """If two sessions replace keys at once, one may see the other's rows only afterwards."""
    know()
    assert reconcile().unmatched == 1
    db.run("UPDATE mailglass_open_orphans SET rank = NULL, ids = NULL, state = NULL")
    assert (reconcile().status, db.rows(IDS)) == ("ok", [(["r-1"],)])


HOLD_UP = """
CREATE FUNCTION public.hold_up() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  PERFORM pg_catalog.pg_advisory_xact_lock(1);
  RETURN NEW;
END $$;
CREATE TRIGGER hold_up BEFORE UPDATE ON public.mailglass_open_orphans FOR EACH ROW
WHEN (OLD.arrived_at < now() - interval '20 minutes') EXECUTE FUNCTION public.hold_up();
"""


def test_ids_that_another_session_stores_while_the_statement_runs_are_replaced(db):
    """The statement's snapshot lacks them, and both sessions store keys of the same rank."""
    old, new = (factories.orphan(db, {"provider": "acme"}, age_seconds=seconds) for seconds in (1_800, 600))

    def store(ids, *event_ids, rank_before=1):
        keys = StoredKeys(Keys("acme", ids, None, rank=1), "unmatched")
        with db.database.writing() as tx:
            stored_keys.store(tx, dict.fromkeys(event_ids, keys), dict.fromkeys(event_ids, rank_before))

    store(("r-1",), old, new, rank_before=None)
    db.run(HOLD_UP)
    with db.engine.connect() as holder, ThreadPoolExecutor(1) as pool:
        holder.exec_driver_sql("SELECT pg_advisory_xact_lock(1)")
        held_up = pool.submit(store, ("r-2",), old, new)
        wait_until(lambda: held_up.done() or db.find_waiting())
        store(("r-3", "r-4"), new)
        holder.rollback()
        held_up.result()
    assert db.rows("SELECT candidate_id FROM mailglass_open_orphan_ids") == [("r-2",), ("r-2",)]
