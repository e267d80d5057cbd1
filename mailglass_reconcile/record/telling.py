"""The step after the commit: tell subscribers what a writer attached or linked, and look once more for its ids."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from mailglass_reconcile import projector, runtime
from mailglass_reconcile.errors import ConfigurationError
from mailglass_reconcile.pubsub import Publisher
from mailglass_reconcile.record import linking
from mailglass_reconcile.record.recorded import Recorded, RecordedDelivery

logger = logging.getLogger(__name__)


def broadcast(recorded: Iterable[Recorded | RecordedDelivery]) -> None:
    """Finish what a writer began on a plain Connection: call it after your commit, outside the connection's block.

    It broadcasts what was attached or linked. Then it looks once more for events that overlapping transactions could
    not see, links them, and broadcasts these links, too. For that it opens a connection to `MAILGLASS_DATABASE_URL`.

    If Redis does not answer, it takes at most a second and raises nothing. If the database does not answer, it raises
    nothing either, and the next sweep links. With a Session, do not call it: all this happens after its commit.

    Args:
        recorded: What `record_webhook` or `record_send` returned.

    Raises:
        ConfigurationError: `MAILGLASS_REDIS_URL` cannot be used.
    """
    done = list(recorded)
    messages = [message for each in done for message in each.messages]
    looks = [each.look for each in done if each.look]
    try:
        publisher = Publisher(runtime.get_redis())
        if messages:
            publisher.publish(messages)
    finally:
        links = linking.look_again(looks)
    if links:
        projector.broadcast(links, publisher.publish)


def tell_after_commit(recorded: Sequence[Recorded | RecordedDelivery]) -> None:
    """Do what `broadcast` does, and log what it raises: for callbacks after a commit, such as Django's `on_commit`."""
    try:
        broadcast(recorded)
    except ConfigurationError as error:
        logger.error("events are recorded, but their broadcasts are lost: %s", error)
