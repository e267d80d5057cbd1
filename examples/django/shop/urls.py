"""The shop's pages, its admin, and Anymail's own webhooks."""

from django.contrib import admin
from django.urls import include, path

from shop import views

urlpatterns = [
    path("admin/", admin.site.urls),
    path("anymail/", include("anymail.urls")),
    path("orders/", views.place),
    path("orders/<int:number>/", views.show),
]
