"""The receiver as an ASGI application; it needs no framework."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import traceback
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
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
from mailglass_reconcile.webhooks.bodies import (
    Bodies,
    Body,
    BusyError,
    GoneError,
    Receive,
    TooLargeError,
    TooSlowError,
)
from mailglass_reconcile.webhooks.certificates import WAIT_SECONDS, CertificateNeededError, TooLateError
from mailglass_reconcile.webhooks.receiving import check_any, claimed, public_url, read_verified
from mailglass_reconcile.webhooks.registry import Provider
from mailglass_reconcile.webhooks.secrets import Given, Secrets
from mailglass_reconcile.webhooks.wire import Request, Signature

logger = logging.getLogger(__name__)

THREADS = 8
"""Webhooks that are recorded at the same time, each on a connection of its own."""
RETRY_AFTER_SECONDS = 30
DISCARDED_BYTES = 20 * 1024 * 1024
DISCARDED_SECONDS = 5.0
"""How much is read of a body that was answered before its end, and how long: a client that sends reads no answer."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
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
_CLOSE = ((b"connection", b"close"),)
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
    """The application: requests come in on the event loop, and are verified and recorded in a few threads."""

    def __init__(self, engine: sa.Engine, secrets: Secrets, tenant: Tenant, base: str | None) -> None:
        """Receive the webhooks of the providers that have *secrets*; nothing connects yet."""
        self._engine, self._secrets, self._tenant, self._base = engine, secrets, tenant, base
        self._bodies = Bodies()
        self._verifier = ThreadPoolExecutor(1, thread_name_prefix="mailglass-signatures")
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="mailglass-webhooks")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            arriving = _Arriving(scope, receive)
            answer = await self._answer(scope, arriving)
            if not arriving.left:
                await _send(send, answer, scope, arriving)
            if answer.recorded:
                await _in_thread(self._threads, finish_quietly, answer.recorded, place_of(self._engine))

    async def _answer(self, scope: Scope, receive: _Arriving) -> Answer:
        provider = scope["path"].rstrip("/").rpartition("/")[2]
        if scope["method"] in ("GET", "HEAD"):  # Mandrill and Unisender Go look before they accept an address
            return _HERE if provider == "healthz" or registry.is_known(provider) else _UNKNOWN
        if scope["method"] != "POST":
            return Answer(405, "only POST is answered here", ((b"allow", b"GET, HEAD, POST"),))
        if not self._secrets.of(provider):
            return _UNKNOWN
        try:
            return Answer(200, "ok", recorded=await self._posted(provider, scope, receive))
        except Exception as error:
            return _refusal(registry.name(provider), error)

    async def _posted(self, provider: str, scope: Scope, receive: _Arriving) -> tuple[Recorded, ...]:
        """Take a webhook in the order that costs least until its signature is checked, and record it."""
        found, secrets = registry.module(provider), self._secrets.of(provider)
        head = _request(scope, b"", self._base)
        early = found.SIGNATURE is Signature.IN_HEADERS
        if early:
            check_any(found, head, secrets)
        with self._bodies.one_more() as body:
            most = registry.max_bytes(found, head)
            if receive.announced > most:
                raise TooLargeError
            content = await self._bodies.read(body, receive, most)
            request = dataclasses.replace(head, body=content)
            if not early:
                await self._verify(found, request, secrets, body)
            async with self._bodies.parsing(body):
                return await _in_thread(self._threads, self._recorded, provider, scope["path"], request)

    async def _verify(self, found: Provider, request: Request, secrets: Sequence[str], body: Body) -> None:
        """Check a signature that covers the body or stands in it."""
        try:
            await self._verify_now(found, request, secrets, body)
            return
        except CertificateNeededError as error:
            wanted = asyncio.wrap_future(error.wanted())
        await self._bodies.aside(body, _in_time(wanted))
        await self._verify_now(found, request, secrets, body)

    async def _verify_now(self, found: Provider, request: Request, secrets: Sequence[str], body: Body) -> None:
        """Check a signature, one body after the other; what is parsed for it is not kept."""
        request = dataclasses.replace(request)
        async with self._bodies.verifying(body):
            if found.SIGNATURE is Signature.OVER_BODY:
                await _in_thread(self._verifier, check_any, found, request, secrets)
            else:
                async with self._bodies.parsing(body):
                    await _in_thread(self._verifier, check_any, found, request, secrets)

    def _recorded(self, provider: str, path: str, request: Request) -> tuple[Recorded, ...]:
        """Read and record a webhook whose signature was checked."""
        found = registry.module(provider)
        events = read_verified(found, request)
        if not events:
            return ()
        tenant = self._tenant_of(path)
        with claimed(found, request), connect(self._engine) as connection, database_errors(), connection.begin():
            return tuple(record_webhook(connection, tenant_id=tenant, provider=provider, events=events))

    def _tenant_of(self, path: str) -> str | None:
        tenant = self._tenant(path) if callable(self._tenant) else self._tenant
        try:
            return None if tenant is None else checking.name("tenant_id", tenant)
        except InvalidEventError as error:  # the application's fault: the provider sends the webhook again
            raise ConfigurationError(str(error)) from None


