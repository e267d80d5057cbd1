"""`dispatch --waiting`, `--dead` and `--retry`: handlers that failed, their errors, and what is retried."""

import re

import pytest

import commands
import factories
import mailglass_reconcile
from handling import failing, leaving, make_due, states

pytestmark = pytest.mark.version_independent


@pytest.fixture
def failed(handler_db) -> str:
    """An event of which one handler is done and another has failed once; its id."""
    leaving("steady")
    failing("flaky", KeyError())
    factories.delivery(handler_db, "one")
    event = factories.orphan(handler_db, factories.postmark("one"), type="bounced")
    mailglass_reconcile.reconcile()
    mailglass_reconcile.dispatch()
    return event


def test_what_waits_is_listed_by_handler_and_error(handler_db, failed):
    factories.delivery(handler_db, "two")
    fresh = factories.orphan(handler_db, factories.postmark("two"), type="opened")
    mailglass_reconcile.reconcile()
    result = commands.run_here("dispatch", "--waiting")
    total, *groups = result.stderr.splitlines()
    assert total == "3 jobs of handlers wait"
    assert re.fullmatch(r"  1 bounced for flaky: KeyError, next attempt \d{4}-.* UTC \(in \d seconds?\)", groups[0])
    for group, name in zip(groups[1:], ("flaky", "steady"), strict=True):
        assert re.fullmatch(
            rf"  1 opened for {name}: not tried yet, due \d{{4}}-.* UTC \((?:now|\d seconds? ago)\)", group
        )
    lines = result.stdout.splitlines()
    assert lines[0] == failed
    assert re.fullmatch(r"  bounced for flaky, 1 attempt, KeyError, next attempt .*", lines[1])
    assert lines[2] == f"  delivery {handler_db.value(OF, id=failed)}"
    assert lines[3] == lines[6] == fresh
    (document,) = commands.conforming("dispatch", commands.run_here("dispatch", "--waiting", "--json").stdout)
    jobs = [(job["event_id"], job["handler"]) for job in document["waiting"]]
    assert jobs == [(failed, "flaky"), (fresh, "flaky"), (fresh, "steady")]
    assert [(group["handler"], group["error"]) for group in document["groups"]] == [
        ("flaky", "KeyError"),
        ("flaky", None),
        ("steady", None),
    ]
    output = commands.run_here("dispatch", "--waiting", "--handler", "steady", "--json").stdout
    (document,) = commands.conforming("dispatch", output)
    assert ([job["handler"] for job in document["waiting"]], document["total"]) == (["steady"], 1)


OF = "SELECT max(delivery_id::text) FROM mailglass_handler_outbox WHERE event_id = CAST(:id AS uuid)"


@pytest.mark.parametrize(
    "arguments", [("event",), *(pytest.param(words, marks=pytest.mark.slow) for words in (("--handler", "flaky"), ()))]
)
def test_what_fails_is_tried_again_with_what_is_dead(handler_db, failed, arguments):
    """The event, its handler or all jobs can be retried; attempts still count, and new jobs do not change."""
    handler_db.run(
        "UPDATE mailglass_handler_outbox SET next_at = now() + interval '1 day', attempts = 7 WHERE state = 'waiting'"
    )
    factories.delivery(handler_db, "two")
    factories.orphan(handler_db, factories.postmark("two"), type="bounced")
    mailglass_reconcile.reconcile()
    output = commands.run_here("dispatch", "--retry", "--handler", "steady").output
    assert output == "0 jobs will be tried again\n"
    result = commands.run_here("dispatch", "--retry", *(failed if name == "event" else name for name in arguments))
    assert result.output == "1 job will be tried again\n"
    rows = handler_db.rows(
        "SELECT attempts, next_at <= now()::timestamp FROM mailglass_handler_outbox WHERE state = 'waiting' ORDER BY 1"
    )
    assert rows == [(0, True), (0, True), (7, True)]
    assert commands.run_here("dispatch", "--retry").output == "0 jobs will be tried again\n"
    make_due(handler_db)
    assert states(handler_db) == {"done": 1, "waiting": 3}
