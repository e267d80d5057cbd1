"""What the shop does when an event reaches its delivery; what a handler writes happens once per event.

A handler runs on Django's connection in `atomic()`. What it writes by a model is committed together with the note that
it has run, so it happens exactly once. Everything else, such as a task, happens at least once.
"""

from typing import Any

from anymail.exceptions import AnymailCancelSend
from anymail.signals import pre_send
from django.core.mail import EmailMessage
from django.dispatch import receiver

from mailglass_reconcile import DeliveryEvent, on_event
from shop import tasks
from shop.models import Suppressed


@on_event("bounced", "complained")
def suppress(_connection: object, event: DeliveryEvent) -> None:
    """Write down that an address gets no more messages; a soft bounce, as of a full mailbox, does not count."""
    if event.recipient and (event.type == "complained" or event.bounce == "hard"):
        Suppressed.objects.get_or_create(email=event.recipient.lower())


@on_event("complained")
def ask_for_ticket(_connection: object, event: DeliveryEvent) -> None:
    """Enqueue a task; if the broker is down, this raises, and is tried again later.

    The task may run twice, and before this transaction has committed. So it gets ids only, and the event's id tells it
    what it has done already. `transaction.on_commit` would lose the task if this process dies after the commit.
    """
    tasks.open_ticket.delay(str(event.event_id), str(event.delivery_id))


@receiver(pre_send)
def skip_suppressed(message: EmailMessage, **_kwargs: Any) -> None:
    """Cancel a message to an address that is suppressed."""
    if Suppressed.objects.filter(email__in=[address.lower() for address in message.recipients()]).exists():
        raise AnymailCancelSend
