"""The receiver: an ASGI application without a framework."""

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
    BodyTooLargeError,
    ConfigurationError,
    InvalidEventError,
    UnknownProviderError,
    database_errors,
)
from mailglass_reconcile.receiver import admission, secret_store
from mailglass_reconcile.receiver.admission import (
    AdmissionControl,
    IncomingBody,
    OverloadedError,
    Receive,
)
from mailglass_reconcile.receiver.known_certificates import KnownCertificates
from mailglass_reconcile.receiver.receiving import (
    answer_handshake,
    claim_token,
    confirm_subscription,
    public_url,
    verify_any,
)
from mailglass_reconcile.receiver.refusals import INVALID_SIGNATURE, UNKNOWN_PROVIDER, refusal
from mailglass_reconcile.receiver.secret_store import NO_SECRET, SecretsArgument, SecretStore
from mailglass_reconcile.receiver.verifier import VerificationThread
from mailglass_reconcile.record import failures, validation
from mailglass_reconcile.record.after_commit import Recorded, broadcast
from mailglass_reconcile.record.webhooks import record_webhook
from mailglass_reconcile.rules import providers
from mailglass_reconcile.rules.events import WebhookEvent
from mailglass_reconcile.rules.humanize import pluralize
from mailglass_reconcile.store.certificates import CertificateAddress
from mailglass_reconcile.store.engines import connect
from mailglass_reconcile.webhooks import certificates, registry, sns
from mailglass_reconcile.webhooks.provider import Provider
from mailglass_reconcile.webhooks.wire import Signature, WebhookRequest, constant_time_equal

logger = logging.getLogger(__name__)

