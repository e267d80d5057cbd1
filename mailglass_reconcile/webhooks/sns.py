"""Notifications of Amazon SNS, and of Scaleway's Topics and Events, which speaks the same: what signs them.

Followed: https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message.html and
https://docs.aws.amazon.com/sns/latest/dg/sns-message-and-json-formats.html. A repeated notification keeps its time and
signature, so it may be of any age.
"""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Mapping
from functools import partial
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, NamedTuple

from mailglass_reconcile.errors import InvalidWebhookError, SignatureError
from mailglass_reconcile.webhooks import wire
from mailglass_reconcile.webhooks.certificates import Certificates, Source, UnavailableError
from mailglass_reconcile.webhooks.wire import Authentication, Request, Signature

if TYPE_CHECKING:
    from cryptography import x509

TIMEOUT_SECONDS = 5
MAX_NOTIFICATION_BYTES = 256 * 1024
"""How long a notification may be, which is parsed before its signature is checked."""
MAX_BYTES = 100_000

_OF_A_NOTIFICATION = ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type")
_OF_A_SUBSCRIPTION = ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type")
_SIGNED = {
    "Notification": _OF_A_NOTIFICATION,
    "SubscriptionConfirmation": _OF_A_SUBSCRIPTION,
    "UnsubscribeConfirmation": _OF_A_SUBSCRIPTION,
}


class Service(NamedTuple):
    """Who sends the notifications: where its certificates are, what issued them, and where it confirms."""

    name: str
    certificates: re.Pattern[str]
    """Addresses of its certificates, with a group `region`."""
    confirmations: re.Pattern[str]
    authority: str = ""
    """Where the certificates of a region are that must have issued the signing one; empty if its address is enough."""


def fetch(url: str) -> bytes:
    """Return what is at an https address of the provider's: a certificate, or the answer to a confirmation.

    Set `mailglass_reconcile.webhooks.sns.fetch` to a function of your own if your servers reach others only by a proxy.

    Args:
        url: Its address; the host has been checked.

    Raises:
        OSError: It cannot be reached within 5 seconds, or answers with another status than 200.
    """
    with _opener.open(url, timeout=TIMEOUT_SECONDS) as answer:
        content: bytes = answer.read(MAX_BYTES)
        return content


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect could lead to any host."""

    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirects)


def is_message(body: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a notification."""
    return str(body.get("Type")) in _SIGNED


def message(request: Request) -> dict[str, Any]:
    """Return a request's notification."""
    body = request.object()
    if not is_message(body):
        raise InvalidWebhookError("the body is no notification of SNS; turn off raw message delivery")
    return body


def verify(request: Request, secret: str, service: Service, now: float) -> None:
    """Check that a notification is of the topic whose ARN is *secret*, and that *service* has signed it.

    The address of Amazon's certificate is enough. One that an authority has issued must not have expired by *now*.
    """
    try:
        body = message(request)
    except InvalidWebhookError as error:
        raise SignatureError(str(error)) from None
    if not wire.equal(str(body.get("TopicArn")), secret.strip()):
        raise SignatureError("the notification is of another topic")
    url, signature = body.get("SigningCertURL"), body.get("Signature")
    if not isinstance(url, str) or not url or _region_of(url, service) != _region(secret):
        raise SignatureError(f"the certificate is not one of {service.name}'s in the topic's region")
    if not isinstance(signature, str) or body.get("SignatureVersion") not in ("1", "2"):
        raise SignatureError("the notification has no signature")
    given = wire.decoded(signature)
    certificate = certificates.get(url)
    if service.authority and certificate.not_valid_after_utc.timestamp() < now:
        raise SignatureError(f"the certificate of {service.name} has expired")
    wire.rsa(certificate.public_key(), given, _signed(body), sha1=body["SignatureVersion"] == "1")


def source_in(request: Request, secret: str, service: Service) -> Source | None:
    """Return where the certificate is that a notification of the topic *secret* names, without parsing its body.

    None if it names none of the service's in the topic's region: then the notification is refused later.
    """
    if json.dumps(secret.strip()).encode() not in request.body:
        return None
    named = _NAMED.findall(request.body)
    try:
        source = source_at(json.loads(named[-1]), service) if named else None  # of two, JSON has the last
    except ValueError:
        return None
    return source if source and _region_of(source.url, service) == _region(secret) else None


def source_at(url: str, service: Service) -> Source | None:
    """Return the certificate at an address, if that is one of the service's."""
    region = _region_of(url, service)
    return Source(url, partial(_load, url, region, service)) if region else None


def _region_of(url: str, service: Service) -> str | None:
    named = service.certificates.fullmatch(url)
    return named["region"] if named else None


_NAMED = re.compile(rb'"SigningCertURL"\s{0,9}:\s{0,9}("(?:[^"\\]|\\.){1,500}")')


def authentication(service: Service) -> Authentication:
    """Return the authentication by a service's signature; the secret is the topic's ARN."""
    return Authentication(
        Signature.IN_BODY,
        f"{service.name} (RSA)",
        lambda request, secret, now: verify(request, secret, service, now),
    )


def _region(arn: str) -> str:
    return arn.split(":", 4)[3] if arn.count(":") >= 4 else ""


def _signed(body: Mapping[str, Any]) -> bytes:
    names = [name for name in _SIGNED[body["Type"]] if body.get(name) is not None]
    return "".join(f"{name}\n{body[name]}\n" for name in names).encode("utf-8", "replace")


def confirm(request: Request, service: Service) -> None:
    """Confirm the subscription that a verified request asks for, by one GET; do nothing for other requests."""
    body = message(request)
    if body["Type"] != "SubscriptionConfirmation":
        return
    url = body.get("SubscribeURL")
    if not isinstance(url, str) or not service.confirmations.fullmatch(url):
        raise SignatureError(f"the subscription is not confirmed at {service.name}")
    get(url, service.name)


def get(url: str, name: str) -> bytes:
    """Return what is at an address of a provider's, whose name an error has.

    Raises:
        UnavailableError: It cannot be reached.
    """
    try:
        return fetch(url)
    except (OSError, HTTPException) as error:
        raise UnavailableError(f"cannot reach {name} ({type(error).__name__}): try again") from None


certificates = Certificates()


def _load(url: str, region: str, service: Service) -> x509.Certificate:
    """Fetch a certificate, and check what issued it."""
    try:
        from cryptography import x509  # noqa: PLC0415 - an extra
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415
    except ImportError:
        raise wire.missing() from None
    try:
        found = x509.load_pem_x509_certificate(get(url, service.name))
        authority = service.authority and service.authority.format(region=region)
        issuers = _chain(x509, get(authority, service.name)) if authority else []
    except ValueError:
        raise UnavailableError(f"{service.name} gave no certificate: try again") from None
    if authority and not any(_has_issued(one, found, InvalidSignature) for one in issuers):
        raise SignatureError(f"the certificate was not issued by {service.name}")
    return found


def _chain(x509: Any, pem: bytes) -> list[x509.Certificate]:
    found: list[x509.Certificate] = x509.load_pem_x509_certificates(pem)
    return found


def _has_issued(issuer: x509.Certificate, found: x509.Certificate, invalid: type[Exception]) -> bool:
    try:
        found.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, invalid):
        return False
    return True
