"""Each provider's requests: payloads of its documentation, signed with test keys.

These are whole, and prove that documented webhooks are read. The package's samples are reduced to what is read.
"""

import base64
import copy
import datetime as dt
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID

from mailglass_reconcile.providers import registry

PAYLOADS = Path(__file__).parents[1] / "providers" / "payloads"
AUTH = "user:password"
KEY = "signing-key"
NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
ARN = "arn:aws:sns:eu-central-1:123456789012:mail"
SCALEWAY_ARN = "arn:scw:sns:fr-par:project-8c8bfa06:mail"
CERTIFICATE_URL = (
    "https://sns.eu-central-1.amazonaws.com/SimpleNotificationService-0123456789abcdef0123456789abcdef.pem"
)
SCALEWAY_CERTIFICATE_URL = "https://messaging.s3.fr-par.scw.cloud/fr-par/sns/sns_certificate_183.crt"
SVIX_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 - of Svix's documentation
MANDRILL_URL = f"http://{AUTH}@testserver/mandrill/"

Payload = dict[str, Any]


class Variant(NamedTuple):
    """A documented payload with other values, and the fields of its event that differ from the documented one's.

    `says` is the sentence of the group of rows in the file of payloads; `changes` are values by path, such as
    `bounce/bounceType`.
    """

    says: str
    changes: Payload
    fields: Payload
    payload: Payload


class Event(NamedTuple):
    """A payload of a provider's documentation, the expected event, its variants, and what Anymail reads differently.

    `metadata` is that of the event, `anymail` the fields of Anymail's `WebhookEvent` that differ from ours on purpose.
    """

    type: str
    reason: str | None
    bounce: str | None
    smtp_status: str | None
    message_id: str | int | None
    at: str
    metadata: Payload
    payload: Payload
    anymail: Mapping[str, Any] = MappingProxyType({})
    variants: Sequence[Variant] = ()


class Posted(NamedTuple):
    """An incoming request."""

    body: bytes
    headers: dict[str, str]

    def for_anymail(self, path: str) -> Payload:
        """Return the request as arguments of Django's test client."""
        headers = {name: value for name, value in self.headers.items() if name != "Content-Type"}
        return {"path": path, "data": self.body, "content_type": self.headers["Content-Type"], "headers": headers}


@cache
def load_payloads(provider: str) -> list[Event]:
    """Return the payloads of a provider's documentation."""
    events = json.loads((PAYLOADS / f"{provider}.json").read_text())["events"]
    for at in (event["anymail"] for event in events if "occurred_at" in event.get("anymail", {})):
        at["occurred_at"] = dt.datetime.fromisoformat(at["occurred_at"])
    return [Event(**{**event, "variants": [*read_variants(event)]}) for event in events]


def read_variants(event: Payload) -> Iterator[Variant]:
    """Yield the variants of a payload in the file."""
    for group in event.get("variants", []):
        for changes, fields in group["rows"]:
            yield Variant(group["says"], changes, fields, change_payload(event["payload"], changes))


def change_payload(payload: Payload, changes: Payload) -> Payload:
    """Return a payload with other values at some paths."""
    changed = copy.deepcopy(payload)
    for path, value in changes.items():
        *names, last = path.split("/")
        place: Any = changed
        for name in names:
            place = place[int(name) if isinstance(place, list) else name]
        place[last] = value
    return changed


@cache
def sendgrid_key() -> ec.EllipticCurvePrivateKey:
    """Return the key with which SendGrid signs."""
    return ec.generate_private_key(ec.SECP256R1())


@cache
def postal_key() -> rsa.RSAPrivateKey:
    """Return the key with which Postal signs."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@cache
def sns_key() -> rsa.RSAPrivateKey:
    """Return the key with which SNS signs."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@cache
def authority_key() -> rsa.RSAPrivateKey:
    """Return the key that issues Scaleway's certificates."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def certificate(subject: str, key: rsa.RSAPrivateKey, issuer: str, issuing: rsa.RSAPrivateKey) -> bytes:
    """Return a certificate as PEM."""

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    builder = x509.CertificateBuilder(name(issuer), name(subject), key.public_key(), 1)
    builder = builder.not_valid_before(NOW - dt.timedelta(365)).not_valid_after(NOW + dt.timedelta(3_650))
    return builder.sign(issuing, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def serve_certificate(url: str) -> bytes:
    """Answer like the providers' certificate servers: `sns.fetch` in tests."""
    if url == CERTIFICATE_URL:
        return certificate("sns.amazonaws.com", sns_key(), "Amazon", authority_key())
    if url == SCALEWAY_CERTIFICATE_URL:
        return certificate("sns.mnq.srr.scw.cloud", sns_key(), "Scaleway", authority_key())
    if url.endswith("/sns/sns-trust-chain.pem"):
        return certificate("Scaleway", authority_key(), "Scaleway", authority_key())
    raise OSError("no such address")


