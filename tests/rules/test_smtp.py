"""The codes of an SMTP reply, without its text."""

import pytest

from mailglass_reconcile.rules.smtp import smtp_status

pytestmark = pytest.mark.version_independent


@pytest.mark.parametrize(
    ("reply", "codes"),
    [
        ("550 5.1.1", "550 5.1.1"),
        ("550 5.1.1 <ada@example.com>: Recipient address rejected", "550 5.1.1"),
        ("smtp;550 #5.1.0 Address rejected", "550 5.1.0"),
        ("5.1.1", "5.1.1"),
        ("(550, b'5.7.1 blocked')", "550"),
        (421, "421"),
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
    ],
)
def test_the_codes_at_the_beginning_of_a_reply_are_kept(reply, codes):
    """The reply code, the enhanced status code, or both are kept; parsing them again changes nothing."""
    assert smtp_status(reply) == smtp_status(codes) == codes


@pytest.mark.parametrize(
    "reply",
    [
        "server is down",
        "192.0.2.1 refused",
        "5.1.1.1 is an address",
        "5500 messages a day",
        "Ann <ann@example.org> 550",
        "",
        None,
        True,
        {"code": 550},
        "ada@example.com",
        "650 5.1.1",
        "5\u0663\u0660",
        7,
        5.5,
        ["550"],
        b"550",
    ],
)
def test_what_does_not_begin_with_a_code_has_none(reply):
    """A text may have an address, digits may be of another script, and a value of another type."""
    assert smtp_status(reply) is None
