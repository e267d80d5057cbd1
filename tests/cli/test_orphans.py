"""`mailglass-reconcile orphans` as a process."""

import re

import pytest

import commands
import factories
import mailglass_reconcile
from mailglass_reconcile.cli.texts import Duration
from mailglass_reconcile.rules.humanize import age


@pytest.mark.slow
def test_a_line_of_json_per_orphan_and_the_next_page_on_standard_error(db):
    """Each line conforms to the schema; the place of the next page is the last event's id."""
    factories.delivery(db, "one")
    ids = [factories.orphan(db, factories.postmark(m), age_seconds=900 - n) for n, m in enumerate(("one", "two", "x"))]
    factories.orphan(db, factories.postmark("one"), age_seconds=100)
    assert mailglass_reconcile.reconcile(limit=1).skipped_limit == 1  # the newest is linked first
    first = commands.run(db, "orphans", "--json", "--limit", "2")
    lines = commands.conforming("orphans", first.stdout)
    assert [(line["event_id"], line["state"]) for line in lines] == [(ids[0], "matched"), (ids[1], "unmatched")]
    assert first.stderr == f"there may be more: --after {ids[1]}\n"
    second = commands.run(db, "orphans", "--json", "--limit", "2", "--after", ids[1])
    assert [line["event_id"] for line in commands.conforming("orphans", second.stdout)] == [ids[2]]
    assert second.stderr == ""


def test_a_person_reads_ages_zones_and_nothing_that_steers_the_terminal(db):
    """In a pipe, where nothing is wrapped."""
    factories.orphan(db, factories.postmark("x\u202e"), tenant_id="a\u001b[2Jcme", age_seconds=6 * 86_400 + 50)
    mailglass_reconcile.reconcile()
    said = commands.inside("orphans").stdout
    assert "unmatched" in said
    assert re.search(r"arrived 2\d{3}-\d\d-\d\d \d\d:\d\d:\d\d UTC \(6 days ago\)", said)
    assert "a\\x1b[2Jcme" in said
    assert "x\\u202e" in said
    assert all(line.isprintable() for line in said.splitlines())


def test_a_person_reads_since_when_the_states_are_known(db):
    """On standard error, before and after the first full sweep; not of expired ones, which are judged now."""
    factories.orphan(db, factories.postmark("x"), age_seconds=300)
    factories.orphan(db, factories.postmark("x"), age_seconds=8 * 86_400)
    unseen = commands.inside("orphans")
    assert ("  unseen\n" in unseen.stdout, unseen.stderr) == (True, "no full sweep has ended yet\n")
    mailglass_reconcile.reconcile()
    swept = commands.inside("orphans")
    assert "  unmatched\n" in swept.stdout
    assert re.fullmatch(
        r"states as of 2\d{3}-\d\d-\d\d \d\d:\d\d:\d\d UTC \(\d seconds? ago\), when the last full sweep ended\n",
        swept.stderr,
    )
    assert [commands.inside("orphans", option).stderr for option in ("--json", "--expired")] == ["", ""]


def test_expired_ones_are_said_to_be_unlikely_to_reconcile(db):
    """From the ledger, on request only."""
    old = factories.orphan(db, factories.postmark("x"), age_seconds=8 * 86_400)
    assert commands.inside("orphans").stdout == "none\n"
    assert f"{old}  older than 7 days, unlikely to reconcile" in commands.inside("orphans", "--expired").stdout
    line = commands.conforming("orphans", commands.inside("orphans", "--state", "expired", "--json").stdout)[0]
    assert (line["event_id"], line["state"]) == (old, "expired")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--state", "lost"),
        ("--older", "5"),
        ("--older", "5 m"),
        ("--limit", "0"),
        ("--expired", "--state", "matched"),
        ("--expired", "--newest-first"),
        ("--after", "00000000-0000-4000-8000-000000000000"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_no_traceback(db, arguments):
    """A state or a unit that is none, options that exclude each other, an event that is not there."""
    done = commands.inside("orphans", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_spans_of_time_are_read_and_written_as_people_say_them():
    """`90s` and `1 minute`, `6d` and `6 days`."""
    convert = Duration().convert
    assert [convert(text, None, None) for text in ("90s", "5m", "2h", "6d")] == [90, 300, 7_200, 518_400]
    spans = (0, 1, 59, 60, 3_599, 3_600, 86_399, 86_400, 10**8)
    assert [age(seconds) for seconds in spans] == [
        "0 seconds", "1 second", "59 seconds", "1 minute", "59 minutes", "1 hour", "23 hours", "1 day", "1,157 days",
    ]  # fmt: skip


def test_a_mistyped_type_or_provider_gets_a_hint(db):
    """On standard error; the list is as asked for all the same."""
    factories.orphan(db, {"provider": "sendgird", "message_id": "m"})
    mailglass_reconcile.reconcile()
    for option, name, hint in (
        ("--type", "bounce", "no event has the type bounce; did you mean bounced?"),
        ("--provider", "sendgird", "no rule knows sendgird; did you mean sendgrid?"),
        ("--provider", "Amazon SES", ""),
        ("--provider", "something-else", ""),
    ):
        done = commands.inside("orphans", option, name)
        assert (done.exit_code, done.stderr.partition("states as of")[0].strip()) == (0, hint)
