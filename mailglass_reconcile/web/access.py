"""Access to the dashboard: its token, the session cookie, the sign-in form, and the guard of all other routes."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from urllib.parse import parse_qs, unquote_plus, urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Router
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketClose

from mailglass_reconcile.providers.signatures import constant_time_equal, has_bearer
from mailglass_reconcile.rules.addresses import contains_address
from mailglass_reconcile.web.rendering import path_below_root, render

COOKIE = "mailglass_web"
SESSION_SECONDS = 12 * 3_600
FORM_BYTES = 20_000
DEEPEST_PATH = 3
"""Slashes in the path of a page at most. A page repeats `../` for each of them in every link."""

# Where the sign-in form may lead: a page of this application, with its query.
_PAGE = re.compile(
    r"(orphans|find|runs|handlers|(events|deliveries)/[0-9A-Fa-f-]{36})?(\?[A-Za-z0-9/_.~%+&=:?-]{0,2000})?"
)


def make_session(token: str, issued: int) -> str:
    """Return the cookie's value for a sign-in at *issued*, in seconds since 1970; it does not reveal the token."""
    signature = hmac.new(token.encode(), f"mailglass-reconcile session {issued}".encode(), hashlib.sha256)
    return f"{issued}.{signature.hexdigest()}"


class Access:
    """Authentication of requests: a bearer token or a session cookie."""

    def __init__(self, token: str, *, secure_cookie: bool) -> None:
        """Admit requests with *token* or with a session cookie made from it.

        Args:
            token: The page's token.
            secure_cookie: True to let browsers send the cookie over HTTPS only, even if the login came over HTTP, from
                a proxy that ends TLS.
        """
        self._token, self._secure_cookie = token, secure_cookie

    def has_access(self, request: Request) -> bool:
        """Return True if a request has the token or a valid session; a token in the address is ignored."""
        if has_bearer(request.headers.get("authorization", "").encode("latin-1"), self._token):
            return True
        cookie = request.cookies.get(COOKIE, "")
        issued = cookie.partition(".")[0]
        if not (issued.isascii() and issued.isdecimal() and len(issued) < 12):
            return False
        is_fresh = -60 <= time.time() - int(issued) < SESSION_SECONDS
        return hmac.compare_digest(make_session(self._token, int(issued)).encode(), cookie.encode()) and is_fresh

    def show_login(self, request: Request) -> Response:
        """Return the sign-in form, which leads on to the page that was requested."""
        page, query = path_below_root(request)[1:], request.url.query
        keeps_query = query and not contains_address(unquote_plus(query))  # typed into the address bar
        return _render_login(request, f"{page}?{query}" if keeps_query else page)

    async def login(self, request: Request) -> Response:
        """Answer the sign-in form: with a session cookie for the right token, else with the form."""
        if is_cross_site(request):
            return PlainTextResponse("sign in from the dashboard itself\n", 403)
        fields = await read_form(request)
        next_ = fields.get("next", "")
        # No delay for a wrong token: guessing 16 characters is hopeless, and a delayed answer occupies a connection.
        if not constant_time_equal(fields.get("token", "").strip(), self._token):
            return _render_login(request, next_, wrong=True)
        answer = Response(status_code=303, headers={"location": f"./{next_ if _PAGE.fullmatch(next_) else ''}"})
        self._set_cookie(answer, request, make_session(self._token, int(time.time())))
        return answer

    async def logout(self, request: Request) -> Response:
        if is_cross_site(request):
            return PlainTextResponse("sign out from the dashboard itself\n", 403)
        answer = Response(status_code=303, headers={"location": "./"})
        self._set_cookie(answer, request, "; Max-Age=0")
        return answer

    def _set_cookie(self, answer: Response, request: Request, value: str) -> None:
        # Without a path, the cookie gets the folder of this route as the browser sees it, behind any proxy.
        secure = "; Secure" if self._secure_cookie or request.url.scheme == "https" else ""
        answer.headers["set-cookie"] = f"{COOKIE}={value}; HttpOnly; SameSite=Strict{secure}"


class Guard:
    """Passes a request to the application if it has access; otherwise answers with the sign-in form."""

    def __init__(self, app: Router, access: Access) -> None:
        self.app, self.routes, self._access = app, app.routes, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await WebSocketClose()(scope, receive, send)
            return
        request = Request(scope, receive)
        if path_below_root(request).count("/") > DEEPEST_PATH:
            await PlainTextResponse("not found\n", 404)(scope, receive, send)
        elif self._access.has_access(request):
            await self.app(scope, receive, send)
        else:
            await self._access.show_login(request)(scope, receive, send)


def _render_login(request: Request, next_: str, *, wrong: bool = False) -> Response:
    local = next_ if _PAGE.fullmatch(next_) else ""
    return render(request, "login.html", status=401, headers={"www-authenticate": "Bearer"}, next_=local, wrong=wrong)


def is_cross_site(request: Request) -> bool:
    """Return True if another site's page sent this form; only browsers send these headers."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        return site not in ("same-origin", "none")
    return origin is not None and urlsplit(origin).netloc != request.headers.get("host")


async def read_form(request: Request) -> dict[str, str]:
    """Read the fields of a small form; none for any other body."""
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > FORM_BYTES:
                return {}
        fields = parse_qs(body.decode("utf-8", "replace"), max_num_fields=10, keep_blank_values=True)
    except (ClientDisconnect, ValueError):
        return {}
    return {name: values[0] for name, values in fields.items()}
