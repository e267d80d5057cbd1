"""A Django project's use of the models and the view: mypy --strict reads this file with django-stubs, nothing runs it.

An `ignore` that ignores nothing is an error, so each stands for an error that must be reported.
"""

import datetime as dt
from typing import assert_type
from uuid import UUID

from django.http import HttpRequest

from mailglass_reconcile.contrib.django.models import Delivery, Event, OpenOrphan
from mailglass_reconcile.contrib.django.views import webhook_view


def read(delivery: Delivery, event: Event, orphan: OpenOrphan) -> None:
    """Each field has its type."""
    assert_type(delivery.id, UUID)
    assert_type(delivery.recipient, str)
    assert_type(delivery.provider_message_id, str | None)
    assert_type(delivery.delivered_at, dt.datetime | None)
    assert_type(event.occurred_at, dt.datetime)
    assert_type(orphan.state, str | None)


def write(delivery: Delivery) -> None:
    """None can be assigned to."""
    delivery.recipient = "ada@example.com"  # type: ignore[assignment]


def tenant_of(request: HttpRequest) -> str | None:
    """Return the tenant of a subdomain."""
    return request.get_host().partition(".")[0] or None


webhook_view(tenant=tenant_of, secrets={"acme": {"postmark": "me:change-me"}}, url=lambda request: request.get_host())
webhook_view(tenant=5)  # type: ignore[arg-type]
