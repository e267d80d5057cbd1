"""`path("webhooks/", include("mailglass_reconcile.contrib.django.urls"))`: one address for each provider."""

from __future__ import annotations

from django.urls import re_path

from mailglass_reconcile.contrib.django.views import webhook

urlpatterns = [re_path(r"^(?P<provider>[^/]+)/?$", webhook, name="mailglass_reconcile_webhook")]
