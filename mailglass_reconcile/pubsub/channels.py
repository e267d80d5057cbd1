"""The names of the channels on which links are broadcast."""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import quote

EVERY_CHANNEL = "mailglass:events:*"
"""The pattern of every tenant's channel, and of every delivery's."""
TEST = "test"
TEST_MESSAGE = f'{{"event": "{TEST}"}}'
"""The message that the doctor publishes to test its privilege; it names no delivery, and subscribers drop it."""


def events_channel(tenant_id: str, delivery_id: str | None = None) -> str:
    """Return the channel for the updates of a tenant, or of one of its deliveries.

    A tenant id is percent-encoded (UTF-8, upper-case hex), but for ASCII letters, digits, `.`, `_` and `-`.

    Args:
        tenant_id: The tenant, as it stands in the tables.
        delivery_id: Only this delivery.
    """
    channel = _tenant_channel(tenant_id)
    return channel if delivery_id is None else f"{channel}:{delivery_id}"


@lru_cache(maxsize=1_000)
def _tenant_channel(tenant_id: str) -> str:
    # quote() leaves "~" alone, which is outside the alphabet above.
    tenant = quote(tenant_id, safe="").replace("~", "%7E")
    return f"mailglass:events:{tenant}"
