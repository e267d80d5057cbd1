"""Handlers that are registered, renamed and forgotten, and the events that they missed."""

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

import commands
import factories
import mailglass_reconcile
import meter
from handling import effects, failing, handle, leaving, states
from mailglass_reconcile import Sent, dispatch, on_event, record_send
from mailglass_reconcile.errors import MailglassReconcileError
from mailglass_reconcile.handlers import administration, registration
from mailglass_reconcile.handlers.administration import count_missed, load_replayable, replay
from mailglass_reconcile.rules import handlers as registry
from mailglass_reconcile.store import handled_types, outbox
from mailglass_reconcile.store.database import SessionTransaction, uuid7
from mailglass_reconcile.store.handled_types import Registration
from recording import event, record
from waiting import wait_until

pytestmark = pytest.mark.python_dependent

WEEK = 7 * 86_400
REGISTERED = "SELECT handler, type FROM mailglass_handled_types WHERE renamed_to IS NULL ORDER BY 1, 2"
RENAMED = "SELECT handler, renamed_to FROM mailglass_handled_types WHERE renamed_to IS NOT NULL ORDER BY 1, 2"
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
def test_a_handler_misses_only_events_that_reached_a_delivery_of_their_own_tenant(missed, caplog, tenant, owner):
    """A foreign writer's `reconciled` event may be of another tenant, or name another tenant's delivery, or none."""
    missed.broken.update({"I1", "I2", "I5", "I6", "I13", "I14"})
    to = owner and factories.delivery(missed, tenant_id=owner, recipient="eve@example.net")
    orphan = factories.orphan(missed, factories.postmark("m-9"), type="bounced")
    factories.insert(missed, events=[factories.reconciled_row(orphan, to, tenant_id=tenant, id=uuid7())])
    events = leaving("suppress", "bounced")
    missed.run("DELETE FROM mailglass_handled_types")
    dispatch()
    [warning] = [record.getMessage() for record in caplog.records if "is new" in record.getMessage()]
    assert "4 bounced events" in warning
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


def test_the_first_dispatch_of_a_handler_says_what_it_missed_and_how_to_enqueue_it(missed, caplog):
    """It says so once; a registered handler, or one that missed nothing, logs nothing."""
    on_event("bounced", "complained", name="suppress them")(lambda connection, event: None)
    dispatch()
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "handler suppress them is new: 4 bounced events of the last 7 days had no such handler; to run it on them, run"
        " as the owner of the tables:"
        " mailglass-reconcile dispatch --replay bounced --since 7d --handler 'suppress them'"
    ]
    caplog.clear()
    dispatch()
    assert caplog.records == []


@pytest.mark.parametrize(("limit", "number"), [({"most_missed": 2}, 2), ({"missed_seconds": 0}, 4)])
def test_missed_events_are_counted_up_to_a_number_and_for_a_time(missed, caplog, set_limits, limit, number):
    """The newest are counted first, so that a huge ledger does not delay the first dispatch."""
    set_limits(**limit)
    leaving("suppress", "bounced")
    missed.run("DELETE FROM mailglass_handled_types")
    caplog.clear()
    dispatch()
    [line] = [record.getMessage() for record in caplog.records]
    assert f"at least {number} bounced events" in line


def test_a_send_s_jobs_are_enqueued_by_the_statement_that_stores_it(db):
    """This needs handlers of the type, and happens once."""
    handle(db, ("audit", "dispatched"), ("crm", "dispatched"), ("crm", "failed"))
    sent = Sent(recipient="ada@example.com", message_id="m-1")
    for _ in range(2):
        with db.engine.begin() as connection:
            record_send(connection, provider="postmark", sent=[sent], tenant_id=factories.TENANT)
    assert db.rows(JOBS) == [("audit", "dispatched", "waiting"), ("crm", "dispatched", "waiting")]


