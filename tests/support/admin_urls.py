"""The URLs of Django's admin, which can be made only when Django is set up, beside Anymail's."""

from django.contrib import admin
from django.urls import include, path

urlpatterns = [path("admin/", admin.site.urls), path("", include("anymail.urls"))]
