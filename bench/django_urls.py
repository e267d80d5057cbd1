"""The addresses of `bench.django_process` with our app: Anymail's and our own."""

from django.urls import include, path

urlpatterns = [
    path("", include("anymail.urls")),
    path("webhooks/", include("mailglass_reconcile.contrib.django.urls")),
]