THREADS = 8
"""Threads that record webhooks, each on its own connection."""
MAX_TENANT_LOOKUPS = 128
"""Webhooks whose tenant and secrets are looked up, in separate threads; beyond that, the status is 503."""
SMALL_BYTES = 16 * 1024
"""A signature inside a body of at most this size is verified on the event loop: parsing takes a few milliseconds."""
DISCARDED_BYTES = 20 * 1024 * 1024
DISCARDED_SECONDS = 5.0
"""Limits for reading the rest of a body after an early response: a client reads none while it is still sending."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Tenant = str | Callable[[str], str | None] | None


Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


class Response(NamedTuple):
    """The response to a request, and the recorded events to broadcast after it."""

    status: int
    text: str
    headers: tuple[tuple[bytes, bytes], ...] = ()
    recorded: tuple[Recorded, ...] = ()
    content_type: bytes = b"text/plain; charset=utf-8"


_CLOSE = ((b"connection", b"close"),)
_OK = Response(200, "ok")
_UNKNOWN = Response(UNKNOWN_PROVIDER.status, UNKNOWN_PROVIDER.text)


def webhook_app(
    *,
    engine: sa.Engine | None = None,
    secrets: SecretsArgument | None = None,
    tenant: Tenant = None,
    url: str | None = None,
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
    store = secret_store.from_argument(secrets, settings)
    base = url or (settings.webhook_url.get_secret_value() if settings.webhook_url else None)
    return Receiver(engine or runtime.pooled_engine(THREADS), store, tenant, base)


class Receiver:
    """The application: it reads requests on the event loop, and verifies and records them in a few threads."""

    def __init__(self, engine: sa.Engine, secrets: SecretStore, tenant: Tenant, base: str | None) -> None:
        """Receive the webhooks of the providers that have *secrets*; nothing connects yet."""
        self._engine, self._secrets, self._tenant, self._base = engine, secrets, tenant, base
        self._admission, self._verifier = AdmissionControl(), VerificationThread()
        self._certificates = KnownCertificates(engine, secrets)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="mailglass-webhooks")
        self._tenant_threads = ThreadPoolExecutor(THREADS, thread_name_prefix="mailglass-tenants")
        self._tenant_lookups = 0
        self.results: Counter[tuple[str, str]] = Counter()
        """Webhooks by provider (`unknown` for any other name) and result: received, refused or failed."""
        self.metrics_token: str | None = None
        """The token for `/metrics`; without one, there are no metrics."""

    def start(self) -> Future[None]:
        """Load the stored certificates in the background; the first webhook that needs one calls this too."""
        return self._certificates.start()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, or the lifespan of the server."""
        if scope["type"] == "lifespan":
            self.start()
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            body = _RequestBody(scope, receive)
            response = await self._respond(scope, body)
            if not body.is_disconnected:
                await _send_response(send, response, scope, body)
            if response.recorded:
                broadcast(response.recorded)

    async def _respond(self, scope: Scope, body: _RequestBody) -> Response:
        provider = scope["path"].rstrip("/").rpartition("/")[2]
        if scope["method"] in ("GET", "HEAD"):  # Mandrill and Unisender Go send one before they accept an address
            if provider == "metrics":
                return self._metrics(scope, self.metrics_token)
            return _OK if provider == "healthz" or registry.is_known(provider) else _UNKNOWN
        if scope["method"] == "OPTIONS" and registry.is_known(provider) and self._secrets.may_have(provider):
            record = registry.get_provider(provider)
            if record.handshake:
                return await self._allow_origin(record, provider, scope)
        if scope["method"] != "POST":
            return Response(405, "only POST is answered here", ((b"allow", b"GET, HEAD, POST"),))
        try:
            response = await self._receive(provider, scope, body)
        except Exception as error:
            response = _refuse(provider, error)
        else:
            logger.info("%s: %s", providers.canonical(provider), _format_counts(response.recorded))
        name = providers.canonical(provider) if registry.is_known(provider) else "unknown"
        self.results[name, _result(response)] += 1
        return response

    def _metrics(self, scope: Scope, token: str | None) -> Response:
        if token is None:
            return Response(
                404, "no metrics here: `mailglass-reconcile receive` has them if MAILGLASS_WEB_TOKEN is set"
            )
        scheme, _, credentials = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not constant_time_equal(credentials.strip(), token):
            return Response(401, "the token is missing or wrong", ((b"www-authenticate", b'Bearer realm="metrics"'),))
        from mailglass_reconcile.receiver import metrics  # noqa: PLC0415 - its library is an extra

        return Response(200, metrics.scrape(self.results).decode().rstrip(), content_type=metrics.CONTENT_TYPE.encode())

    async def _receive(self, provider: str, scope: Scope, incoming: _RequestBody) -> Response:
        """Verify a webhook, cheapest checks first, and record its events."""
        record = registry.get_provider(provider)
        if not self._secrets.may_have(provider):
            raise UnknownProviderError(NO_SECRET)
        tenant, secrets = await self._tenant_and_secrets(provider, scope["path"])
        head = _make_request(scope, b"", self._base)
        has_password = record.signature is Signature.IN_HEADERS
        if has_password:
            verify_any(record, head, secrets)
        if incoming.content_length > record.max_bytes:
            raise BodyTooLargeError("the body is too large")
        with self._admission.admit(providers.canonical(provider), verified=has_password) as body:
            content = await self._admission.read(body, incoming, record.max_bytes)
            request = dataclasses.replace(head, body=content)
            source = await self._await_certificate(body, record, request, secrets)
            webhook = await self._verify_and_read(body, record, request, secrets)
            if not webhook.events:
                if (text := answer_handshake(record, request)) is not None:
                    return Response(200, text, content_type=b"application/json")
                await _run_in_thread(self._threads, confirm_subscription, record, request)
                return _OK
            del content, request  # the parsed body may take twenty times its size
            recorded = await _run_in_thread(self._threads, self._record, provider, scope["path"], tenant, webhook)
        if source is not None:
            await _run_in_thread(self._threads, self._certificates.store, CertificateAddress(body.provider, source.url))
        return Response(200, "ok", recorded=recorded)

    async def _allow_origin(self, record: Provider, provider: str, scope: Scope) -> Response:
        """Answer the validation request of CloudEvents, which comes before the first event."""
        origin = dict(scope["headers"]).get(b"webhook-request-origin", b"")
        try:
            _, secrets = await self._tenant_and_secrets(provider, scope["path"])
            verify_any(record, _make_request(scope, b"", self._base), secrets)
        except Exception as error:
            return _refuse(provider, error)
        return Response(200, "ok", ((b"webhook-allowed-origin", origin), (b"webhook-allowed-rate", b"*")))

    async def _await_certificate(
        self, body: IncomingBody, record: Provider, request: WebhookRequest, secrets: Sequence[str]
    ) -> certificates.CertificateSource | None:
        """Wait until the certificate that a webhook names has been fetched; return its source, or None."""
        source = registry.find_certificate_source(record, request, secrets)
        if source is not None and source.url not in sns.certificates:
            await self._admission.wait_for_certificate(body, self._fetch_certificate(source))
        return source

    async def _fetch_certificate(self, source: certificates.CertificateSource) -> None:
        await _wait_for_certificate(asyncio.shield(asyncio.wrap_future(self.start())))
        if source.url not in sns.certificates:
            await _wait_for_certificate(asyncio.wrap_future(sns.certificates.schedule_fetch(source)))

    async def _verify_and_read(
        self, body: IncomingBody, record: Provider, request: WebhookRequest, secrets: Sequence[str]
    ) -> _VerifiedWebhook:
        """Verify a webhook, unless its password was verified, and read its events.

        Signatures that take milliseconds are verified on the event loop, so that no queued body delays them; all
        others, and the reading, run in the verification thread.
        """
        is_small = body.size <= SMALL_BYTES and record.signature is not Signature.ANYWHERE
        if not body.verified and (is_small or registry.is_immediate(record, body.size)):
            verify_any(record, request, secrets)
            self._admission.mark_verified(body)

        def verify_and_read() -> _VerifiedWebhook:
            if not body.verified:
                verify_any(record, request, secrets)
            return _VerifiedWebhook(registry.read_events(record, request), claim_token(record, request))

        result = self._verifier.run(body.provider, body.size, verified=body.verified, job=verify_and_read)
        try:
            webhook = await self._admission.wait(body, admission.TURN_SECONDS, result)
        except TimeoutError:
            raise OverloadedError from None
        if not body.verified:
            self._admission.mark_verified(body)
        return webhook

    async def _tenant_and_secrets(self, provider: str, path: str) -> tuple[str | None, Sequence[str]]:
        """Return a provider's secrets, with the tenant if they depend on it.

        An application's functions may wait for its database, so they run in threads that record nothing.
        """
        if not self._secrets.depends_on_tenant:
            return None, self._secrets.get(provider, "")
        if self._tenant_lookups >= MAX_TENANT_LOOKUPS:
            raise OverloadedError
        self._tenant_lookups += 1
        try:
            return await _run_in_thread(self._tenant_threads, self._look_up_tenant, provider, path)
        finally:
            self._tenant_lookups -= 1

    def _look_up_tenant(self, provider: str, path: str) -> tuple[str, Sequence[str]]:
        tenant = self._tenant_of(path)
        secrets = self._secrets.get(provider, tenant)
        if not secrets:
            raise UnknownProviderError("its tenant has no secret for this provider")
        return tenant, secrets

    def _record(self, provider: str, path: str, tenant: str | None, webhook: _VerifiedWebhook) -> tuple[Recorded, ...]:
        """Record the events of a verified webhook in one transaction."""
        tenant = tenant or self._tenant_of(path)
        with (
            failures.count_failure(f"a webhook of {providers.canonical(provider)}"),
            webhook.claim,
            connect(self._engine) as connection,
            database_errors(),
            connection.begin(),
        ):
            return tuple(record_webhook(connection, tenant_id=tenant, provider=provider, events=webhook.events))

    def _tenant_of(self, path: str) -> str:
        tenant = self._tenant(path) if callable(self._tenant) else self._tenant
        if tenant is None and callable(self._tenant):
            raise UnknownProviderError("there is no such tenant")
        try:
            return validation.name("tenant_id", runtime.get_settings().tenant if tenant is None else tenant)
        except InvalidEventError as error:  # the application's fault: the provider sends the webhook again
            raise ConfigurationError(str(error)) from None


