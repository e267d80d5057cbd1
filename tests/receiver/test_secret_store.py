"""Providers' secrets: their sources, several of one provider, and unusable ones."""

import datetime as dt
import re

import pytest
from starlette.applications import Starlette

import commands
import senders
from mailglass_reconcile import ConfigurationError
from mailglass_reconcile.providers import wire
from mailglass_reconcile.receiver.opening import IncomingWebhook
from mailglass_reconcile.webhooks import SignatureError, receive, webhook_app
from receivers import SECRETS, first, mount_receiver, now, post, setting
from receivers import published as _published  # noqa: F401 - a fixture of every test
from senders import AUTH, KEY, make_requests

KEYS = {
    "sendgrid=RSA": lambda: f"sendgrid={senders.public(senders.sns_key())}",
    "postal=EC": lambda: f"postal={senders.public(senders.sendgrid_key())}",
}


def test_two_secrets_of_a_provider_are_both_accepted(db):
    """One replaces the other."""
    for secrets in (["user:old", AUTH], [AUTH, "user:old"]):
        receiver = mount_receiver(secrets={"Postmark": secrets})
        assert [answer.status_code for answer in post(receiver, "/webhooks/postmark", first("postmark"))] == [200]
        setting(db, f",mailgun={KEY}, ".join(f"postmark={secret}" for secret in secrets))
        shop = Starlette()
        shop.mount("/webhooks", webhook_app())
        assert [answer.status_code for answer in post(shop, "/webhooks/postmark", first("postmark"))] == [200]


@pytest.mark.parametrize("provider", ["resend", "mailgun"])
def test_a_wrong_clock_is_named_although_an_old_secret_is_still_listed(provider):
    """Without it, the secret would be suspected."""
    request = make_requests(provider, [senders.load_payloads(provider)[0].payload], at=now() - dt.timedelta(hours=55))[
        0
    ]
    old, current = {"resend": senders.SVIX_SECRET[:-1] + "B", "mailgun": "an-old-key"}[provider], SECRETS[provider]
    for secrets in ([old, current], [current, old]):
        incoming = IncomingWebhook(provider, request.headers, secrets=secrets, url=None)
        incoming.add_body(request.body)
        with pytest.raises(SignatureError, match="is right, but its time is 2 days before this machine's clock: set"):
            incoming.verify()


