"""Handlers that are registered and forgotten, and the events that they missed."""

import os
import socket

import pytest
import sqlalchemy as sa

import commands
import factories
import mailglass_reconcile
import meter
from handling import effects, failing, handle, leaving, states
from mailglass_reconcile import Sent, dispatch, on_event, record_send
from mailglass_reconcile.errors import MailglassReconcileError
from mailglass_reconcile.handlers import registration
from mailglass_reconcile.handlers.administration import count_missed, load_replayable, replay
from mailglass_reconcile.store.database import uuid7
from mailglass_reconcile.store.tables import handled_types
from recording import event, record

pytestmark = pytest.mark.python_dependent

WEEK = 7 * 86_400
REGISTERED = "SELECT handler, type FROM mailglass_handled_types ORDER BY 1, 2"
JOBS = "SELECT handler, type, state FROM mailglass_handler_outbox ORDER BY 1, 2, 3"


@pytest.fixture
def missed(handler_db):
    """Insert four bounces that reached a delivery without a handler, two attached and two linked, and another event."""
    db = handler_db
    for number in range(4):
        factories.delivery(db, f"m-{number}")
    rows = [factories.orphan_row(factories.postmark(f"m-{number}"), type="bounced") for number in range(2)]
    factories.insert(db, events=rows)
    assert mailglass_reconcile.reconcile().linked == 2
    with db.engine.begin() as connection:
        record(connection, *(event(f"m-{number}", "bounced", provider_event_id=f"{number}") for number in (2, 3)))
        record(connection, event("m-2", "opened", provider_event_id="4"), event("unknown", "bounced"))
    assert states(db) == {}
    return db


def test_a_new_handler_gets_what_it_missed_once(missed):
    """Attached and linked events are replayed; a second replay enqueues nothing."""
    leaving("suppress", "bounced")
    bounced = load_replayable(missed.database, "bounced", WEEK)
    assert count_missed(missed.database, bounced, WEEK) == 4
    assert replay(missed.database, bounced, WEEK) == 4
    assert missed.rows(REGISTERED) == [("suppress", "bounced")]
    assert dispatch().handled == 4
    assert replay(missed.database, bounced, WEEK) == 0
    assert effects(missed) == {"suppress": 4}


def test_a_second_handler_of_a_type_gets_what_the_first_has_done_already(handler_db):
    """The first handler does not run again, and its waiting and dead jobs do not change."""
    for number in range(3):
        factories.delivery(handler_db, f"m-{number}")
    leaving("first", "bounced")
    for number in range(3):
        with handler_db.engine.begin() as connection:
            record(connection, event(f"m-{number}", "bounced", provider_event_id=f"{number}"))
        if number == 0:
            assert dispatch().handled == 1
    handler_db.run(
        "UPDATE mailglass_handler_outbox SET state = 'dead', finished_at = now() WHERE event_id ="
        " (SELECT max(event_id::text)::uuid FROM mailglass_handler_outbox WHERE state = 'waiting')"
    )
    leaving("second", "bounced")
    assert replay(handler_db.database, load_replayable(handler_db.database, "bounced", WEEK), WEEK) == 3
    assert states(handler_db) == {"done": 1, "waiting": 4, "dead": 1}
    assert dispatch().handled == 4
    assert effects(handler_db) == {"first": 2, "second": 3}


def test_a_replay_can_be_for_one_handler(missed):
    """The other handler of the type misses its events, if that is intended."""
    leaving("audit", "bounced", "opened")
    leaving("suppress", "bounced")
    [suppress] = load_replayable(missed.database, "bounced", WEEK, "suppress")
    assert replay(missed.database, [suppress], WEEK) == 4
    assert missed.rows(JOBS) == 4 * [("suppress", "bounced", "waiting")]


@pytest.mark.parametrize(
    ("tenant", "owner"),
    [("other", "other"), ("other", factories.TENANT), (factories.TENANT, "other"), (factories.TENANT, None)],
)
def test_a_handler_misses_only_events_that_reached_a_delivery_of_their_own_tenant(missed, tenant, owner):
    """A foreign writer's `reconciled` event may be of another tenant, or name another tenant's delivery, or none."""
    missed.broken.update({"I1", "I2", "I5", "I6", "I13", "I14"})
    to = owner and factories.delivery(missed, tenant_id=owner, recipient="eve@example.net")
    orphan = factories.orphan(missed, factories.postmark("m-9"), type="bounced")
    factories.insert(missed, events=[factories.reconciled_row(orphan, to, tenant_id=tenant, id=uuid7())])
    events = leaving("suppress", "bounced")
    missed.run("DELETE FROM mailglass_handled_types")
    dispatch()
    bounced = load_replayable(missed.database, "bounced", WEEK)
    assert count_missed(missed.database, bounced, WEEK) == 4
    assert replay(missed.database, bounced, WEEK) == 4
    assert dispatch().handled == 4
    assert {(event.tenant_id, event.recipient) for event in events} == {(factories.TENANT, factories.RECIPIENT)}


