"""Handlers that come and go: what a new one missed is replayed, and a type without handlers is forgotten."""

import pytest

import commands
import factories
import mailglass_reconcile
from handling import effects, failing, handle, leaving, states
from mailglass_reconcile import Sent, dispatch, record_send
from mailglass_reconcile.handlers import handled
from mailglass_reconcile.rules import handlers as registry
from recording import event, record

WEEK = 7 * 86_400
TYPES = "SELECT type FROM mailglass_handled_types ORDER BY 1"


@pytest.fixture
def missed(db):
    """Four bounces that have reached a delivery without a handler: two attached, two linked; and another event."""
    registry._registered.clear()
    for number in range(4):
        factories.delivery(db, f"m-{number}")
    rows = [factories.orphan_row(factories.postmark(f"m-{number}"), type="bounced") for number in range(2)]
    factories.insert(db, events=rows)
    assert mailglass_reconcile.reconcile().linked == 2
    with db.engine.begin() as connection:
        record(connection, *(event(f"m-{number}", "bounced", provider_event_id=f"{number}") for number in (2, 3)))
        record(connection, event("m-2", "opened", provider_event_id="4"), event("unknown", "bounced"))
    assert states(db) == {}
    yield db
    registry._registered.clear()


def test_a_new_handler_gets_what_it_missed_once(missed):
    """What was attached and what was linked; a second replay finds nothing left to do."""
    leaving("suppress", "bounced")
    assert handled.missed(missed.database, "bounced", WEEK) == 4
    assert handled.replay(missed.database, "bounced", WEEK) == 4
    assert missed.rows(TYPES) == [("bounced",)]
    assert dispatch().dispatched == 4
    assert handled.replay(missed.database, "bounced", WEEK) == 0
    assert effects(missed) == {"suppress": 4}


def test_a_second_handler_of_a_type_gets_what_the_first_has_done_already(handler_db):
    """The first one does not run again, and what waits or is dead is left as it is."""
    for number in range(3):
        factories.delivery(handler_db, f"m-{number}")
    leaving("first", "bounced")
    with handler_db.engine.begin() as connection:
        record(connection, event("m-0", "bounced"))
    assert dispatch().dispatched == 1
    with handler_db.engine.begin() as connection:
        record(connection, event("m-1", "bounced", provider_event_id="2"))
        record(connection, event("m-2", "bounced", provider_event_id="3"))
    handler_db.run(
        "UPDATE mailglass_handler_outbox SET state = 'dead', finished_at = now() WHERE event_id ="
        " (SELECT max(event_id::text)::uuid FROM mailglass_handler_outbox WHERE state = 'waiting')"
    )
    leaving("second", "bounced")
    assert handled.replay(handler_db.database, "bounced", WEEK) == 1
    assert states(handler_db) == {"waiting": 2, "dead": 1}
    assert dispatch().dispatched == 2
    assert effects(handler_db) == {"first": 2, "second": 2}


def test_a_replay_goes_through_the_ledger_page_by_page_and_keeps_to_its_time(missed, monkeypatch):
    """In order of the events' ids, which begin with their time."""
    monkeypatch.setattr(handled, "PAGE", 1)
    leaving("suppress", "bounced")
    assert handled.replay(missed.database, "bounced", WEEK) == 4
    assert handled.missed(missed.database, "opened", 0) == 0
    assert handled.missed(missed.database, "opened", 60) == 1


def test_a_send_is_handed_over_by_the_statement_that_stores_it(db):
    """If its type has handlers, and once."""
    handle(db, "dispatched", "failed")
    sent = Sent(recipient="ada@example.com", message_id="m-1")
    for _ in range(2):
        with db.engine.begin() as connection:
            record_send(connection, provider="postmark", sent=[sent], tenant_id=factories.TENANT)
    assert db.rows("SELECT type, state FROM mailglass_handler_outbox") == [("dispatched", "waiting")]


HANDLER = """
from mailglass_reconcile import on_event

@on_event("bounced", name="suppress")
def suppress(connection, event):
    connection.exec_driver_sql("INSERT INTO witness.effects VALUES ('suppress', %s)", (event.event_id,))
"""


