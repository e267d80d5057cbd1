"""`mailglass-reconcile orphans` as a process."""

import re

import pytest

import commands
import factories
import mailglass_reconcile
from browsing import Visitor, app
from recording import event, record

pytestmark = pytest.mark.version_independent


@pytest.mark.slow
def test_a_line_of_json_per_orphan_and_the_next_page_on_standard_error(db):
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


def test_an_expired_one_is_listed_with_what_matches_it_now(db):
    delivery = factories.delivery(db, "there")
    late = factories.orphan(db, factories.postmark("there"), age_seconds=9 * 86_400)
    old = factories.orphan(db, factories.postmark("x"), age_seconds=8 * 86_400)
    assert commands.run_here("orphans").stdout == "none\n"
    lines = commands.conforming("orphans", commands.run_here("orphans", "--state", "expired", "--json").stdout)
    assert [(line["event_id"], line["state"], line["verdict"], line["delivery_id"]) for line in lines] == [
        (late, "expired", "matched", delivery),
        (old, "expired", "unmatched", None),
    ]
    page = Visitor(app(db)).get("/orphans?state=expired").text
    assert re.search(r"expired</span> now <span class=\"state matched", page)


def test_identical_causes_are_one_line(db):
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


def test_a_recipient_is_read_from_standard_input_and_never_shown(db):
    with db.begin() as connection:
        (own,) = record(connection, event(recipient="Ada@example.com"))
    result = commands.run(db, "orphans", "--recipient", "-", stdin="ada@example.com\n")
    assert result.stdout.startswith(f"{own.event_id}  ")
    assert "example.com" not in (result.stdout + result.stderr).lower()
