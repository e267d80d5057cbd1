"""The receiver as an ASGI application; it needs no framework."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar, TypeVarTuple
from urllib.parse import quote

import sqlalchemy as sa

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import (
    ConfigurationError,
    InvalidEventError,
    InvalidWebhookError,
    MailglassReconcileError,
    SignatureError,
    database_errors,
)
from mailglass_reconcile.record import checking
from mailglass_reconcile.record.after_commit import Recorded, finish_quietly, place_of
from mailglass_reconcile.record.webhooks import record_webhook
from mailglass_reconcile.store.engines import connect
from mailglass_reconcile.webhooks import registry
from mailglass_reconcile.webhooks import secrets as keys
from mailglass_reconcile.webhooks.receiving import public_url, verified
from mailglass_reconcile.webhooks.secrets import Given, Secrets
from mailglass_reconcile.webhooks.wire import Request

logger = logging.getLogger(__name__)

MAX_BYTES = 5 * 1024 * 1024
"""A larger body is refused."""
THREADS = 8
"""Webhooks that are recorded at the same time, each on a connection of its own."""
MAX_WAITING = 200
"""Webhooks in hand; further ones are answered with 503."""
RETRY_AFTER_SECONDS = 30

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Tenant = str | Callable[[str], str | None] | None


Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


class Answer(NamedTuple):
    """What a request is answered with, and what has to be done after that."""

    status: int
    text: str
    headers: tuple[tuple[bytes, bytes], ...] = ()
    recorded: tuple[Recorded, ...] = ()


_AGAIN = ((b"retry-after", str(RETRY_AFTER_SECONDS).encode()),)
_BUSY = Answer(503, "try again later", _AGAIN)
_HERE = Answer(200, "ok")
_UNKNOWN = Answer(404, "no webhooks of this provider are received here")


def webhook_app(
    *, engine: sa.Engine | None = None, secrets: Given | None = None, tenant: Tenant = None, url: str | None = None
) -> Receiver:
    """Return an ASGI application that answers `POST /…/{provider}`: verify, read, record, commit, and then 200.

    Mount it, such as `app.mount("/webhooks", webhook_app())`, or serve it by itself (`mailglass-reconcile receive`). It
    answers 401 to a wrong signature, 400 to a body that cannot be read, 413 to one above 5 MB, and 404 for a provider
    without a secret. If it cannot record, it answers 503, so that the provider sends the webhook again. Each fault is
    one line in the log.

    Args:
        engine: A SQLAlchemy engine on psycopg, best with a pool of eight connections; None is the one of `configure`,
            or a pool on `MAILGLASS_DATABASE_URL`.
        secrets: For each provider what it signs with, `user:password` if it does not sign, or a list of them while one
            is replaced; None is `MAILGLASS_WEBHOOK_SECRETS`.
        tenant: The tenant, or a function of the request's whole path that returns it; None is `MAILGLASS_TENANT`.
        url: The public address of this application, which Mandrill's signature needs behind a proxy; None is
            `MAILGLASS_WEBHOOK_URL`, or else what the request says.

    Raises:
        ConfigurationError: There is no secret, one cannot be used, or the database's URL cannot be used.
    """
    settings = runtime.get_settings()
    known = keys.given(secrets, settings)
    base = url or (settings.webhook_url.get_secret_value() if settings.webhook_url else None)
    return Receiver(engine or runtime.pooled_engine(THREADS), known, tenant, base)


class Receiver:
    """The application: requests come in on the event loop, and are recorded in a few threads."""

    def __init__(self, engine: sa.Engine, secrets: Secrets, tenant: Tenant, base: str | None) -> None:
        """Receive the webhooks of the providers that have *secrets*; nothing connects yet."""
        self._engine, self._secrets, self._tenant, self._base = engine, secrets, tenant, base
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="mailglass-webhooks")
        self._in_hand = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            answer = await self._answer(scope, receive)
            if answer is not None:
                await _send(send, answer, with_body=scope["method"] != "HEAD")
                if answer.recorded:
                    await self._in_thread(finish_quietly, answer.recorded, place_of(self._engine))

    async def _answer(self, scope: Scope, receive: Receive) -> Answer | None:
        provider = scope["path"].rstrip("/").rpartition("/")[2]
        if scope["method"] in ("GET", "HEAD"):  # Mandrill and Unisender Go look before they accept an address
            return _HERE if provider == "healthz" or registry.is_known(provider) else _UNKNOWN
        if scope["method"] != "POST":
            return Answer(405, "only POST is answered here", ((b"allow", b"GET, HEAD, POST"),))
        if not self._secrets.of(provider):
            return _UNKNOWN
        if self._in_hand >= MAX_WAITING:
            logger.error("a webhook of %s was not recorded: %d are waiting", registry.name(provider), MAX_WAITING)
            return _BUSY
        self._in_hand += 1
        try:
            return await self._posted(provider, scope, receive)
        finally:
            self._in_hand -= 1

    async def _posted(self, provider: str, scope: Scope, receive: Receive) -> Answer | None:
        body = await _body(scope, receive)
        if body is not None and len(body) > MAX_BYTES:
            return Answer(413, "the body is too large", ((b"connection", b"close"),))
        return None if body is None else await self._in_thread(self._received, provider, scope, body)

    async def _in_thread(self, function: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    def _received(self, provider: str, scope: Scope, body: bytes) -> Answer:
        """Record a webhook, in a thread; never raise."""
        name = registry.name(provider)
        try:
            return Answer(200, "ok", recorded=tuple(self._recorded(provider, scope, body)))
        except SignatureError as error:
            logger.warning("a webhook of %s was refused: %s", name, error)
            return Answer(401, "the signature is not right", ((b"www-authenticate", b'Basic realm="webhooks"'),))
        except (InvalidWebhookError, InvalidEventError) as error:
            logger.error("a webhook of %s was refused: %s", name, error)
            return Answer(400, "the body cannot be read")
        except MailglassReconcileError as error:
            logger.error("a webhook of %s was not recorded: %s", name, error)
            return _BUSY
        except Exception as error:  # an application's function for the tenant, or a fault of ours
            where = traceback.extract_tb(error.__traceback__)[-1]
            logger.error(
                "a webhook of %s was not recorded: %s in %s:%s",
                name,
                type(error).__name__,
                where.filename,
                where.lineno,
            )
            return _BUSY

    def _recorded(self, provider: str, scope: Scope, body: bytes) -> list[Recorded]:
        found = registry.module(provider)
        request = _request(scope, body, self._base)
        events = verified(found, request, self._secrets.of(provider))
        recorded = []
        if events:
            tenant = self._tenant_of(scope["path"])
            with connect(self._engine) as connection, database_errors(), connection.begin():
                recorded = record_webhook(connection, tenant_id=tenant, provider=provider, events=events)
        if hasattr(found, "accepted"):
            found.accepted(request, dt.datetime.now(dt.UTC).timestamp())
        return recorded

    def _tenant_of(self, path: str) -> str | None:
        tenant = self._tenant(path) if callable(self._tenant) else self._tenant
        try:
            return None if tenant is None else checking.name("tenant_id", tenant)
        except InvalidEventError as error:  # the application's fault: the provider sends the webhook again
            raise ConfigurationError(str(error)) from None


def _request(scope: Scope, body: bytes, base: str | None) -> Request:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    query = f"?{scope['query_string'].decode('latin-1')}" if scope.get("query_string") else ""
    if base:
        path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
        return registry.request_of(body, headers, url=public_url(base, quote(path)) + query)
    host = headers.get("host", "localhost")
    return registry.request_of(
        body, headers, url=f"{scope.get('scheme', 'http')}://{host}{quote(scope['path'])}{query}"
    )


async def _body(scope: Scope, receive: Receive) -> bytes | None:
    """Return the body, or a little more than may be read of it; None if the client has gone."""
    announced = dict(scope["headers"]).get(b"content-length", b"")
    if announced.isdigit() and int(announced[:20]) > MAX_BYTES:  # Python reads no number of thousands of digits
        return bytes(MAX_BYTES + 1)
    body = bytearray()
    while len(body) <= MAX_BYTES:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return bytes(body)


async def _send(send: Send, answer: Answer, *, with_body: bool) -> None:
    text = f"{answer.text}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": answer.status, "headers": [*headers, *answer.headers]})
    await send({"type": "http.response.body", "body": text if with_body else b""})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
