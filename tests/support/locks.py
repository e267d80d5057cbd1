"""Locks of sweeps, and Redis databases that a test has for itself."""

import itertools
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import redis

from installation import Site

NUMBERS = itertools.count(8)
KEY = "mailglass_reconcile:lock:test"
SESSIONS = """
SELECT count(*) FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'active'
"""
"""Sessions at work in the test's database."""


def key_of(site: Site) -> str:
    """Return the key of the lock of a sweep of all tenants."""
    return site.asked("-c", "from mailglass_reconcile import tasks; print(tasks.reconcile.generate_lock(''))")


@pytest.fixture
def store(redis_url: str) -> Iterator[redis.Redis]:
    """A database of the Redis server, empty, whose number no other test here has."""
    url = urlsplit(redis_url)._replace(path=f"/{NUMBERS.__next__() % 8 + 8}").geturl()
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        yield client
