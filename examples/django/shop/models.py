"""What the shop itself keeps."""

from django.db import models


class Order(models.Model):
    """An order, and the message that confirms it."""

    email = models.EmailField()
    message_id = models.CharField(max_length=200, blank=True)
