"""What the load generator does and when: the same for the same seed."""

from __future__ import annotations

import random
import uuid
from typing import NamedTuple

EARLY, OVERLAPPING = 0.15, 0.10
"""Of the events, a quarter come before their send commits: some before it begins, some while it is open."""

OPEN_SECONDS = 0.03
"""How long a transaction stays open that overlaps with another."""

TYPES = ("delivered", "opened")
TENANTS = 10


class Job(NamedTuple):
    """One transaction: when it begins, in seconds after the start, and how long it stays open after its write."""

    at: float
    kind: str
    message: int
    number: int
    open_seconds: float


class Load(NamedTuple):
    """A load: `messages` sends with two events each, `rate` events a second in all, under ids of their own."""

    run: str
    messages: int
    rate: float
    tenants: str = "load"

    def message_id(self, message: int) -> str:
        """Return the provider's id of a message."""
        return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{self.run}/{message}"))

    def tenant(self, message: int) -> str:
        """Return the tenant of a message."""
        return f"{self.tenants}-{message % TENANTS}"

    def channels(self) -> list[str]:
        """Return the tenants of all messages."""
        return [f"{self.tenants}-{number}" for number in range(TENANTS)]


def plan(load: Load, part: int, parts: int) -> list[Job]:
    """Return the jobs of one of *parts* processes, in order of time; a send and its events are of different ones."""
    jobs: list[Job] = []
    for message in range(load.messages):
        drawn = random.Random(f"{load.run}/{message}")
        sent = 0.2 + message / (load.rate / 2)
        events, send_open = [], 0.0
        for number in range(len(TYPES)):
            share = drawn.random()
            if share < EARLY:
                events.append(Job(sent - drawn.uniform(0.01, 0.1), "event", message, number, 0.0))
            elif share < EARLY + OVERLAPPING:
                send_open = OPEN_SECONDS
                later = OPEN_SECONDS if drawn.random() < 0.5 else 0.0  # commits after the send, or before it
                events.append(Job(sent + drawn.uniform(0.005, 0.015), "event", message, number, later))
            else:
                events.append(Job(sent + OPEN_SECONDS + drawn.uniform(0.04, 0.4), "event", message, number, 0.0))
        if message % parts == part:
            jobs.append(Job(sent, "send", message, 0, send_open))
        if (message + 1) % parts == part:
            jobs += events
    return sorted(jobs)
