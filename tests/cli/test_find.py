"""`find`: each line has the next command, and no address is printed, logged or stored."""

import re

import pytest

import factories
from commands import conforming, run, run_forked, run_unchecked

pytestmark = pytest.mark.version_independent

ADA = "ada.lovelace@example.com"


@pytest.fixture
def sent(db) -> str:
    """A delivery to the address."""
    return factories.delivery(db, "m-1", recipient=ADA)


def test_each_delivery_and_open_orphan_comes_with_its_next_command(db, sent):
    """Lines have at most 80 columns, with state, tenant and times, and no colour."""
    orphan = factories.orphan(db, factories.postmark("m-1"), tenant_id="globex")
    result = run(db, "find", "-", stdin=f"{ADA}\n")
    lines = result.stdout.splitlines()
    assert result.stderr == "no full sweep has ended yet\n"
    assert lines[0] == "1 delivery and 1 event, newest first"
    assert f"  mailglass-reconcile explain {sent}" in lines
    assert f"  mailglass-reconcile explain {orphan}" in lines
    assert "event: delivered, unseen: no sweep has checked it yet; the next full sweep does" in lines
    assert any(line.startswith("delivery: dispatched ") and "1 open event of tenant globex" in line for line in lines)
    assert any("tenant globex, provider -, arrived" in line for line in lines)
    assert not re.search("\x1b|lovelace", "\n".join(lines))


def test_a_line_of_json_for_each(db, sent):
    """Each line conforms to the schema."""
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


def test_an_address_of_nobody_leads_to_the_message_id(db):
    """The exit code is 1, and the address is not printed."""
    result = run_unchecked(db, "find", ADA)
    assert result.returncode == 1
    assert result.stdout.endswith("  mailglass-reconcile find MESSAGE_ID\n")
    assert "lovelace" not in result.stdout + result.stderr


def test_an_id_of_nothing_is_one_line(db):
    """The exit code is 1."""
    result = run_unchecked(db, "find", "m-9")
    assert (result.returncode, result.stdout) == (1, "no delivery and no open event has this id\n")


def test_a_mistyped_tenant_is_named(db, sent):
    """A similar name is suggested."""
    result = run_unchecked(db, "find", "m-1", "--tenant", "acne")
    assert result.returncode == 1
    assert result.stderr == "no event or delivery has tenant 'acne'; did you mean 'acme'?\n"


@pytest.mark.parametrize("arguments", [["-"], ["x" * 513]])
def test_what_cannot_be_looked_for_is_a_usage_error(db, arguments):
    """The error is one line without the term."""
    result = run_unchecked(db, "find", *arguments, stdin="")
    assert result.returncode == 2
    assert "xxx" not in result.stderr


def test_it_runs_in_a_process_of_its_own(db, sent):
    """The process has loaded nothing else."""
    assert f"mailglass-reconcile explain {sent}" in run_forked(db, "find", "m-1").stdout
