"""The shop's own tests; the tables of mailglass_reconcile are in its test database, too."""

from django.test import TestCase, override_settings

from mailglass_reconcile.contrib.django.models import Delivery


@override_settings(EMAIL_BACKEND="shop.mail.EmailBackend", ALLOWED_HOSTS=["testserver"])
class Ordering(TestCase):
    """From the order to what became of its message."""

    def test_an_order_is_confirmed_and_followed(self) -> None:
        """A webhook that comes afterwards changes the order's status."""
        placed = self.client.post("/orders/", {"email": "ada@example.com"}).json()
        self.assertEqual(Delivery.objects.get().recipient, "ada@example.com")
        self.client.post(
            "/anymail/postmark/tracking/",
            {
                "RecordType": "Bounce",
                "Type": "HardBounce",
                "ID": 42,
                "MessageID": placed["message_id"],
                "Email": "ada@example.com",
                "BouncedAt": "2026-05-01T10:00:00Z",
            },
            content_type="application/json",
            headers={"Authorization": "Basic cG9zdG1hcms6Y2hhbmdlLW1l"},
        )
        self.assertEqual(self.client.get(f"/orders/{placed['order']}/").json()["status"], "bounced")
