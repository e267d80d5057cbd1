"""Notifications of Amazon SNS and of Scaleway's Topics and Events, which uses the same format, and their signatures.

Followed: https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message.html and
https://docs.aws.amazon.com/sns/latest/dg/sns-message-and-json-formats.html. A repeated notification keeps its time and
signature, so it may be of any age.
"""

from __future__ import annotations

import json
import os
import re
import urllib.request
from collections.abc import Mapping
from functools import partial
from http.client import HTTPException
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from mailglass_reconcile.errors import ConfigurationError, InvalidWebhookError, SignatureError
from mailglass_reconcile.providers import signatures
from mailglass_reconcile.providers.certificates import CertificateSource, CertificateStore, UnavailableError
from mailglass_reconcile.providers.signatures import Authentication, Signature
from mailglass_reconcile.providers.wire import WebhookRequest

if TYPE_CHECKING:
    from cryptography import x509

TIMEOUT_SECONDS = 2
MAX_NOTIFICATION_BYTES = 256 * 1024
"""Greatest size of a notification, which is parsed before its signature is verified."""
MAX_BYTES = 100_000

_NOTIFICATION_FIELDS = ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type")
_SUBSCRIPTION_FIELDS = ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type")
_SIGNED_FIELDS = {
    "Notification": _NOTIFICATION_FIELDS,
    "SubscriptionConfirmation": _SUBSCRIPTION_FIELDS,
    "UnsubscribeConfirmation": _SUBSCRIPTION_FIELDS,
}


class AnotherTopicError(SignatureError):
    """A notification is not of the topic whose ARN is the secret."""

    cause = "topic"


class NotificationService(NamedTuple):
    """A service that sends notifications, with the addresses of its certificates and confirmations."""

    name: str
    certificates: re.Pattern[str]
    """Addresses of its signing certificates, with a group `region`."""
    confirmations: re.Pattern[str]
    authority: str = ""
    """Address of a region's issuing certificates; empty if the signing certificate's address is proof enough."""


def fetch(url: str) -> bytes:
    """Fetch a certificate, or confirm a subscription, at an https address of the provider.

    Behind an outbound proxy, replace `mailglass_reconcile.providers.sns.fetch` with your own function.

    Args:
        url: The address; its host has been validated.

    Returns:
        The body of the response.

    Raises:
        OSError: It cannot be reached within 2 seconds, or the status is not 200.
    """
    with _opener.open(url, timeout=TIMEOUT_SECONDS) as response:
        content: bytes = response.read(MAX_BYTES)
        return content


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, which could lead to any host."""

    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirects)


def is_notification(body: Mapping[str, Any]) -> bool:
    """Return True if a JSON object is a notification."""
    return str(body.get("Type")) in _SIGNED_FIELDS


def parse_notification(request: WebhookRequest) -> dict[str, Any]:
    """Return the notification in a request's body; raise `InvalidWebhookError` if it is none."""
    body = request.object()
    if not is_notification(body):
        raise InvalidWebhookError("the body is no notification of SNS; turn off raw message delivery")
    return body


def verify(request: WebhookRequest, secret: str, service: NotificationService, now: float) -> None:
    """Verify that a notification is of the topic whose ARN is *secret*, and that *service* has signed it.

    The address of Amazon's certificate is proof enough. A certificate of an authority must not have expired by *now*.
    """
    try:
        body = parse_notification(request)
    except InvalidWebhookError as error:
        raise SignatureError(str(error)) from None
    if not signatures.constant_time_equal(str(body.get("TopicArn")), secret.strip()):
        raise AnotherTopicError("the notification is of another topic")
    url, signature = body.get("SigningCertURL"), body.get("Signature")
    if not isinstance(url, str) or not url or _region_of_certificate(url, service) != _region_of_topic(secret):
        raise SignatureError(f"the certificate is not one of {service.name}'s in the topic's region")
    if not isinstance(signature, str) or body.get("SignatureVersion") not in ("1", "2"):
        raise SignatureError("the notification has no signature")
    signature_bytes = signatures.b64decode_or_reject(signature)
    certificate = certificates.get(url)
    if service.authority and certificate.not_valid_after_utc.timestamp() < now:
        raise SignatureError(f"the certificate of {service.name} has expired")
    sha1 = body["SignatureVersion"] == "1"
    signatures.verify_rsa(certificate.public_key(), signature_bytes, _signed_text(body), sha1=sha1)


