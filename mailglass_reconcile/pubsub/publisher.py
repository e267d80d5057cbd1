"""Publishing that never costs a sweep more than a second.

Publishing is best effort. What could not be handed to Redis is counted and never sent again, so that no message
is doubled; and a success says only that a Redis took it, not that anybody heard.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import NamedTuple

import redis
from redis.exceptions import RedisError

from mailglass_reconcile import telemetry
from mailglass_reconcile.pubsub.channels import events_channel
from mailglass_reconcile.pubsub.client import PATIENCE_SECONDS, impatient, reason, within

logger = logging.getLogger(__name__)

HEALTHY_SECONDS = 0.01
"""What one call may take and cost none of that: a Redis in good health needs less."""

CHUNK_LINKS = 500
"""Links per call: a script of a thousand PUBLISH holds Redis for about 2 ms."""

_PUBLISH = r"""
for channel, delivery, payload in string.gmatch(ARGV[1], '([^\n]*)\n([^\n]*)\n([^\n]*)\n') do
  redis.call('PUBLISH', channel, payload)
  redis.call('PUBLISH', channel .. ':' .. delivery, payload)
end
"""

# A replica takes PUBLISH, answers OK and tells nobody beyond itself; a master may become one at any moment.
_PUBLISH_ON_MASTER = (
    r"""
local replication = redis.pcall('INFO', 'replication')
if type(replication) ~= 'string' then return redis.error_reply('NOINFO this user may not ask') end
if not string.find(replication, 'role:master', 1, true) then
  return redis.error_reply('READONLY a replica tells nobody beyond itself')
end
"""
    + _PUBLISH
)

# For a user who may not ask: since Redis 7, a replica refuses a script with a header that does not say "no-writes".
_PUBLISH_IF_WRITABLE = "#!lua flags=allow-oom" + _PUBLISH

Message = tuple[str, str, str]
"""A tenant id, a delivery id, and the JSON, in one line, that goes to the channels of both."""


class Published(NamedTuple):
    """How many messages Redis took, and how many it did not; two per link."""

    published: int = 0
    failed: int = 0


class Publisher:
    """Publishes one sweep's messages; gives up for the rest of the sweep once a second has been lost."""

    def __init__(self, client: redis.Redis) -> None:
        """Use the server of *client*, whose own timeouts and retries do not count; nothing connects yet."""
        self._client = impatient(client)
        self._script = _PUBLISH_ON_MASTER
        self._patience = PATIENCE_SECONDS
        self._warned = False

    def next_sweep(self) -> None:
        """Give another sweep a second of its own; what was warned of is not said again."""
        self._patience = PATIENCE_SECONDS

    def publish(self, messages: Sequence[Message]) -> Published:
        """Hand *messages* to Redis, and return how many it took; raises nothing that a Redis can cause."""
        outcome = Published()
        for start in range(0, len(messages), CHUNK_LINKS):
            chunk = messages[start : start + CHUNK_LINKS]
            taken = 2 * len(chunk) if self._try(chunk) else 0
            outcome = Published(outcome.published + taken, outcome.failed + 2 * len(chunk) - taken)
        telemetry.count_messages(outcome._asdict())
        return outcome

    def _try(self, chunk: Sequence[Message]) -> bool:
        try:
            self._run(_lines(chunk))
        except (RedisError, OSError) as error:
            if str(error).startswith("NOINFO"):  # which it says before it publishes anything
                self._script = _PUBLISH_IF_WRITABLE
                return self._try(chunk)
            self._warn_once(error)
            return False
        return True

    def _run(self, lines: str) -> None:
        if self._patience <= 0:
            raise TimeoutError("this sweep's time for Redis is over")
        began = time.monotonic()
        try:
            within(self._patience, lambda: self._client.eval(self._script, 0, lines))
        finally:
            self._patience -= max(0.0, time.monotonic() - began - HEALTHY_SECONDS)

    def _warn_once(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            needed = "the commands EVAL and PUBLISH (before Redis 7 also INFO) on the channels mailglass:events:*"
            logger.warning(
                "cannot publish to MAILGLASS_REDIS_URL (%s); links are unaffected, their broadcasts are lost",
                reason(error, needed),
            )


def _lines(chunk: Sequence[Message]) -> str:
    """Return *chunk* as one argument, three lines a link: none of the three can hold the end of a line."""
    channels = {tenant_id: events_channel(tenant_id) for tenant_id, _, _ in chunk}
    return "".join(f"{channels[tenant_id]}\n{delivery_id}\n{payload}\n" for tenant_id, delivery_id, payload in chunk)
