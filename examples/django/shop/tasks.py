"""The shop's own Celery tasks."""

from celery import shared_task

from shop.models import Ticket


@shared_task
def open_ticket(event_id: str, delivery_id: str) -> None:
    """Open a ticket, once, however often this is called."""
    Ticket.objects.get_or_create(event_id=event_id, defaults={"delivery_id": delivery_id})
