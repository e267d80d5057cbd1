"""The beginning of a program that runs Django with our application on the database of MAILGLASS_DATABASE_URL."""

SETUP = """
import django, os, sys
from django.conf import settings
from sqlalchemy.engine import make_url
url = make_url(os.environ.pop("MAILGLASS_DATABASE_URL"))
settings.configure(
    USE_TZ=True,
    INSTALLED_APPS=["django.contrib.contenttypes", "mailglass_reconcile.contrib.django"],
    DATABASES={"default": {
        "ENGINE": "django.db.backends.postgresql", "NAME": url.database, "USER": url.username or "",
        "PASSWORD": url.password or "", "HOST": url.query.get("host") or url.host or "", "PORT": url.port or "",
    }},
)
django.setup()
from django.core.management import call_command
"""
