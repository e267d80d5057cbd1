"""What the shop itself keeps."""

from django.db import models


class Order(models.Model):
    """An order, and the message that confirms it; without an id if none was sent."""

    tenant = models.CharField(max_length=50)
    email = models.EmailField()
    message_id = models.CharField(max_length=200, blank=True)


class Suppressed(models.Model):
    """An address that gets no more messages of a tenant, in lower case."""

    tenant = models.CharField(max_length=50)
    email = models.EmailField()

    class Meta:
        """One row for each address."""

        constraints = (models.UniqueConstraint(fields=["tenant", "email"], name="shop_suppressed_once"),)
