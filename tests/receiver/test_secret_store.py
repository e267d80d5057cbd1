"""Secrets of providers: where they come from, several of one provider, and those that cannot be used."""

import re

import pytest
from starlette.applications import Starlette

import commands
import senders
from mailglass_reconcile import ConfigurationError
from mailglass_reconcile.webhooks import receive, webhook_app
from receivers import first, mounted, post, setting
from receivers import published as _published  # noqa: F401 - a fixture of every test
from senders import AUTH

KEYS = {
    "sendgrid=RSA": lambda: f"sendgrid={senders.public(senders.sns_key())}",
    "postal=EC": lambda: f"postal={senders.public(senders.sendgrid_key())}",
}


def test_two_secrets_of_a_provider_are_both_accepted(db):
    """While one replaces the other."""
    for known in (["user:old", AUTH], [AUTH, "user:old"]):
        receiver = mounted(secrets={"Postmark": known})
        assert [answer.status_code for answer in post(receiver, "/webhooks/postmark", first("postmark"))] == [200]
        setting(db, ",mailgun=k, ".join(f"postmark={one}" for one in known))
        shop = Starlette()
        shop.mount("/webhooks", webhook_app())
        assert [answer.status_code for answer in post(shop, "/webhooks/postmark", first("postmark"))] == [200]


def test_a_file_of_secrets_has_one_on_each_line(db, tmp_path):
    """So that one may hold a comma."""
    (tmp_path / "secrets").write_text("mailgun=k\n\npostmark=user:a,b\n")
    setting(db, f"@{tmp_path / 'secrets'}")
    posted = senders.Posted(b'{"RecordType": "Open", "MessageID": "m"}', {"Authorization": "Basic dXNlcjphLGI="})
    with db.engine.begin() as connection:
        assert len(receive(connection, "postmark", posted.body, posted.headers)) == 1


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "MAILGLASS_WEBHOOK_SECRETS is not set"),
        (" , ", "MAILGLASS_WEBHOOK_SECRETS is not set"),
        ("c4n4ry", "MAILGLASS_WEBHOOK_SECRETS"),
        ("postmark=", "postmark: the secret is empty"),
        ("brevo=:", "brevo: the user name and the password are empty"),
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
def test_without_a_secret_that_can_be_used_nothing_is_received(db, value, said):
    """By the application and by the function; the error repeats nothing of it."""
    value = KEYS.get(value, lambda: value)()
    setting(db, value)
    with pytest.raises(ConfigurationError, match=said) as error:
        webhook_app()
    assert "c4n4ry" not in str(error.value)
    assert "\n" not in str(error.value)
    request = first("postmark")
    with pytest.raises(ConfigurationError, match=said), db.engine.begin() as connection:
        receive(connection, "postmark", request.body, request.headers)
    provider, equals, secret = (value or "").partition("=")
    if equals:
        with pytest.raises(ConfigurationError, match=said):
            webhook_app(secrets={provider: secret})
        with pytest.raises(ConfigurationError, match=said), db.engine.begin() as connection:
            receive(connection, provider, request.body, request.headers, secret=secret)


@pytest.mark.parametrize("given", [None, [], [None], ["", "user:password"], b"user:password"])
def test_a_secret_in_code_that_is_missing_is_refused_by_the_provider_s_name(db, given):
    """Such as of a variable that is not set; a user without a password is allowed."""
    with pytest.raises(ConfigurationError, match="postmark: the secret is empty, or not a string"):
        webhook_app(secrets={"postmark": given})
    with pytest.raises(ConfigurationError, match="without a provider's secret"):
        webhook_app(secrets={})
    webhook_app(secrets={"postmark": "user:"})


def test_receive_needs_a_secret_of_this_provider(db):
    """Another's is not enough, and that is no wrong signature."""
    setting(db, "mailgun=k")
    request = first("postmark")
    with pytest.raises(ConfigurationError, match="no secret for this provider"), db.engine.begin() as connection:
        receive(connection, "postmark", request.body, request.headers)


@pytest.mark.parametrize(
    ("value", "said"),
    [("", "MAILGLASS_WEBHOOK_SECRETS is not set; .*"), ("postmark=:", "MAILGLASS_WEBHOOK_SECRETS: postmark: .* empty")],
)
def test_the_command_does_not_start_without_a_secret(db, redis_url, value, said):
    """It prints one line and exits with 1."""
    done = commands.run_forked(db, "receive", "--port", "0", MAILGLASS_WEBHOOK_SECRETS=value)
    assert done.returncode == 1
    assert re.fullmatch(rf"mailglass-reconcile: {said}\n", done.stderr)