def test_a_replay_reads_the_ledger_page_by_page_within_its_time(missed, set_limits):
    """Pages are ordered by the events' ids, which begin with their time."""
    set_limits(batch_rows=1)
    leaving("suppress", "bounced", "opened")
    bounced, opened = (load_replayable(missed.database, type_, WEEK) for type_ in ("bounced", "opened"))
    assert replay(missed.database, bounced, WEEK) == 4
    assert count_missed(missed.database, opened, 0) == 0
    assert count_missed(missed.database, opened, 60) == 1


def test_a_replay_that_does_not_ask_reads_the_ledger_once(missed):
    """One page and an empty one; to ask, it counts first."""
    leaving("suppress", "bounced")
    with missed.database.writing() as tx:
        handled_types.register(tx, registration.own_registrations())
    with meter.statements(sa.Engine) as statements:
        result = commands.run(missed, "dispatch", "--replay", "bounced", "--since", "7d", "--yes")
    assert result.stdout.startswith("queued 4 jobs")
    assert len([text for text in statements if "), missed AS (" in text]) == 2


def test_a_replay_of_what_nobody_handles_is_refused_in_one_line(missed):
    """The error suggests a similar name."""
    leaving("suppress", "bounced")
    for type_, handler, words in (
        ("opened", None, "no dispatcher has registered a handler of 'opened'"),
        ("bonced", None, r"a handler of 'bonced' \(did you mean bounced\?\)"),
        ("bounced", "supress", r"a handler 'supress' \(did you mean suppress\?\)"),
        ("opened", "suppress", "registered 'suppress' for 'opened'"),
    ):
        with pytest.raises(MailglassReconcileError, match=words):
            load_replayable(missed.database, type_, WEEK, handler)


def test_the_first_dispatch_of_a_handler_says_how_to_enqueue_what_it_missed(missed, caplog):
    """It names the command of each type, and says so once."""
    on_event("bounced", "complained", name="suppress them")(lambda connection, event: None)
    dispatch()
    assert caplog.messages == [
        "handler suppress them is new: it runs on bounced, complained events from now on; for earlier ones run, as the"
        " owner of the tables:"
        " mailglass-reconcile dispatch --replay bounced --since 7d --handler 'suppress them';"
        " mailglass-reconcile dispatch --replay complained --since 7d --handler 'suppress them'"
    ]
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    caplog.clear()
    dispatch()
    assert caplog.records == []


def test_a_send_s_jobs_are_enqueued_by_the_statement_that_stores_it(db):
    """This needs handlers of the type, and happens once."""
    handle(db, ("audit", "dispatched"), ("crm", "dispatched"), ("crm", "failed"))
    sent = Sent(recipient="ada@example.com", message_id="m-1")
    for _ in range(2):
        with db.engine.begin() as connection:
            record_send(connection, provider="postmark", sent=[sent], tenant_id=factories.TENANT)
    assert db.rows(JOBS) == [("audit", "dispatched", "waiting"), ("crm", "dispatched", "waiting")]


HANDLER = """
from mailglass_reconcile import on_event

@on_event("bounced", name="suppress")
def suppress(connection, event):
    connection.exec_driver_sql("INSERT INTO witness.effects VALUES ('suppress', %s)", (event.event_id,))
"""


@pytest.mark.slow
def test_the_command_replays_after_a_question(missed, tmp_path):
    """Without a terminal it requires --yes; without a handler, or with too long a time, it fails with one line."""
    (tmp_path / "suppressing.py").write_text(HANDLER)
    handlers = {"MAILGLASS_IMPORTS": "suppressing", "PYTHONPATH": str(tmp_path)}
    replaying = ("dispatch", "--replay", "bounced", "--since")
    refused = commands.run_forked(missed, *replaying, "7d", "--yes")
    assert (refused.returncode, "no dispatcher has registered a handler of 'bounced'" in refused.stderr) == (1, True)
    for arguments, environment, line in (
        ((*replaying, "7d"), handlers, "pass --yes to queue 4 bounced events of the last 7 days for suppress"),
        ((*replaying, "14d", "--yes"), handlers, "is kept for 14 days (MAILGLASS_RETENTION_SUCCEEDED_DAYS)"),
        (replaying[:-1], handlers, "--replay needs --since"),
        ((*replaying, "7d", "--forget", "bounced"), handlers, "exclude each other"),
        (("dispatch", "--handler", "suppress"), handlers, "--handler needs"),
        (("dispatch", "--forget"), handlers, "--forget needs a type"),
    ):
        refused = commands.run_forked(missed, *arguments, **environment)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert line in refused.stderr
    assert states(missed) == {}
    result = commands.run_forked(missed, *replaying, "7d", "--yes", "--json", **handlers)
    assert commands.conforming("dispatch", result.stdout) == [{"replayed": 4}]
    assert commands.run_forked(missed, "dispatch", **handlers).returncode == 0
    assert effects(missed) == {"suppress": 4}


