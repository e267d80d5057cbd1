"""`dispatch --waiting`, `--dead`, `--retry`: which handlers failed, with which error, and what is tried next."""

import re

import pytest

import commands
import factories
import mailglass_reconcile
from handling import failing, leaving, make_due, states


@pytest.fixture
def failed(handler_db) -> str:
    """An event of which one handler is done and another one has failed once; returns its id."""
    leaving("steady")
    failing("flaky", KeyError())
    factories.delivery(handler_db, "one")
    event = factories.orphan(handler_db, factories.postmark("one"), type="bounced")
    mailglass_reconcile.reconcile()
    mailglass_reconcile.dispatch()
    return event


def test_what_waits_is_listed_by_handler_and_error(handler_db, failed):
    """With the handlers that are left, the next attempt, and whole ids."""
    factories.delivery(handler_db, "two")
    fresh = factories.orphan(handler_db, factories.postmark("two"), type="opened")
    mailglass_reconcile.reconcile()
    done = commands.inside("dispatch", "--waiting")
    total, first, second = done.stderr.splitlines()
    assert total == "2 events wait for their handlers"
    assert re.fullmatch(r"  1 bounced: flaky; KeyError, next attempt \d{4}-.* UTC \(in \d seconds?\)", first)
    assert re.fullmatch(r"  1 opened: steady, flaky; not tried yet, due \d{4}-.* UTC \(\d seconds? ago\)", second)
    lines = done.stdout.splitlines()
    assert lines[0] == failed
    assert re.fullmatch(r"  bounced, 1 attempt, KeyError, next attempt .*; done: steady", lines[1])
    assert lines[2] == f"  delivery {handler_db.value(OF, id=failed)}"
    assert lines[3] == fresh
    (found,) = commands.conforming("dispatch", commands.inside("dispatch", "--waiting", "--json").stdout)
    assert [one["event_id"] for one in found["waiting"]] == [failed, fresh]
    assert [(one["handlers"], one["error"]) for one in found["groups"]] == [
        (["flaky"], "KeyError"),
        (["steady", "flaky"], None),
    ]


OF = "SELECT delivery_id FROM mailglass_handler_outbox WHERE event_id = CAST(:id AS uuid)"


def test_nothing_waits(handler_db):
    """No line on standard output."""
    done = commands.inside("dispatch", "--waiting")
    assert (done.stdout, done.stderr) == ("", "0 events wait for their handlers\n")


@pytest.mark.parametrize("dead", [False, True])
def test_at_80_columns_ids_are_whole(handler_db, failed, dead):
    """Nothing is longer than the terminal."""
    if dead:
        handler_db.run("UPDATE mailglass_handler_outbox SET state = 'dead', finished_at = now()")
    said = commands.on_a_terminal(handler_db, "dispatch", "--dead" if dead else "--waiting").splitlines()
    assert failed in said
    assert f"  delivery {handler_db.value(OF, id=failed)}" in said
    assert max(map(len, said)) <= 80


@pytest.mark.parametrize("one", [False, True])
def test_what_fails_is_tried_again_with_what_is_dead(handler_db, failed, one):
    """By its id, or with all others; its attempts still count. What waits for its first attempt is left as it is."""
    handler_db.run("UPDATE mailglass_handler_outbox SET next_at = now() + interval '1 day', attempts = 7")
    factories.delivery(handler_db, "two")
    factories.orphan(handler_db, factories.postmark("two"), type="bounced")
    mailglass_reconcile.reconcile()
    done = commands.inside("dispatch", "--retry", *([failed] if one else []))
    assert done.output == "1 event will be tried again\n"
    rows = handler_db.rows("SELECT attempts, next_at <= now()::timestamp FROM mailglass_handler_outbox ORDER BY 1")
    assert rows == [(0, True), (7, True)]
    assert commands.inside("dispatch", "--retry").output == "0 events will be tried again\n"
    make_due(handler_db)
    assert states(handler_db) == {"waiting": 2}


def test_an_event_that_does_not_fail_is_not_tried_again(handler_db):
    """One line that says where to look."""
    done = commands.inside("dispatch", "--retry", factories.new_id())
    assert done.exit_code == 1
    assert "is neither dead nor failing: see `mailglass-reconcile dispatch --dead`" in done.stderr


def test_the_three_exclude_each_other(handler_db):
    """Exit code 2."""
    assert commands.inside("dispatch", "--waiting", "--dead").exit_code == 2