class _VerifiedWebhook(NamedTuple):
    """The events of a verified webhook, and the claim on its token, which is held while they are recorded."""

    events: Sequence[WebhookEvent]
    claim: AbstractContextManager[None]


def _refuse(provider: str, error: Exception) -> Response:
    status, text, headers = refusal(provider, error)
    return Response(status, text, tuple((name.encode(), value.encode()) for name, value in headers.items()))


def _format_counts(recorded: Sequence[Recorded]) -> str:
    """Return the number of a webhook's events: attached to a delivery, waiting for one, and repeated."""
    attached = sum(event.delivery_id is not None for event in recorded)
    repeated = sum(event.event_id is None for event in recorded)
    waiting = len(recorded) - attached - repeated
    counts = {"attached": attached, "waiting": waiting, "repeated": repeated}
    return ", ".join(
        [pluralize(len(recorded), "event"), *(f"{number:,} {word}" for word, number in counts.items() if number)]
    )


def _result(response: Response) -> str:
    if response.text == INVALID_SIGNATURE:
        return "refused"
    return "received" if response.status == 200 else "failed" if response.status in (408, 429, 503) else "refused"


async def _wait_for_certificate(fetched: asyncio.Future[None]) -> None:
    try:
        await asyncio.wait_for(fetched, certificates.WAIT_SECONDS)
    except TimeoutError:
        raise certificates.timeout_error() from None