SEEN = "UPDATE mailglass_handled_types SET seen_at = now()::timestamp - make_interval(secs => :seconds)"


def test_a_handler_is_forgotten_with_its_waiting_jobs(handler_db):
    """Done and dead jobs stay until they are pruned; other handlers keep theirs; no further job is enqueued."""
    factories.delivery(handler_db, "m-1")
    handle(handler_db, ("audit", "bounced"), ("gone", "bounced"), ("gone", "opened"))
    handler_db.handled.clear()
    handler_db.run(SEEN, seconds=1201)
    with handler_db.engine.begin() as connection:
        record(connection, event("m-1", "bounced"), event("m-1", "opened", provider_event_id="2"))
    refused = commands.run_unchecked(handler_db, "dispatch", "--forget", "--handler", "gone")
    question = "pass --yes to forget gone (bounced), gone (opened) and delete 2 waiting jobs"
    assert (refused.returncode, question in refused.stderr) == (2, True)
    result = commands.run(handler_db, "dispatch", "--forget", "opened", "--handler", "gone", "--yes", "--json")
    forgotten = [{"handler": "gone", "type": "opened"}]
    assert commands.conforming("dispatch", result.stdout) == [{"forgotten": forgotten, "deleted": 1}]
    assert handler_db.rows(JOBS) == [("audit", "bounced", "waiting"), ("gone", "bounced", "waiting")]
    commands.run(handler_db, "dispatch", "--forget", "--handler", "gone", "--yes")
    assert handler_db.rows(REGISTERED) == [("audit", "bounced")]
    with handler_db.engine.begin() as connection:
        record(connection, event("m-1", "bounced", provider_event_id="3"))
    assert handler_db.rows(JOBS) == 2 * [("audit", "bounced", "waiting")]
    repeated = commands.run_unchecked(handler_db, "dispatch", "--forget", "--handler", "gone", "--yes")
    words = "mailglass-reconcile: no dispatcher has registered a handler 'gone', and no job of it waits\n"
    assert (repeated.returncode, repeated.stderr) == (1, words)


def test_a_type_is_forgotten_for_all_its_handlers(handler_db):
    """A mistyped type gets a hint."""
    factories.delivery(handler_db, "m-1")
    failing("bad", ValueError())
    with handler_db.engine.begin() as connection:
        record(connection, event("m-1", "bounced"), event("m-1", "opened", provider_event_id="2"))
    handler_db.handled.clear()
    handler_db.run(SEEN, seconds=1201)
    commands.run(handler_db, "dispatch", "--forget", "bounced", "--yes")
    assert handler_db.rows(JOBS) == [("bad", "opened", "waiting")]
    assert ("bad", "bounced") not in handler_db.rows(REGISTERED)
    mistyped = commands.run_unchecked(handler_db, "dispatch", "--forget", "bonced", "--yes")
    words = "no dispatcher has registered a handler of 'bonced' (did you mean bounced?), and no job of it waits\n"
    assert (mistyped.returncode, mistyped.stderr) == (1, f"mailglass-reconcile: {words}")


def test_a_handler_that_a_dispatcher_may_still_have_is_not_forgotten(handler_db):
    """That process would register it again, and both it and what replaced it would run."""
    leaving("suppress", "bounced")
    handler_db.run("DELETE FROM mailglass_handled_types")
    dispatch()
    forgetting = ("dispatch", "--forget", "--handler", "suppress", "--yes")
    handler_db.run(SEEN, seconds=150)
    refused = commands.run_unchecked(handler_db, *forgetting)
    assert (refused.returncode, refused.stderr) == (
        1,
        f"mailglass-reconcile: {socket.gethostname()}, pid {os.getpid()} had handler suppress 2 minutes ago, and would"
        " register it again: stop each process that has it, and run this again in 18 minutes\n",
    )
    assert handler_db.rows(REGISTERED) == [("suppress", "bounced")]
    handler_db.run(SEEN, seconds=1201)
    commands.run(handler_db, *forgetting)
    assert handler_db.rows(REGISTERED) == []


@pytest.mark.slow
def test_a_sweep_in_a_process_with_handlers_registers_them_first(db, tmp_path):
    """Thus they run on what the first sweep links; a role that may not register sweeps anyway."""
    (tmp_path / "suppressing.py").write_text(HANDLER)
    db.handled.add(("suppress", "bounced"))
    factories.delivery(db, "m-1")
    factories.orphan(db, factories.postmark("m-1"), type="bounced")
    result = commands.run_forked(db, "sweep", MAILGLASS_IMPORTS="suppressing", PYTHONPATH=str(tmp_path))
    assert (result.returncode, effects(db)) == (0, {"suppress": 1})