def public(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    """Return a public key in the format of the provider's dashboard."""
    der = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(der).decode()


def secret_of(provider: str) -> str:
    """Return the secret for a provider's signature."""
    secrets = {
        "sendgrid": lambda: public(sendgrid_key()),
        "postal": lambda: public(postal_key()),
        "resend": lambda: SVIX_SECRET,
        "ses": lambda: ARN,
        "scaleway": lambda: SCALEWAY_ARN,
        "azure": lambda: "Bearer of-a-static-header",
    }
    basic = ("brevo", "mailjet", "postmark", "smtp2go", "sparkpost")
    return secrets[provider]() if provider in secrets else AUTH if provider in basic else KEY


def url_of(provider: str) -> str | None:
    """Return the URL that is part of a provider's signature."""
    return MANDRILL_URL if provider == "mandrill" else None


def make_requests(provider: str, payloads: Sequence[Payload], at: dt.datetime = NOW) -> list[Posted]:
    """Return the requests with some payloads, which is one if the provider sends batches.

    Args:
        provider: Its canonical name.
        payloads: In the shape of its documentation.
        at: When the requests are sent.
    """
    return [sign_request(provider, body, at) for body in make_bodies(provider, payloads)]


def make_bodies(provider: str, payloads: Sequence[Any]) -> list[bytes]:
    """Return the bodies with some payloads, before a signature is added: one body if the provider sends batches."""
    match provider:
        case "mailtrap":
            contents: Sequence[Any] = [{"events": payloads}]
        case "unisender_go":
            events = [{"event_name": "transactional_email_status", "event_data": payload} for payload in payloads]
            contents = [{"auth": "AUTH", "events_by_user": [{"user_id": 456, "events": events}]}]
        case _:
            contents = [payloads] if provider in BATCHES else payloads
    return [json.dumps(content).encode() for content in contents]


def first_payload(body: Any) -> Any:
    """Return the payload of a body with one, as `make_bodies` puts it there."""
    match body:
        case [payload]:
            return payload
        case {"events": [payload]} | {"events_by_user": [{"events": [{"event_data": payload}]}]}:
            return payload
    return body


def sign_request(provider: str, body: bytes, at: dt.datetime = NOW) -> Posted:
    """Return a request with a body, signed like the provider's, by the package itself if the secret is shared."""
    sign = registry.get_provider(provider).authentication.sign
    if sign:
        return Posted(*sign(body, secret_of(provider), at.timestamp(), url_of(provider)))
    seconds = str(int(at.timestamp()))
    headers: Mapping[str, str] = {}
    match provider:
        case "postal":
            signature = postal_key().sign(body, padding.PKCS1v15(), hashes.SHA256())
            old = postal_key().sign(body, padding.PKCS1v15(), hashes.SHA1())  # noqa: S303 - Postal's
            headers = {
                "X-Postal-Signature-256": base64.b64encode(signature).decode(),
                "X-Postal-Signature": base64.b64encode(old).decode(),
            }
        case "sendgrid":
            signature = sendgrid_key().sign(seconds.encode() + body, ec.ECDSA(hashes.SHA256()))
            headers = {
                "X-Twilio-Email-Event-Webhook-Signature": base64.b64encode(signature).decode(),
                "X-Twilio-Email-Event-Webhook-Timestamp": seconds,
            }
        case "ses" | "scaleway":
            return notification(provider, {"Type": "Notification", "Message": body.decode(errors="replace")})
    return Posted(body, {"Content-Type": "application/json", **headers})


def notification(provider: str, message: Payload, version: str = "1") -> Posted:
    """Return a notification of SNS, whose id and time stay the same when it is sent again."""
    id_ = hashlib.sha256(json.dumps(message).encode()).hexdigest()[:32]
    arn, url = (ARN, CERTIFICATE_URL) if provider == "ses" else (SCALEWAY_ARN, SCALEWAY_CERTIFICATE_URL)
    full = {"MessageId": id_, "TopicArn": arn, "Timestamp": "2026-03-01T11:59:58.250Z", **message}
    names = ("Message", "MessageId", "SubscribeURL", "Subject", "Timestamp", "Token", "TopicArn", "Type")
    text = "".join(f"{name}\n{full[name]}\n" for name in names if name in full)
    digest = hashes.SHA1() if version == "1" else hashes.SHA256()  # noqa: S303 - SNS's
    signature = base64.b64encode(sns_key().sign(text.encode(), padding.PKCS1v15(), digest)).decode()
    body = {**full, "SignatureVersion": version, "Signature": signature, "SigningCertURL": url}
    headers = {"x-amz-sns-message-type": full["Type"], "x-amz-sns-message-id": full["MessageId"]}
    return Posted(json.dumps(body).encode(), {"Content-Type": "text/plain; charset=UTF-8", **headers})


BATCHES = ("azure", "mailjet", "mailtrap", "mandrill", "sendgrid", "sparkpost", "unisender_go")

PRIVATE = {"postal", "scaleway", "sendgrid", "ses"}
SENDERS = [provider for provider in registry.PROVIDERS if provider not in PRIVATE]
IDS = {"mailgun": "<m-2@shop.example>", "mailjet": "576460752303423489"}
