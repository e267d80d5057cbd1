"""Handlers whose effects are counted, for dispatchers that are killed; loaded by `MAILGLASS_IMPORTS`.

`steady` writes through the connection. `flaky` writes, too, and fails 30 % of the time. With `HANDLED_KILLS=p` it
kills its process with that probability, before or after it has written. On its first attempt, the event of the message
`m-1` always fails, so that one is tried alone later. With `HANDLED_DJANGO` handlers work on Django's connection, and
`orm` writes by Django's own cursor.
"""

from __future__ import annotations

import os
import random
import signal

import django
import sqlalchemy as sa
from django.conf import settings
from django.db import connection as djangos
from sqlalchemy.engine import make_url

from handling import leave_effect
from mailglass_reconcile import DeliveryEvent, on_event

KILLS = float(os.environ.get("HANDLED_KILLS", "0"))


@on_event("*", name="steady")
def steady(connection: sa.Connection, event: DeliveryEvent) -> None:
    """Write an effect."""
    leave_effect("steady", connection, event)


@on_event("*", name="flaky")
def flaky(connection: sa.Connection, event: DeliveryEvent) -> None:
    """Leave an effect, unless it fails or kills its process."""
    if random.random() < KILLS / 2:
        os.kill(os.getpid(), signal.SIGKILL)
    leave_effect("flaky", connection, event)
    if random.random() < KILLS / 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if (random.random() < 0.3 and KILLS) or (event.message_id, event.attempt) == ("m-1", 1):
        raise ValueError(event.recipient)


def write_by_django(_connection: sa.Connection, event: DeliveryEvent) -> None:
    """Leave an effect through Django's own cursor."""
    with djangos.cursor() as cursor:
        cursor.execute("INSERT INTO witness.effects VALUES (%s, %s)", ["orm", event.event_id])


if "HANDLED_DJANGO" in os.environ:
    url = make_url(os.environ["MAILGLASS_DATABASE_URL"])
    place = {"NAME": url.database, "USER": url.username, "HOST": url.host or url.query["host"], "PORT": url.port or ""}
    settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "PASSWORD": url.password or "", **place}},
        INSTALLED_APPS=["django.contrib.contenttypes", "anymail", "mailglass_reconcile.contrib.django"],
        SECRET_KEY="for tests only",  # noqa: S106
        USE_TZ=True,
    )
    django.setup()
    on_event("*", name="orm")(write_by_django)
