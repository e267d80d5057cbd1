"""What one line in INSTALLED_APPS costs a process that neither sends nor receives."""

import pytest

import processes

START = """
import sys
from django.conf import settings
settings.configure(
    USE_TZ=True, SECRET_KEY="x", ROOT_URLCONF="urls", SILENCED_SYSTEM_CHECKS=["mailglass_reconcile.W002"],
    MAILGLASS_WEBHOOK_SECRETS={"postmark": "me:secret", "mailgun": "signing-key"},
    EMAIL_BACKEND="anymail.backends.postmark.EmailBackend",
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "nowhere"}},
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions",
                    "django.contrib.messages", "django.contrib.admin", "anymail", "mailglass_reconcile.contrib.django"],
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True, "OPTIONS": {
        "context_processors": ["django.template.context_processors.request",
                               "django.contrib.auth.context_processors.auth",
                               "django.contrib.messages.context_processors.messages"]}}],
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware",
                "django.contrib.auth.middleware.AuthenticationMiddleware",
                "django.contrib.messages.middleware.MessageMiddleware"],
    LOGGING={"version": 1, "handlers": {"console": {"class": "logging.StreamHandler", "stream": sys.stdout}},
             "root": {"level": "INFO", "handlers": ["console"]}},
)
import django
django.setup()
from django.core.management import call_command
from django.urls import include, path
from mailglass_reconcile.contrib.django.views import webhook_view
sys.modules["urls"] = type(sys)("urls")
sys.modules["urls"].urlpatterns = [
    path("webhooks/", include("mailglass_reconcile.contrib.django.urls")),
    path("of-acme/<provider>", webhook_view(tenant="acme", secrets={"postmark": "me:acme"})),
]
call_command("check", fail_level="WARNING")
heavy = {"alembic", "celery", "cryptography", "redis", "sqlalchemy"}
print("loaded:", *sorted(heavy.intersection(sys.modules)))
"""


@pytest.mark.slow
def test_setup_and_check_load_no_library_for_writing_or_migrating_and_log_nothing():
    """Alembic alone takes a third of the time of `manage.py check`, and logs seven lines at INFO."""
    result = processes.run(["-c", START], forked=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[1:] == ["loaded:"]
    assert result.stdout.startswith("System check identified no issues (1 silenced)")
