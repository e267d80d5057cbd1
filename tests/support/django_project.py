"""Django and Anymail; our app is active only in tests that request it, on the test's database."""

import os
import subprocess
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import django
import pytest
from anymail.signals import post_send, pre_send, tracking
from django.apps import apps
from django.conf import settings
from django.core.management import call_command
from django.core.signals import setting_changed
from django.db import connections
from django.test import Client, override_settings
from sqlalchemy.engine import make_url

import anymail_webhooks
import processes
import senders
from mailglass_reconcile import runtime
from mailglass_reconcile.record import after_commit
from waiting import settle

Events = list[tuple[Any, str]]

SETTINGS = """
import os
from psycopg.conninfo import conninfo_to_dict
from mailglass_reconcile import beat_schedule
where = conninfo_to_dict(os.environ["DATABASE_URL"])
DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", "NAME": where.pop("dbname"), "OPTIONS": where}}
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "anymail", "django_celery_beat", "shop"]
if "REMOVED" not in os.environ:
    INSTALLED_APPS += ["mailglass_reconcile.contrib.django"]
EMAIL_BACKEND = "anymail.backends.test.EmailBackend"
CELERY_BEAT_SCHEDULE = beat_schedule
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ROOT_URLCONF = "shop.urls"
SECRET_KEY = "of a project in tests"
SILENCED_SYSTEM_CHECKS = [f"security.W{number:03}" for number in range(30)]
USE_TZ = True
"""
URLS = """
from django.urls import include, path
urlpatterns = [path("webhooks/", include("mailglass_reconcile.contrib.django.urls"))]
"""


@pytest.fixture(scope="session")
def anymail_django() -> None:
    """Django, set up with a database that does not exist."""
    if not settings.configured and not os.environ.get("DJANGO_SETTINGS_MODULE"):
        settings.configure(
            LOGGING_CONFIG=None,
            USE_TZ=True,
            TIME_ZONE="UTC",
            SECRET_KEY="for tests only",  # noqa: S106
            DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "nowhere"}},
            INSTALLED_APPS=[
                "django.contrib.auth",
                "django.contrib.contenttypes",
                "django.contrib.sessions",
                "django.contrib.messages",
                "django.contrib.admin",
                "anymail",
                "mailglass_reconcile.contrib.django",
            ],
        )
    django.setup()
    leave_the_app()


def leave_the_app() -> None:
    """Undo what our app has registered since it was loaded."""
    from mailglass_reconcile.contrib.django import signals  # noqa: PLC0415 - it needs the settings

    setting_changed.disconnect(dispatch_uid="mailglass_reconcile.settings")
    for signal, name in ((pre_send, "on_pre_send"), (post_send, "on_post_send"), (tracking, "on_tracking")):
        signal.disconnect(dispatch_uid=f"mailglass_reconcile.{name}")
    signals._thread().submit(connections.close_all).result()
    runtime.configure_framework()


@contextmanager
def databases_name(url: str) -> Iterator[None]:
    """Let `DATABASES["default"]` be the database of a URL, in every thread."""
    address, previous = make_url(url), dict(connections["default"].settings_dict)
    connections["default"].close()
    connections["default"].settings_dict.update(
        NAME=address.database,
        USER=address.username or "",
        PASSWORD=address.password or "",
        HOST=address.query.get("host") or address.host or "",
        PORT=address.port or "",
    )
    try:
        yield
    finally:
        connections["default"].close()
        connections["default"].settings_dict.update(previous)


@contextmanager
def another_database(**changes: Any) -> Iterator[None]:
    """Let `DATABASES["other"]` be like the default one, but for some *changes*."""
    connections.settings["other"] = {**connections.settings["default"], **changes}
    try:
        yield
    finally:
        if hasattr(connections._connections, "other"):
            connections["other"].close()
            del connections["other"]
        del connections.settings["other"]


