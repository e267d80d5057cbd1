"""Anymail's test backend, under the name and with the kind of ids of the provider whose webhooks come."""

import uuid

from anymail.backends import test
from django.core.mail import EmailMessage


class EmailBackend(test.EmailBackend):
    """Sends nothing, and answers as Postmark would."""

    esp_name = "Postmark"

    def get_esp_message_id(self, message: EmailMessage) -> str:
        """Return a new id."""
        return str(uuid.uuid4())
