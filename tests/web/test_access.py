"""Access to the dashboard: nothing without its token, sessions of twelve hours, and no requests from other sites."""

import asyncio
import contextlib
import itertools
import re
import socket
import time
import uuid

import httpx
import pytest
from pydantic import SecretStr

import factories
import mailglass_reconcile
from browsing import TOKEN, Visitor, app
from mailglass_reconcile import ConfigurationError
from mailglass_reconcile.web import access
from serving import serve_here

OPEN = {"/healthz", "/readyz", "/static/{name}", "/login", "/logout"}
"""Routes that need no token."""

GUARDED = {
    "/": ["/", "/?hours=168"],
    "/orphans": ["/orphans?tenant={tenant}", "/orphans?message_id={message}", "/orphans?after={event}"],
    "/events/{event_id}": ["/events/{event}", "/events/{linked}"],
    "/deliveries/{delivery_id}": ["/deliveries/{delivery}"],
    "/runs": ["/runs", "/runs?kind=full"],
    "/handlers": ["/handlers"],
    "/find": ["/find?q={event}", "/find?q={delivery}", "/find?q={sent}"],
    "/metrics": ["/metrics"],
}
"""For each route behind the guard, requests for something that is there."""


def paths_of(routes):
    """Return the paths of all routes, including mounted ones."""
    return {path for route in routes for path in (paths_of(route.routes) if hasattr(route, "routes") else [route.path])}


@pytest.fixture
def planted_rows(db):
    """Insert a tenant with an open and a linked event, and a delivery."""
    delivery = factories.delivery(db, "beta-sent", tenant_id="beta", provider="postmark")
    linked = factories.orphan(db, factories.postmark("beta-sent"), tenant_id="beta", type="opened")
    event = factories.orphan(db, factories.postmark("beta-open"), tenant_id="beta", type="complained")
    mailglass_reconcile.reconcile()
    return {
        "tenant": "beta",
        "delivery": delivery,
        "linked": linked,
        "event": event,
        "message": "beta-open",
        "sent": "beta-sent",
    }


def test_every_route_is_either_open_or_requested_here(db):
    """A new route has to be added to one of the two lists."""
    assert paths_of(app(db).routes) == OPEN | set(GUARDED)


def test_without_the_token_every_route_answers_401_with_the_form(db, planted_rows, monkeypatch):
    """The token is missing, wrong, or in the query string; unknown routes answer the same."""
    closed = app(db)
    for path in [*itertools.chain(*GUARDED.values()), "/nothing", "/events"]:
        url = path.format(**planted_rows)
        with_token = f"{url}{'&' if '?' in url else '?'}token={TOKEN}"
        for visitor, place in [
            (Visitor(closed, None), url),
            (Visitor(closed, None), with_token),
            (Visitor(closed, "wrong"), url),
            (Visitor(closed, TOKEN[:-1]), url),
        ]:
            answer = visitor.get(place)
            assert answer.status_code == 401
            assert '<form class="card narrow" method="post"' in answer.text
            text = re.sub(r'name="next" type="hidden" value="[^"]*"', "", answer.text)
            assert not [value for value in planted_rows.values() if value in text]


def test_the_address_and_the_host_of_a_request_open_nothing(db):
    """Behind a proxy on this machine, every request comes from 127.0.0.1 with this machine's name."""
    closed = app(db)
    for host in ("127.0.0.1:8080", "localhost", "[::1]:8080"):
        assert Visitor(closed, None, host=host).get("/").status_code == 401


def test_without_a_token_there_is_no_application(db):
    """The error names the setting, and does not show a token that is too short."""
    for value in (None, SecretStr(" "), SecretStr("secret-of-15-ch"), SecretStr("  secret padded  ")):
        with pytest.raises(ConfigurationError, match=r"^MAILGLASS_WEB_TOKEN") as refused:
            app(db, web_token=value)
        assert "secret" not in str(refused.value)


def sign_in(visitor, next_="", entered=TOKEN, **headers):
    """Send the sign-in form."""
    return visitor.ask("POST", "/login", headers=headers, data={"token": entered, "next": next_})


def test_the_form_gives_a_cookie_that_opens_the_page_and_is_not_the_token(db, monkeypatch):
    """The cookie is for this browser session and site, and unreadable for scripts; a wrong token gives none."""
    closed = Visitor(app(db), None)
    refused = sign_in(closed, "orphans?state=waiting", entered="wrong")
    assert (refused.status_code, "set-cookie" in refused.headers) == (401, False)
    assert 'value="orphans?state=waiting"' in refused.text
    assert 'value="?hours=6"' in closed.get("/?hours=6").text
    assert sign_in(closed, "?hours=6").headers["location"] == "./?hours=6"
    let_in = sign_in(closed, "orphans?state=waiting", entered=f" {TOKEN}\n")
    assert (let_in.status_code, let_in.headers["location"]) == (303, "./orphans?state=waiting")
    cookie, *flags = let_in.headers["set-cookie"].split("; ")
    assert flags == ["HttpOnly", "SameSite=Strict"]
    assert TOKEN not in cookie
    assert closed.get("/", cookie=cookie).status_code == 200
    assert closed.get("/", cookie=cookie[:-1] + "x").status_code == 401


def test_a_session_ends_after_twelve_hours_and_with_the_token(db):
    """The cookie is signed and has its time of issue."""
    closed, now = Visitor(app(db), None), int(time.time())
    for cookie, status in [
        (access.make_session(TOKEN, now - 11 * 3_600), 200),
        (access.make_session(TOKEN, now - 13 * 3_600), 401),
        (access.make_session(TOKEN, now + 3_600), 401),
        (access.make_session("the-token-of-before", now), 401),
        (f"{now}.{access.make_session(TOKEN, now - 13 * 3_600).partition('.')[2]}", 401),
        ("", 401),
        ("x.y", 401),
        (f"{'9' * 400}.x", 401),
    ]:
        assert closed.get("/", cookie=f"{access.COOKIE}={cookie}").status_code == status, cookie


