"""The shop's own tests; the tables of mailglass_reconcile are in its test database, too."""

import datetime as dt
import uuid

from anymail.backends import test
from anymail.message import AnymailMessage
from django.core.mail import EmailMessage
from django.test import TestCase, override_settings

from mailglass_reconcile import WebhookEvent, dispatch, record_webhook
from mailglass_reconcile.contrib.django import connection
from mailglass_reconcile.contrib.django.models import Delivery
from shop.models import Suppressed

ACME = {"host": "acme.shop.example"}


class Ses(test.EmailBackend):
    """Sends nothing, and answers as Amazon SES would."""

    esp_name = "Amazon SES"

    def get_esp_message_id(self, message: AnymailMessage) -> str:
        """Return a new id."""
        return str(uuid.uuid4())


@override_settings(EMAIL_BACKEND="shop.tests.Ses")
class Ordering(TestCase):
    """From the order to what became of its message."""

    def test_an_address_is_suppressed_after_a_hard_bounce_only(self) -> None:
        """A mailbox that is full today may take the next message."""
        placed = self.client.post("/orders/", {"email": "ada@example.com"}, headers=ACME).json()
        self.assertEqual(Delivery.objects.get().tenant_id, "acme")
        for bounce, suppressed in (("soft", False), ("hard", True)):
            self.bounce(bounce, placed["message_id"])
            dispatch()
            self.assertEqual(Suppressed.objects.filter(tenant="acme", email="ada@example.com").exists(), suppressed)
        shown = self.client.get(f"/orders/{placed['order']}/", headers=ACME).json()
        self.assertEqual(shown["status"], "bounced")
        skipped = self.client.post("/orders/", {"email": "ADA@example.com"}, headers=ACME).json()
        self.assertEqual(skipped["message_id"], "")

    def test_mail_without_metadata_is_recorded_for_the_shop_itself(self) -> None:
        """Django's own, such as a password reset, is a plain `EmailMessage`."""
        for message in (EmailMessage, AnymailMessage):
            message("Reset your password", "Here.", to=["ada@example.com"]).send()
        self.assertEqual([delivery.tenant_id for delivery in Delivery.objects.all()], ["shop", "shop"])

    def bounce(self, bounce: str, message_id: str) -> None:
        """Record a bounce, as our view does when SNS has signed it."""
        event = WebhookEvent(
            type="bounced",
            bounce=bounce,
            message_id=message_id,
            recipient="ada@example.com",
            provider_event_id=bounce,
            occurred_at=dt.datetime.now(dt.UTC),
        )
        with connection() as borrowed:
            record_webhook(borrowed, provider="ses", tenant_id="acme", events=[event])
