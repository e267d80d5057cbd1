"""The dashboard's pages: contents, paths and cost, and what no page may show."""

import asyncio
import html
import re

import pytest
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.routing import Mount

import factories
import mailglass_reconcile
import meter
from browsing import TOKEN, Visitor, app
from mailglass_reconcile.web import create_app
from mailglass_reconcile.web.app import POLICY, application
from mailglass_reconcile.web.cache import CONCURRENT_READS
from scraping import parse_samples, value
from waiting import wait_until

CANARIES = """
UPDATE mailglass_deliveries SET recipient = 'canary@example.com',
       metadata = '{"subject": "canary subject", "body": "canary body", "to": "canary@example.com"}'
"""


@pytest.fixture
def planted_rows(db):
    """Insert a delivery with a linked event, a waiting orphan of it, an unmatched one, and an expired one."""
    delivery = factories.delivery(db, "sent", recipient="canary@example.com")
    private = {"recipient": "canary@example.com", "email": "canary@example.com", "subject": "canary subject"}
    linked = factories.orphan(db, factories.postmark("sent", **private), type="opened")
    mailglass_reconcile.reconcile()
    return {
        "delivery": delivery,
        "linked": linked,
        "waiting": factories.orphan(db, factories.postmark("sent", **private), age_seconds=1),
        "open": factories.orphan(
            db, factories.postmark("<nobody's>", **private), normalized_payload={"body": "canary body"}
        ),
        "expired": factories.orphan(db, factories.postmark("old", **private), age_seconds=8 * 86_400),
    }


def every_path(ids):
    """Return the pages about *ids*."""
    return [
        *(
            "/",
            "/?hours=6",
            "/runs",
            "/runs?kind=full",
            "/handlers",
            "/orphans",
            "/orphans?state=expired",
            "/orphans?type=delivered&tenant=acme",
        ),
        *("/orphans?message_id=sent", "/find?q=sent", "/find?q=nothing", f"/deliveries/{ids['delivery']}"),
        *(f"/events/{ids[name]}" for name in ("linked", "waiting", "open", "expired")),
    ]


def test_the_pages_agree_with_status_orphans_and_explain(db, planted_rows):
    """They show counts with their time, states, and where an event has gone."""
    mailglass_reconcile.reconcile()
    visitor = Visitor(app(db))
    text = {path: html.unescape(visitor.get(path).text) for path in every_path(planted_rows)}
    assert re.search(
        r"<dt>Open orphans</dt>\s*<dd>1</dd>\s*<dd class=\"small\">events without a delivery, as of <time", text["/"]
    )
    assert re.search(r"<dt>Arrived since</dt>\s*<dd>1</dd>", text["/"])
    assert planted_rows["linked"] in text["/"].partition('id="links"')[2]
    healthy = "<strong>Healthy.</strong> Sweeps run; the next full sweep checks the 1 event that has arrived since."
    assert healthy in text["/"]
    listed = set(re.findall(r'href="./events/([^"]+)"', text["/orphans"]))
    assert listed == {planted_rows["waiting"], planted_rows["open"]}
    assert planted_rows["expired"] in text["/orphans?state=expired"]
    assert "still in its grace period" in text[f"/events/{planted_rows['waiting']}"]
    assert "><nobody's></code>" in text[f"/events/{planted_rows['open']}"]
    timeline = text[f"/deliveries/{planted_rows['delivery']}"].partition('id="timeline"')[2]
    assert re.search(r"<strong>opened</strong>.*linked <time.*" + planted_rows["linked"], timeline, re.DOTALL)


def test_the_steps_of_a_remedy_are_a_numbered_list(db):
    """`explain` prints each step as a line; a single step is no list."""
    factories.delivery(db, "theirs", tenant_id="globex")
    mismatch, unmatched = (factories.orphan(db, factories.postmark(id_)) for id_ in ("theirs", "none"))
    visitor = Visitor(app(db))
    steps = re.findall(r"<li>(.*?)</li>", visitor.get(f"/events/{mismatch}").text.partition('class="remedy"')[2])[:2]
    assert [step.split()[0] for step in steps] == ["Route", "Have"]
    assert 'data-copy="mailglass-reconcile trigger postmark delivered --message-id theirs' in "".join(steps)
    text = visitor.get(f"/events/{unmatched}").text
    assert "To link it:" in text
    assert 'class="remedy"' not in text


