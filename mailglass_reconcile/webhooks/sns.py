"""Notifications of Amazon SNS, and of Scaleway's Topics and Events, which speaks the same: what signs them.

Followed: https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message.html and
https://docs.aws.amazon.com/sns/latest/dg/sns-message-and-json-formats.html. A repeated notification keeps its time and
signature, so it may be of any age.
"""

from __future__ import annotations

import re
import threading
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, NamedTuple

from mailglass_reconcile.errors import InvalidWebhookError, MailglassReconcileError, SignatureError
from mailglass_reconcile.webhooks import wire
from mailglass_reconcile.webhooks.wire import Request

if TYPE_CHECKING:
    from cryptography import x509

TIMEOUT_SECONDS = 5
MAX_NOTIFICATION_BYTES = 256 * 1024
MAX_BYTES = 100_000
MAX_CERTIFICATES = 32

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
    confirmations: re.Pattern[str]
    authorities: Sequence[str] = ()
    """Addresses of the certificates that must have issued the signing one; none if its address is enough."""


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


def max_bytes(request: Request) -> int:
    """Return how long a notification may be, which is parsed before its signature is checked."""
    return MAX_NOTIFICATION_BYTES


def message(request: Request) -> dict[str, Any]:
    """Return a request's notification.

    Raises:
        InvalidWebhookError: It is none.
    """
    body = request.object()
    if not is_message(body):
        raise InvalidWebhookError("the body is no notification of SNS; turn off raw message delivery")
    return body


def verify(request: Request, secret: str, service: Service) -> None:
    """Check that a notification is of the topic whose ARN is *secret*, and that *service* has signed it."""
    try:
        body = message(request)
    except InvalidWebhookError as error:
        raise SignatureError(str(error)) from None
    if not wire.equal(str(body.get("TopicArn")), secret.strip()):
        raise SignatureError("the notification is of another topic")
    url, signature = body.get("SigningCertURL"), body.get("Signature")
    if not isinstance(url, str) or not service.certificates.fullmatch(url):
        raise SignatureError(f"the certificate is not one of {service.name}'s")
    if not isinstance(signature, str) or body.get("SignatureVersion") not in ("1", "2"):
        raise SignatureError("the notification has no signature")
    key = _certificate(url, service).public_key()
    wire.rsa(key, wire.decoded(signature), _signed(body), sha1=body["SignatureVersion"] == "1")


def _signed(body: Mapping[str, Any]) -> bytes:
    names = [name for name in _SIGNED[body["Type"]] if body.get(name) is not None]
    return "".join(f"{name}\n{body[name]}\n" for name in names).encode("utf-8", "replace")


def confirm(request: Request, service: Service) -> None:
    """Confirm the subscription that a verified request asks for, by one GET; do nothing for other requests.

    Raises:
        SignatureError: Its address is none of the provider's.
        MailglassReconcileError: The provider cannot be reached.
    """
    body = message(request)
    if body["Type"] != "SubscriptionConfirmation":
        return
    url = body.get("SubscribeURL")
    if not isinstance(url, str) or not service.confirmations.fullmatch(url):
        raise SignatureError(f"the subscription is not confirmed at {service.name}")
    _fetched(url, service)


def _fetched(url: str, service: Service) -> bytes:
    try:
        return fetch(url)
    except (OSError, HTTPException) as error:
        raise MailglassReconcileError(f"cannot reach {service.name} ({type(error).__name__}): try again") from None


_certificates: dict[str, x509.Certificate] = {}
_lock = threading.Lock()


def _certificate(url: str, service: Service) -> x509.Certificate:
    """Return the certificate at *url*, which is fetched once."""
    known = _certificates.get(url)
    if known is not None:
        return known
    try:
        from cryptography import x509  # noqa: PLC0415 - an extra
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415
    except ImportError:
        raise wire.missing() from None
    try:
        found = x509.load_pem_x509_certificate(_fetched(url, service))
        issuers = [one for chain in service.authorities for one in _chain(x509, _fetched(chain, service))]
    except ValueError:
        raise MailglassReconcileError(f"{service.name} gave no certificate: try again") from None
    if service.authorities and not any(_has_issued(one, found, InvalidSignature) for one in issuers):
        raise SignatureError(f"the certificate was not issued by {service.name}")
    with _lock:
        _certificates[url] = found
        while len(_certificates) > MAX_CERTIFICATES:
            del _certificates[next(iter(_certificates))]
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
