"""What the shop does when an event reaches its delivery.

A handler runs on Django's connection in `atomic()`. What it writes by a model is committed together with the note that
it has run, so it happens exactly once. Everything else, such as a task, happens at least once.
"""

from anymail.exceptions import AnymailCancelSend
from anymail.signals import pre_send
from django.core.mail import EmailMessage
from django.dispatch import receiver

from mailglass_reconcile import DeliveryEvent, on_event
from shop import tenants
from shop.models import Suppressed


@on_event("bounced", "complained")
def suppress(_connection: object, event: DeliveryEvent) -> None:
    """Write down that an address gets no more messages; a soft bounce, as of a full mailbox, does not count."""
    if event.recipient and (event.type == "complained" or event.bounce == "hard"):
        Suppressed.objects.get_or_create(tenant=event.tenant_id, email=event.recipient.lower())


@receiver(pre_send)
def skip_suppressed(message: EmailMessage, **_kwargs: object) -> None:
    """Cancel a message to an address that is suppressed."""
    addresses = [address.lower() for address in message.recipients()]
    if Suppressed.objects.filter(tenant=tenants.of_message(message), email__in=addresses).exists():
        raise AnymailCancelSend