def test_a_renamed_handler_keeps_what_it_has_done_and_what_waits(handler_db):
    leaving("old", "bounced")
    for number in range(3):
        factories.delivery(handler_db, f"m-{number}")
        with handler_db.engine.begin() as connection:
            record(connection, event(f"m-{number}", "bounced", provider_event_id=f"{number}"))
        if number == 0:
            assert dispatch().handled == 1
    handler_db.handled.clear()
    assert administration.rename(handler_db.database, "old", "new") == 3
    assert handler_db.rows(REGISTERED) == [("new", "bounced")]
    assert handler_db.rows(JOBS) == [("new", "bounced", "done"), *2 * [("new", "bounced", "waiting")]]
    registry._registered.clear()
    leaving("new", "bounced")
    handler_db.broken.add("I14")  # one effect has the old name
    assert dispatch().handled == 2
    assert replay(handler_db.database, load_replayable(handler_db.database, "bounced", WEEK), WEEK) == 0
    assert effects(handler_db) == {"old": 1, "new": 2}


@pytest.mark.parametrize("page", [1, 5_000])
def test_a_handler_that_is_renamed_after_it_was_deployed_has_each_job_once(handler_db, set_limits, page):
    """Dispatchers of both names were running: done jobs stay done, and of waiting ones the new name's remain."""
    set_limits(batch_rows=page)
    leaving("old", "bounced")
    for number in range(4):
        factories.delivery(handler_db, f"m-{number}")
        with handler_db.engine.begin() as connection:
            record(connection, event(f"m-{number}", "bounced", provider_event_id=f"{number}"))
        if number == 1:
            assert dispatch().handled == 2
            leaving("new", "bounced")
    handler_db.handled.clear()
    replay(handler_db.database, load_replayable(handler_db.database, "bounced", WEEK, "new"), 0.0)
    handler_db.run(
        "INSERT INTO mailglass_handler_outbox (event_id, handler, delivery_id, type, next_at, inserted_at)"
        " SELECT event_id, 'new', delivery_id, type, next_at, inserted_at FROM mailglass_handler_outbox"
        "  WHERE handler = 'old' AND state = 'done' ORDER BY event_id LIMIT 1"
    )
    administration.rename(handler_db.database, "old", "new")
    handler_db.broken.add("I14")
    assert handler_db.rows(JOBS) == [*2 * [("new", "bounced", "done")], *2 * [("new", "bounced", "waiting")]]
    assert handler_db.rows(REGISTERED) == [("new", "bounced")]


def rename_process(*types):
    """Rename the handler `old` in this process only, as a deployment does, and return the list of its events."""
    registry._registered.clear()
    return leaving("new", *types)


@pytest.fixture
def renamed_db(handler_db):
    """A database with a delivery `m-1` and a handler `old` of bounces, which a deployment has renamed to `new`."""
    factories.delivery(handler_db, "m-1")
    leaving("old", "bounced")
    handler_db.broken.add("I14")  # effects before the renaming have the old name
    handler_db.handled.clear()
    return handler_db


@pytest.mark.parametrize("is_deployed", [False, True])
def test_a_job_that_was_being_written_while_its_handler_was_renamed_runs_once(renamed_db, is_deployed):
    """The writer had read the old name, and the new one too if it was deployed; later writers read the new one."""
    if is_deployed:
        rename_process("bounced")
    with renamed_db.engine.begin() as writing:
        record(writing, event("m-1", "bounced", provider_event_id="1"))
        assert administration.rename(renamed_db.database, "old", "new") == 0
    rename_process("bounced")
    assert ("old", "bounced", "waiting") in renamed_db.rows(JOBS)
    with renamed_db.engine.begin() as connection:
        record(connection, event("m-1", "bounced", provider_event_id="2"))
    assert dispatch().handled == 2
    assert renamed_db.rows(JOBS) == 2 * [("new", "bounced", "done")]
    assert effects(renamed_db) == {"new": 2}
    assert renamed_db.rows(RENAMED) == [("old", "new")]


def test_every_writer_of_jobs_writes_a_renamed_handlers_new_name(renamed_db):
    """A send, an attached event, a link and a replay each write one job, even if both names are registered."""
    handle(renamed_db, ("old", "dispatched"))
    administration.rename(renamed_db.database, "old", "new")
    factories.orphan(renamed_db, factories.postmark("m-1"), type="bounced")
    with renamed_db.engine.begin() as connection:
        sent = Sent(recipient="ada@example.com", message_id="m-2")
        record_send(connection, provider="postmark", sent=[sent], tenant_id=factories.TENANT)
        record(connection, event("m-1", "bounced", provider_event_id="1"))
    assert mailglass_reconcile.reconcile().linked == 1
    jobs = [*2 * [("new", "bounced", "waiting")], ("new", "dispatched", "waiting")]
    assert renamed_db.rows(JOBS) == jobs
    renamed_db.run("DELETE FROM mailglass_handler_outbox")
    for name in ("old", "new"):
        replay(renamed_db.database, [Registration(name, "bounced"), Registration(name, "dispatched")], WEEK)
        assert renamed_db.rows(JOBS) == jobs