def test_a_file_of_secrets_has_one_on_each_line(db, tmp_path):
    """A secret may have a comma."""
    (tmp_path / "secrets").write_text(f"mailgun={KEY}\n\npostmark=user:a,b\n")
    setting(db, f"@{tmp_path / 'secrets'}")
    posted = senders.Posted(b'{"RecordType": "Open", "MessageID": "m"}', {"Authorization": "Basic dXNlcjphLGI="})
    with db.engine.begin() as connection:
        assert len(receive(connection, "postmark", posted.body, posted.headers)) == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "MAILGLASS_WEBHOOK_SECRETS is not set"),
        (" , ", "MAILGLASS_WEBHOOK_SECRETS is not set"),
        ("c4n4ry", "MAILGLASS_WEBHOOK_SECRETS"),
        ("postmark=", "postmark: the secret is empty"),
        ("brevo=:", "brevo: the user name or the password is empty"),
        ("brevo=c4n4ry:", "brevo: the user name or the password is empty"),
        ("smtp2go=:c4n4ry", "smtp2go: the user name or the password is empty"),
        ("postmark=c4n4ry:${PW}", r"postmark: the secret contains \$\{\.\.\.\}"),
        ("mailgun=${MAILGUN_KEY:-c4n4ry}", r"mailgun: the secret contains \$\{\.\.\.\}"),
        ("mailgun=c4n4ry!", "mailgun: the secret must be the provider's key: it has fewer than 8 characters"),
        ("mailersend=c4n4ry!", "mailersend: the secret must be the provider's key"),
        ("mailtrap=c4n4ry!", "mailtrap: the secret must be the provider's key"),
        ("mandrill=c4n4ry!", "mandrill: the secret must be the provider's key"),
        ("unisender_go=c4n4ry!", "unisender_go: the secret must be the provider's key"),
        ("zeptomail=c4n4ry!", "zeptomail: the secret must be the provider's key"),
        ("resend=whsec_YzRuNHJ5", "resend: the secret must be `whsec_` and base64 of at least 24 bytes"),
        ("ses=c4n4ry", "ses: the secret must be the topic's ARN"),
        ("ses=arn:aws:sns:eu-central-1::c4n4ry", "ses: the secret must be the topic's ARN"),
        ("scaleway=arn:scw:sns:fr-par:c4n4ry", "scaleway: the secret must be the topic's ARN"),
        ("Postmark=c4n4ry", "postmark: the secret must be USER:PASSWORD"),
        ("sendgrid=c4n4ry!", "sendgrid: the secret must be the provider's public key"),
        ("sendgrid=RSA", "sendgrid: the secret must be the verification key"),
        ("postal=EC", "postal: the secret must be an RSA public key"),
        ("resend=c4n4ry!", "resend: the secret must be `whsec_`"),
        ("resend=whsec_", "resend: the secret must be `whsec_`"),
        ("pigeon=c4n4ry", "known providers"),
        ("@/nowhere/c4n4ry", "cannot read its file"),
    ],
)
def test_without_a_usable_secret_nothing_is_received(db, value, message):
    """The application and the function refuse; the error does not quote the secret."""
    value = KEYS.get(value, lambda: value)()
    setting(db, value)
    with pytest.raises(ConfigurationError, match=message) as error:
        webhook_app()
    assert "c4n4ry" not in str(error.value)
    assert "\n" not in str(error.value)
    request = first("postmark")
    with pytest.raises(ConfigurationError, match=message), db.engine.begin() as connection:
        receive(connection, "postmark", request.body, request.headers)
    provider, equals, secret = (value or "").partition("=")
    if equals:
        with pytest.raises(ConfigurationError, match=message):
            webhook_app(secrets={provider: secret})
        with pytest.raises(ConfigurationError, match=message), db.engine.begin() as connection:
            receive(connection, provider, request.body, request.headers, secret=secret)


@pytest.mark.parametrize("secret", [None, [], [None], ["", "user:password"], b"user:password"])
def test_a_secret_in_code_that_is_missing_is_refused_by_the_provider_s_name(db, secret):
    """Its variable may be unset."""
    with pytest.raises(ConfigurationError, match="postmark: the secret is empty, or not a string"):
        webhook_app(secrets={"postmark": secret})
    with pytest.raises(ConfigurationError, match="without a provider's secret"):
        webhook_app(secrets={})


@pytest.mark.parametrize(
    ("value", "message"),
    [("", "MAILGLASS_WEBHOOK_SECRETS is not set; .*"), ("postmark=:", "MAILGLASS_WEBHOOK_SECRETS: postmark: .* empty")],
)
def test_the_command_does_not_start_without_a_secret(db, redis_url, value, message):
    """It prints one line and exits with 1."""
    result = commands.run_forked(db, "receive", "--port", "0", MAILGLASS_WEBHOOK_SECRETS=value)
    assert result.returncode == 1
    assert re.fullmatch(rf"mailglass-reconcile: {message}\n", result.stderr)


@pytest.mark.parametrize("provider", ["ses", "mandrill"])
def test_a_stranger_s_body_that_cannot_be_parsed_is_parsed_once_for_all_secrets(monkeypatch, provider):
    """A site may have a topic for each customer, and 16 kB are parsed on the event loop."""
    parsed_bodies = []

    def count(parse):
        return lambda body: parsed_bodies.append(body) or parse(body)

    for name in ("parse_json", "_parse_form"):
        monkeypatch.setattr(wire, name, count(getattr(wire, name)))
    secrets = [f"arn:aws:sns:eu-west-1:123456789012:mail-{number}" for number in range(50)]
    headers = {"X-Mandrill-Signature": "c2lnbmF0dXJl"}
    webhook = IncomingWebhook(provider, headers, secrets=secrets, url="https://shop.example/webhooks/mandrill")
    webhook.add_body(b"%")
    with pytest.raises(SignatureError):
        webhook.verify()
    assert len(parsed_bodies) == 1
