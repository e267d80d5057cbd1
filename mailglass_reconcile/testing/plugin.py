"""A pytest plugin: a Postgres and a Redis for the tests of your application, and a migrated database for each of them.

Say `pytest_plugins = ["mailglass_reconcile.testing.plugin"]` in your topmost `conftest.py`. Needs the extra `testing`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from mailglass_reconcile import runtime
from mailglass_reconcile.testing import race, servers
from mailglass_reconcile.testing.databases import DatabaseCopy, Databases

FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")
"""Settings for data that is not needed after a crash."""

POSTGRES = "MAILGLASS_TEST_DATABASE_URL"
REDIS = "MAILGLASS_TEST_REDIS_URL"


def pytest_configure() -> None:
    """Let a run that is terminated stop its servers."""
    servers.exit_on_signals()


@pytest.fixture(scope="session")
def mailglass_postgres_url() -> Iterator[str]:
    """The URL of the server for the tests' databases: `MAILGLASS_TEST_DATABASE_URL`, or a temporary server."""
    url_from_environment = os.environ.get(POSTGRES)
    if url_from_environment:
        yield url_from_environment
    else:
        with servers.postgres(*FAST) as url:
            yield url


@pytest.fixture(scope="session")
def mailglass_redis_url() -> Iterator[str]:
    """The URL of a Redis-protocol server: `MAILGLASS_TEST_REDIS_URL`, or a temporary server."""
    url_from_environment = os.environ.get(REDIS)
    if url_from_environment:
        yield url_from_environment
    else:
        with servers.redis() as url:
            yield url


@pytest.fixture(scope="session")
def mailglass_databases(mailglass_postgres_url: str) -> Iterator[Databases]:
    """Creates and drops databases on that server."""
    databases = Databases(mailglass_postgres_url)
    yield databases
    databases.engine.dispose()


@pytest.fixture(scope="session")
def mailglass_template(mailglass_databases: Databases) -> Iterator[str]:
    """The name of a migrated database, of which each test's database is a copy."""
    with mailglass_databases.template() as name:
        yield name


@pytest.fixture
def mailglass_database(
    mailglass_databases: Databases, mailglass_template: str, mailglass_redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DatabaseCopy]:
    """A migrated database of the test's own, which `MAILGLASS_DATABASE_URL` names; `MAILGLASS_REDIS_URL` is set too.

    `configure()` is reset before the test and after it.
    """
    with mailglass_databases.copy(mailglass_template, mailglass_redis_url) as database:
        monkeypatch.setenv("MAILGLASS_DATABASE_URL", database.url)
        monkeypatch.setenv("MAILGLASS_REDIS_URL", mailglass_redis_url)
        runtime.configure()
        yield database
        runtime.configure()


@pytest.fixture
def mailglass_webhook_first(request: pytest.FixtureRequest) -> Callable[..., tuple[Any, Any]]:
    """The function `webhook_first(send, webhook)`, on the test's database: a webhook before its send has committed.

    In a Django project with our app, that is Django's test database, in a test that commits
    (`@pytest.mark.django_db(transaction=True)`).
    """
    if runtime.has_framework_engine():
        return partial(race.webhook_first, runtime.database())
    return partial(race.webhook_first, request.getfixturevalue("mailglass_database"))
