"""Who sees what on the page: nobody without a token, and a tenant's token that tenant alone."""

import itertools
import re
import uuid

import pytest
from pydantic import SecretStr

import factories
import mailglass_reconcile
from mailglass_reconcile.errors import ConfigurationError
from web.browsing import ACME, BETA, OPERATOR, TOKENS, Visitor, app

OPEN = {"/healthz", "/readyz", "/static/{name}", "/login"}
"""Routes that anybody may take; whatever else there is stands behind the door."""

ASKING = {
    "/": ["/?tenant={tenant}", "/?tenant={tenant}&hours=168"],
    "/orphans": [
        "/orphans?tenant={tenant}",
        "/orphans?message_id={message}",
        "/orphans?after={event}",
        "/orphans?state=expired&after={event}",
    ],
    "/events/{event_id}": ["/events/{event}", "/events/{linked}"],
    "/deliveries/{delivery_id}": ["/deliveries/{delivery}"],
    "/find": ["/find?q={event}", "/find?q={linked}", "/find?q={delivery}", "/find?q={sent}"],
    "/metrics": ["/metrics"],
}
"""For each route behind the door, what asks for something of one tenant."""


def paths_of(routes):
    """Return the paths of all routes, also of those that are mounted."""
    return {path for route in routes for path in (paths_of(route.routes) if hasattr(route, "routes") else [route.path])}


@pytest.fixture
def betas(db):
    """What the tenant beta has: open and linked events, a delivery; and an event of acme that names it."""
    delivery = factories.delivery(db, "beta-sent", tenant_id="beta", provider="postmark")
    linked = factories.orphan(db, factories.postmark("beta-sent"), tenant_id="beta", type="opened")
    event = factories.orphan(db, factories.postmark("beta-open"), tenant_id="beta", type="complained")
    named = factories.orphan(db, factories.postmark("beta-sent"), tenant_id="acme")
    mailglass_reconcile.reconcile()
    return {
        "tenant": "beta",
        "delivery": delivery,
        "linked": linked,
        "event": event,
        "message": "beta-open",
        "sent": "beta-sent",
        "named": named,
    }


def test_every_route_but_the_open_ones_is_asked_for_here(db):
    """A route that somebody adds has to be added here, too."""
    assert paths_of(app(db).routes) == OPEN | set(ASKING)


def test_without_a_right_token_every_route_answers_401_with_the_form(db, betas):
    """Whatever is shown: nothing, a wrong one, a right one in the address; also what is no route."""
    closed = app(db, **TOKENS)
    for paths in [*ASKING.values(), ["/nothing", "/events"]]:
        for path in paths:
            asked = path.format(**betas)
            with_token = f"{asked}{'&' if '?' in asked else '?'}token={OPERATOR}"
            for visitor, place in [
                (Visitor(closed), asked),
                (Visitor(closed), with_token),
                (Visitor(closed, "wrong"), asked),
                (Visitor(closed, BETA), asked),  # the setting has one that is longer
            ]:
                answer = visitor.get(place)
                assert answer.status_code == 401
                assert '<form class="card narrow" method="post"' in answer.text
                shown = re.sub(r'name="next" type="hidden" value="[^"]*"', "", answer.text)
                assert not [value for value in betas.values() if value in shown]


@pytest.mark.parametrize("fragment", [{}, {"x-fragment": "1"}])
def test_another_tenants_ids_are_as_good_as_none_on_every_route(db, betas, fragment):
    """The answer is the one to ids that nobody has, to the letter; the operator gets another one."""
    closed = app(db, **TOKENS)
    nobodys = {name: str(uuid.uuid4()) for name in betas}
    for path in [path for paths in ASKING.values() for path in paths]:
        theirs, unknown = path.format(**betas), path.format(**nobodys)
        got, expected = (Visitor(closed, ACME).get(asked, **fragment) for asked in (theirs, unknown))
        assert (got.status_code, _without(got, betas)) == (expected.status_code, _without(expected, nobodys)), path
        whole = Visitor(closed, OPERATOR).get(theirs, **fragment)
        assert (whole.status_code, whole.text) != (got.status_code, got.text), path


def _without(answer, ids):
    text = answer.text + answer.headers.get("location", "")
    for name, id_ in sorted(ids.items(), key=lambda pair: -len(pair[1])):
        text = text.replace(id_, name)
    return re.sub(r"<time.*?</time>|[\d.]+ (s|ms)\b", "", text)


def test_a_tenants_own_pages_hold_nothing_of_another(db, betas):
    """Not even if its own event names another's delivery, and not the counts of runs over all tenants."""
    visitor = Visitor(app(db, **TOKENS), ACME)
    pages = ["/", "/?hours=6", "/orphans", "/orphans?state=tenant_mismatch", f"/events/{betas['named']}"]
    for path in pages:
        answer = visitor.get(path)
        assert answer.status_code == 200
        found = [betas[name] for name in ("delivery", "linked", "event", "message") if betas[name] in answer.text]
        assert not found, path
        assert not re.search(r"\bbeta\b(?!-sent)", answer.text), path
    assert betas["named"] in visitor.get("/orphans").text
    runs = visitor.get("/").text.partition('id="runs"')[2]
    assert re.findall(r'<td class="number">([^<]*)</td>', runs) == ["\N{EN DASH}"]
    assert "linked" not in runs