def find_certificate_source(
    request: WebhookRequest, secret: str, service: NotificationService
) -> CertificateSource | None:
    """Return the source of the certificate that a notification of the topic *secret* names, without parsing its body.

    None if it names no certificate of the service in the topic's region: `verify` rejects such a notification.
    """
    if json.dumps(secret.strip()).encode() not in request.body:
        return None
    urls = _CERTIFICATE_URL.findall(request.body)
    try:
        source = certificate_source_at(json.loads(urls[-1]), service) if urls else None  # JSON keeps the last of two
    except ValueError:
        return None
    return source if source and _region_of_certificate(source.url, service) == _region_of_topic(secret) else None


def certificate_source_at(url: str, service: NotificationService) -> CertificateSource | None:
    """Return the source of a certificate, or None if *url* is no address of the service's certificates."""
    region = _region_of_certificate(url, service)
    return CertificateSource(url, partial(_load_certificate, url, region, service)) if region else None


def _region_of_certificate(url: str, service: NotificationService) -> str | None:
    match = service.certificates.fullmatch(url)
    return match["region"] if match else None


_CERTIFICATE_URL = re.compile(rb'"SigningCertURL"\s{0,9}:\s{0,9}("(?:[^"\\]|\\.){1,500}")')


def make_authentication(service: NotificationService) -> Authentication:
    """Return the authentication by a service's signature; the secret is the topic's ARN."""
    return Authentication(
        Signature.IN_BODY,
        lambda request, secret, now: verify(request, secret, service, now),
        validate_topic,
    )


def validate_topic(arn: str) -> None:
    """Raise `ConfigurationError` unless a secret is the ARN of a topic, and its certificates can be verified."""
    parts = arn.split(":", 5)
    if len(parts) < 6 or not all(parts) or (parts[0], parts[2]) != ("arn", "sns"):
        raise ConfigurationError("the secret must be the topic's ARN, such as arn:aws:sns:eu-west-1:123456789012:mail")
    if find_spec("cryptography") is None:
        raise signatures.extra_missing_error()


def _region_of_topic(arn: str) -> str:
    return arn.split(":", 4)[3] if arn.count(":") >= 4 else ""


def _signed_text(body: Mapping[str, Any]) -> bytes:
    names = [name for name in _SIGNED_FIELDS[body["Type"]] if body.get(name) is not None]
    return "".join(f"{name}\n{body[name]}\n" for name in names).encode("utf-8", "replace")


def confirm(request: WebhookRequest, service: NotificationService) -> None:
    """Confirm the subscription that a verified request asks for, with one GET; do nothing for other requests."""
    body = parse_notification(request)
    if body["Type"] != "SubscriptionConfirmation":
        return
    url = body.get("SubscribeURL")
    if not isinstance(url, str) or not service.confirmations.fullmatch(url):
        raise SignatureError(f"the subscription is not confirmed at {service.name}")
    fetch_or_unavailable(url, service.name)


def fetch_or_unavailable(url: str, name: str) -> bytes:
    """Fetch an address of a provider; *name* is the provider's, for the error.

    Raises:
        UnavailableError: It cannot be reached.
    """
    try:
        return fetch(url)
    except (OSError, HTTPException) as error:
        raise UnavailableError(f"cannot reach {name} ({type(error).__name__}): try again") from None


certificates = CertificateStore()
os.register_at_fork(after_in_child=certificates.start_anew)


def _load_certificate(url: str, region: str, service: NotificationService) -> x509.Certificate:
    """Fetch a certificate, and verify its issuer if the service has an authority."""
    try:
        from cryptography import x509  # noqa: PLC0415 - an extra
    except ImportError:
        raise signatures.extra_missing_error() from None
    try:
        certificate = x509.load_pem_x509_certificate(fetch_or_unavailable(url, service.name))
        authority = service.authority and service.authority.format(region=region)
        issuers = x509.load_pem_x509_certificates(fetch_or_unavailable(authority, service.name)) if authority else []
    except ValueError:
        raise UnavailableError(f"{service.name} gave no certificate: try again") from None
    if authority and not any(_has_issued(issuer, certificate) for issuer in issuers):
        raise SignatureError(f"the certificate was not issued by {service.name}")
    return certificate


def _has_issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - the certificates have needed it

    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
