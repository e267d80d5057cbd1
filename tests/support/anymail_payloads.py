"""What each provider posts to Anymail's tracking webhooks.

Every payload holds the recipient's address, and `PRIVATE`, in several fields: neither may get into the ledger.
"""

from anymail_batches import MAILJET, MAILTRAP, MANDRILL, SENDGRID, SPARKPOST, UNISENDER_GO
from anymail_single import BREVO, MAILERSEND, MAILGUN, POSTAL, POSTMARK, RESEND, SES
from anymail_wire import Provider

ALL = (
    POSTMARK,
    SES,
    SENDGRID,
    MAILGUN,
    BREVO,
    RESEND,
    SPARKPOST,
    MAILJET,
    MANDRILL,
    MAILERSEND,
    MAILTRAP,
    POSTAL,
    UNISENDER_GO,
)
MESSAGE_IDS = {
    "Mailgun": "<20260301120000.1.DF59@example.com>",
    "Brevo": "<202603011200.1234@smtp-relay.mailin.fr>",
    "Mailjet": "576460752303423489",
    "Postal": 233843,
}
"""Ids of providers whose ids are not just any text."""


def message_id(provider: Provider) -> str | int:
    """Return an id as the provider makes them."""
    return MESSAGE_IDS.get(provider.esp_name, "883953f4-6105-42a2-a16a-77a8eac79483")