def test_an_operator_chooses_between_two_deliveries_by_what_differs(db):
    """Each possible delivery has its mailable, time and state, and the command that links it."""
    deliveries = {factories.delivery(db, "m-1") for _ in range(2)}
    event = factories.orphan(db, factories.postmark("m-1"))
    text = html.unescape(Visitor(app(db)).get(f"/events/{event}").text)
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", text))
    assert words.count("Welcome dispatched, stored 4 minutes ago") == 2
    assert set(re.findall(rf"data-copy=\"mailglass-reconcile link {event} (\S+) --reason ''\"", text)) == deliveries


def test_no_address_subject_or_body_is_on_any_page(db, planted_rows):
    """Those of deliveries, orphans, raw webhooks and payloads are tried, also where they decide what is shown."""
    db.run(CANARIES)
    visitor = Visitor(app(db))
    for path in every_path(planted_rows):
        assert not re.search("canary|@example", visitor.get(path).text), path


def test_values_of_a_row_cannot_become_markup(db):
    """A hostile writer sets tenant, type, provider and id."""
    hostile = "<script>alert('x')</script>\u202e\x07"
    event = factories.orphan(db, factories.postmark(hostile[:-1]), tenant_id=hostile, type=hostile)
    mailglass_reconcile.reconcile()
    visitor = Visitor(app(db))
    for path in ("/", "/orphans", f"/events/{event}", "/find?q=%3Cscript%3E", "/orphans?provider=%22%3E%3Cscript%3E"):
        text = visitor.get(path).text
        assert text.count("<script") == text.count('<script src="./static/') + text.count('<script src="../static/')
        assert "\u202e" not in re.sub(r'(value|href)="[^"]*"', "", text), path
        assert "\x07" not in text


def test_a_command_with_an_id_that_could_mislead_has_no_button_that_copies_it(db):
    """Senders choose message ids, and a terminal would execute them."""
    hostile = "m\u202e1"
    factories.delivery(db, hostile, tenant_id="acme")
    event = factories.orphan(db, factories.postmark(hostile), tenant_id="default")
    mailglass_reconcile.reconcile()
    text = Visitor(app(db)).get(f"/events/{event}").text
    assert "m\\u202e1" in text
    assert "\u202e" not in text
    assert 'data-copy="mailglass-reconcile trigger' not in text


def test_every_response_has_the_policy_and_no_page_has_inline_code(db, planted_rows):
    """Errors and the form are included; there is no inline script, style or handler, and no other host."""
    page = app(db)
    paths = [
        *every_path(planted_rows),
        "/nothing",
        "/orphans?state=x",
        "/orphans?state=",
        "/static/page.css",
        "/static/none",
        "/healthz",
    ]
    answers = [Visitor(page, token).get(path) for token in (None, TOKEN) for path in paths]
    assert {answer.status_code for answer in answers} == {200, 303, 400, 401, 404}
    for answer in answers:
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["x-content-type-options"] == "nosniff"
        if "html" in answer.headers.get("content-type", ""):
            assert answer.headers["cache-control"] == "no-store"
            assert not re.search(
                r"""\s(style|on\w+)=|<style|<script(?! src=)|(src|href|action)="(/|\w+:)""", answer.text
            )
    assert POLICY == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none';"
        " form-action 'self'; frame-ancestors 'none'"
    )


