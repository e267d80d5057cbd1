"""Handlers whose effects are counted, for dispatchers that are killed: in a process, by `MAILGLASS_IMPORTS`.

`steady` writes through the connection. `flaky` writes, too, and fails 30 % of the time. With `HANDLED_KILLS=p` it
kills its process with that probability, before or after it has written. On its first attempt, the event of the message
`m-1` always fails, so that one is tried alone later.
"""

from __future__ import annotations

import os
import random
import signal

import sqlalchemy as sa

from handling import leave_effect
from mailglass_reconcile import DeliveryEvent, on_event

KILLS = float(os.environ.get("HANDLED_KILLS", "0"))


@on_event("*", name="steady")
def steady(connection: sa.Connection, event: DeliveryEvent) -> None:
    """Leave an effect."""
    leave_effect("steady", connection, event)


@on_event("*", name="flaky")
def flaky(connection: sa.Connection, event: DeliveryEvent) -> None:
    """Leave an effect, unless it fails or its process is killed."""
    if random.random() < KILLS / 2:
        os.kill(os.getpid(), signal.SIGKILL)
    leave_effect("flaky", connection, event)
    if random.random() < KILLS / 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if (random.random() < 0.3 and KILLS) or (event.message_id, event.attempt) == ("m-1", 1):
        raise ValueError(event.recipient)
