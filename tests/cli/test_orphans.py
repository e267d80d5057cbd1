"""`mailglass-reconcile orphans` as a process."""

import re

import pytest

import commands
import factories
import mailglass_reconcile
from browsing import Visitor, app
from mailglass_reconcile.cli.output import Duration
from mailglass_reconcile.rules.humanize import format_duration
from recording import event, record

pytestmark = pytest.mark.version_independent

HEADING = re.compile(r"(\d+ orphans?; )?states as of")


@pytest.mark.slow
def test_a_line_of_json_per_orphan_and_the_next_page_on_standard_error(db):
    """Each line conforms to the schema; the cursor of the next page is the last event's id."""
    factories.delivery(db, "one")
    ids = [factories.orphan(db, factories.postmark(m), age_seconds=900 - n) for n, m in enumerate(("one", "two", "x"))]
    factories.orphan(db, factories.postmark("one"), age_seconds=100)
    assert mailglass_reconcile.reconcile(limit=1).skipped_limit == 1  # the newest is linked first
    first = commands.run(db, "orphans", "--json", "--limit", "2")
    lines = commands.conforming("orphans", first.stdout)
    assert [(line["event_id"], line["state"]) for line in lines] == [(ids[2], "unmatched"), (ids[1], "unmatched")]
    assert first.stderr == f"more: --after {ids[1]}\n"
    second = commands.run(db, "orphans", "--json", "--limit", "2", "--after", ids[1])
    lines = commands.conforming("orphans", second.stdout)
    assert [(line["event_id"], line["state"]) for line in lines] == [(ids[0], "matched")]
    assert second.stderr == ""


def test_a_person_reads_ages_zones_and_nothing_that_steers_the_terminal(db):
    """Lines in a pipe are not wrapped."""
    factories.orphan(db, factories.postmark("x\u202e"), tenant_id="a\u001b[2Jcme", age_seconds=6 * 86_400 + 50)
    mailglass_reconcile.reconcile()
    stdout = commands.run_here("orphans").stdout
    assert "unmatched" in stdout
    assert re.search(r"arrived 2\d{3}-\d\d-\d\d \d\d:\d\d:\d\d UTC \(6 days ago\)", stdout)
    assert "a\\x1b[2Jcme" in stdout
    assert "x\\u202e" in stdout
    assert all(line.isprintable() for line in stdout.splitlines())


def test_a_person_reads_since_when_the_states_are_known(db):
    """Stderr says it before and after the first full sweep; expired orphans are matched on reading."""
    factories.orphan(db, factories.postmark("x"), age_seconds=300)
    factories.orphan(db, factories.postmark("x"), age_seconds=8 * 86_400)
    unseen = commands.run_here("orphans")
    assert ("  unseen\n" in unseen.stdout, unseen.stderr) == (
        True,
        "1 orphan; no full sweep has ended yet\n  1 unseen: acme\n",
    )
    mailglass_reconcile.reconcile()
    swept = commands.run_here("orphans")
    assert "  unmatched\n" in swept.stdout
    assert re.fullmatch(
        r"1 orphan; states as of 2\d{3}-\d\d-\d\d \d\d:\d\d:\d\d UTC \((?:now|\d seconds? ago)\), when the last full"
        r" sweep ended\n  1 unmatched: acme, postmark\n",
        swept.stderr,
    )
    assert [commands.run_here("orphans", option).stderr for option in ("--json", "--expired")] == ["", ""]


