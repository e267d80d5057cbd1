"""The shop's own tests; the tables of mailglass_reconcile are in its test database, too."""

import zlib

from django.test import TestCase, override_settings

from mailglass_reconcile import dispatch
from mailglass_reconcile.contrib.django.models import Delivery
from shop.models import Suppressed


@override_settings(EMAIL_BACKEND="shop.mail.EmailBackend", ALLOWED_HOSTS=["testserver"])
class Ordering(TestCase):
    """From the order to what became of its message."""

    def test_an_order_is_confirmed_and_followed(self) -> None:
        """A webhook that comes afterwards changes the order's status."""
        placed = self.client.post("/orders/", {"email": "ada@example.com"}).json()
        self.assertEqual(Delivery.objects.get().recipient, "ada@example.com")
        self.bounce("HardBounce", placed["message_id"])
        self.assertEqual(self.client.get(f"/orders/{placed['order']}/").json()["status"], "bounced")

    def test_an_address_is_suppressed_after_a_hard_bounce_only(self) -> None:
        """A mailbox that is full today may take the next message."""
        placed = self.client.post("/orders/", {"email": "ada@example.com"}).json()
        for kind, suppressed in (("SoftBounce", False), ("HardBounce", True)):
            self.bounce(kind, placed["message_id"])
            dispatch()
            self.assertEqual(Suppressed.objects.filter(email="ada@example.com").exists(), suppressed)

    def bounce(self, kind: str, message_id: str) -> None:
        """Post the webhook of a message that bounced."""
        self.client.post(
            "/anymail/postmark/tracking/",
            {
                "RecordType": "Bounce",
                "Type": kind,
                "ID": zlib.crc32(kind.encode()),
                "MessageID": message_id,
                "Email": "ada@example.com",
                "BouncedAt": "2026-05-01T10:00:00Z",
            },
            content_type="application/json",
            headers={"Authorization": "Basic cG9zdG1hcms6Y2hhbmdlLW1l"},
        )
