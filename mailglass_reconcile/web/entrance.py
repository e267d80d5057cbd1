"""What anybody gets: the style and the script, the form for a token; and the door in front of everything else."""

from __future__ import annotations

import re
from urllib.parse import parse_qs

from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Router
from starlette.types import Receive, Scope, Send

from mailglass_reconcile.web import access
from mailglass_reconcile.web.access import COOKIE, Tokens, Viewer
from mailglass_reconcile.web.screen import STATIC, render, within

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
        return Viewer(None) if access.is_from_here(request) else None

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
        cookie = f"{COOKIE}={access.seal(token)}; HttpOnly; SameSite=Strict"
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
