"""The tenants: each has a subdomain, and at AWS a configuration set of its name, which publishes to its own topic."""

from django.conf import settings
from django.core.mail import EmailMessage
from django.http import HttpRequest


def of_request(request: HttpRequest) -> str | None:
    """Return the tenant of a subdomain; None, which a webhook is answered with 404 for, if there is no such tenant."""
    name = request.get_host().partition(".")[0]
    return name if name in settings.TENANTS else None


def of_message(message: EmailMessage) -> str:
    """Return the tenant that `views.place` has put into a message; mail without metadata is the shop's own."""
    metadata = getattr(message, "metadata", None)
    return str(metadata["tenant"] if isinstance(metadata, dict) else settings.FALLBACK_TENANT)
