"""The page's search: an address or an id leads to deliveries and events, and an address to no place that is kept."""

import html
import logging
import re

import pytest

import factories
import mailglass_reconcile
from browsing import Visitor, app

CANARY = "canary@example.com"
KEPT = """
SELECT string_agg(r::text, ' ') FROM mailglass_reconcile_runs AS r
"""


def posted(visitor, text, **more):
    """Send the form of the search."""
    return visitor.ask("POST", "/find", data={"q": text, **more})


def links(answer):
    """Return the pages of events and deliveries that a page leads to."""
    return re.findall(r'<a class="id" href="\./((?:events|deliveries)/[^"]+)"', answer.text)


@pytest.fixture
def planted_rows(db):
    """A delivery to the canary with a linked event, and another tenant's open event of its message."""
    delivery = factories.delivery(db, "sent", recipient=CANARY)
    linked = factories.orphan(db, factories.postmark("sent"), type="opened")
    mailglass_reconcile.reconcile()
    stray = factories.orphan(db, factories.postmark("sent"), tenant_id="globex")
    mailglass_reconcile.reconcile()
    return {"delivery": delivery, "linked": linked, "stray": stray}


def test_an_address_leads_to_its_deliveries_and_to_the_events_that_name_their_messages(db, planted_rows):
    """With state and time, and not as bare ids."""
    answer = posted(Visitor(app(db)), CANARY)
    assert answer.status_code == 200
    assert sorted(links(answer)) == sorted(
        [f"deliveries/{planted_rows['delivery']}", f"events/{planted_rows['stray']}"]
    )
    assert "1 delivery and 1 event" in answer.text
    assert re.search(r"<strong>opened</strong>", answer.text)
    assert re.search(r"arrived <time[^>]+>5 minutes ago</time><br>expires <time[^>]+>in 6 days</time>", answer.text)
    assert "No delivery and no open orphan of this tenant" in posted(Visitor(app(db)), CANARY, tenant="globex").text


def test_an_address_is_in_no_answer_no_address_no_log_and_no_history(db, planted_rows, caplog):
    """Neither that was found nor that was not, nor in another spelling."""
    caplog.set_level(logging.DEBUG)
    visitor = Visitor(app(db))
    for text in (CANARY, f" {CANARY.upper()} ", "nobody.canary@example.com", f"Canary <{CANARY}>"):
        for more in ({}, {"tenant": "acme"}):
            answer = posted(visitor, text, **more)
            assert answer.status_code == 200
            assert not re.search("canary|example\\.com", answer.text + str(answer.headers), re.IGNORECASE)
    assert not re.search("canary", caplog.text, re.IGNORECASE)
    assert "canary" not in str(db.value(KEPT)).lower()


def test_an_address_that_stands_in_a_url_is_not_looked_up_and_not_repeated(db, planted_rows):
    """It would stay in the browser's history and in a proxy's log; without the token the form does not repeat it."""
    answer = Visitor(app(db)).get(f"/find?q={CANARY}")
    assert (answer.status_code, links(answer), CANARY in answer.text) == (200, [], False)
    for text in (CANARY, CANARY.replace("@", "%40")):
        refused = Visitor(app(db), None).get(f"/find?q={text}")
        assert (refused.status_code, "canary" in refused.text) == (401, False)


def test_an_id_leads_to_its_page_and_a_message_to_its_list(db, planted_rows):
    """Found through an address that can be kept as a bookmark."""
    visitor = Visitor(app(db))
    for kind, name in (("deliveries", "delivery"), ("events", "stray"), ("events", "linked")):
        answer = posted(visitor, planted_rows[name])
        assert (answer.status_code, answer.headers["location"]) == (303, f"find?q={planted_rows[name]}")
        assert visitor.get(f"/find?q={planted_rows[name]}").headers["location"] == f"{kind}/{planted_rows[name]}"
    answer = visitor.get("/find?q=sent")
    assert sorted(links(answer)) == sorted(
        [f"deliveries/{planted_rows['delivery']}", f"events/{planted_rows['stray']}"]
    )
    assert 'name="q" value="sent"' in answer.text


def test_what_was_typed_stays_and_what_cannot_be_looked_for_says_so(db, planted_rows):
    """A mistyped id, a mistyped tenant, and no id at all."""
    visitor = Visitor(app(db))
    text = html.unescape(visitor.get("/find?q=snet").text)
    assert "No delivery and no open orphan has the id <code>snet</code>" in text
    assert 'value="snet"' in text
    assert "Did you mean <strong>globex</strong>?" in visitor.get("/find?q=snet&tenant=golbex").text
    for wrong in ("%00", "x" * 513):
        assert visitor.get(f"/find?q={wrong}").status_code == 400
    assert "Type an e-mail address" in visitor.get("/find").text
    assert "Type an e-mail address" in posted(visitor, "  ").text


def test_a_message_id_with_an_at_sign_is_found_too(db):
    """It is posted and shown as an address is, because it may be one."""
    delivery = factories.delivery(db, "20261128.1@mail.example.com")
    answer = posted(Visitor(app(db)), "<20261128.1@mail.example.com>")
    assert links(answer) == [f"deliveries/{delivery}"]