def test_an_expired_one_is_listed_with_what_matches_it_now(db):
    """They are listed from the ledger, on request only; `sweep --event` links the one that matches."""
    delivery = factories.delivery(db, "there")
    late = factories.orphan(db, factories.postmark("there"), age_seconds=9 * 86_400)
    old = factories.orphan(db, factories.postmark("x"), age_seconds=8 * 86_400)
    assert commands.run_here("orphans").stdout == "none\n"
    stdout = commands.run_here("orphans", "--expired").stdout
    assert f"{late}  expired (older than 7 days); now matched: link it with sweep --event" in stdout
    assert f"{old}  expired (older than 7 days); now unmatched: no delivery yet" in stdout
    lines = commands.conforming("orphans", commands.run_here("orphans", "--state", "expired", "--json").stdout)
    assert [(line["event_id"], line["state"], line["verdict"], line["delivery_id"]) for line in lines] == [
        (late, "expired", "matched", delivery),
        (old, "expired", "unmatched", None),
    ]
    page = Visitor(app(db)).get("/orphans?state=expired").text
    assert re.search(r"expired</span> now <span class=\"state matched", page)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--state", "lost"),
        ("--limit", "0"),
        ("--expired", "--state", "matched"),
        ("--after", "00000000-0000-4000-8000-000000000000"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_no_traceback(db, arguments):
    """The state or unit is unknown, options exclude each other, or the event does not exist."""
    result = commands.run_here("orphans", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr


def test_spans_of_time_are_read_and_written_as_people_say_them():
    """`90s` is 90 seconds, and 60 seconds are `1 minute`."""
    convert = Duration().convert
    assert [convert(text, None, None) for text in ("90s", "5m", "2h", "6d")] == [90, 300, 7_200, 518_400]
    spans = (0, 1, 59, 60, 3_599, 3_600, 86_399, 86_400, 10**8)
    assert [format_duration(seconds) for seconds in spans] == [
        "0 seconds", "1 second", "59 seconds", "1 minute", "59 minutes", "1 hour", "23 hours", "1 day", "1,157 days",
    ]  # fmt: skip


def test_a_mistyped_type_or_provider_gets_a_hint(db):
    """The hint is on stderr, and the list is as requested."""
    factories.orphan(db, {"provider": "sendgird", "message_id": "m"})
    mailglass_reconcile.reconcile()
    for option, name, hint in (
        ("--type", "bounce", "no event has the type bounce; did you mean bounced?"),
        ("--provider", "sendgird", "no rule knows sendgird; did you mean sendgrid?"),
        ("--provider", "Amazon SES", ""),
        ("--provider", "something-else", ""),
    ):
        result = commands.run_here("orphans", option, name)
        assert (result.exit_code, HEADING.split(result.stderr)[0].strip()) == (0, hint)


def test_identical_causes_are_one_line(db):
    """The line names the tenant of the deliveries; more than ten causes are summed up."""
    factories.delivery(db, "theirs", tenant_id="globex")
    for _ in range(3):
        factories.orphan(db, factories.postmark("theirs"), tenant_id="default")
    for n in range(11):
        factories.orphan(db, factories.postmark("x"), tenant_id=f"tenant {n}")
    mailglass_reconcile.reconcile()
    result = commands.run(db, "orphans", "--limit", "1")
    number, first, *lines, summary, more = result.stderr.splitlines()
    assert number.startswith("14 orphans; states as of ")
    assert first == "  3 tenant_mismatch: default → globex, postmark"
    assert (len(lines), summary) == (9, "  2 of 2 other causes")
    assert more.startswith("more: --after ")


def test_an_orphan_says_when_it_expires(db):
    """Each line has the time."""
    factories.orphan(db, factories.postmark("x"), age_seconds=3_700)
    stdout = commands.run_here("orphans").stdout
    assert re.search(r"arrived .* \(1 hour ago\), expires .* UTC \(in 6 days\);", stdout)


def test_a_mistyped_tenant_gets_a_hint(db):
    """It suggests a similar name, but not for a tenant without open orphans."""
    factories.delivery(db, "m-1")
    result = commands.run_here("orphans", "--tenant", "acne")
    assert (result.exit_code, result.stdout) == (0, "none\n")
    assert result.stderr == "no event or delivery has tenant 'acne'; did you mean 'acme'?\n"
    assert commands.run_here("orphans", "--tenant", "acme").stderr == ""


def test_a_recipient_is_read_from_standard_input_and_never_shown(db):
    """No argument has to hold it; a text that is no address is refused."""
    with db.begin() as connection:
        (own,) = record(connection, event(recipient="Ada@example.com"))
    result = commands.run(db, "orphans", "--recipient", "-", stdin="ada@example.com\n")
    assert result.stdout.startswith(f"{own.event_id}  ")
    assert "example.com" not in (result.stdout + result.stderr).lower()
    for typed, options in (("nobody", []), ("", []), ("ada@example.com", ["--expired"])):
        refused = commands.run_unchecked(db, "orphans", "--recipient", "-", *options, stdin=typed)
        assert refused.returncode == 2
        assert "nobody" not in refused.stderr