def test_a_tenant_cannot_ask_for_the_runs_of_another(db):
    """Its own run is there with its counts, another tenant's is not there."""
    for tenant, sent in (("acme", 3), ("beta", 7)):
        for number in range(sent):
            factories.delivery(db, f"{tenant}-{number}", tenant_id=tenant)
            factories.orphan(db, factories.postmark(f"{tenant}-{number}"), tenant_id=tenant)
        mailglass_reconcile.reconcile(tenant)
    runs = Visitor(app(db, **TOKENS), ACME).get("/").text.partition('id="runs"')[2]
    assert re.findall(r"(\d+ of \d+) linked", runs) == ["3 of 3"]


def test_the_form_gives_a_cookie_that_opens_the_page_and_is_not_the_token(db):
    """For this browser's session, for this site, and out of reach of scripts; a wrong token gives none."""
    closed = Visitor(app(db, **TOKENS))
    refused = closed.ask("POST", "/login", data={"token": "wrong", "next": "orphans?state=waiting"})
    assert (refused.status_code, "set-cookie" in refused.headers) == (401, False)
    assert 'value="orphans?state=waiting"' in refused.text
    assert 'value="?hours=6"' in closed.get("/?hours=6").text
    overview = closed.ask("POST", "/login", data={"token": ACME, "next": "?hours=6"})
    assert overview.headers["location"] == "./?hours=6"
    let_in = closed.ask("POST", "/login", data={"token": f" {ACME}\n", "next": "orphans?state=waiting"})
    assert (let_in.status_code, let_in.headers["location"]) == (303, "./orphans?state=waiting")
    cookie, *flags = let_in.headers["set-cookie"].split("; ")
    assert flags == ["HttpOnly", "SameSite=Strict"]
    assert ACME not in cookie
    page = closed.get("/", cookie=cookie)
    assert (page.status_code, "Tenant <strong>acme</strong>" in page.text) == (200, True)
    assert closed.get("/", cookie=cookie[:-1] + "x").status_code == 401


def test_the_form_leads_nowhere_else(db):
    """Whatever it is told."""
    visitor = Visitor(app(db, **TOKENS))
    for next_ in (
        "//x.example",
        "https://x.example",
        "/orphans",
        "..//x",
        "a/../..",
        "javascript:x",
        "\\\\x",
        "a\r\nb: c",
    ):
        answer = visitor.ask("POST", "/login", data={"token": OPERATOR, "next": next_})
        assert (answer.status_code, answer.headers["location"]) == (303, "./")


def test_without_any_token_only_this_machine_is_answered_by_a_name_of_its_own(db):
    """A site whose name was rebound to 127.0.0.1 sends its own name; a proxy asks for somebody else."""
    opened = app(db)
    for client, host, status in [
        ("127.0.0.1", "127.0.0.1:8080", 200),
        ("127.0.0.1", "localhost", 200),
        ("::1", "[::1]:8080", 200),
        ("::ffff:127.0.0.1", "LOCALHOST:1", 200),
        ("127.0.0.1", "rebound.example:8080", 403),
        ("127.0.0.1", "127.0.0.1.evil.example", 403),
        ("192.0.2.1", "127.0.0.1:8080", 403),
    ]:
        visitor = Visitor(opened, client=client, host=host)
        assert (visitor.get("/").status_code, visitor.get("/healthz").status_code) == (status, 200), (client, host)
    for header in ("x-forwarded-for", "forwarded", "x-forwarded-host", "x-real-ip"):
        assert Visitor(opened).get("/", **{header: "127.0.0.1"}).status_code == 403


def test_health_is_told_to_anybody_and_what_is_wrong_only_to_the_operator(db):
    """One line each; a token in the address counts for nothing."""
    closed = app(db, **TOKENS)
    assert Visitor(closed).get("/healthz").text == "alive\n"
    for token in (None, ACME):
        answer = Visitor(closed, token).get(f"/readyz?token={OPERATOR}")
        assert (answer.status_code, answer.text) == (503, "unhealthy\n")
    told = Visitor(closed, OPERATOR).get("/readyz").text
    assert told.startswith("unhealthy: no full sweep has ever succeeded")
    assert told.count("\n") == 1
    mailglass_reconcile.reconcile()
    assert Visitor(app(db, **TOKENS)).get("/readyz").text == "healthy\n"


def test_a_token_that_cannot_be_used_is_refused_without_being_shown(db):
    """By the setting's name."""
    for setting, value in [
        ("web_token", " "),
        ("web_tenant_tokens", "acme"),
        ("web_tenant_tokens", "=secret"),
        ("web_tenant_tokens", "acme= "),
        ("web_tenant_tokens", "acme=secret,beta=secret"),
    ]:
        with pytest.raises(ConfigurationError, match=f"^MAILGLASS_{setting.upper()}: ") as refused:
            app(db, **{setting: SecretStr(value)})
        assert "secret" not in str(refused.value)


def test_no_route_takes_anything_but_the_form(db):
    """The page has nothing to press."""
    visitor = Visitor(app(db))
    paths = ("/", "/orphans", f"/events/{uuid.uuid4()}", "/find", "/healthz", "/static/page.js")
    for method, path in itertools.product(("POST", "PUT", "PATCH", "DELETE"), paths):
        assert visitor.ask(method, path).status_code in (404, 405)
