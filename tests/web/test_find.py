"""The dashboard's search: addresses and ids lead to deliveries and events, and addresses are stored nowhere."""

import html
import logging
import re

import pytest

import factories
import mailglass_reconcile
from browsing import Visitor, app

pytestmark = pytest.mark.version_independent

CANARY = "canary@example.com"
HISTORY = """
SELECT string_agg(r::text, ' ') FROM mailglass_reconcile_runs AS r
"""


def submit(visitor, text, **more):
    """Submit the search form."""
    return visitor.ask("POST", "/find", data={"q": text, **more})


def links(answer):
    """Return the event and delivery pages that a page links to."""
    return re.findall(r'<a class="id" href="\./((?:events|deliveries)/[^"]+)"', answer.text)


@pytest.fixture
def planted_rows(db):
    """Insert a delivery to the canary with a linked event, and another tenant's open event of its message."""
    delivery = factories.delivery(db, "sent", recipient=CANARY)
    linked = factories.orphan(db, factories.postmark("sent"), type="opened")
    mailglass_reconcile.reconcile()
    stray = factories.orphan(db, factories.postmark("sent"), tenant_id="globex")
    mailglass_reconcile.reconcile()
    return {"delivery": delivery, "linked": linked, "stray": stray}


def test_an_address_leads_to_its_deliveries_and_to_the_events_that_name_their_messages(db, planted_rows):
    """State and time are shown rather than bare ids."""
    answer = submit(Visitor(app(db)), CANARY)
    assert answer.status_code == 200
    assert sorted(links(answer)) == sorted(
        [f"deliveries/{planted_rows['delivery']}", f"events/{planted_rows['stray']}"]
    )
    assert "1 delivery and 1 event" in answer.text
    assert re.search(r"<strong>opened</strong>", answer.text)
    assert re.search(r"arrived <time[^>]+>5 minutes ago</time><br>expires <time[^>]+>in 6 days</time>", answer.text)
    assert "No delivery and no open event of this tenant" in submit(Visitor(app(db)), CANARY, tenant="globex").text


def test_an_address_is_in_no_response_url_log_or_history(db, planted_rows, caplog):
    """It may be found or not, in any spelling."""
    caplog.set_level(logging.DEBUG)
    visitor = Visitor(app(db))
    for text in (CANARY, f" {CANARY.upper()} ", "nobody.canary@example.com", f"Canary <{CANARY}>"):
        for more in ({}, {"tenant": "acme"}):
            answer = submit(visitor, text, **more)
            assert answer.status_code == 200
            assert not re.search("canary|example\\.com", answer.text + str(answer.headers), re.IGNORECASE)
    assert not re.search("canary", caplog.text, re.IGNORECASE)
    assert "canary" not in str(db.value(HISTORY)).lower()


def test_an_address_in_a_url_is_not_looked_up_and_not_repeated(db, planted_rows):
    """It would stay in the browser's history and a proxy's log; the sign-in form does not repeat it either."""
    answer = Visitor(app(db)).get(f"/find?q={CANARY}")
    assert (answer.status_code, links(answer), CANARY in answer.text) == (200, [], False)
    for text in (CANARY, CANARY.replace("@", "%40")):
        refused = Visitor(app(db), None).get(f"/find?q={text}")
        assert (refused.status_code, "canary" in refused.text) == (401, False)


def test_an_id_leads_to_its_page_and_a_message_to_its_list(db, planted_rows):
    """The URL can be bookmarked."""
    visitor = Visitor(app(db))
    for kind, name in (("deliveries", "delivery"), ("events", "stray"), ("events", "linked")):
        answer = submit(visitor, planted_rows[name])
        assert (answer.status_code, answer.headers["location"]) == (303, f"find?q={planted_rows[name]}")
        assert visitor.get(f"/find?q={planted_rows[name]}").headers["location"] == f"{kind}/{planted_rows[name]}"
    answer = visitor.get("/find?q=sent")
    assert sorted(links(answer)) == sorted(
        [f"deliveries/{planted_rows['delivery']}", f"events/{planted_rows['stray']}"]
    )
    assert 'name="q" value="sent"' in answer.text


def test_input_stays_in_the_field_and_invalid_input_is_explained(db, planted_rows):
    """A mistyped id, a mistyped tenant and an empty field are tried."""
    visitor = Visitor(app(db))
    text = html.unescape(visitor.get("/find?q=snet").text)
    assert "No delivery and no open event has the id <code>snet</code>" in text
    assert 'value="snet"' in text
    text = html.unescape(visitor.get("/find?q=snet&tenant=golbex").text)
    assert "No event or delivery has tenant 'golbex'." in text
    for wrong in ("%00", "x" * 513):
        assert visitor.get(f"/find?q={wrong}").status_code == 400
    assert "Type an e-mail address" in visitor.get("/find").text
    assert "Type an e-mail address" in submit(visitor, "  ").text


def test_a_message_id_with_an_at_sign_is_found_too(db):
    """It is posted and shown like an address, because it may be one."""
    delivery = factories.delivery(db, "20261128.1@mail.example.com")
    answer = submit(Visitor(app(db)), "<20261128.1@mail.example.com>")
    assert links(answer) == [f"deliveries/{delivery}"]
