"""Django and Anymail as they come, without a database: settings that a test's fixture lays over whatever is there."""

import os
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import anymail_wire
import django
import pytest
from anymail.signals import tracking
from django.conf import settings
from django.test import Client, override_settings

Events = list[tuple[Any, str]]


@pytest.fixture(scope="session")
def anymail_django() -> None:
    """Django, set up; with empty settings if nobody named any."""
    if not settings.configured and not os.environ.get("DJANGO_SETTINGS_MODULE"):
        settings.configure(LOGGING_CONFIG=None, USE_TZ=True, TIME_ZONE="UTC")
    django.setup()


@pytest.fixture
def anymail_settings(anymail_django: None) -> Iterator[None]:
    """Anymail's URLs at the root, and its settings for the payloads of `anymail_payloads`."""
    with override_settings(
        ALLOWED_HOSTS=["testserver"], ANYMAIL=anymail_wire.settings(), MIDDLEWARE=[], ROOT_URLCONF="anymail.urls"
    ):
        yield


@pytest.fixture
def post(anymail_settings: None) -> Iterator[Callable[..., Events]]:
    """Post requests to Anymail's views, and return `(event, esp_name)` of each `tracking` signal, in order."""
    client = Client(headers={"authorization": f"Basic {b64encode(anymail_wire.AUTH.encode()).decode()}"})
    heard: Events = []

    def receive(event: Any, esp_name: str, **_others: Any) -> None:
        heard.append((event, esp_name))

    def post(requests: Sequence[dict[str, Any]]) -> Events:
        heard.clear()
        for request in requests:
            assert client.post(**request).status_code == 200
        return list(heard)

    tracking.connect(receive)
    yield post
    tracking.disconnect(receive)
