"""Locks of sweeps, and empty Redis databases for one test each."""

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
    return site.run_python("-c", "from mailglass_reconcile import tasks; print(tasks.reconcile.generate_lock(''))")


@pytest.fixture
def store(redis_url: str) -> Iterator[redis.Redis]:
    """An empty database of the Redis server, whose number no other test uses at the same time."""
    url = urlsplit(redis_url)._replace(path=f"/{NUMBERS.__next__() % 8 + 8}").geturl()
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        yield client
