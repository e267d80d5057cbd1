"""The shop's pages, its admin, and the address of webhooks."""

from django.conf import settings
from django.contrib import admin
from django.urls import path, re_path

from mailglass_reconcile.contrib.django.views import webhook_view
from shop import tenants, views

urlpatterns = [
    path("admin/", admin.site.urls),
    path("orders/", views.place),
    path("orders/<int:number>/", views.show),
    re_path(
        r"^webhooks/(?P<provider>[^/]+)/?$",
        webhook_view(tenant=tenants.of_request, secrets=settings.TENANTS),
    ),
]
