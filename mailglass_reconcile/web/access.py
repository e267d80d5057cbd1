"""Who may see what: the operator's token, a tenant's token, or, without any token, this machine alone."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from typing import NamedTuple
from urllib.parse import parse_qs

from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Router
from starlette.types import Receive, Scope, Send

from mailglass_reconcile.errors import ConfigurationError
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.web.rendering import STATIC, render, within

COOKIE = "mailglass_web"
FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
_SEALED = b"mailglass-reconcile serve"


class Viewer(NamedTuple):
    """Somebody who may look: at one tenant, or, with None, at all."""

    tenant_id: str | None


class _Known(NamedTuple):
    token: bytes
    seal: str
    viewer: Viewer


class Tokens:
    """The tokens of an installation; none of them is kept in the clear by a browser."""

    def __init__(self, settings: Settings) -> None:
        """Take the tokens of *settings*.

        Raises:
            ConfigurationError: One is empty, or has two meanings.
        """
        self._known: list[_Known] = []
        if settings.web_token:
            self._add("MAILGLASS_WEB_TOKEN", None, settings.web_token.get_secret_value())
        if settings.web_tenant_tokens:
            self._add_tenants("MAILGLASS_WEB_TENANT_TOKENS", settings.web_tenant_tokens.get_secret_value())

    def _add_tenants(self, setting: str, pairs: str) -> None:
        for pair in filter(None, (part.strip() for part in pairs.split(","))):
            tenant_id, equals, token = pair.partition("=")
            if not (equals and tenant_id.strip()):
                raise ConfigurationError(f"{setting}: write tenant=token, with a comma between two of them")
            self._add(setting, tenant_id.strip(), token)

    def _add(self, setting: str, tenant_id: str | None, token: str) -> None:
        shown = token.strip().encode()
        if not shown:
            raise ConfigurationError(f"{setting}: a token is empty")
        if self.viewer(shown) is not None:
            raise ConfigurationError(f"{setting}: a token is there twice; give everybody another one")
        self._known.append(_Known(_digest(shown), seal(shown), Viewer(tenant_id)))

    def __bool__(self) -> bool:
        """Whether there is any token, without which nobody sees anything."""
        return bool(self._known)

    def viewer(self, token: bytes) -> Viewer | None:
        """Return whose token this is."""
        shown = _digest(token)
        found = [one.viewer for one in self._known if hmac.compare_digest(one.token, shown)]
        return found[0] if found else None

    def viewer_of(self, request: HTTPConnection) -> Viewer | None:
        """Return who asks, by the bearer's token or by the cookie; a token in the address counts for nothing."""
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return self.viewer(token.strip().encode("latin-1"))
        seal = request.cookies.get(COOKIE, "").encode()
        found = [one.viewer for one in self._known if hmac.compare_digest(one.seal.encode(), seal)]
        return found[0] if found else None


def seal(token: bytes) -> str:
    """Return what the cookie holds instead of the token."""
    return hmac.new(token, _SEALED, hashlib.sha256).hexdigest()


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def is_loopback(host: str) -> bool:
    """Whether *host*, a name or an address, is this machine."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def is_from_here(request: HTTPConnection) -> bool:
    """Whether this machine asks, and by a name of its own: a page of another site may not reach us by its own name."""
    client = request.client
    hosts = request.headers.getlist("host")
    return (
        client is not None
        and is_loopback(client.host)
        and len(hosts) == 1
        and is_loopback(_name(hosts[0]))
        and not any(name in request.headers for name in FORWARDED)
    )


def _name(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


VIEWER = "mailglass_reconcile.viewer"
FORM_BYTES = 20_000

# A place within the application, below its root: no scheme, no host, no way up.
_PLACE = re.compile(r"(?!/|\.)(?!.*//)(?!.*\.\.)[A-Za-z0-9/_.~%+&=?-]{1,2000}")
_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}

ONLY_HERE = (
    "Without a token, this page answers only to the machine that it runs on. Open it there by the address 127.0.0.1,"
    " or set `MAILGLASS_WEB_TOKEN`."
)


def viewer_of(request: Request) -> Viewer:
    """Return who looks; the door has let them in."""
    viewer: Viewer = request.scope[VIEWER]
    return viewer


class Entrance:
    """The door, with the tokens that open it."""

    def __init__(self, tokens: Tokens) -> None:
        """Let in who shows one of *tokens*; if there are none, this machine."""
        self.tokens = tokens

    def admitted(self, request: Request) -> Viewer | None:
        """Return who asks, if they may see anything."""
        if self.tokens:
            return self.tokens.viewer_of(request)
        return Viewer(None) if is_from_here(request) else None

    def refusal(self, request: Request) -> Response:
        """Return the form for a token, or, if there is none, where this page may be opened."""
        if not self.tokens:
            return render(
                request, "problem.html", status=403, title="Only here", sentence=ONLY_HERE, nav=False, retries=False
            )
        return _form(request, next_=_place(within(request)[1:], request.url.query))

    async def login(self, request: Request) -> Response:
        """Take the form with a token; give a cookie for a right one, which ends with the browser's session."""
        given = await _given(request)
        token, next_ = given.get("token", "").strip().encode(), given.get("next", "")
        if not self.tokens:
            return PlainTextResponse("no token is needed\n", 404)
        if self.tokens.viewer(token) is None:
            return _form(request, next_=next_ if _PLACE.fullmatch(next_) else "", wrong=True)
        answer = Response(status_code=303, headers={"location": f"./{next_ if _PLACE.fullmatch(next_) else ''}"})
        cookie = f"{COOKIE}={seal(token)}; HttpOnly; SameSite=Strict"
        # Without a path it is that of this form's own folder, as the browser sees it behind whatever proxy.
        answer.headers["set-cookie"] = cookie + ("; Secure" if request.url.scheme == "https" else "")
        return answer

    async def static(self, request: Request) -> Response:
        """Return the style or the script; the address changes with the content."""
        name = request.path_params["name"]
        if name not in STATIC:
            return PlainTextResponse("not found\n", 404)
        return Response(
            STATIC[name],
            media_type=_TYPES[name.rpartition(".")[2]],
            headers={"cache-control": "public, max-age=86400"},
        )


class Guarded:
    """An application behind the door: every route of it, whatever it is, and what is no route."""

    def __init__(self, app: Router, entrance: Entrance) -> None:
        """Hand to *app* the requests that *entrance* admits."""
        self.app, self.routes, self._entrance = app, app.routes, entrance

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        viewer = self._entrance.admitted(request)
        if viewer is not None:
            await self.app({**scope, VIEWER: viewer}, receive, send)
        else:
            await self._entrance.refusal(request)(scope, receive, send)


def _form(request: Request, *, next_: str, wrong: bool = False) -> Response:
    return render(request, "login.html", status=401, headers={"www-authenticate": "Bearer"}, next_=next_, wrong=wrong)


def _place(path: str, query: str) -> str:
    place = f"{path}?{query}" if query else path
    return place if _PLACE.fullmatch(place) else ""


async def _given(request: Request) -> dict[str, str]:
    """Return the fields of a small form; of anything else, nothing."""
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > FORM_BYTES:
                return {}
    except ClientDisconnect:
        return {}
    fields = parse_qs(body.decode("utf-8", "replace"), max_num_fields=10, keep_blank_values=True)
    return {name: values[0] for name, values in fields.items()}
