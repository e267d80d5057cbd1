"""The URLs of a project with our address for webhooks, which can be made only when Django is set up."""

from django.urls import include, path

urlpatterns = [path("webhooks/", include("mailglass_reconcile.contrib.django.urls"))]
