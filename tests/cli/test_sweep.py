"""`sweep` with a target: what it selects, counts and confirms; and Ctrl-C."""

import json
import os
import pty
import re
import signal
import sys
from contextlib import suppress

import pytest

import commands
import mailglass_reconcile
import processes
from factories import delivery, delivery_row, insert, insert_pairs, orphan, orphan_row, postmark, sendgrid
from mailglass_reconcile.sweep import reconciler
from processes import COMMAND
from waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.version_independent]


def load_linked_ids(db):
    """Return the ids of the linked orphans."""
    rows = db.rows("SELECT metadata ->> 'reconciled_from_event_id' FROM mailglass_events WHERE type = 'reconciled'")
    return {row[0] for row in rows}


def pair(db, message_id, **columns):
    """Insert a delivery and its orphan, and return both ids."""
    return delivery(db, message_id), orphan(db, postmark(message_id), **columns)


def test_one_event_is_linked_although_it_is_in_its_grace(db):
    pair(db, "m-1")
    _, event_id = pair(db, "m-2", age_seconds=5)
    result = commands.run(db, "sweep", "--event", event_id, "--yes", "--json")
    assert (json.loads(result.stdout)["linked"], load_linked_ids(db)) == (1, {event_id})


def test_one_delivery_gets_its_events_and_no_other_does(db):
    first, first_event = pair(db, "m-1")
    second_event = orphan(db, postmark("m-1"), type="opened")
    pair(db, "m-2")
    commands.run(db, "sweep", "--delivery", first, "--yes")
    assert load_linked_ids(db) == {first_event, second_event}


def test_a_provider_and_a_span_of_time_are_counted_and_linked(db):
    insert(
        db,
        [delivery_row(f"{kind}-{n}") for kind in "ps" for n in range(3)],
        [orphan_row(postmark(f"p-{n}"), age_seconds=3_600) for n in range(3)]
        + [orphan_row(sendgrid(f"s-{n}"), age_seconds=3_600) for n in range(2)]
        + [orphan_row(sendgrid("s-2"), age_seconds=90)],
    )
    command = ("sweep", "--provider", "SendGrid", "--until", "30m")
    result = commands.run(db, *command, "--dry-run", "--json")
    assert (json.loads(result.stdout)["linked"], load_linked_ids(db)) == (2, set())
    lines = commands.run(db, *command, "--dry-run", "--verbose").stdout.splitlines()
    assert ([" -> " in line for line in lines], "by the message id alone" in lines[-1]) == (
        [True, True, False, False],
        True,
    )
    assert json.loads(commands.run(db, *command, "--limit", "1", "--yes", "--json").stdout)["linked"] == 1
    assert json.loads(commands.run(db, *command, "--yes", "--json").stdout)["linked"] == 1
    assert json.loads(commands.run(db, "sweep", "--since", "5m", "--yes", "--json").stdout)["linked"] == 1


@pytest.mark.parametrize(("option", "linked"), [("--since", 0), ("--until", 1)])
def test_an_age_of_0_seconds_selects_as_any_other_age_does(db, option, linked):
    """It was taken for no age: a sweep of all, without the question."""
    delivery(db, "m-1")
    orphan(db, postmark("m-1"))
    assert json.loads(commands.run(db, "sweep", option, "0s", "--yes", "--json").stdout)["linked"] == linked


@pytest.mark.parametrize("option", ["--event", "--delivery"])
def test_an_event_that_has_expired_is_linked_if_it_or_its_delivery_is_named(db, option):
    """The rule is the same, and a daily prune has run; an event without a delivery stays expired and closed."""
    delivery_id = delivery(db, "m-1")
    old, lost = (orphan(db, postmark(id_), age_seconds=9 * 86_400) for id_ in ("m-1", "m-2"))
    mailglass_reconcile.prune()
    assert db.rows("SELECT FROM mailglass_open_orphans") == []
    refused = commands.run_unchecked(db, "sweep", "--event", lost, "--yes")
    assert (refused.returncode, "cannot link event" in refused.stderr) == (1, True)
    name = old if option == "--event" else delivery_id
    [counts] = commands.conforming("sweep", commands.run_here("sweep", option, name, "--dry-run", "--json").stdout)
    assert (counts["scanned"], counts["linked"], counts["linked_unchecked"]) == (1, 1, 1)
    commands.run(db, "sweep", option, name, "--yes")
    assert load_linked_ids(db) == {old}
    assert db.rows("SELECT FROM mailglass_open_orphans") == []


