"""A plugin with what docs/django.md uses of pytest-django: its mark and two fixtures, for a project's own tests."""

from collections.abc import Iterator
from typing import Any

import django
import pytest
from django import conf
from django.core import mail
from django.db import transaction
from django.test import Client, override_settings, utils


def pytest_configure(config: pytest.Config) -> None:
    """Set Django up before the project's tests are imported."""
    config.addinivalue_line("markers", "django_db: a transaction in the test database that is rolled back")
    django.setup()


@pytest.fixture(scope="session")
def django_test_database() -> Iterator[None]:
    """Create the project's test database, in the environment of Django's own runner."""
    utils.setup_test_environment()
    databases = utils.setup_databases(0, interactive=False)
    yield
    utils.teardown_databases(databases, 0)
    utils.teardown_test_environment()


@pytest.fixture(autouse=True)
def django_test_transaction(django_test_database: None) -> Iterator[None]:
    """Begin each test with an empty outbox, and roll back what it wrote."""
    mail.outbox.clear()
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


@pytest.fixture
def client() -> Client:
    """Django's test client."""
    return Client()


@pytest.fixture
def settings(django_test_database: None) -> Iterator[Any]:
    """Django's settings, whose changes end with the test."""
    with override_settings():
        yield conf.settings
