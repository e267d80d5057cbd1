"""A Django project for gunicorn: our webhook view, and a page that takes 50 ms; SNS's server is slow.

`TEST_CERTIFICATES` names a file with the certificates that it has. Others take as long as a fetch may.
"""

import json
import os
import time
from pathlib import Path

import django
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.urls import include, path
from sqlalchemy.engine import make_url

from mailglass_reconcile.providers import sns

_URL = make_url(os.environ["MAILGLASS_DATABASE_URL"])
PAGE_SECONDS, FETCH_SECONDS = 0.05, 0.5


def fetch(url: str) -> bytes:
    """Return the certificate at a URL."""
    certificates = json.loads(Path(os.environ["TEST_CERTIFICATES"]).read_text())
    if url not in certificates:
        time.sleep(sns.TIMEOUT_SECONDS)
        raise TimeoutError
    time.sleep(FETCH_SECONDS)
    return certificates[url].encode()


def page(request: HttpRequest) -> HttpResponse:
    """Answer another page of the site."""
    time.sleep(PAGE_SECONDS)
    return HttpResponse("page")


settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": _URL.database,
            "USER": _URL.username or "",
            "HOST": _URL.query.get("host") or _URL.host or "",
            "PORT": _URL.port or "",
        }
    },
    INSTALLED_APPS=["mailglass_reconcile.contrib.django"],
    MIDDLEWARE=[],
    ROOT_URLCONF="gunicorn_site",
)
sns.fetch = fetch
django.setup()
urlpatterns = [path("webhooks/", include("mailglass_reconcile.contrib.django.urls")), path("page", page)]

from django.core.wsgi import get_wsgi_application  # noqa: E402 - it needs the settings

import mailglass_reconcile.contrib.django.receiving  # noqa: E402, F401 - once, and not in each worker

application = get_wsgi_application()