def test_signing_out_deletes_the_cookie(db):
    """The button is on every page and leads to the form."""
    closed = Visitor(app(db), None)
    answer = closed.ask("POST", "/logout")
    assert (answer.status_code, answer.headers["location"]) == (303, "./")
    assert answer.headers["set-cookie"].startswith(f"{access.COOKIE}=; Max-Age=0; ")
    assert '<form method="post" action="./logout">' in Visitor(app(db)).get("/orphans").text


def test_the_cookie_is_for_https_alone_if_the_setting_or_the_request_says_so(db):
    """Behind a proxy that terminates TLS, only the setting can know."""
    for secure in (False, True):
        answer = sign_in(Visitor(app(db, web_secure_cookie=secure), None))
        assert ("; Secure" in answer.headers["set-cookie"]) == secure
    https = Visitor(app(db), None).ask("POST", "https://127.0.0.1/login", data={"token": TOKEN})
    assert "; Secure" in https.headers["set-cookie"]


@pytest.mark.parametrize(
    "next_",
    [
        *("//x.example", "https://x.example", "/orphans", "..//x", "a/../..", "javascript:x", "\\\\x", "a\r\nb: c"),
        *("%2e%2e/%2e%2e/admin/logout", "orphans/%2e%2e/%2e%2e/admin", "events/%2e%2e%2f", "metrics/../x", "static/x"),
    ],
)
def test_the_form_leads_to_a_page_of_this_application_and_nowhere_else(db, next_):
    """A path with %2e%2e once left the mount."""
    answer = sign_in(Visitor(app(db), None), next_)
    assert (answer.status_code, answer.headers["location"]) == (303, "./")


def test_another_site_can_sign_nobody_in_or_out(db):
    """Browsers send the origin of a form; programs do not."""
    closed = Visitor(app(db), None, host="mail.example:8080")
    for headers, status in [
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site", "origin": "http://mail.example:8080"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://mail.example:8080"}, 303),
        ({"sec-fetch-site": "same-origin", "origin": "http://mail.example"}, 303),
        ({}, 303),
    ]:
        assert sign_in(closed, **headers).status_code == status, headers
        assert closed.ask("POST", "/logout", headers=headers).status_code == status, headers


def test_wrong_tokens_do_not_block_other_connections(db):
    """In header and form, each was once answered after a second, and a hundred blocked the dashboard."""
    form = b"token=wrong"
    requests = [
        b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer wrong\r\n\r\n",
        b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(form), form),
    ]
    with serve_here(app(db)) as address, contextlib.ExitStack() as opened:
        for request in requests * 50:
            guessing = opened.enter_context(socket.create_connection(("127.0.0.1", httpx.URL(address).port), 20))
            guessing.sendall(request)
        assert httpx.get(f"{address}/healthz", timeout=20).text == "alive\n"


def test_a_form_with_too_many_fields_is_a_wrong_token(db, monkeypatch):
    """It was once a traceback, and a response without the headers."""
    answer = Visitor(app(db), None).ask("POST", "/login", content="&".join(f"f{n}=1" for n in range(11)))
    assert (answer.status_code, "content-security-policy" in answer.headers) == (401, True)


def test_a_websocket_is_closed(db):
    """Mounted in an application with websockets, it was once a traceback."""
    sent = []

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message["type"])

    scope = {"type": "websocket", "path": "/ops/mail/x", "root_path": "/ops/mail", "headers": [], "query_string": b""}
    asyncio.run(app(db)(scope, receive, send))
    assert sent == ["websocket.close"]


def test_a_path_of_slashes_has_a_short_response(db):
    """Each slash was `../` in every link: 60,000 of them once returned 901 kB without any token."""
    for token in (None, TOKEN):
        answer = Visitor(app(db), token).ask("GET", "http://127.0.0.1/" + "/" * 60_000)
        assert (answer.status_code, answer.text) == (404, "not found\n")


def test_anyone_may_see_the_health_and_only_the_token_shows_the_problems(db):
    """Each is one line; a token in the query string is ignored."""
    closed = app(db)
    assert Visitor(closed, None).get("/healthz").text == "alive\n"
    answer = Visitor(closed, None).get(f"/readyz?token={TOKEN}")
    assert (answer.status_code, answer.text) == (503, "unhealthy\n")
    text = Visitor(closed).get("/readyz").text
    assert text.startswith("unhealthy: sweeps: no full sweep of all tenants has run yet")
    assert text.count("\n") == 1
    mailglass_reconcile.reconcile()
    assert Visitor(app(db), None).get("/readyz").text == "healthy\n"


def test_only_the_session_and_the_search_take_a_post(db):
    """Pages have nothing to submit; the search must not be in a URL, nor come from another site."""
    visitor = Visitor(app(db))
    paths = ("/", "/orphans", f"/events/{uuid.uuid4()}", "/runs", "/handlers", "/healthz", "/static/page.js")
    for method, path in itertools.product(("POST", "PUT", "PATCH", "DELETE"), paths):
        assert visitor.ask(method, path).status_code in (404, 405)
    for headers in ({"sec-fetch-site": "cross-site"}, {"origin": "https://x.example"}):
        assert visitor.ask("POST", "/find", headers=headers, data={"q": "sent"}).status_code == 403
    assert visitor.ask("POST", "/find", data={"q": "sent"}).status_code == 303