@pytest.mark.slow
def test_the_command_replays_after_a_question(missed, tmp_path):
    """With --yes where there is no terminal; without a handler, or for too long a time, it refuses in one line."""
    (tmp_path / "suppressing.py").write_text(HANDLER)
    handlers = {"MAILGLASS_IMPORTS": "suppressing", "PYTHONPATH": str(tmp_path)}
    replay = ("dispatch", "--replay", "bounced", "--since")
    for arguments, environment, line in (
        ((*replay, "7d"), handlers, "pass --yes to queue 4 bounced events of the last 7 days"),
        ((*replay, "14d", "--yes"), handlers, "is kept for 14 days (MAILGLASS_RETENTION_SUCCEEDED_DAYS)"),
        (replay[:-1], handlers, "--replay needs --since"),
        ((*replay, "7d", "--forget", "bounced"), handlers, "exclude each other"),
    ):
        refused = commands.started(missed, *arguments, **environment)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert line in refused.stderr
    refused = commands.started(missed, *replay, "7d", "--yes")
    assert (refused.returncode, "no handler of 'bounced' is registered" in refused.stderr) == (1, True)
    assert states(missed) == {}
    done = commands.started(missed, *replay, "7d", "--yes", "--json", **handlers)
    assert commands.conforming("dispatch", done.stdout) == [{"replayed": 4}]
    assert commands.started(missed, "dispatch", **handlers).returncode == 0
    assert effects(missed) == {"suppress": 4}


def test_a_type_is_forgotten_with_its_waiting_events(handler_db):
    """What is done or dead stays until it is pruned; other types are left alone; no further event is handed over."""
    factories.delivery(handler_db, "m-1")
    failing("bad", ValueError())
    with handler_db.engine.begin() as connection:
        record(connection, event("m-1", "bounced"), event("m-1", "opened", provider_event_id="2"))
    handler_db.broken.add("I14")
    refused = commands.tried(handler_db, "dispatch", "--forget", "bounced")
    assert (refused.returncode, "pass --yes to forget bounced and delete its 1 waiting event" in refused.stderr) == (
        2,
        True,
    )
    done = commands.run(handler_db, "dispatch", "--forget", "bounced", "--yes", "--json")
    assert commands.conforming("dispatch", done.stdout) == [{"forgotten": "bounced", "deleted": 1}]
    assert handler_db.rows("SELECT type FROM mailglass_handler_outbox") == [("opened",)]
    assert ("bounced",) not in handler_db.rows(TYPES)
    with handler_db.engine.begin() as connection:
        record(connection, event("m-1", "bounced", provider_event_id="3"))
    assert states(handler_db) == {"waiting": 1}
    again = commands.tried(handler_db, "dispatch", "--forget", "bonced", "--yes")
    assert (again.returncode, again.stderr) == (
        1,
        "no dispatcher ever had a handler of 'bonced' (did you mean bounced?), and no event of this type waits\n",
    )


def test_a_type_that_still_has_a_dispatcher_comes_back(handler_db):
    """The question says when a dispatcher had a handler of it last."""
    leaving("suppress", "bounced")
    handled.forget(handler_db.database, "bounced")
    assert ("bounced",) not in handler_db.rows(TYPES)
    dispatch()
    assert ("bounced",) in handler_db.rows(TYPES)


@pytest.mark.slow
def test_a_sweep_in_a_process_with_handlers_writes_down_their_types_first(db, tmp_path):
    """So they run on what the very first one links; a role that may not write them down sweeps anyway."""
    (tmp_path / "suppressing.py").write_text(HANDLER)
    db.handled.add("bounced")
    factories.delivery(db, "m-1")
    factories.orphan(db, factories.postmark("m-1"), type="bounced")
    done = commands.started(db, "sweep", MAILGLASS_IMPORTS="suppressing", PYTHONPATH=str(tmp_path))
    assert (done.returncode, effects(db)) == (0, {"suppress": 1})