@pytest.fixture
def app(db: Any, anymail_django: None) -> Iterator[Any]:
    """Our app on the test's database."""
    with databases_name(db.url):
        if apps.is_installed("shop"):  # the example's project, which `DJANGO_SETTINGS_MODULE` names
            call_command("migrate", "shop", verbosity=0)
        configuration = apps.get_app_config("mailglass_reconcile")
        configuration.ready()
        settle()
        after_commit.connections._backoff_until.clear()  # an earlier test may have left Django's database unreachable
        yield configuration
        settle()  # otherwise the background thread would try to reach the missing database, and back off
        leave_the_app()


@pytest.fixture
def anymail_settings(anymail_django: None) -> Iterator[None]:
    """Serve Anymail's URLs at the root, with its settings for the payloads of `anymail_webhooks`."""
    with override_settings(
        ALLOWED_HOSTS=["testserver"],
        ANYMAIL=anymail_webhooks.settings(),
        MIDDLEWARE=[],
        ROOT_URLCONF="anymail.urls",
    ):
        yield


@pytest.fixture
def backends(anymail_settings: None) -> Iterator[None]:
    """Configure Anymail's backends too."""
    import anymail_sends  # noqa: PLC0415 - it loads what only some tests need

    with override_settings(ANYMAIL={**settings.ANYMAIL, **anymail_sends.SETTINGS}):
        yield


@pytest.fixture
def new_project(empty_database_url: str, tmp_path: Path) -> dict[str, str]:
    """Write a new project, `shop`, whose URLs have our webhooks; return the environment of its processes."""
    for name, text in {"settings": SETTINGS, "shop/__init__": "", "shop/urls": URLS}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text(text)
    environment = {**os.environ, "DATABASE_URL": empty_database_url, "DJANGO_SETTINGS_MODULE": "settings"}
    environment |= {"PYTHONPATH": str(tmp_path), "MAILGLASS_WEBHOOK_SECRETS": "postmark=me:secret"}
    environment.pop("MAILGLASS_DATABASE_URL", None)
    return environment


@pytest.fixture
def manage(new_project: dict[str, str], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a command of the new project."""
    return lambda *arguments, **more: processes.run(["-m", "django", *arguments], {**new_project, **more}, cwd=tmp_path)


def as_superuser(get_response: Callable[..., Any]) -> Callable[..., Any]:
    """Log in a superuser, as a middleware."""

    def respond(request: Any) -> Any:
        from django.contrib.auth import get_user_model  # noqa: PLC0415 - it needs the settings

        request.user = get_user_model()(pk=1, username="root", is_staff=True, is_superuser=True)
        return get_response(request)

    return respond


@pytest.fixture
def admin_client(anymail_django: None) -> Iterator[Client]:
    """A client of Django's admin, logged in as a superuser."""
    backend = "django.template.backends.django.DjangoTemplates"
    processors = ["django.template.context_processors.request", "django.contrib.messages.context_processors.messages"]
    with override_settings(
        ALLOWED_HOSTS=["testserver"],
        MIDDLEWARE=["django_project.as_superuser"],
        ROOT_URLCONF="admin_urls",
        STATIC_URL="/static/",
        TEMPLATES=[{"BACKEND": backend, "APP_DIRS": True, "OPTIONS": {"context_processors": processors}}],
    ):
        yield Client()


@pytest.fixture
def post(anymail_settings: None) -> Iterator[Callable[..., Events]]:
    """Return a function that posts to Anymail's views and returns `(event, esp_name)` of each `tracking` signal in
    order.
    """
    client = Client(headers={"authorization": f"Basic {b64encode(senders.AUTH.encode()).decode()}"})
    heard: Events = []

    def receive(event: Any, esp_name: str, **_options: Any) -> None:
        heard.append((event, esp_name))

    def post(requests: Sequence[dict[str, Any]]) -> Events:
        heard.clear()
        for request in requests:
            assert client.post(**request).status_code == 200
        return list(heard)

    tracking.connect(receive)
    yield post
    tracking.disconnect(receive)
