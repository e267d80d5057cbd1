"""Webhooks to Anymail's views: our samples, and events of SES for several recipients."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import senders
from mailglass_reconcile.providers import samples
from mailglass_reconcile.rules.provider_rules import canonical
from senders import Payload

BEGIN = 1_772_366_400
"""2026-03-01 12:00 UTC; event number *n* happened *n* seconds later."""


def settings() -> dict[str, str]:
    """Return Anymail's settings for the webhooks."""
    return {
        "WEBHOOK_SECRET": senders.AUTH,
        "MAILGUN_WEBHOOK_SIGNING_KEY": senders.KEY,
        "MAILERSEND_SIGNING_SECRET": senders.KEY,
        "MANDRILL_WEBHOOK_KEY": senders.KEY,
        "UNISENDER_GO_API_KEY": senders.KEY,
        "POSTAL_WEBHOOK_KEY": senders.public(senders.postal_key()),
    }


@dataclass(frozen=True)
class AnymailProvider:
    """A provider by Anymail's name, and the address of Anymail's view."""

    esp_name: str

    @property
    def name(self) -> str:
        """Our name of the provider."""
        return canonical(self.esp_name)

    @property
    def path(self) -> str:
        """The path of Anymail's view."""
        return "/mandrill/" if self is MANDRILL else f"/{self.esp_name.lower().replace(' ', '_')}/tracking/"

    @property
    def message_id(self) -> str | int:
        """An id in the provider's format."""
        return MESSAGE_IDS.get(self.esp_name, "883953f4-6105-42a2-a16a-77a8eac79483")

    @property
    def batches(self) -> bool:
        """True if one request carries several events."""
        return self.name in senders.BATCHES

    @property
    def types(self) -> Sequence[str]:
        """The types of the provider's events."""
        return list(SES_EVENTS if self is SES else samples.load_samples(self.name))

    def event(self, type_: str, message_id: str | int, to: str | Sequence[str], n: float) -> Payload:
        """Return the payload of an event, *n* seconds after `BEGIN`; SES and Resend name all recipients."""
        at = dt.datetime.fromtimestamp(BEGIN + n, dt.UTC)
        if self is SES:
            return ses_event(SES_EVENTS[type_], str(message_id), [to] if isinstance(to, str) else to, at)
        payload = senders.first_payload(samples.make_sample(self.name, type_, str(message_id), str(to), at))
        if self is SENDGRID:
            payload["anymail_id"] = message_id
        if self is RESEND:
            payload["data"]["to"] = [to] if isinstance(to, str) else list(to)
        return payload

    def requests(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Return the requests of some events, as arguments of Django's test client."""
        bodies = senders.make_bodies(self.name, payloads)
        return [senders.sign_request(self.name, body).for_anymail(self.path) for body in bodies]


def ses_event(kind: str, message_id: str, recipients: Sequence[str], at: dt.datetime) -> Payload:
    """Return an event of SES about one or several recipients."""
    bare = [address.rpartition("<")[2].rstrip(">") for address in recipients]
    time = at.isoformat()
    details: Mapping[str, Payload] = {
        "Delivery": {"delivery": {"recipients": bare, "timestamp": time}},
        "Bounce": {
            "bounce": {
                "bounceType": "Permanent",
                "bounceSubType": "General",
                "bouncedRecipients": [{"emailAddress": address} for address in recipients],
                "timestamp": time,
            }
        },
        "Complaint": {
            "complaint": {
                "complainedRecipients": [{"emailAddress": address} for address in recipients],
                "timestamp": time,
            }
        },
        "Reject": {"reject": {"reason": "Bad content"}},
        "Rendering Failure": {"failure": {"errorMessage": "no attribute", "templateName": "t"}},
        "Open": {"open": {"timestamp": time}},
        "Click": {"click": {"timestamp": time}},
        "DeliveryDelay": {
            "deliveryDelay": {"delayedRecipients": [{"emailAddress": address} for address in bare], "timestamp": time}
        },
    }
    source = "arn:aws:ses:eu-central-1:123456789012:identity/example.com"
    mail = {"messageId": message_id, "destination": list(recipients), "timestamp": time, "sourceArn": source}
    return {"eventType": kind, "mail": mail, **details.get(kind, {})}


SES_EVENTS = {
    "sent": "Send",
    "delivered": "Delivery",
    "bounced": "Bounce",
    "complained": "Complaint",
    "rejected": "Reject",
    "opened": "Open",
    "clicked": "Click",
    "failed": "Rendering Failure",
    "deferred": "DeliveryDelay",
}
"""Its name of an event, by type."""

ALL = (
    POSTMARK := AnymailProvider("Postmark"),
    SES := AnymailProvider("Amazon SES"),
    SENDGRID := AnymailProvider("SendGrid"),
    MAILGUN := AnymailProvider("Mailgun"),
    AnymailProvider("Brevo"),
    RESEND := AnymailProvider("Resend"),
    AnymailProvider("SparkPost"),
    MAILJET := AnymailProvider("Mailjet"),
    MANDRILL := AnymailProvider("Mandrill"),
    MAILERSEND := AnymailProvider("MailerSend"),
    AnymailProvider("Mailtrap"),
    POSTAL := AnymailProvider("Postal"),
    AnymailProvider("Unisender Go"),
)
MESSAGE_IDS = {
    "Mailgun": "<20260301120000.1.DF59@example.com>",
    "Brevo": "<202603011200.1234@smtp-relay.mailin.fr>",
    "Mailjet": "576460752303423489",
    "Postal": 233843,
}
"""Ids of providers whose ids are not just any text."""
