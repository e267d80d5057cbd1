"""What the pages show, under any path, at what cost; and what never stands on one."""

import asyncio
import html
import re

import pytest
import sqlalchemy as sa
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.routing import Mount

import factories
import mailglass_reconcile
from conftest import wait_until
from mailglass_reconcile.ops import orphans as pages
from mailglass_reconcile.web import create_app
from mailglass_reconcile.web.app import POLICY
from mailglass_reconcile.web.cache import UNDER_WAY
from web.browsing import TOKENS, Visitor, app

INLINE = re.compile(r"""\s(style|on\w+)=|<style|<script(?! src=)|(src|href|action)="(/|\w+:)""")
CANARIES = """
UPDATE mailglass_deliveries SET recipient = 'canary@example.com',
       metadata = '{"subject": "canary subject", "body": "canary body", "to": "canary@example.com"}'
"""


@pytest.fixture
def filled(db):
    """One delivery with a linked event, an open orphan of it that has to wait, one of nobody's, and an expired one."""
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
    """Return the pages that show something of *ids*."""
    return [
        *("/", "/?tenant=acme&hours=6", "/orphans", "/orphans?state=expired", "/orphans?order=newest&type=delivered"),
        *("/orphans?message_id=sent", "/find?q=sent", "/find?q=nothing", f"/deliveries/{ids['delivery']}"),
        *(f"/events/{ids[name]}" for name in ("linked", "waiting", "open", "expired")),
    ]


def test_the_pages_say_what_status_orphans_and_explain_say(db, filled):
    """Counts with when they were counted, states, and where an event has gone."""
    mailglass_reconcile.reconcile()
    visitor = Visitor(app(db))
    text = {path: html.unescape(visitor.get(path).text) for path in every_path(filled)}
    assert re.search(r"<dt>Open orphans</dt>\s*<dd>1</dd>\s*<dd class=\"small\">as of <time", text["/"])
    assert re.search(r"<dt>In their grace period</dt>\s*<dd>1</dd>", text["/"])
    assert filled["linked"] in text["/"].partition('id="links"')[2]
    assert "<strong>Healthy.</strong>" in text["/"]
    listed = set(re.findall(r'href="./events/([^"]+)"', text["/orphans"]))
    assert listed == {filled["waiting"], filled["open"]}
    assert filled["expired"] in text["/orphans?state=expired"]
    assert "still in its grace period" in text[f"/events/{filled['waiting']}"]
    assert "<code><nobody's></code>" in text[f"/events/{filled['open']}"]
    timeline = text[f"/deliveries/{filled['delivery']}"].partition('id="timeline"')[2]
    assert re.search(r"<strong>opened</strong>.*linked <time.*" + filled["linked"], timeline, re.DOTALL)


def test_no_address_subject_or_body_is_on_any_page(db, filled):
    """Those of deliveries, orphans, raw webhooks and payloads, also where they decide what is shown."""
    db.run(CANARIES)
    visitor = Visitor(app(db))
    for path in every_path(filled):
        assert not re.search("canary|@example", visitor.get(path).text), path


def test_what_a_row_holds_cannot_become_markup(db):
    """A tenant, a type, a provider and an id of a hostile writer."""
    hostile = "<script>alert('x')</script>\u202e\x07"
    event = factories.orphan(db, factories.postmark(hostile[:-1]), tenant_id=hostile, type=hostile)
    mailglass_reconcile.reconcile()
    visitor = Visitor(app(db))
    for path in ("/", "/orphans", f"/events/{event}", "/find?q=%3Cscript%3E", "/orphans?provider=%22%3E%3Cscript%3E"):
        text = visitor.get(path).text
        assert text.count("<script") == 1
        assert "\u202e" not in re.sub(r'(value|href)="[^"]*"', "", text), path
        assert "\x07" not in text


def test_every_answer_has_the_policy_and_no_page_has_anything_inline(db, filled):
    """Errors and the form included; no script, no style, no handler and no address of another host."""
    closed, opened = app(db, **TOKENS), app(db)
    paths = [*every_path(filled), "/nothing", "/orphans?older=x", "/static/page.css", "/static/none", "/healthz"]
    answers = [Visitor(of).get(path) for of in (closed, opened) for path in paths]
    assert {answer.status_code for answer in answers} == {200, 303, 400, 401, 404}
    for answer in answers:
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["referrer-policy"] == "no-referrer"
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
def test_every_link_leads_somewhere_at_the_root_and_mounted(db, filled, prefix):
    """Followed from page to page, as a browser resolves it."""
    inner = app(db)
    outer = Starlette(routes=[Mount(prefix, app=inner)]) if prefix else inner
    visitor, seen, ahead = Visitor(outer), set(), [f"{prefix}/"]
    while ahead:
        path = ahead.pop()
        if path in seen or len(seen) > 60:
            continue
        seen.add(path)
        answer = visitor.get(path)
        assert answer.status_code in (200, 303), path
        page = answer.text if "html" in answer.headers.get("content-type", "") else ""
        links = re.findall(r'(?:href|src|action)="([^"#]+)"', page)
        links += [answer.headers["location"]] if "location" in answer.headers else []
        ahead += [str(answer.url.join(html.unescape(link)).raw_path, "ascii") for link in links]
    assert all(path.startswith(f"{prefix}/") for path in seen)
    assert {f"{prefix}/events/{filled['linked']}", f"{prefix}/orphans", f"{prefix}/static/icon.svg"} <= {
        path.partition("?")[0] for path in seen
    }


