"""The ASGI application: its routes, who may take them, and what every answer says to the browser."""

from __future__ import annotations

import sqlalchemy as sa
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount, Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mailglass_reconcile import runtime
from mailglass_reconcile.web.access import Entrance, Guarded, Tokens
from mailglass_reconcile.web.pages import Pages, Reader
from mailglass_reconcile.web.rendering import REFRESH_SECONDS

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none';"
    " form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    b"content-security-policy": POLICY.encode(),
    b"cross-origin-resource-policy": b"same-origin",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}


def create_app(engine: sa.Engine | None = None) -> Starlette:
    """Return the page as an ASGI application, to be served alone or mounted under any path.

    It only reads. Settings are those of `configure` or of the environment: with `MAILGLASS_WEB_TOKEN` or
    `MAILGLASS_WEB_TENANT_TOKENS`, who shows such a token sees all tenants, or its own; without any token, only
    requests from this machine, by a name of this machine, are answered.

    Args:
        engine: A SQLAlchemy engine on psycopg 3; None is that of `configure`, or of `MAILGLASS_DATABASE_URL`. A role
            that can only read is enough.

    Raises:
        ConfigurationError: A token is empty, or stands there twice.
    """
    entrance = Entrance(Tokens(runtime.get_settings()))
    pages = Pages(Reader(engine, REFRESH_SECONDS), entrance)
    guarded = Router(
        [
            Route("/", pages.overview, name="overview"),
            Route("/orphans", pages.orphans, name="orphans"),
            Route("/events/{event_id}", pages.event, name="event"),
            Route("/deliveries/{delivery_id}", pages.delivery, name="delivery"),
            Route("/find", pages.find, name="find"),
            Route("/metrics", pages.metrics, name="metrics"),
        ],
        redirect_slashes=False,
        default=pages.missing,
    )
    app = Starlette(
        routes=[
            Route("/healthz", pages.healthz, name="healthz"),
            Route("/readyz", pages.readyz, name="readyz"),
            Route("/static/{name}", entrance.static, name="static"),
            Route("/login", entrance.login, methods=["POST"], name="login"),
            Mount("", app=Guarded(guarded, entrance), name="guarded"),
        ],
        middleware=[Middleware(_Headers)],
    )
    app.router.redirect_slashes = False
    return app


class _Headers:
    """Puts our headers on every answer, errors included."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = list(message.get("headers", []))
                names = {name for name, _ in given}
                given += HEADERS.items()
                if b"cache-control" not in names:
                    given.append((b"cache-control", b"no-store"))
                message = {**message, "headers": given}
            await send(message)

        await self.app(scope, receive, with_headers)