@pytest.mark.parametrize("prefix", ["", "/ops/mail"])
def test_every_link_works_at_the_root_and_mounted(db, planted_rows, prefix):
    """Links are followed from page to page as a browser resolves them."""
    inner = app(db)
    outer = Starlette(routes=[Mount(prefix, app=inner)]) if prefix else inner
    visitor, visited, pending = Visitor(outer), set(), [f"{prefix}/"]
    while pending:
        path = pending.pop()
        if path in visited or len(visited) > 60:
            continue
        visited.add(path)
        answer = visitor.get(path)
        assert answer.status_code in (200, 303), path
        page = answer.text if "html" in answer.headers.get("content-type", "") else ""
        page = re.sub(r'<form method="post" action="[./]+logout">', "", page)
        links = re.findall(r'(?:href|src|action)="([^"#]+)"', page)
        links += [answer.headers["location"]] if "location" in answer.headers else []
        pending += [str(answer.url.join(html.unescape(link)).raw_path, "ascii") for link in links]
    assert all(path.startswith(f"{prefix}/") for path in visited)
    assert {f"{prefix}/events/{planted_rows['linked']}", f"{prefix}/orphans", f"{prefix}/static/icon.svg"} <= {
        path.partition("?")[0] for path in visited
    }


def test_pages_of_orphans_link_to_the_next_until_the_last(db):
    """The filters stay in the link and in the form."""
    factories.insert(db, events=[factories.orphan_row(factories.postmark(f"m-{n}")) for n in range(120)])
    factories.orphan(db, factories.sendgrid("other"))
    mailglass_reconcile.reconcile()
    visitor, path, observed = Visitor(app(db)), "/orphans?provider=postmark", []
    while path:
        text = visitor.get(path).text
        observed += re.findall(r'<a class="id" href="./events/([^"]+)"', text)
        assert 'name="provider" value="postmark"' in text
        following = re.search(r'rel="next" href="./([^"]+)"', text)
        path = html.unescape(f"/{following[1]}") if following else None
    assert len(observed) == len(set(observed)) == 120


def test_a_type_that_hardly_any_orphan_has_ends_a_page_early(db, set_limits):
    """It says how many were read, and links to the rest."""
    set_limits(most_orphans_read=20)
    factories.insert(db, events=[factories.orphan_row(factories.postmark(f"m-{n}")) for n in range(60)])
    visitor = Visitor(app(db))
    text = visitor.get("/orphans?type=opened").text
    assert "None of the 51 orphans checked so far matches these filters." in text
    following = re.search(r'rel="next" href="./([^"]+)"', text)[1]
    assert "No more orphans match." in visitor.get(f"/{html.unescape(following)}").text


def test_a_list_shows_the_states_of_the_last_full_sweep_and_when_it_ended(db):
    """Without one, events past their grace are unseen."""
    factories.orphan(db, factories.postmark("m-1"))
    text = Visitor(app(db)).get("/orphans").text
    assert "not checked yet</p>" in text
    assert "as of" not in text
    mailglass_reconcile.reconcile()
    text = Visitor(app(db)).get("/orphans").text
    assert "1 orphan; counts and states as of <time" in text
    assert ">m-1</code>" in text
    assert "not checked yet</p>" not in text


ODD_HISTORY = """
ALTER TABLE mailglass_reconcile_runs DROP CONSTRAINT mailglass_reconcile_runs_kind,
                                     DROP CONSTRAINT mailglass_reconcile_runs_status;
INSERT INTO mailglass_reconcile_runs (started_at, finished_at, kind, origin, status, duration_ms, remaining)
VALUES (now(), now(), 'replay', 'elsewhere', 'paused', 7000, NULL), (now(), '9999-12-31 +1', 'recent', 'x', 'ok', 1, 0);
UPDATE mailglass_reconcile_runs SET remaining = 12, open_groups = '[
    {"state": "quarantined", "tenant_id": "acme", "provider": "postmark", "orphans": 5},
    {"state": "unmatched", "orphans": 7}, {"orphans": 3}, {"state": 4, "orphans": "x"}, 9]' WHERE kind = 'full'
"""


def test_kinds_statuses_and_states_of_a_later_version_are_shown_under_their_names(db):
    """They once made the page and `/metrics` answer 500, and an unknown state was drawn as `matched`."""
    mailglass_reconcile.reconcile()
    db.run(ODD_HISTORY)
    visitor = Visitor(app(db))
    answer = visitor.get("/")
    assert answer.status_code == 200
    assert '<span class="status paused">paused</span>' in answer.text
    assert re.search(r"<dt>Open orphans</dt>\s*<dd>12</dd>", answer.text)
    assert re.findall(r'<path class="band (\w+)" d="M', answer.text) == ["unmatched", "quarantined"]
    scraped = parse_samples(visitor.get("/metrics").content)
    assert value(scraped, "runs_total", kind="replay", status="paused") == 1
    assert value(scraped, "run_seconds_total", kind="replay") == 7
    assert value(scraped, "open_orphans", state="quarantined") == 5
    assert scraped.get(("open_orphans", (("state", "matched"),)), 0) == 0


