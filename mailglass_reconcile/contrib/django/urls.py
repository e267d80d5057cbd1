"""URLs of the webhooks: include them with `path("webhooks/", include("mailglass_reconcile.contrib.django.urls"))`."""

from __future__ import annotations

from django.urls import re_path

from mailglass_reconcile.contrib.django.views import webhook_view

urlpatterns = [re_path(r"^(?P<provider>[^/]+)/?$", webhook_view(), name="mailglass_reconcile_webhook")]
