"""A webhook that comes in, opened in two steps: its head, then its body.

The application, Django's view and `receive` do the same with a webhook until it is recorded; each of them keeps only
how it reads a body, which connection it records on, and how it responds.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import BodyTooLargeError, SignatureError, UnknownProviderError
from mailglass_reconcile.providers import registry, sns
from mailglass_reconcile.providers.certificates import CertificateSource
from mailglass_reconcile.providers.signatures import ClockError, Signature
from mailglass_reconcile.providers.wire import WebhookRequest
from mailglass_reconcile.receiver.admission import MethodNotAllowedError
from mailglass_reconcile.receiver.secret_store import NO_SECRET
from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.rules.events import WebhookEvent


class OpenedWebhook(NamedTuple):
    """The content of a verified webhook.

    Attributes:
        events: The events to record.
        answer: The JSON that the response to a webhook without events has to contain; None if any 200 will do.
        confirm: Confirms the subscription that a webhook without events asks for, if no response contains `answer`.
    """

    events: Sequence[WebhookEvent]
    answer: str | None
    confirm: Callable[[], None]


class IncomingWebhook:
    """A webhook whose head was accepted.

    Attributes:
        provider: The canonical name of its provider.
        definition: The provider's definition.
        is_verified: True as soon as its sender has proved a secret.
    """

    def __init__(self, provider: str, headers: Mapping[str, str], *, secrets: Sequence[str], url: str | None) -> None:
        """Accept the head of a webhook; a password or a token in it is verified now, before there is a body.

        Args:
            provider: The provider's name in any known spelling.
            headers: The request's headers, in any case.
            secrets: The secrets with one of which it must be signed.
            url: Its public URL, or None if that is not known.

        Raises:
            UnknownProviderError: The provider is not known, or there is no secret for it.
            SignatureError: The password or the token is wrong.
        """
        self.definition = registry.get_provider(provider)
        self.provider = provider_rules.canonical(provider)
        if not secrets:
            raise UnknownProviderError(NO_SECRET)
        self.is_verified = False
        self._secrets = secrets
        self._request = registry.make_request(b"", headers, url=url)
        if self.definition.signature is Signature.IN_HEADERS:
            self.verify()

    def require_size(self, size: int) -> None:
        """Raise `BodyTooLargeError` if the provider sends no body of so many bytes."""
        if size > self.definition.max_bytes:
            raise BodyTooLargeError("the body is too large")

    def add_body(self, body: bytes) -> None:
        """Add the complete body; raise `BodyTooLargeError` if it is too large."""
        self.require_size(len(body))
        self._request = dataclasses.replace(self._request, body=bytes(body))

    def missing_certificate(self) -> CertificateSource | None:
        """Return the source of the certificate that the body names; None if there is none, or it is in memory."""
        source = registry.find_certificate_source(self.definition, self._request, self._secrets)
        return None if source is None or source.url in sns.certificates else source

    def await_certificate(self, *, may_wait: bool = True) -> None:
        """Wait for the certificate that the body names, if any, unless the calling thread must not wait.

        Raises:
            UnavailableError: It is not there in time.
        """
        sns.certificates.require(self.missing_certificate(), may_wait=may_wait)

    def verify(self) -> None:
        """Verify that the request, as far as it is there, was signed with one of the secrets.

        Raises:
            SignatureError: It was signed with none of them.
            UnavailableError: Its certificate has not been fetched.
        """
        now = dt.datetime.now(dt.UTC)
        errors: list[SignatureError] = []
        for secret in self._secrets:
            try:
                registry.verify_request(self.definition, self._request, secret, now)
            except SignatureError as error:
                errors.append(error)
            else:
                self.is_verified = True
                return
        raise next((error for error in errors if isinstance(error, ClockError)), errors[0])

    def open(self) -> OpenedWebhook:
        """Verify the body, unless its sender has proved a secret before, and read it; it is forgotten afterwards.

        Raises:
            InvalidWebhookError: The body cannot be read.
        """
        if not self.is_verified:
            self.verify()
        request, definition = self._request, self.definition
        events = registry.read_events(definition, request)
        # The parsed body may take twenty times its size, and recording may have to wait.
        self._request = WebhookRequest(b"", request.headers, request.content_type, request.url)
        if events:
            return OpenedWebhook(events, None, _do_nothing)
        code = definition.handshake(request) if definition.handshake else None
        answer = None if code is None else json.dumps({"validationResponse": code})
        return OpenedWebhook((), answer, partial(definition.confirm, request) if definition.confirm else _do_nothing)

    def allowed_origin(self) -> Mapping[str, str]:
        """Return the headers of the response to CloudEvents' validation request, which has no body."""
        origin = self._request.headers.get("webhook-request-origin", "")
        return {"webhook-allowed-origin": origin, "webhook-allowed-rate": "*"}


def _do_nothing() -> None: ...


def require_method(method: str | None, provider: str) -> None:
    """Raise `MethodNotAllowedError` unless the method is POST, or OPTIONS if the provider validates a URL with it."""
    is_validation = method == "OPTIONS" and registry.is_known(provider)
    if method != "POST" and not (is_validation and registry.get_provider(provider).handshake):
        raise MethodNotAllowedError


def public_url(path: str, base: str | None = None, *, query: str = "") -> str | None:
    """Return a webhook's public URL, or None if no base is set.

    Args:
        path: The webhook's path below *base*, which ends with the provider's name.
        base: The address below which the providers' webhooks are, or the whole address of this webhook; None is
            `MAILGLASS_WEBHOOK_URL`.
        query: The request's query string.
    """
    setting = runtime.get_settings().webhook_url
    base = base or (setting.get_secret_value() if setting else None)
    if base is None:
        return None
    path = path.strip("/")
    name = path.rpartition("/")[2]
    address = base if base.rstrip("/").endswith(f"/{name}") else f"{base.rstrip('/')}/{path}"
    return f"{address}?{query}" if query else address