def test_a_statement_of_a_page_may_take_some_seconds_and_no_more(db, planted_rows):
    """Four statements of four minutes each would have blocked the dashboard for everybody."""
    timeouts = []

    def note(_connection, statement, _parameters):
        timeouts.extend(map(int, re.findall(r"set_config\('statement_timeout', '(\d+)'", statement)))

    visitor = Visitor(app(db))
    with meter.before_statements(db.engine, note):
        for path in [*every_path(planted_rows), "/metrics", "/readyz"]:
            timeouts.clear()
            visitor.get(path)
            assert timeouts, path
            assert max(timeouts) <= 24_000, path


@pytest.mark.parametrize("name", ["tenant", "provider", "message_id"])
def test_a_value_that_no_row_can_have_is_a_bad_request(db, name):
    """It was once a database error, which the page repeated every few seconds."""
    for text, expected in (("%00", "remove the character NUL"), ("x" * 513, "use at most 512 characters")):
        answer = Visitor(app(db)).get(f"/orphans?{name}={text}")
        assert (answer.status_code, f"{name}: {expected}." in answer.text) == (400, True)


def test_the_response_to_a_bug_has_the_headers_and_no_detail(db):
    mailglass_reconcile.configure(settings=db.settings.model_copy(update={"web_token": SecretStr(TOKEN)}))
    answer = Visitor(create_app(engine="no engine")).get("/")
    assert (answer.status_code, answer.text) == (500, "internal error\n")
    assert answer.headers["content-security-policy"] == POLICY


def test_an_empty_page_says_why_it_is_empty(db):
    delivery = factories.delivery(db, "sent")
    visitor = Visitor(app(db))
    assert "the first full sweep will count the open orphans" in visitor.get("/").text
    assert "No orphan is open: every event has its delivery" in visitor.get("/orphans").text
    assert "No open orphan matches these filters." in visitor.get("/orphans?type=opened").text
    assert "none is older than the maximum age" in visitor.get("/orphans?state=expired").text
    assert "its provider has not reported on it" in visitor.get(f"/deliveries/{delivery}").text
    mailglass_reconcile.reconcile()
    text = Visitor(app(db)).get("/").text
    assert "No orphan was open as of <time" in text
    assert "None of the newest 2,000 events is a link." in text


@pytest.mark.slow
def test_three_viewers_cost_as_much_as_one(db, planted_rows):
    """Statements are counted, also for three requests at once, and once more a moment later."""
    paths, counts = every_path(planted_rows), []
    for viewers in (1, 3):
        visitor = Visitor(application(TOKEN, refresh_seconds=600))  # a busy machine needs longer than five
        with meter.statements(db.engine) as sent:
            for _ in range(2):
                answers = visitor.get_all(paths * viewers)
        counts.append(len(sent))
        assert {answer.status_code for answer in answers} <= {200, 303}
    assert counts[0] == counts[1] > len(paths)


def test_a_flood_of_different_pages_takes_four_connections_and_no_event_loop(db):
    """The database hangs; the liveness probe is still answered, and in the end each page."""
    visitor = Visitor(app(db))
    with db.engine.connect() as holder:
        holder.exec_driver_sql("LOCK TABLE mailglass_open_orphans")

        async def ask():
            requests = [asyncio.create_task(visitor.get_in_loop(f"/orphans?type=t{n}")) for n in range(12)]
            await asyncio.to_thread(wait_until, lambda: len(db.find_waiting()) >= CONCURRENT_READS)
            alive, waiting = await visitor.get_in_loop("/healthz"), db.find_waiting()
            holder.rollback()
            return len(waiting), [alive, *await asyncio.gather(*requests)]

        waiting, answers = asyncio.run(ask())
    assert waiting == CONCURRENT_READS
    assert {answer.status_code for answer in answers} == {200}