def test_a_dispatcher_of_the_old_name_runs_nothing_once_its_handler_is_renamed(renamed_db):
    """Otherwise a job of each name could run on one event."""
    with renamed_db.engine.begin() as writing:
        record(writing, event("m-1", "bounced", provider_event_id="1"))
        administration.rename(renamed_db.database, "old", "new")
    renamed_db.run("UPDATE mailglass_handled_types SET seen_at = now() - interval '1 hour'")
    with renamed_db.database.writing() as tx:
        assert outbox.claim(tx, [("old", "bounced")], synchronous=True).job is None
    assert dispatch().handled == 0
    assert effects(renamed_db) == {}
    assert renamed_db.rows(RENAMED) == [("old", "new")]
    assert renamed_db.value("SELECT seen_at > now()::timestamp - interval '1 minute' FROM mailglass_handled_types"
                            " WHERE handler = 'old'")  # fmt: skip


def set_job(db, event_id, handler, state, age_seconds):
    """Insert a job of an event as old as it is told."""
    db.run(
        "INSERT INTO mailglass_handler_outbox"
        "       (event_id, handler, delivery_id, type, state, attempts, next_at, inserted_at, finished_at)"
        " SELECT id, :handler, delivery_id, type, :state, 1, now()::timestamp,"
        "        now()::timestamp - make_interval(secs => :age),"
        "        CASE WHEN :state <> 'waiting' THEN now()::timestamp END"
        "   FROM mailglass_events WHERE id = CAST(:event_id AS uuid)",
        event_id=str(event_id),
        handler=handler,
        state=state,
        age=age_seconds,
    )


@pytest.mark.parametrize("older", ["old", "new"])
@pytest.mark.parametrize(
    ("states_of", "stays"),
    [
        ({"old": "done", "new": "waiting"}, "old"),
        ({"old": "waiting", "new": "done"}, "new"),
        ({"old": "done", "new": "dead"}, "old"),
        ({"old": "dead", "new": "waiting"}, "new"),
        ({"old": "waiting", "new": "dead"}, "old"),
        ({"old": "waiting", "new": "waiting"}, None),
        ({"old": "dead", "new": "dead"}, None),
    ],
)
def test_of_two_jobs_of_an_event_the_done_one_stays_and_else_one_that_waits(renamed_db, states_of, stays, older):
    renamed_db.run("DELETE FROM mailglass_handled_types")
    with renamed_db.engine.begin() as connection:
        (recorded,) = record(connection, event("m-1", "bounced"))
    handle(renamed_db, ("old", "bounced"), ("new", "bounced"))
    for name, state in states_of.items():
        set_job(renamed_db, recorded.event_id, name, state, 200 if name == older else 100)
    administration.rename(renamed_db.database, "old", "new")
    [job] = renamed_db.rows(
        "SELECT handler, state, round(extract(epoch FROM now()::timestamp - inserted_at), -2) AS age"
        " FROM mailglass_handler_outbox"
    )
    stays = stays or older
    assert tuple(job) == ("new", states_of[stays], 200 if stays == older else 100)


