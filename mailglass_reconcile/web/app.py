"""The ASGI application: its routes, and the headers of every answer."""

from __future__ import annotations

import sqlalchemy as sa
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import ConfigurationError
from mailglass_reconcile.settings import load_web_token
from mailglass_reconcile.web.access import Access, Guard
from mailglass_reconcile.web.pages import Pages
from mailglass_reconcile.web.rendering import REFRESH_SECONDS

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none';"
    " form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "same-origin",  # without any, browsers hide the origin of the sign-in form
    "x-content-type-options": "nosniff",
}


def create_app(engine: sa.Engine | None = None) -> Starlette:
    """Return the page as an ASGI application, to be served alone or mounted under any path.

    It only reads. Anyone with the token `MAILGLASS_WEB_TOKEN` sees the events of all tenants. Settings are those of
    `configure` or of the environment.

    Args:
        engine: A SQLAlchemy engine on psycopg 3; None is that of `configure`, or of `MAILGLASS_DATABASE_URL`. A role
            that can only read is enough.

    Raises:
        ConfigurationError: `MAILGLASS_WEB_TOKEN` is not set, or has fewer than 16 characters.
    """
    token = load_web_token(runtime.get_settings())
    if token is None:
        raise ConfigurationError(
            "MAILGLASS_WEB_TOKEN is not set; set it to a token of your own, such as `openssl rand -hex 24` prints"
        )
    return application(token, engine)


def application(token: str, engine: sa.Engine | None = None, *, refresh_seconds: float = REFRESH_SECONDS) -> Starlette:
    """Return the page for anyone with *token*, read anew after so many seconds; otherwise as `create_app`."""
    access = Access(token, secure_cookie=runtime.get_settings().web_secure_cookie)
    pages = Pages(engine, access, refresh_seconds)
    guarded = Router(
        [
            Route("/", pages.overview, name="overview"),
            Route("/orphans", pages.orphans, name="orphans"),
            Route("/runs", pages.runs, name="runs"),
            Route("/handlers", pages.handlers, name="handlers"),
            Route("/events/{event_id}", pages.event, name="event"),
            Route("/deliveries/{delivery_id}", pages.delivery, name="delivery"),
            Route("/find", pages.find, methods=["GET", "POST"], name="find"),
            Route("/metrics", pages.metrics, name="metrics"),
        ],
        redirect_slashes=False,
        default=pages.not_found,
    )
    app = Starlette(
        routes=[
            Route("/healthz", pages.healthz, name="healthz"),
            Route("/readyz", pages.readyz, name="readyz"),
            Route("/static/{name}", pages.static, name="static"),
            Route("/login", access.login, methods=["POST"], name="login"),
            Route("/logout", access.logout, methods=["POST"], name="logout"),
            Mount("", app=Guard(guarded, access), name="guarded"),
        ],
        middleware=[Middleware(_Headers)],
        exception_handlers={Exception: _answer_error},
    )
    app.router.redirect_slashes = False
    return app


class _Headers:
    """Adds the headers to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        await self.app(scope, receive, with_headers)


async def _answer_error(request: Request, error: Exception) -> Response:
    # Starlette answers a bug outside of its middleware, so the headers are added here; the server logs the traceback.
    return PlainTextResponse("internal error\n", 500, headers=HEADERS)
