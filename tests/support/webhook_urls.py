"""The URLs of a project with our webhook view; importing it requires that Django is set up."""

from django.urls import include, path

urlpatterns = [path("webhooks/", include("mailglass_reconcile.contrib.django.urls"))]
