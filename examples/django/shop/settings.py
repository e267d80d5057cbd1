"""The settings; the parts about mail come first.

The environment has DATABASE_URL, MAILGLASS_REDIS_URL, DJANGO_SECRET_KEY, and each tenant's SNS topic.
"""

import os

from psycopg.conninfo import conninfo_to_dict

from mailglass_reconcile import make_beat_schedule

EMAIL_BACKEND = "anymail.backends.amazon_ses.EmailBackend"  # region and credentials are boto3's
DEFAULT_FROM_EMAIL = "shop@example.com"

TENANTS = {name: {"ses": os.environ[f"TOPIC_{name.upper()}"]} for name in ("acme", "emca")}
MAILGLASS_TENANT = "shop.tenants.of_message"
MAILGLASS_TENANT_REQUIRED = True
FALLBACK_TENANT = "shop"  # of Django's own mail, such as password resets

CELERY_BROKER_URL = os.environ["MAILGLASS_REDIS_URL"]
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_BEAT_SCHEDULE = {
    **make_beat_schedule(dispatch=5),  # handlers run every five seconds
    # Entries of your own go here.
}

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "anymail",
    "django_celery_beat",
    "mailglass_reconcile.contrib.django",
    "shop",
]

where = conninfo_to_dict(os.environ["DATABASE_URL"])
DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", "NAME": where.pop("dbname"), "OPTIONS": where}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SECRET_KEY = os.environ["DJANGO_SECRET_KEY"]
DEBUG = bool(os.environ.get("DEBUG"))
ALLOWED_HOSTS = [".localhost", ".shop.example"]
ROOT_URLCONF = "shop.urls"
STATIC_URL = "/static/"
USE_TZ = True
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {"mailglass_reconcile": {"handlers": ["console"], "level": "INFO"}},
}
