"""Which digits of an SMTP reply are kept."""

import pytest

from mailglass_reconcile.webhooks.wire import smtp_status


@pytest.mark.parametrize(
    ("reply", "kept"),
    [
        # Brevo, captured: symfony/symfony, Mailer/Bridge/Brevo/Tests/Webhook/Fixtures/hard_bounce.json
        ("550-5.1.1 The email account that you tried to reach does not exist. Please try\n 550-5.1.1 dou", "550 5.1.1"),
        # Mailtrap: https://docs.mailtrap.io/email-api-smtp/advanced/webhooks, where the code has a field of its own
        ("451 4.7.1 Temporary error, please retry", "451 4.7.1"),
        ("555 [CS01] Message rejected due to local policy", "555"),
        # Scaleway: its deprecated field repeats the code, which its newer text may begin with
        ("550 550 5.1.1 unknown user", "550 5.1.1"),
        ("550 550-5.1.1 unknown user", "550 5.1.1"),
        ("450 450", "450"),
        # Postal: https://docs.postalserver.io/developer/webhooks
        ("250 2.0.0 OK 1477944899 ly2si31746747wjb.95 - gsmtp", "250 2.0.0"),
        ("smtp; 550 5.5.0 Requested action not taken: mailbox unavailable", "550 5.5.0"),
        ("5.1.1. User unknown", "5.1.1"),
        ("421. Try again", "421"),
        (550, "550"),
        ("550 250 ms later", "550"),
        ("server is down", None),
        ("192.0.2.1 refused", None),
        ("5.1.1.1 is an address", None),
        ("5500 messages a day", None),
        ("Ann <ann@example.org> 550", None),
        ("", None),
        (None, None),
        (True, None),
        ({"code": 550}, None),
    ],
)
def test_only_the_codes_at_the_beginning_of_a_reply_are_kept(reply, kept):
    """Its text may hold addresses."""
    assert smtp_status(reply) == kept
