"""What matters here: `mailglass_reconcile.contrib.django` is an installed app, and beat has its schedule.

The environment has DATABASE_URL, DJANGO_SECRET_KEY, WEBHOOK_SECRET (`user:password`) and MAILGLASS_REDIS_URL.
"""

import os

from psycopg.conninfo import conninfo_to_dict

from mailglass_reconcile import make_beat_schedule

where = conninfo_to_dict(os.environ["DATABASE_URL"])
DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", "NAME": where.pop("dbname"), "OPTIONS": where}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

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

EMAIL_BACKEND = "shop.mail.EmailBackend"  # a real shop has anymail.backends.postmark.EmailBackend
DEFAULT_FROM_EMAIL = "shop@example.com"
ANYMAIL = {"WEBHOOK_SECRET": os.environ["WEBHOOK_SECRET"]}

CELERY_BROKER_URL = os.environ["MAILGLASS_REDIS_URL"]
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_BEAT_SCHEDULE = make_beat_schedule(dispatch=5)  # handlers run every five seconds

SECRET_KEY = os.environ["DJANGO_SECRET_KEY"]
DEBUG = bool(os.environ.get("DEBUG"))
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
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
