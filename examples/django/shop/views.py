"""Placing an order, which sends a message; and looking at the result."""

from anymail.message import AnymailMessage
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from mailglass_reconcile.contrib.django.models import Delivery
from shop import tenants
from shop.models import Order


@csrf_exempt  # so that curl can order
@require_POST
@transaction.atomic
def place(request: HttpRequest) -> HttpResponse:
    """Keep an order and confirm it; `mailglass_reconcile` records the send in the same transaction."""
    tenant = _tenant(request)
    order = Order.objects.create(tenant=tenant, email=request.POST["email"])
    message = AnymailMessage("Your order", f"Thank you for order {order.pk}.", to=[order.email])
    message.metadata = {"tenant": tenant}
    message.esp_extra = {"ConfigurationSetName": tenant}
    message.send()
    order.message_id = message.anymail_status.message_id or ""
    order.save()
    return JsonResponse({"order": order.pk, "message_id": order.message_id})


def show(request: HttpRequest, number: int) -> HttpResponse:
    """Say what is known of an order's message."""
    order = get_object_or_404(Order, pk=number, tenant=_tenant(request))
    sent = Delivery.objects.with_state().filter(tenant_id=order.tenant, provider_message_id=order.message_id)
    delivery = sent.first() if order.message_id else None
    status, reason = (delivery.state, delivery.reason) if delivery else ("not sent", None)
    return JsonResponse({"order": order.pk, "status": status, "reason": reason})


def _tenant(request: HttpRequest) -> str:
    tenant = tenants.of_request(request)
    if tenant is None:
        raise Http404
    return tenant