def _refusal(provider: str, error: Exception) -> Answer:
    """Return the answer to a webhook that was not recorded; the log has a line."""
    match error:
        case SignatureError():
            logger.warning("a webhook of %s was refused: %s", provider, error)
            return Answer(401, "the signature is not right", ((b"www-authenticate", b'Basic realm="webhooks"'),))
        case InvalidWebhookError() | InvalidEventError():
            logger.error("a webhook of %s was refused: %s", provider, error)
            return Answer(400, "the body cannot be read")
        case TooLargeError():
            logger.error("a webhook of %s was refused: its body is too large", provider)
            return Answer(413, "the body is too large")
        case GoneError():
            return Answer(400, "the client has left")
        case TooSlowError():
            logger.warning("a webhook of %s was refused: its body did not arrive in time", provider)
            return Answer(408, "the body did not arrive in time")
        case BusyError():
            logger.error("a webhook of %s was not recorded: too many are in hand", provider)
        case MailglassReconcileError():
            logger.error("a webhook of %s was not recorded: %s", provider, error)
        case _:  # an application's function for the tenant, or a fault of ours
            where, kind = traceback.extract_tb(error.__traceback__)[-1], type(error).__name__
            logger.error("a webhook of %s was not recorded: %s in %s:%s", provider, kind, where.filename, where.lineno)
    return _BUSY


async def _in_time(wanted: Awaitable[None]) -> None:
    try:
        await asyncio.wait_for(wanted, WAIT_SECONDS)
    except TimeoutError:
        raise TooLateError from None


async def _in_thread(
    threads: ThreadPoolExecutor, function: Callable[[*Arguments], Result], *arguments: *Arguments
) -> Result:
    return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)


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


class _Arriving:
    """What receives a request's body, and whether it is all there or its client has left."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        self.announced = int(length[:20]) if length.isdigit() else 0  # Python reads no number of thousands of digits
        self.complete = not (self.announced or b"transfer-encoding" in headers)
        self.left = False
        self._receive = receive

    async def __call__(self) -> Message:
        message = await self._receive()
        self.left = message["type"] != "http.request"
        self.complete = self.left or not message.get("more_body", False)
        return message

    async def discard(self) -> None:
        """Read the rest, within bounds."""
        size = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(DISCARDED_SECONDS):
                while not self.complete and size < DISCARDED_BYTES:
                    size += len((await self()).get("body", b""))


async def _send(send: Send, answer: Answer, scope: Scope, arriving: _Arriving) -> None:
    """Send an answer. If the body is still arriving, the rest of it is discarded before the connection is closed."""
    text = f"{answer.text}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(text)).encode())]
    early = not arriving.complete
    await send(
        {
            "type": "http.response.start",
            "status": answer.status,
            "headers": [*headers, *answer.headers, *(_CLOSE if early else ())],
        }
    )
    body = b"" if scope["method"] == "HEAD" else text
    if early:
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await arriving.discard()
        body = b""
    await send({"type": "http.response.body", "body": body})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