def test_a_handler_is_renamed_beside_a_replay_for_its_new_name(renamed_db):
    for number in range(2):
        with renamed_db.engine.begin() as connection:
            record(connection, event("m-1", "bounced", provider_event_id=f"{number}"))
    rename_process("bounced")
    events = [str(id_) for (id_,) in renamed_db.rows("SELECT event_id FROM mailglass_handler_outbox ORDER BY 1")]
    with ThreadPoolExecutor(1) as pool, renamed_db.engine.connect() as replaying:
        for event_id in events:
            replaying.exec_driver_sql(
                "INSERT INTO mailglass_handler_outbox (event_id, handler, delivery_id, type, next_at, inserted_at)"
                " SELECT event_id, 'new', delivery_id, type, next_at, now()::timestamp FROM mailglass_handler_outbox"
                "  WHERE event_id = %s", (event_id,)
            )  # fmt: skip
        renaming = pool.submit(administration.rename, renamed_db.database, "old", "new")
        wait_until(lambda: renaming.done() or renamed_db.rows("SELECT FROM pg_locks WHERE NOT granted"))
        replaying.commit()
        assert renaming.result() == 2
    assert renamed_db.rows(JOBS) == 2 * [("new", "bounced", "waiting")]
    assert dispatch().handled == 2


def test_a_handler_can_be_renamed_again_and_back(renamed_db):
    """Jobs of every earlier name get the last one."""
    administration.rename(renamed_db.database, "old", "new")
    administration.rename(renamed_db.database, "new", "newest")
    assert renamed_db.rows(RENAMED) == [("new", "newest"), ("old", "newest")]
    assert renamed_db.rows(REGISTERED) == [("newest", "bounced")]
    administration.rename(renamed_db.database, "newest", "old")
    assert renamed_db.rows(RENAMED) == [("new", "old"), ("newest", "old")]
    assert renamed_db.rows(REGISTERED) == [("old", "bounced")]
    with renamed_db.engine.begin() as connection:
        record(connection, event("m-1", "bounced"))
    assert dispatch().handled == 1
    assert effects(renamed_db) == {"old": 1}


def test_an_old_name_is_forgotten_without_a_job(renamed_db):
    """What still waits under it gets the new name. Forgetting the new name forgets the old ones too."""
    with renamed_db.engine.begin() as writing:
        record(writing, event("m-1", "bounced", provider_event_id="1"))
        administration.rename(renamed_db.database, "old", "new")
    forgotten = commands.run(renamed_db, "dispatch", "--forget", "--handler", "old", "--yes", "--json")
    result = {"forgotten": [{"handler": "old", "type": "bounced"}], "deleted": 0}
    assert commands.conforming("dispatch", forgotten.stdout) == [result]
    assert renamed_db.rows(JOBS) == [("new", "bounced", "waiting")]
    assert (renamed_db.rows(RENAMED), renamed_db.rows(REGISTERED)) == ([], [("new", "bounced")])
    administration.rename(renamed_db.database, "new", "newest")
    assert administration.forget(renamed_db.database, None, "newest") == 1
    assert renamed_db.rows("SELECT FROM mailglass_handled_types") == []


def test_an_old_name_is_not_forgotten_while_a_dispatcher_runs_a_job_under_it(renamed_db):
    """If that run fails, the job waits under the old name, and only the registration gives it the new one."""
    with renamed_db.engine.begin() as connection:
        record(connection, event("m-1", "bounced"))
    with renamed_db.database.writing() as tx:
        job = outbox.claim(tx, [("old", "bounced")], synchronous=True).job
    with renamed_db.engine.connect() as running:
        outbox.start(SessionTransaction(running, renamed_db.settings), job, 30)
        renamed_db.run("UPDATE mailglass_handled_types SET renamed_to = 'new'")
        refused = commands.run_unchecked(renamed_db, "dispatch", "--forget", "--handler", "old", "--yes")
        assert refused.returncode == 1
        assert refused.stderr == (
            "mailglass-reconcile: 1 job still runs under the old name 'old': forget it when they have ended\n"
        )
        running.rollback()
    assert administration.forget(renamed_db.database, None, "old") == 0
    assert renamed_db.rows(JOBS) == [("new", "bounced", "waiting")]


DEADLOCK_ONCE = """
CREATE SEQUENCE public.deletes;
CREATE FUNCTION public.deadlock_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF nextval('public.deletes') = 1 THEN
    RAISE SQLSTATE '40P01';
  END IF;
  RETURN OLD;
END $$;
CREATE TRIGGER deadlock_once BEFORE DELETE ON mailglass_handler_outbox
   FOR EACH ROW EXECUTE FUNCTION public.deadlock_once();
"""


