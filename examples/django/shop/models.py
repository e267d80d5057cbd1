"""What the shop itself keeps."""

from django.db import models


class Order(models.Model):
    """An order, and the message that confirms it; without an id if none was sent."""

    email = models.EmailField()
    message_id = models.CharField(max_length=200, blank=True)


class Suppressed(models.Model):
    """An address that gets no more messages, in lower case."""

    email = models.EmailField(unique=True)


class Ticket(models.Model):
    """A complaint that a person has to check."""

    event_id = models.UUIDField(unique=True)
    delivery_id = models.UUIDField()
