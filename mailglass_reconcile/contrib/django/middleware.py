"""The events of one webhook are recorded together, before it is answered: Anymail hands them over one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anymail.exceptions import AnymailError
from anymail.webhooks.base import AnymailCoreWebhookView
from django.conf import settings
from django.db import connections, transaction
from django.http import HttpResponse
from django.utils.deprecation import MiddlewareMixin

from mailglass_reconcile.contrib.django import receivers

PATH = f"{__name__}.WebhookMiddleware"


def install() -> None:
    """Put it behind all others; a second call changes nothing."""
    if PATH not in settings.MIDDLEWARE:
        settings.MIDDLEWARE = [*settings.MIDDLEWARE, PATH]


class WebhookMiddleware(MiddlewareMixin):
    """Calls Anymail's views itself, and passes every other view by."""

    def process_view(
        self, request: Any, view: Callable[..., Any], arguments: list[Any], keywords: dict[str, Any]
    ) -> Any | None:
        """Return the answer to a webhook after its events were recorded; if that fails, the provider sends it again."""
        view_class = getattr(view, "view_class", None)
        if not (isinstance(view_class, type) and issubclass(view_class, AnymailCoreWebhookView)):
            return None

        def recording() -> Any:
            with receivers.together():
                try:
                    return view(request, *arguments, **keywords)
                except AnymailError:  # the signature is not right, or the address is that of another webhook
                    raise
                except Exception:
                    if _recorded_without_anymail(view, request):
                        return HttpResponse()
                    raise

        return _in_transactions(recording, getattr(view, "_non_atomic_requests", ()))()


def _recorded_without_anymail(view: Any, request: Any) -> bool:
    """Record a request that is signed and that Anymail fails to read, and return whether it was one."""
    found = view.view_class(**view.view_initkwargs)
    try:
        found.run_validators(request)
    except Exception:  # a validator may fail on what a stranger has sent
        return False
    try:
        found.parse_events(request)
    except Exception:  # a fault of the reading can be anything
        return receivers.record_what_anymail_cannot_read(found.esp_name, request.body, request.headers)
    return False


def _in_transactions(action: Callable[[], Any], without: Any) -> Callable[[], Any]:
    """Return *action* in the transactions of `ATOMIC_REQUESTS`, as Django would call the view."""
    for alias, given in connections.settings.items():
        if given["ATOMIC_REQUESTS"] and alias not in without:
            action = transaction.atomic(using=alias)(action)
    return action
