"""Redis pub/sub: channel names, the client, and publishing that never costs a sweep more than a second.

Publishing is best effort. What could not be handed to Redis is counted and never sent again, so that no message
is doubled; and a success says only that a Redis took it, not that anybody heard.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import quote

import redis
from pydantic import SecretStr
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from mailglass_reconcile.errors import ConfigurationError

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 1.0
"""What a Redis that does not answer may cost one sweep in all."""

CHUNK_LINKS = 500
"""Links per call: a script of a thousand PUBLISH holds Redis for about 2 ms."""

# A replica takes PUBLISH, answers OK and tells nobody beyond itself; a master may become one at any moment.
_PUBLISH = r"""
if not string.find(redis.call('INFO', 'replication'), 'role:master', 1, true) then
  return redis.error_reply('READONLY a replica tells nobody beyond itself')
end
for channel, delivery, payload in string.gmatch(ARGV[1], '([^\n]*)\n([^\n]*)\n([^\n]*)\n') do
  redis.call('PUBLISH', channel, payload)
  redis.call('PUBLISH', channel .. ':' .. delivery, payload)
end
"""


Message = tuple[str, str, str]
"""A tenant id, a delivery id, and the JSON, in one line, that goes to the channels of both."""


class Published(NamedTuple):
    """How many messages Redis took, and how many it did not; two per link."""

    published: int = 0
    failed: int = 0


def events_channel(tenant_id: str, delivery_id: str | None = None) -> str:
    """Return the channel on which a tenant's, or one delivery's, updates are told.

    A tenant id is percent-encoded (UTF-8, upper-case hex) where it holds anything but ASCII letters, digits,
    `.`, `_` and `-`, so that no tenant's channel can be another's and no pattern leaks in.

    Args:
        tenant_id: The tenant, as it stands in the tables.
        delivery_id: The delivery's UUID; without one, the channel of all the tenant's deliveries.
    """
    # quote() leaves "~" alone, which is outside the alphabet above.
    tenant = quote(tenant_id, safe="").replace("~", "%7E")
    channel = f"mailglass:events:{tenant}"
    return channel if delivery_id is None else f"{channel}:{delivery_id}"


def create_client(url: SecretStr, setting: str) -> redis.Redis:
    """Return a client of *url* with short timeouts and without retries; nothing connects yet.

    Celery's spelling of a Unix socket, `redis+socket:///path?virtual_host=0`, is understood as well.

    Args:
        url: `redis://`, `rediss://`, `unix://` or `redis+socket://`.
        setting: The name of the setting that it comes from, for the error.

    Raises:
        ConfigurationError: The URL cannot be used.
    """
    text = url.get_secret_value()
    if text.startswith("redis+socket://"):
        text = text.replace("redis+socket://", "unix://", 1).replace("virtual_host=", "db=", 1)
    try:
        return redis.Redis.from_url(
            text,
            socket_connect_timeout=PATIENCE_SECONDS / 2,
            socket_timeout=PATIENCE_SECONDS / 2,
            retry=Retry(NoBackoff(), 0),
        )
    except (ValueError, TypeError):
        raise ConfigurationError(f"{setting} cannot be used: it should look like redis://host:6379/0") from None


class Publisher:
    """Publishes one sweep's messages; gives up for the rest of the sweep once a second has been lost."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._script = client.register_script(_PUBLISH)
        self._lost_seconds = 0.0
        self._warned = False

    def publish(self, messages: Sequence[Message]) -> Published:
        """Hand *messages* to Redis, and return how many it took; raises nothing that a Redis can cause."""
        outcome = Published()
        for start in range(0, len(messages), CHUNK_LINKS):
            chunk = messages[start : start + CHUNK_LINKS]
            taken = 2 * len(chunk) if self._try(chunk) else 0
            outcome = Published(outcome.published + taken, outcome.failed + 2 * len(chunk) - taken)
        return outcome

    def _try(self, chunk: Sequence[Message]) -> bool:
        if self._lost_seconds >= PATIENCE_SECONDS:
            return False
        began = time.monotonic()
        try:
            self._script(args=[_lines(chunk)])
        except (RedisError, OSError) as error:
            self._lost_seconds += time.monotonic() - began
            self._warn_once(error)
            return False
        return True

    def _warn_once(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "cannot publish to MAILGLASS_REDIS_URL (%s); links are unaffected, their broadcasts are lost",
                type(error).__name__,
            )


def _lines(chunk: Sequence[Message]) -> str:
    """Return *chunk* as one argument, three lines a link: none of the three can hold the end of a line."""
    channels = {tenant_id: events_channel(tenant_id) for tenant_id, _, _ in chunk}
    return "".join(f"{channels[tenant_id]}\n{delivery_id}\n{payload}\n" for tenant_id, delivery_id, payload in chunk)
