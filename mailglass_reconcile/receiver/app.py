"""The receiver as an ASGI application; it needs no framework."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from typing import Any, NamedTuple, TypeVar, TypeVarTuple
from urllib.parse import quote

import sqlalchemy as sa

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import (
    ConfigurationError,
    InvalidEventError,
    InvalidWebhookError,
    SignatureError,
    database_errors,
)
from mailglass_reconcile.receiver import admission
from mailglass_reconcile.receiver import secret_store as keys
from mailglass_reconcile.receiver.admission import (
    Admission,
    Body,
    BusyError,
    GoneError,
    Receive,
    TooLargeError,
    TooSlowError,
)
from mailglass_reconcile.receiver.checker import Checker
from mailglass_reconcile.receiver.known_certificates import KnownCertificates
from mailglass_reconcile.receiver.receiving import answer_handshake, check_any, claimed, confirm, public_url
from mailglass_reconcile.receiver.secret_store import Given, Secrets
from mailglass_reconcile.record import failures, validation
from mailglass_reconcile.record.after_commit import Recorded, broadcast
from mailglass_reconcile.record.webhooks import record_webhook
from mailglass_reconcile.rules import providers
from mailglass_reconcile.rules.addresses import holds_address
from mailglass_reconcile.rules.events import WebhookEvent
from mailglass_reconcile.rules.humanize import pluralize, sanitize
from mailglass_reconcile.rules.log_throttle import LogThrottle
from mailglass_reconcile.store.certificates import Address
from mailglass_reconcile.store.engines import connect
from mailglass_reconcile.webhooks import certificates, registry, sns
from mailglass_reconcile.webhooks.provider import Provider
from mailglass_reconcile.webhooks.wire import Signature, WebhookRequest, constant_time_equal

logger = logging.getLogger(__name__)

THREADS = 8
"""Webhooks that are recorded at the same time, each on a connection of its own."""
MAX_ASKED = 128
"""Webhooks whose tenant and secrets are being asked for, in threads of their own; further ones get 503."""
SMALL_BYTES = 16 * 1024
"""A signature inside a body up to this length is checked immediately: parsing it takes a few milliseconds."""
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
    content_type: bytes = b"text/plain; charset=utf-8"


_AGAIN = ((b"retry-after", str(RETRY_AFTER_SECONDS).encode()),)
_CLOSE = ((b"connection", b"close"),)
_HERE = Answer(200, "ok")
_INVALID = "invalid signature"
_UNKNOWN = Answer(404, "no secret is configured for this provider")


def webhook_app(
    *, engine: sa.Engine | None = None, secrets: Given | None = None, tenant: Tenant = None, url: str | None = None
) -> Receiver:
    """Return an ASGI application that receives `POST /…/{provider}`: verify, parse, record, commit, and then 200.

    `docs/providers.md` lists its status codes and lines of the log.

    Args:
        engine: A SQLAlchemy engine on psycopg, best with a pool of eight connections; None is the one of `configure`,
            or a pool on `MAILGLASS_DATABASE_URL`.
        secrets: A mapping of each provider to its secret (`user:password` if it does not sign) or a list of secrets.
            For tenants with their own accounts, a mapping of tenants to such mappings, or a function
            `secrets(provider, tenant)`, called in a thread, that returns a secret, a list, or None (404). None is
            `MAILGLASS_WEBHOOK_SECRETS`.
        tenant: The tenant, or a function of the request's path, called in a thread, that returns it, or None (404).
            None is `MAILGLASS_TENANT`.
        url: The public address of this application, which Mandrill's signature needs behind a proxy; None is
            `MAILGLASS_WEBHOOK_URL`, or the request's own address.

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
        self._admission, self._checker = Admission(), Checker()
        self._certificates = KnownCertificates(engine, secrets)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="mailglass-webhooks")
        self._askers = ThreadPoolExecutor(THREADS, thread_name_prefix="mailglass-tenants")
        self._asked = 0
        self._throttle = LogThrottle()
        self.results: Counter[tuple[str, str]] = Counter()
        """Webhooks by provider (`unknown` for any other name) and result: received, refused or failed."""
        self.metrics_token: str | None = None
        """Opens `/metrics`; without one, there are no metrics."""

    def start(self) -> Future[None]:
        """Load in the background what was known before the last restart; the first webhook that needs it does, too."""
        return self._certificates.start()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            self.start()
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            arriving = _Arriving(scope, receive)
            answer = await self._answer(scope, arriving)
            if not arriving.left:
                await _send(send, answer, scope, arriving)
            if answer.recorded:
                broadcast(answer.recorded)

    async def _answer(self, scope: Scope, receive: _Arriving) -> Answer:
        provider = scope["path"].rstrip("/").rpartition("/")[2]
        if scope["method"] in ("GET", "HEAD"):  # Mandrill and Unisender Go look before they accept an address
            if provider == "metrics":
                return self._metrics(scope, self.metrics_token)
            return _HERE if provider == "healthz" or registry.is_known(provider) else _UNKNOWN
        if scope["method"] == "OPTIONS" and registry.is_known(provider) and self._secrets.may_have(provider):
            found = registry.get_provider(provider)
            if found.handshake:
                return await self._options(found, provider, scope)
        if scope["method"] != "POST":
            return Answer(405, "only POST is answered here", ((b"allow", b"GET, HEAD, POST"),))
        if not (registry.is_known(provider) and self._secrets.may_have(provider)):
            self._note_unknown(provider)
            self.results[providers.canonical(provider) if registry.is_known(provider) else "unknown", "refused"] += 1
            return _UNKNOWN
        found = registry.get_provider(provider)
        try:
            answer = await self._posted(found, provider, scope, receive)
        except _NotServedError as error:
            if self._throttle.allow((providers.canonical(provider), str(error))):
                logger.warning("a webhook of %s was answered with 404: %s", providers.canonical(provider), error)
            answer = _UNKNOWN
        except Exception as error:
            answer = self._refusal(found, providers.canonical(provider), error)
        else:
            logger.info("%s: %s", providers.canonical(provider), _in_words(answer.recorded))
        self.results[providers.canonical(provider), _result(answer)] += 1
        return answer

    def _metrics(self, scope: Scope, token: str | None) -> Answer:
        if token is None:
            return Answer(404, "no metrics here: `mailglass-reconcile receive` has them if MAILGLASS_WEB_TOKEN is set")
        scheme, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not constant_time_equal(given.strip(), token):
            return Answer(401, "the token is missing or wrong", ((b"www-authenticate", b'Bearer realm="metrics"'),))
        from mailglass_reconcile.receiver import metrics  # noqa: PLC0415 - its library is an extra

        return Answer(200, metrics.scrape(self.results).decode().rstrip(), content_type=metrics.CONTENT_TYPE.encode())

    async def _posted(self, found: Provider, provider: str, scope: Scope, receive: _Arriving) -> Answer:
        """Take a webhook step by step, the cheapest first, until its events are recorded."""
        tenant, secrets = await self._tenant_and_secrets(provider, scope["path"])
        head = _request(scope, b"", self._base)
        has_password = found.signature is Signature.IN_HEADERS
        if has_password:
            check_any(found, head, secrets)
        most = found.max_bytes
        if receive.announced > most:
            raise TooLargeError
        with self._admission.admit(providers.canonical(provider), verified=has_password) as body:
            request = dataclasses.replace(head, body=await self._admission.read(body, receive, most))
            source = await self._certificate(body, found, request, secrets)
            checked = await self._check(body, found, request, secrets)
            if not checked.events:
                if (text := answer_handshake(found, request)) is not None:
                    return Answer(200, text, content_type=b"application/json")
                await _in_thread(self._threads, confirm, found, request)
                return _HERE
            del request  # what was parsed of it may take twenty times its length
            recorded = await _in_thread(self._threads, self._record, provider, scope["path"], tenant, checked)
        if source is not None:
            await _in_thread(self._threads, self._certificates.store, Address(body.provider, source.url))
        return Answer(200, "ok", recorded=recorded)

    async def _options(self, found: Provider, provider: str, scope: Scope) -> Answer:
        """Answer the validation of CloudEvents, which asks before the first event whether its origin is allowed."""
        origin = dict(scope["headers"]).get(b"webhook-request-origin", b"")
        try:
            _, secrets = await self._tenant_and_secrets(provider, scope["path"])
            check_any(found, _request(scope, b"", self._base), secrets)
        except _NotServedError:
            return _UNKNOWN
        except Exception as error:
            return self._refusal(found, providers.canonical(provider), error)
        return Answer(200, "ok", ((b"webhook-allowed-origin", origin), (b"webhook-allowed-rate", b"*")))

    async def _certificate(
        self, body: Body, found: Provider, request: WebhookRequest, secrets: Sequence[str]
    ) -> certificates.CertificateSource | None:
        """Wait for the certificate that a webhook names, if its signature needs one, and return where it is."""
        source = registry.find_certificate_source(found, request, secrets)
        if source is not None and source.url not in sns.certificates:
            await self._admission.wait_for_certificate(body, self._fetched(source))
        return source

    async def _fetched(self, source: certificates.CertificateSource) -> None:
        await _in_time(asyncio.shield(asyncio.wrap_future(self.start())))
        if source.url not in sns.certificates:
            await _in_time(asyncio.wrap_future(sns.certificates.schedule_fetch(source)))

    async def _check(self, body: Body, found: Provider, request: WebhookRequest, secrets: Sequence[str]) -> _Checked:
        """Verify a webhook, unless its password was checked, and read it.

        What takes a moment is verified here and now, so that no body which has to wait delays it; the rest in the one
        thread that reads.
        """
        is_small = body.size <= SMALL_BYTES and found.signature is not Signature.ANYWHERE
        if not body.verified and (is_small or registry.is_immediate(found, body.size)):
            check_any(found, request, secrets)
            self._admission.mark_verified(body)

        def check() -> _Checked:
            if not body.verified:
                check_any(found, request, secrets)
            return _Checked(registry.read_events(found, request), claimed(found, request))

        checking = self._checker.run(body.provider, body.size, verified=body.verified, job=check)
        try:
            checked = await self._admission.wait(body, admission.TURN_SECONDS, checking)
        except TimeoutError:
            raise BusyError from None
        if not body.verified:
            self._admission.mark_verified(body)
        return checked

    async def _tenant_and_secrets(self, provider: str, path: str) -> tuple[str | None, Sequence[str]]:
        """Return a provider's secrets, and the tenant if they are its own: only then it is needed before the signature.

        The functions of an application may wait for its database, so they get threads that record nothing.
        """
        if not self._secrets.of_tenants:
            return None, self._secrets.of(provider, "")
        if self._asked >= MAX_ASKED:
            raise BusyError
        self._asked += 1
        try:
            return await _in_thread(self._askers, self._ask, provider, path)
        finally:
            self._asked -= 1

    def _ask(self, provider: str, path: str) -> tuple[str, Sequence[str]]:
        tenant = self._tenant_of(path)
        secrets = self._secrets.of(provider, tenant)
        if not secrets:
            raise _NotServedError("its tenant has no secret for this provider")
        return tenant, secrets

    def _record(self, provider: str, path: str, tenant: str | None, checked: _Checked) -> tuple[Recorded, ...]:
        """Record the events of a webhook that was verified."""
        tenant = tenant or self._tenant_of(path)
        with (
            failures.counted(_webhook_of(provider)),
            checked.claim,
            connect(self._engine) as connection,
            database_errors(),
            connection.begin(),
        ):
            return tuple(record_webhook(connection, tenant_id=tenant, provider=provider, events=checked.events))

    def _tenant_of(self, path: str) -> str:
        tenant = self._tenant(path) if callable(self._tenant) else self._tenant
        if tenant is None and callable(self._tenant):
            raise _NotServedError("there is no such tenant")
        try:
            return validation.name("tenant_id", runtime.get_settings().tenant if tenant is None else tenant)
        except InvalidEventError as error:  # the application's fault: the provider sends the webhook again
            raise ConfigurationError(str(error)) from None

    def _refusal(self, found: Provider, provider: str, error: Exception) -> Answer:
        """Return the answer to a webhook that was not recorded; the log has a line for each cause and minute.

        What a stranger can cause without a secret is a warning.
        """
        again = found.retry_status
        match error:
            case SignatureError():
                self._log(logging.WARNING, provider, str(error))
                asking = ((b"www-authenticate", b'Basic realm="webhooks"'),)
                return Answer(found.rejection_status, _INVALID, asking if found.rejection_status == 401 else _AGAIN)
            case InvalidWebhookError() | InvalidEventError():
                self._log(logging.ERROR, provider, str(error))
                return Answer(400, "the body cannot be read")
            case TooLargeError():
                self._log(logging.WARNING, provider, "its body is too large")
                return Answer(413, "the body is too large")
            case GoneError():
                return Answer(400, "the client has left")
            case TooSlowError():
                self._log(logging.WARNING, provider, "its body did not arrive in time")
                return Answer(408 if again == 503 else again, "the body did not arrive in time")
            case certificates.UnavailableError():
                self._log(logging.WARNING, provider, str(error))
            case BusyError():
                self._log(logging.WARNING, provider, "too many webhooks are in flight")
            case _:  # also of a function of an application's, or a fault of ours
                failures.log(_webhook_of(provider), error)
        return Answer(again, "try again later", _AGAIN)

    def _log(self, level: int, provider: str, cause: str) -> None:
        if self._throttle.allow((provider, cause)):
            logger.log(level, "a webhook of %s was refused: %s", provider, cause)

    def _note_unknown(self, provider: str) -> None:
        """Log that nothing is received for a name, once a minute: strangers may ask for any."""
        name = providers.canonical(provider) if registry.is_known(provider) else None
        if not self._throttle.allow(name):
            return
        if name is not None:
            logger.warning("a webhook of %s was answered with 404: it has no secret", name)
        else:
            given = "a name that looks like an address" if holds_address(provider) else f"'{sanitize(provider, 50)}'"
            logger.warning("a webhook was answered with 404: its address ends with no provider's name, but %s", given)


