"""What matters here: `mailglass_reconcile` is an installed app, so that `autodiscover_tasks()` finds its tasks.

The environment has MAILGLASS_DATABASE_URL, MAILGLASS_REDIS_URL and SECRET_KEY. Beat keeps its schedule in Django's
database, by django-celery-beat; `CELERY_BEAT_SCHEDULE` is what it begins with.
"""

import os
from pathlib import Path

from mailglass_reconcile import beat_schedule

SECRET_KEY = os.environ["SECRET_KEY"]
USE_TZ = True
INSTALLED_APPS = ["django.contrib.contenttypes", "django_celery_beat", "mailglass_reconcile"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("SHOP_DATABASE", Path(__file__).parent.parent / "shop.sqlite3"),
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

CELERY_BROKER_URL = os.environ["MAILGLASS_REDIS_URL"]
CELERY_RESULT_BACKEND = os.environ["MAILGLASS_REDIS_URL"]
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_BEAT_SCHEDULE = {**beat_schedule}