def test_all_that_have_expired_are_linked_by_a_prune_and_a_sweep_with_a_higher_maximum_age(db):
    """A daily prune has removed them from the open set."""
    for id_ in ("m-1", "m-2"):
        delivery(db, id_)
    old = {orphan(db, postmark(id_), age_seconds=9 * 86_400) for id_ in ("m-1", "m-2", "m-3")}
    mailglass_reconcile.prune()
    assert json.loads(commands.run(db, "sweep", "--json").stdout)["scanned"] == 0
    raised = db.settings.model_copy(update={"max_age_minutes": 525_600})
    mailglass_reconcile.configure(engine=db.engine, settings=raised)
    mailglass_reconcile.prune()
    assert mailglass_reconcile.reconcile().linked == 2
    assert load_linked_ids(db) < old


def test_it_asks_at_a_terminal(db):
    pair(db, "m-1")
    output = commands.run_on_terminal(db, "sweep", "--provider", "postmark", typed="n\n", code=130)
    assert "link 1 event?" in output
    assert load_linked_ids(db) == set()


def test_ctrl_c_says_what_was_committed_and_exits_with_130(db):
    insert_pairs(db, 50)
    db.run("CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.1); RETURN NEW; END'")
    db.run("CREATE TRIGGER slow BEFORE UPDATE ON mailglass_deliveries FOR EACH ROW EXECUTE FUNCTION slow()")
    environment = {**db.environment(), "MAILGLASS_BATCH_SIZE": "5"}
    with processes.start([*COMMAND, "sweep"], environment, until=lambda: db.count_links() >= 5) as process:
        assert process.stop(signal.SIGINT) == 130
    assert (
        process.stderr
        == f"interrupted: {db.count_links()} links are committed and stay; the next sweep links the rest\n"
    )
    assert db.rows("SELECT status FROM mailglass_reconcile_runs") == [("partial",)]


class Terminal:
    """A process on a terminal of its own, which shows a bar and sends Ctrl-C."""

    def __init__(self, db, *arguments, **environment):
        environment = {**db.environment(), "TERM": "xterm", **environment}
        command = [sys.executable, "-P", "-m", "mailglass_reconcile", *arguments]
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.execve(sys.executable, command, environment)  # noqa: S606

    def types(self, text):
        """Type something."""
        os.write(self.terminal, text.encode())

    def ends(self):
        """Wait until the process has ended, and return its exit code and output."""
        written = b""
        with suppress(OSError):  # the terminal closes with the process
            while piece := os.read(self.terminal, 65_536):
                written += piece
        os.close(self.terminal)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), written.decode()


def lines(written):
    """Return the lines that were on the terminal, including those that the bar overwrote."""
    without_colour = re.sub(r"\x1b\[[0-9;?]*[a-zA-JL-Z]", "", written)
    return re.split(r"[\r\n]+|\x1b\[[0-9;]*K", without_colour)


def test_log_and_summary_begin_on_lines_of_their_own(db):
    delivery(db, "m-1", tenant_id="globex")
    orphan(db, postmark("m-1"))
    code, written = Terminal(db, "sweep").ends()
    output = [line for line in lines(written) if line.strip()]
    assert any(line.startswith("sweeping") for line in output)
    assert any(line.startswith("WARNING: 1 event matches only another tenant's") for line in output), output
    assert any(line.startswith("linked 0 of 1 open event") for line in output)
    assert code == 0


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_ctrl_c_at_a_terminal_begins_on_a_line_of_its_own(db, arguments):
    insert_pairs(db, 50)
    db.run("CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.1); RETURN NEW; END'")
    db.run("CREATE TRIGGER slow BEFORE UPDATE ON mailglass_deliveries FOR EACH ROW EXECUTE FUNCTION slow()")
    sweeping = Terminal(db, "sweep", *arguments, MAILGLASS_BATCH_SIZE="5")
    wait_until(lambda: db.count_links() >= 5, PATIENCE)
    sweeping.types("\x03")
    code, written = sweeping.ends()
    expected = f"interrupted: {db.count_links()} links are committed and stay; the next sweep links the rest"
    assert code == 130
    assert expected in lines(written)


def test_the_bar_counts_the_orphans_to_match_and_reaches_its_end(db):
    orphan(db, {"provider": "postmark"})
    assert mailglass_reconcile.reconcile().unmatchable == 1
    for n in range(3):
        orphan(db, postmark(f"m-{n}"))
    sweep = reconciler.prepare(None, None)
    rows = [(sweep.counters.processed, sweep.counters.selected) for _ in sweep.batches()]
    assert sweep.result.scanned == 4
    assert rows[-1] == (3, 3)