def test_a_page_of_orphans_leads_to_the_next_until_all_were_shown(db):
    """With its filters, which stand in the form again."""
    factories.insert(db, events=[factories.orphan_row(factories.postmark(f"m-{n}")) for n in range(120)])
    factories.orphan(db, factories.sendgrid("other"))
    visitor, path, seen = Visitor(app(db)), "/orphans?provider=postmark", []
    while path:
        text = visitor.get(path).text
        seen += re.findall(r'<a class="id" href="./events/([^"]+)"', text)
        assert 'name="provider" value="postmark"' in text
        following = re.search(r'rel="next" href="./([^"]+)"', text)
        path = html.unescape(f"/{following[1]}") if following else None
    assert len(seen) == len(set(seen)) == 120


def test_a_filter_that_nothing_passes_ends_a_page_early(db, monkeypatch):
    """It says how many were looked at, and leads on from there."""
    monkeypatch.setattr(pages, "QUICK", pages.Limits(examined=5, read=5, span=20))
    factories.insert(db, events=[factories.orphan_row(factories.postmark(f"m-{n}")) for n in range(30)])
    mailglass_reconcile.reconcile()
    visitor = Visitor(app(db))
    text = visitor.get("/orphans?type=opened").text
    assert "None among the 20 that were looked at; there may be more." in text
    following = re.search(r'rel="next" href="./([^"]+)"', text)[1]
    assert '<p class="card">None.</p>' in visitor.get(f"/{html.unescape(following)}").text


def test_ten_viewers_cost_what_one_does(db, filled):
    """Statements are counted; also of ten who ask at the same time, and a moment later once more."""
    sent = []
    sa.event.listen(db.engine, "before_cursor_execute", lambda *arguments: sent.append(arguments[2]))
    paths, counts = every_path(filled), []
    for viewers in (1, 10):
        visitor = Visitor(app(db))
        sent.clear()
        for _ in range(2):
            answers = visitor.all(paths * viewers)
        counts.append(len(sent))
        assert {answer.status_code for answer in answers} <= {200, 303}
    assert counts[0] == counts[1] > len(paths)


def test_a_flood_of_different_pages_is_refused_instead_of_queued(db):
    """While the database hangs; whoever asks whether the process is alive is answered."""
    visitor = Visitor(app(db))
    with db.engine.connect() as holder:
        holder.exec_driver_sql("LOCK TABLE mailglass_open_orphans")

        async def ask():
            paths = [f"/orphans?type=t{n}" for n in range(UNDER_WAY + 5)]
            asked = [asyncio.create_task(visitor.one(path)) for path in paths]
            done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            alive = await visitor.one("/healthz")
            holder.rollback()
            return [task.result() for task in done], alive, await asyncio.gather(*asked)

        first, alive, answers = asyncio.run(ask())
    assert {answer.status_code for answer in first} == {503}
    assert "too many pages" in first[0].text
    assert alive.status_code == 200
    assert sum(answer.status_code == 503 for answer in answers) == 5


def test_when_the_database_does_not_answer_the_page_says_so_and_no_more(db):
    """To the operator with the reason, to a tenant without; nothing else about the server."""
    away = {**TOKENS, "database_url": SecretStr("postgresql://u:secret@127.0.0.1:1/x")}
    mailglass_reconcile.configure(settings=db.settings.model_copy(update=away))
    closed = create_app()
    whole = Visitor(closed, "operator-token").get("/")
    assert (whole.status_code, "127.0.0.1, port 1, database x: nothing listens there" in whole.text) == (503, True)
    part = Visitor(closed, "acme-token").get("/")
    assert (part.status_code, "127.0.0.1" in part.text) == (503, False)
    assert "secret" not in whole.text + part.text
    assert Visitor(closed).get("/readyz").text == "unhealthy\n"
    assert Visitor(closed).get("/healthz").status_code == 200
    mailglass_reconcile.configure(engine=db.engine, settings=db.settings)


@pytest.mark.slow
def test_an_answer_is_read_again_after_a_few_seconds(db):
    """What a viewer sees is never older than twice that."""
    visitor = Visitor(app(db))
    before = visitor.get("/orphans").text
    event = factories.orphan(db, factories.postmark("new"))
    assert event not in before
    wait_until(lambda: event in visitor.get("/orphans").text)