async def _run_in_thread(
    threads: ThreadPoolExecutor, function: Callable[[*Arguments], Result], *arguments: *Arguments
) -> Result:
    return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)


def _make_request(scope: Scope, body: bytes, base: str | None) -> WebhookRequest:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    query = f"?{scope['query_string'].decode('latin-1')}" if scope.get("query_string") else ""
    if base:
        path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
        return registry.make_request(body, headers, url=public_url(base, quote(path)) + query)
    host = headers.get("host", "localhost")
    return registry.make_request(
        body, headers, url=f"{scope.get('scheme', 'http')}://{host}{quote(scope['path'])}{query}"
    )


class _RequestBody:
    """The body of a request: it calls the server's `receive`, and tracks its end and the client's disconnect."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        self.content_length = int(length[:20]) if length.isdigit() else 0  # int() refuses thousands of digits
        self.is_complete = not (self.content_length or b"transfer-encoding" in headers)
        self.is_disconnected = False
        self._receive = receive

    async def __call__(self) -> Message:
        message = await self._receive()
        self.is_disconnected = message["type"] != "http.request"
        self.is_complete = self.is_disconnected or not message.get("more_body", False)
        return message

    async def discard(self) -> None:
        """Read the rest within `DISCARDED_BYTES` and `DISCARDED_SECONDS`."""
        size = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(DISCARDED_SECONDS):
                while not self.is_complete and size < DISCARDED_BYTES:
                    size += len((await self()).get("body", b""))


async def _send_response(send: Send, response: Response, scope: Scope, incoming: _RequestBody) -> None:
    """Send a response. If the request's body is incomplete, discard the rest before the connection is closed."""
    text = f"{response.text}\n".encode()
    headers = [(b"content-type", response.content_type), (b"content-length", str(len(text)).encode())]
    is_early = not incoming.is_complete
    await send(
        {
            "type": "http.response.start",
            "status": response.status,
            "headers": [*headers, *response.headers, *(_CLOSE if is_early else ())],
        }
    )
    body = b"" if scope["method"] == "HEAD" else text
    if is_early:
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await incoming.discard()
        body = b""
    await send({"type": "http.response.body", "body": body})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
