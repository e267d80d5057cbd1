"""The receiver: an ASGI application without a framework."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar, TypeVarTuple
from urllib.parse import quote

import sqlalchemy as sa

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import UnknownProviderError, database_errors
from mailglass_reconcile.providers import registry
from mailglass_reconcile.providers.signatures import Signature, has_bearer
from mailglass_reconcile.receiver import secret_store
from mailglass_reconcile.receiver.admission import (
    AdmissionControl,
    IncomingBody,
    OverloadedError,
    Receive,
)
from mailglass_reconcile.receiver.log import log_recorded
from mailglass_reconcile.receiver.opening import IncomingWebhook, OpenedWebhook, public_url, require_method
from mailglass_reconcile.receiver.refusals import refuse
from mailglass_reconcile.receiver.results import RequestResult
from mailglass_reconcile.receiver.secret_store import SecretsArgument, SecretStore
from mailglass_reconcile.receiver.verifier import VerificationThread
from mailglass_reconcile.record import failures, validation
from mailglass_reconcile.record.after_commit import Recorded, broadcast
from mailglass_reconcile.record.webhooks import record_webhook
from mailglass_reconcile.store.engines import connect

THREADS = 8
"""Threads that record webhooks, each on its own connection."""
MAX_TENANT_LOOKUPS = 128
"""Webhooks whose tenant and secrets are looked up, in separate threads; beyond that, the status is 503."""
SMALL_BYTES = 16 * 1024
"""A signature inside a body of at most this size is verified on the event loop: parsing takes a few milliseconds."""

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
    headers: Mapping[str, str] = MappingProxyType({})
    recorded: tuple[Recorded, ...] = ()
    content_type: str = "text/plain; charset=utf-8"


_OK = Response(200, "ok")


def webhook_app(
    *,
    engine: sa.Engine | None = None,
    secrets: SecretsArgument | None = None,
    tenant: Tenant = None,
    url: str | None = None,
) -> Receiver:
    """Return an ASGI application that receives `POST /…/{provider}`: verify, parse, record, commit, and then 200.

    `docs/record-and-receive.md` lists its status codes and lines of the log.

    Args:
        engine: A SQLAlchemy engine on psycopg, best with a pool of eight connections; None is the one of `configure`,
            or a pool on `MAILGLASS_DATABASE_URL`.
        secrets: A mapping of each provider to its secret or a list of secrets; a mapping of tenants to such mappings;
            or a function `secrets(provider, tenant)`, called in a thread, that returns a secret, a list, or None (404).
            None is `MAILGLASS_WEBHOOK_SECRETS`.
        tenant: The tenant, or a function of the request's path, called in a thread, that returns it, or None (404).
            None is `MAILGLASS_TENANT`.
        url: The public URL of this application, which Mandrill's signature needs behind a proxy; None is
            `MAILGLASS_WEBHOOK_URL`, or the request's own URL.

    Raises:
        ConfigurationError: There is no secret, or one, or the database's URL, cannot be used.
    """
    settings = runtime.get_settings()
    store = secret_store.from_argument(secrets, settings)
    return Receiver(engine or runtime.pooled_engine(THREADS), store, tenant, url)


class Receiver:
    """The application: it reads requests on the event loop, and verifies and records them in a few threads."""

    def __init__(self, engine: sa.Engine, secrets: SecretStore, tenant: Tenant, base: str | None) -> None:
        """Receive the webhooks of the providers that have *secrets*; nothing connects yet."""
        self._engine, self._secrets, self._tenant, self._base = engine, secrets, tenant, base
        self.admission, self._verifier = AdmissionControl(), VerificationThread()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="mailglass-webhooks")
        # One webhook waits, and the others are refused at once.
        self._waiting_threads = ThreadPoolExecutor(2, thread_name_prefix="mailglass-certificate-waits")
        self._tenant_threads = ThreadPoolExecutor(THREADS, thread_name_prefix="mailglass-tenants")
        self._tenant_lookups = 0
        self.metrics_token: str | None = None
        """The token for `/metrics`; without one, there are no metrics."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, or the lifespan of the server."""
        if scope["type"] == "lifespan":
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
        result = RequestResult(provider, self._engine, is_webhook=scope["method"] == "POST")
        try:
            if scope["method"] in ("GET", "HEAD"):  # Mandrill and Unisender Go send one before they accept an address
                if provider == "metrics":
                    return self._metrics(scope, self.metrics_token)
                if provider != "healthz":
                    registry.get_provider(provider)
                return _OK
            require_method(scope["method"], provider)
            if scope["method"] == "OPTIONS":
                webhook, _ = await self._accept_head(result, scope)
                return Response(200, "ok", webhook.allowed_origin())
            response = await self._receive(result, scope, body)
        except Exception as error:
            return Response(*refuse(result, error))
        log_recorded(provider, response.recorded)
        result.count("received")
        return response

    def _metrics(self, scope: Scope, token: str | None) -> Response:
        if token is None:
            return Response(
                404, "no metrics here: `mailglass-reconcile receive` has them if MAILGLASS_WEB_TOKEN is set"
            )
        if not has_bearer(dict(scope["headers"]).get(b"authorization", b""), token):
            return Response(401, "the token is missing or wrong", {"www-authenticate": 'Bearer realm="metrics"'})
        from mailglass_reconcile.receiver import metrics  # noqa: PLC0415 - its library is an extra

        return Response(200, metrics.scrape().decode().rstrip(), content_type=metrics.CONTENT_TYPE)

    async def _receive(self, result: RequestResult, scope: Scope, incoming: _RequestBody) -> Response:
        """Verify a webhook, cheapest checks first, and record its events."""
        webhook, tenant = await self._accept_head(result, scope)
        webhook.require_size(incoming.content_length)
        with self.admission.admit(webhook.provider, verified=webhook.is_verified) as body:
            webhook.add_body(await self.admission.read(body, incoming, webhook.definition.max_bytes))
            if webhook.missing_certificate():
                await self.admission.wait_turn(body, _run_in_thread(self._waiting_threads, webhook.await_certificate))
            opened = await self._verify_and_read(body, webhook)
            if opened.answer is not None:
                return Response(200, opened.answer, content_type="application/json")
            if not opened.events:
                await _run_in_thread(self._threads, opened.confirm)
                return _OK
            recorded = await _run_in_thread(
                self._threads, self._record, webhook.provider, scope["path"], tenant, opened
            )
        return Response(200, "ok", recorded=recorded)

    async def _accept_head(self, result: RequestResult, scope: Scope) -> tuple[IncomingWebhook, str | None]:
        """Return a webhook without its body, and its tenant if its secrets depend on it."""
        provider = result.provider
        registry.get_provider(provider)  # an application's functions are called for known providers only
        tenant, secrets = await self._tenant_and_secrets(provider, scope["path"])
        result.tenant_id = tenant or ""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        return IncomingWebhook(provider, headers, secrets=secrets, url=_address(scope, headers, self._base)), tenant

    async def _verify_and_read(self, body: IncomingBody, webhook: IncomingWebhook) -> OpenedWebhook:
        """Verify a webhook, unless its password was verified, and read its events.

        Signatures that take milliseconds are verified on the event loop, so that no queued body delays them; all
        others, and the reading, run in the verification thread.
        """
        definition = webhook.definition
        is_small = body.size <= SMALL_BYTES and definition.signature is not Signature.ANYWHERE
        if not webhook.is_verified and (is_small or registry.is_immediate(definition, body.size)):
            webhook.verify()
            self.admission.mark_verified(body)
        result = self._verifier.run(body.provider, body.size, verified=body.verified, job=webhook.open)
        opened = await self.admission.wait_turn(body, result)
        if not body.verified:
            self.admission.mark_verified(body)
        return opened

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
        return tenant, self._secrets.get(provider, tenant)

    def _record(self, provider: str, path: str, tenant: str | None, webhook: OpenedWebhook) -> tuple[Recorded, ...]:
        """Record the events of a verified webhook in one transaction."""
        tenant = tenant or self._tenant_of(path)
        with (
            failures.count_failure(f"a webhook of {provider}"),
            connect(self._engine) as connection,
            database_errors(),
            connection.begin(),
        ):
            return tuple(record_webhook(connection, tenant_id=tenant, provider=provider, events=webhook.events))

    def _tenant_of(self, path: str) -> str:
        tenant = self._tenant(path) if callable(self._tenant) else self._tenant
        if tenant is None and callable(self._tenant):
            raise UnknownProviderError("there is no such tenant")
        return validation.configured_tenant("tenant_id", runtime.get_settings().tenant if tenant is None else tenant)


async def _run_in_thread(
    threads: ThreadPoolExecutor, function: Callable[[*Arguments], Result], *arguments: *Arguments
) -> Result:
    return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)


def _address(scope: Scope, headers: Mapping[str, str], base: str | None) -> str:
    """Return the public URL of a webhook: below *base*, below that of the setting, or the request's own."""
    path, query = scope["path"], scope.get("query_string", b"").decode("latin-1")
    address = public_url(quote(path.removeprefix(scope.get("root_path", "").rstrip("/"))), base, query=query)
    own = f"{scope.get('scheme', 'http')}://{headers.get('host', 'localhost')}{quote(path)}"
    return address or (f"{own}?{query}" if query else own)


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


async def _send_response(send: Send, response: Response, scope: Scope, incoming: _RequestBody) -> None:
    """Send a response; if the request's body is incomplete, the server closes the connection without reading it."""
    text = f"{response.text}\n".encode()
    headers = {"content-type": response.content_type, "content-length": str(len(text)), **response.headers}
    if not incoming.is_complete:
        headers["connection"] = "close"
    await send(
        {
            "type": "http.response.start",
            "status": response.status,
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else text})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
