"""The order page of docs/django.md: its files and its test, as printed, in a project with the model and a view."""

import pytest

import pages
import processes

pytestmark = [pytest.mark.slow, pytest.mark.python_dependent]

PAGE = pages.ROOT / "docs/django.md"
READERS_FILES = {
    "shop/models.py": """
from django.db import models

class Order(models.Model):
    email = models.EmailField()
    message_id = models.TextField(blank=True)
    refused = models.BooleanField(default=False)
""",
    "shop/urls.py": """
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import path
from shop.models import Order
from shop.status import status_of

urlpatterns = [
    path("orders/<int:number>/", lambda request, number: HttpResponse(status_of(get_object_or_404(Order, pk=number))))
]
""",
    "shop/test_other_orders.py": """
import pytest
from anymail.message import AnymailRecipientStatus

from mailglass_reconcile.contrib.django.models import Delivery
from shop.models import Order
from shop.orders import place_order
from shop.testing import EmailBackend

class RefusingBackend(EmailBackend):
    def parse_recipient_status(self, response, payload, message):
        return dict.fromkeys(payload.recipient_emails, AnymailRecipientStatus(message_id=None, status="rejected"))

def page_of(client, order):
    return client.get(f"/orders/{order.pk}/").content.decode()

@pytest.mark.django_db
def test_an_order_whose_address_is_refused_is_not_waiting_for_its_mail(client, settings):
    settings.EMAIL_BACKEND = "shop.test_other_orders.RefusingBackend"
    assert page_of(client, place_order("inactive@example.com")) == "refused"
    delivery = Delivery.objects.with_state().get()
    assert (delivery.state, delivery.provider_message_id) == ("failed", None)

@pytest.mark.django_db
def test_a_mail_without_a_delivery_was_sent_if_the_order_has_an_id(client):
    assert page_of(client, Order.objects.create(email="ada@example.com", message_id="m-1")) == "unknown"
    assert page_of(client, Order.objects.create(email="ada@example.com")) == "not sent yet"
""",
}


def test_the_pages_own_test_of_an_order_page_passes(new_project, tmp_path):
    """The plugin stands in for pytest-django."""
    chapters = ("Show the status of an order", "Test it")
    printed = [block.text for heading in chapters for block in pages.chapter(PAGE, heading)]
    files = READERS_FILES | {text.partition("\n")[0].removeprefix("# "): text for text in printed}
    assert {"conftest.py", "shop/orders.py", "shop/test_orders.py"} < files.keys()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    environment = {**new_project, "PYTHONPATH": f"{tmp_path}:{pages.ROOT / 'tests/support'}"}
    arguments = ["-p", "pytest_django_fixtures", "-p", "no:cacheprovider", "-q"]
    result = processes.run(["-m", "pytest", *arguments], environment, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "4 passed" in result.stdout
