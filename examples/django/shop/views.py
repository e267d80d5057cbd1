"""Placing an order, which sends a message; and looking at the result."""

from django.core.mail import EmailMessage
from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from mailglass_reconcile.contrib.django.models import Delivery
from shop.models import Order


@csrf_exempt  # so that curl can order
@require_POST
@transaction.atomic
def place(request: HttpRequest) -> HttpResponse:
    """Keep an order and confirm it; `mailglass_reconcile` records the send in the same transaction."""
    order = Order.objects.create(email=request.POST["email"])
    message = EmailMessage("Your order", f"Thank you for order {order.pk}.", to=[order.email])
    message.send()
    order.message_id = message.anymail_status.message_id or ""
    order.save()
    return JsonResponse({"order": order.pk, "message_id": order.message_id})


def show(_request: HttpRequest, number: int) -> HttpResponse:
    """Say what is known of an order's message."""
    order = get_object_or_404(Order, pk=number)
    delivery = Delivery.objects.with_state().filter(provider_message_id=order.message_id).first()
    status, reason = (delivery.state, delivery.reason) if delivery else ("not sent yet", None)
    return JsonResponse({"order": order.pk, "status": status, "reason": reason})