def test_a_renaming_that_meets_a_deadlock_is_tried_again(renamed_db):
    with renamed_db.engine.begin() as connection:
        record(connection, event("m-1", "bounced"))
    renamed_db.run(DEADLOCK_ONCE)
    assert administration.rename(renamed_db.database, "old", "new") == 1
    assert renamed_db.rows(JOBS) == [("new", "bounced", "waiting")]
    renamed_db.run("ALTER SEQUENCE public.deletes RESTART; UPDATE mailglass_handler_outbox SET handler = 'old'")
    assert administration.forget(renamed_db.database, None, "old") == 0
    assert renamed_db.rows(JOBS) == [("new", "bounced", "waiting")]


def test_a_renamed_handler_is_not_replayed_and_needs_no_dispatcher(renamed_db):
    """The error names the new name."""
    administration.rename(renamed_db.database, "old", "new")
    renamed_db.run("UPDATE mailglass_handled_types SET seen_at = now() - interval '2 hours' WHERE handler = 'old'")
    with renamed_db.database.reading() as tx:
        assert handled_types.find_without_dispatcher(tx) == []
    registry._registered.clear()
    assert [row.handler for row in load_replayable(renamed_db.database, "bounced", WEEK)] == ["new"]
    with pytest.raises(MailglassReconcileError, match="handler 'old' was renamed to 'new'"):
        load_replayable(renamed_db.database, "bounced", WEEK, "old")


def test_what_is_not_there_cannot_be_renamed(handler_db):
    """The error is one line with a similar name; the exit code is 1, or 2 if the new name is invalid."""
    leaving("suppress", "bounced")
    refused = commands.run_unchecked(handler_db, "dispatch", "--rename", "supress", "other")
    words = "no dispatcher has registered a handler 'supress' (did you mean suppress?)\n"
    assert (refused.returncode, refused.stderr) == (1, f"mailglass-reconcile: {words}")
    for new in (" ", "suppress"):
        assert commands.run_unchecked(handler_db, "dispatch", "--rename", "suppress", new).returncode == 2
    result = commands.run(handler_db, "dispatch", "--rename", "suppress", "other", "--json")
    assert commands.conforming("dispatch", result.stdout) == [{"renamed": 0}]
    assert handler_db.rows(REGISTERED) == [("other", "bounced")]
    handler_db.handled.clear()


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


def test_a_handler_is_forgotten_with_its_waiting_jobs(handler_db):
    """Done and dead jobs stay until they are pruned; other handlers keep theirs; no further job is enqueued."""
    factories.delivery(handler_db, "m-1")
    handle(handler_db, ("audit", "bounced"), ("gone", "bounced"), ("gone", "opened"))
    handler_db.handled.clear()
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
    commands.run(handler_db, "dispatch", "--forget", "bounced", "--yes")
    assert handler_db.rows(JOBS) == [("bad", "opened", "waiting")]
    assert ("bad", "bounced") not in handler_db.rows(REGISTERED)
    mistyped = commands.run_unchecked(handler_db, "dispatch", "--forget", "bonced", "--yes")
    words = "no dispatcher has registered a handler of 'bonced' (did you mean bounced?), and no job of it waits\n"
    assert (mistyped.returncode, mistyped.stderr) == (1, f"mailglass-reconcile: {words}")


def test_a_handler_that_still_has_a_dispatcher_comes_back(handler_db):
    """The question says when a dispatcher last had it."""
    leaving("suppress", "bounced")
    administration.forget(handler_db.database, "bounced", None)
    assert handler_db.rows(REGISTERED) == []
    dispatch()
    assert handler_db.rows(REGISTERED) == [("suppress", "bounced")]


@pytest.mark.slow
def test_a_sweep_in_a_process_with_handlers_registers_them_first(db, tmp_path):
    """Thus they run on what the first sweep links; a role that may not register sweeps anyway."""
    (tmp_path / "suppressing.py").write_text(HANDLER)
    db.handled.add(("suppress", "bounced"))
    factories.delivery(db, "m-1")
    factories.orphan(db, factories.postmark("m-1"), type="bounced")
    result = commands.run_forked(db, "sweep", MAILGLASS_IMPORTS="suppressing", PYTHONPATH=str(tmp_path))
    assert (result.returncode, effects(db)) == (0, {"suppress": 1})
