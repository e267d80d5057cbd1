"""The URLs of Django's admin beside Anymail's; importing it requires that Django is set up."""

from django.contrib import admin
from django.urls import include, path

urlpatterns = [path("admin/", admin.site.urls), path("", include("anymail.urls"))]
