"""`find`: each line has the next command, and no address is printed, logged or stored."""

import pytest

import factories
from commands import conforming, run, run_forked, run_unchecked

pytestmark = pytest.mark.version_independent

ADA = "ada.lovelace@example.com"


@pytest.fixture
def sent(db) -> str:
    """A delivery to the address."""
    return factories.delivery(db, "m-1", recipient=ADA)


def test_a_line_of_json_for_each(db, sent):
    orphan = factories.orphan(db, factories.postmark("m-1"), tenant_id="globex")
    delivery, event = conforming("find", run(db, "find", "-", "--json", stdin=ADA).stdout)
    assert (delivery["kind"], delivery["id"], delivery["type"]) == ("delivery", sent, "dispatched")
    assert "1 open event of tenant globex" in delivery["summary"]
    assert (event["kind"], event["id"]) == ("event", orphan)
    assert event["summary"] == "delivered, unseen: no sweep has checked it yet; the next full sweep does"


def test_the_newest_are_shown_and_how_to_see_more(db, sent):
    """The command does not repeat the address, and its option can be typed as it is printed."""
    for number in range(100):
        factories.delivery(db, f"m-2-{number}", recipient=ADA)
    result = run(db, "find", "-", "--limit", "100", stdin=ADA)
    assert result.stdout.startswith("101 deliveries and 0 events, newest first\n")
    assert result.stderr == "only the newest 100 are shown: --limit 1000 shows more\n"


def test_it_runs_in_a_process_of_its_own(db, sent):
    assert f"mailglass-reconcile explain {sent}" in run_forked(db, "find", "m-1").stdout


def test_a_database_that_refuses_does_not_show_the_address(db, sent):
    db.run("ALTER TABLE mailglass_deliveries RENAME COLUMN mailable TO mailed")
    result = run_unchecked(db, "find", "-", stdin=ADA)
    db.run("ALTER TABLE mailglass_deliveries RENAME COLUMN mailed TO mailable")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "lovelace" not in result.stderr