class _Checked(NamedTuple):
    """A webhook that was verified and read: its events, and what holds its signature while they are recorded."""

    events: Sequence[WebhookEvent]
    claim: AbstractContextManager[None]


class _NotServedError(Exception):
    """There is no such tenant, or no secret of its own."""


def _webhook_of(provider: str) -> str:
    return f"a webhook of {providers.canonical(provider)}"


def _in_words(recorded: Sequence[Recorded]) -> str:
    """Return how many of a webhook's events are attached to a delivery, wait for one, or were repeated."""
    attached = sum(one.delivery_id is not None for one in recorded)
    repeated = sum(one.event_id is None for one in recorded)
    waiting = len(recorded) - attached - repeated
    named = {"attached": attached, "waiting": waiting, "repeated": repeated}
    return ", ".join(
        [pluralize(len(recorded), "event"), *(f"{number:,} {word}" for word, number in named.items() if number)]
    )


def _result(answer: Answer) -> str:
    if answer.text == _INVALID:
        return "refused"
    return "received" if answer.status == 200 else "failed" if answer.status in (408, 429, 503) else "refused"


async def _in_time(fetched: asyncio.Future[None]) -> None:
    try:
        await asyncio.wait_for(fetched, certificates.WAIT_SECONDS)
    except TimeoutError:
        raise certificates.timeout_error() from None


async def _in_thread(
    threads: ThreadPoolExecutor, function: Callable[[*Arguments], Result], *arguments: *Arguments
) -> Result:
    return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)


def _request(scope: Scope, body: bytes, base: str | None) -> WebhookRequest:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    query = f"?{scope['query_string'].decode('latin-1')}" if scope.get("query_string") else ""
    if base:
        path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
        return registry.make_request(body, headers, url=public_url(base, quote(path)) + query)
    host = headers.get("host", "localhost")
    return registry.make_request(
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
    headers = [(b"content-type", answer.content_type), (b"content-length", str(len(text)).encode())]
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