def test_when_the_database_does_not_answer_the_page_says_why_and_no_more(db):
    """Only requests with the token see the reason; nothing else about the server is shown."""
    settings = {"web_token": SecretStr(TOKEN), "database_url": SecretStr("postgresql://u:secret@127.0.0.1:1/x")}
    mailglass_reconcile.configure(settings=db.settings.model_copy(update=settings))
    closed = create_app()
    page = Visitor(closed).get("/")
    assert (page.status_code, "127.0.0.1, port 1, database x: nothing listens there" in page.text) == (503, True)
    assert "secret" not in page.text
    assert Visitor(closed, None).get("/readyz").text == "unhealthy\n"
    assert Visitor(closed, None).get("/healthz").status_code == 200
    mailglass_reconcile.configure(engine=db.engine, settings=db.settings)


@pytest.mark.slow
def test_a_response_is_cached_for_a_few_seconds(db):
    """What a viewer sees is at most twice as old."""
    visitor = Visitor(app(db))
    before = visitor.get("/orphans").text
    event = factories.orphan(db, factories.postmark("new"))
    assert event not in before
    wait_until(lambda: event in visitor.get("/orphans").text)


def test_a_delivery_links_to_its_open_orphans_in_every_tenant(db):
    """Each has a link; if there are more than are shown, one link leads to all of them."""
    delivery = factories.delivery(db, "sent", tenant_id="acme")
    events = [factories.orphan(db, factories.postmark("sent"), tenant_id="globex") for _ in range(2)]
    mailglass_reconcile.reconcile()
    text = Visitor(app(db)).get(f"/deliveries/{delivery}").text
    section = text.partition('id="named"')[2].partition("</section>")[0]
    assert all(f'href="../events/{event}"' in section for event in events)
    assert section.count("of tenant globex") == 2
    assert "All of them" not in text
    factories.insert(db, [], [factories.orphan_row(factories.postmark("sent"), tenant_id="globex") for _ in range(20)])
    mailglass_reconcile.reconcile()
    visitor = Visitor(app(db))
    link = re.search(r'href="\.\.(/orphans[^"]+)">All of them', visitor.get(f"/deliveries/{delivery}").text)
    assert "22 orphans" in visitor.get(html.unescape(link[1])).text


def test_a_mistyped_tenant_is_named(db):
    """An empty list once looked healthy."""
    factories.orphan(db, factories.postmark("x"), tenant_id="globex")
    mailglass_reconcile.reconcile()
    visitor = Visitor(app(db))
    text = html.unescape(visitor.get("/orphans?tenant=golbex&provider=postmark").text)
    assert "No event or delivery has tenant 'golbex'." in text
    assert "No open orphan matches" not in text
    assert "No open orphan matches" in visitor.get("/orphans?tenant=globex&provider=sendgrid").text


def test_the_url_of_a_list_has_the_filters_and_nothing_else(db):
    """A form submits its empty fields, too."""
    answer = Visitor(app(db)).get("/orphans?state=&tenant=acme&provider=&type=opened")
    assert (answer.status_code, answer.headers["location"]) == (303, "orphans?tenant=acme&type=opened")
    assert Visitor(app(db)).get("/orphans?state=").headers["location"] == "orphans"


def test_a_list_says_how_many_there_are_and_when_each_expires(db):
    """It also says that orphans of the last sweep have been linked meanwhile."""
    factories.insert(db, events=[factories.orphan_row(factories.postmark(f"m-{n}")) for n in range(60)])
    mailglass_reconcile.reconcile()
    text = Visitor(app(db)).get("/orphans?state=unmatched").text
    assert "60 orphans; 50 on this page; counts and states as of <time" in text
    assert re.search(r"expires <time datetime=\"[^\"]+\" title=\"[^\"]+ UTC\">in 6 days</time>", text)
    assert (
        "50 orphans on this page; there are more, not counted" in Visitor(app(db)).get("/orphans?type=delivered").text
    )
    for number in range(60):
        factories.delivery(db, f"m-{number}")
    mailglass_reconcile.reconcile("acme")
    text = Visitor(app(db)).get("/orphans?state=unmatched").text
    assert "60 orphans matched these filters. None does any more" in text
