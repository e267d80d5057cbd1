"""The top of the dashboard: what is wrong, what a new installation has to do, and no false alarms."""

import html
import re

import pytest

import factories
import mailglass_reconcile
import sweeping
from browsing import Visitor, app
from mailglass_reconcile.ops.checks.backlog import SEVERAL
from mailglass_reconcile.store.schema import revision

pytestmark = pytest.mark.version_independent

LATE_SWEEP = """
INSERT INTO mailglass_reconcile_runs (started_at, finished_at, kind, origin, status, open_groups)
VALUES (now()::timestamp - interval '3 hours', now()::timestamp - interval '3 hours', 'full', 'beat', 'ok', '[]')
"""


def page(db, path="/"):
    """Return the text of a page."""
    return html.unescape(Visitor(app(db)).get(path).text)


def title(text):
    """Return the title of the page."""
    return re.search(r"<title>\s*(.*?)</title>", text, re.DOTALL)[1]


def note(text):
    """Return the note at the top of the overview without markup."""
    top = text.partition('id="health"')[2].partition("</section>")[0]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", top))


def test_every_page_has_the_number_of_problems_in_its_title(db):
    """A background tab shows it; the problems link to their pages, and their commands can be copied."""
    db.run(LATE_SWEEP)
    for path in ("/", "/orphans", "/find?q=nothing"):
        assert title(page(db, path)).startswith("(1) "), path
    text = page(db)
    output = (
        "1 problem No full sweep has succeeded for 3 hours (limit 10 minutes); no run that beat queued has ended for 3"
        " hours."
    )
    assert output in note(text)
    assert 'data-copy="mailglass-reconcile doctor"' in text
    mailglass_reconcile.reconcile()
    assert title(page(db)) == "Overview · mailglass-reconcile"
    assert "Healthy. Sweeps run, and everything that can be linked is linked." in note(page(db))


def test_it_does_not_say_that_all_is_linked_while_something_can_be(db):
    """A sweep leaves what another session holds; an event that no sweep has checked may be linkable."""
    factories.insert_pairs(db, 3)
    with sweeping.held(db.engine, free=1):
        mailglass_reconcile.reconcile()
    assert "Healthy. Sweeps run; 2 events that can be linked wait for the next sweep." in note(page(db))
    db.run("UPDATE mailglass_reconcile_runs SET open_groups = replace(open_groups::text, 'matched', 'unseen')::jsonb")
    assert "Healthy. Sweeps run; 2 events have not been checked yet." in note(page(db))
    mailglass_reconcile.reconcile()
    assert "everything that can be linked is linked" in note(page(db))


def test_a_warning_and_a_green_healthy_do_not_stand_together(db):
    """Nothing is wrong with the sweeps, but a person has something to do."""
    factories.orphan(db, factories.postmark("m-1", provider="postmrak"))
    mailglass_reconcile.reconcile()
    db.run("UPDATE mailglass_reconcile_runs SET open_groups = '[]'")  # as before the sweep that counts it
    text = page(db)
    assert "1 warning No rule knows postmrak" in note(text)
    assert "Sweeps run, and everything that can be linked is linked." in note(text)
    assert ("Healthy" in note(text), "note good" in text) == (False, False)


def test_a_new_installation_has_not_started_yet_and_has_steps(db):
    """It was once red, because no full sweep had succeeded. Finished steps are marked."""
    text = page(db)
    assert title(text) == "Overview · mailglass-reconcile"
    assert "Not started yet. No sweep has run so far." in note(text)
    assert "Done." not in note(text)
    factories.delivery(db, "sent")
    assert note(page(db)).count("Done.") == 1
    factories.orphan(db, factories.postmark("sent"))
    assert note(page(db)).count("Done.") == 2
    assert 'class="note bad"' not in page(db)
    factories.orphan(db, factories.postmark("late"), age_seconds=3_600)
    assert "1 problem No full sweep of all tenants has run yet" in note(page(db))


def test_another_revision_is_not_reported_as_an_unreachable_database(db):
    """The command to run can be copied."""
    mailglass_reconcile.reconcile()
    db.run("UPDATE mailglass_reconcile_version SET version_num = '0000'")
    answer = Visitor(app(db)).get("/")
    db.run("UPDATE mailglass_reconcile_version SET version_num = :now", now=revision.VERSION)
    assert answer.status_code == 503
    assert "<h1>The database needs another revision</h1>" in answer.text
    assert "No answer" not in answer.text
    assert 'data-copy="mailglass-reconcile migrate"' in answer.text


def test_it_is_not_green_over_mismatches(db):
    """Four of five open orphans were another tenant's, and the page once said that everything was linked."""
    for number in range(SEVERAL - 1):
        factories.delivery(db, f"theirs-{number}", tenant_id="globex")
        factories.orphan(db, factories.postmark(f"theirs-{number}"), tenant_id="default")
    factories.orphan(db, factories.postmark("nobody's"))
    mailglass_reconcile.reconcile()
    text = page(db)
    assert "Sweeps run, but 2 of 3 open orphans will not be linked without you." in note(text)
    assert 'href="./orphans?state=tenant_mismatch">2 tenant_mismatch</a>' in text
    factories.orphan(db, factories.postmark("theirs-0"), tenant_id="globex")
    mailglass_reconcile.reconcile()
    assert "Sweeps run, but 1 of 3 open orphans will not be linked without you." in note(page(db))
    assert "have the id; 1 of them came again for the right tenant" in note(page(db))
    factories.orphan(db, factories.postmark("theirs-1"), tenant_id="globex")
    mailglass_reconcile.reconcile()
    assert "Healthy. Sweeps run, and everything that can be linked is linked." in note(page(db))
    assert "everything that can be linked is linked" not in text
    assert title(text) == "Overview · mailglass-reconcile"


def test_the_overview_is_not_green_if_problems_cannot_be_read(db, set_limits):
    """The timeout is a millisecond; other pages are shown without the number."""
    mailglass_reconcile.reconcile()
    set_limits(fast_timeout_ms=1)
    assert Visitor(app(db)).get("/").status_code == 503
    answer = Visitor(app(db)).get("/orphans")
    assert (answer.status_code, title(answer.text)) == (200, "Orphans · mailglass-reconcile")


def test_a_table_that_is_missing_is_named_as_such(db):
    """The command that makes it is shown, if `migrate` does; deliveries are in a backup."""
    for name, code, words in (
        ("mailglass_reconcile_runs", 503, "needs another revision"),
        ("mailglass_deliveries", 200, "Table mailglass_deliveries is missing."),
    ):
        db.run(f"ALTER TABLE {name} RENAME TO away")
        answer = Visitor(app(db)).get("/")
        db.run(f"ALTER TABLE away RENAME TO {name}")
        assert (answer.status_code, words in answer.text) == (code, True)
