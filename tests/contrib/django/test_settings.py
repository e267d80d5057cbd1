"""Our settings in a project's `settings.py`: they win over the environment, and `check` names what is wrong."""

import datetime as dt
import re

import pytest
from django.apps import apps
from django.core.checks import ERROR, WARNING, run_checks
from django.db import transaction
from django.test import override_settings

from django_project import leave_the_app
from mailglass_reconcile import (
    Sent,
    WebhookEvent,
    broadcast,
    configure,
    flush,
    record_send,
    record_webhook,
    runtime,
)
from mailglass_reconcile.contrib.django import connection
from mailglass_reconcile.settings import VARIABLES

pytestmark = pytest.mark.python_dependent

AT = dt.datetime(2026, 5, 1, tzinfo=dt.UTC)

VALUES = {
    "MAILGLASS_DATABASE_SCHEMA": "mail",
    "MAILGLASS_TENANT": "acme",
    "MAILGLASS_REDIS_URL": "redis://127.0.0.1:6390/1",
    "MAILGLASS_IMPORTS": "json, csv",
    "MAILGLASS_WEB_TOKEN": "0123456789abcdef",
    "MAILGLASS_WEB_SECURE_COOKIE": True,
    "MAILGLASS_WEBHOOK_SECRETS": "postmark=me:secret",
    "MAILGLASS_WEBHOOK_URL": "https://shop.example/webhooks",
    "MAILGLASS_GRACE_SECONDS": 30,
    "MAILGLASS_MAX_AGE_MINUTES": 2_880,
    "MAILGLASS_BATCH_SIZE": 100,
    "MAILGLASS_SWEEP_SECONDS": 60.5,
    "MAILGLASS_SILENCE_HOURS": 48,
    "MAILGLASS_RETENTION_SUCCEEDED_DAYS": None,
    "MAILGLASS_RETENTION_DEAD_DAYS": 30,
    "MAILGLASS_RETENTION_FAILED_DAYS": 40,
    "MAILGLASS_RETENTION_EVENTS_DAYS": 400,
    "MAILGLASS_RETENTION_DELIVERIES_DAYS": 1_000,
}
ENVIRONMENT = {
    "MAILGLASS_DATABASE_SCHEMA": "other",
    "MAILGLASS_WEB_SECURE_COOKIE": "false",
    "MAILGLASS_RETENTION_EVENTS_DAYS": "700",
    "MAILGLASS_RETENTION_DELIVERIES_DAYS": "900",
    "MAILGLASS_MAX_AGE_MINUTES": "1440",
}


@pytest.fixture
def project(anymail_django):
    """Our app reads Django's settings, without a database."""
    configuration = apps.get_app_config("mailglass_reconcile")
    configuration.ready()
    yield configuration
    leave_the_app()


@pytest.fixture
def messages(project):
    """Return a function that returns our messages of `manage.py check` about some settings."""

    def run(**changed):
        good = {"EMAIL_BACKEND": "anymail.backends.postmark.EmailBackend"}
        silenced = ["mailglass_reconcile.W002"]
        with override_settings(**good, SILENCED_SYSTEM_CHECKS=silenced, **changed):
            return [
                message
                for message in run_checks()
                if message.id.startswith("mailglass_reconcile.") and not message.is_silenced()
            ]

    return run


def read(field):
    """Return a setting's value as Python has it."""
    value = getattr(runtime.get_settings(), field)
    return value.get_secret_value() if hasattr(value, "get_secret_value") else value


@pytest.mark.parametrize("name", sorted(VARIABLES.keys() - {"MAILGLASS_DATABASE_URL"}))
def test_each_variable_is_a_setting_of_djangos_too_which_wins_over_the_environment(project, monkeypatch, name):
    """A test may change it with `override_settings`, and gets the environment's back."""
    field, value = VARIABLES[name], VALUES[name]
    for variable, text in ENVIRONMENT.items():
        monkeypatch.setenv(variable, text)
    project.ready()  # as a process that starts with these variables
    before = read(field)
    assert before != value
    with override_settings(**{name: value}):
        assert read(field) == value
        with override_settings(**{name: ""}):
            assert read(field) == before, "as an empty variable, an empty string is no value"
    assert read(field) == before


def test_the_database_is_that_of_databases(project, monkeypatch):
    monkeypatch.delenv("MAILGLASS_DATABASE_URL", raising=False)
    with override_settings(MAILGLASS_DATABASE_URL="postgresql://127.0.0.1/elsewhere"):
        assert runtime.get_settings().database_url is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"MAILGLASS_GRACE_SECONDS": "soon"}, ["MAILGLASS_GRACE_SECONDS: "]),
        ({"MAILGLASS_GRACE_SECONDS": None}, ["MAILGLASS_GRACE_SECONDS: "]),
        ({"MAILGLASS_BATCH_SIZE": 0, "MAILGLASS_WEB_SECURE_COOKIE": 7},
         ["MAILGLASS_BATCH_SIZE: ", "MAILGLASS_WEB_SECURE_COOKIE: "]),
        ({"MAILGLASS_DATABASE_SCHEMA": "a schema"}, ["MAILGLASS_DATABASE_SCHEMA: use a schema"]),
        ({"MAILGLASS_RETENTION_DELIVERIES_DAYS": 10}, ["MAILGLASS_RETENTION_DELIVERIES_DAYS: set "]),
        ({"MAILGLASS_IMPORTS": ["json"]}, ["MAILGLASS_IMPORTS: "]),
        ({"MAILGLASS_IMPORTS": "no_such_module", "MAILGLASS_WEB_TOKEN": "short", "MAILGLASS_REDIS_URL": "localhost:1"},
         ["MAILGLASS_IMPORTS: ", "MAILGLASS_WEB_TOKEN: ", "MAILGLASS_REDIS_URL "]),
        ({"MAILGLASS_WEBHOOK_SECRETS": "postmark=me:canary,postmrk=me:canary"}, ["MAILGLASS_WEBHOOK_SECRETS: "]),
    ],
    ids=str,
)  # fmt: skip
def test_a_check_names_each_value_that_cannot_be_used(messages, changed, words):
    """It never quotes one."""
    errors = messages(**changed)
    assert {(message.level, message.id) for message in errors} == {(ERROR, "mailglass_reconcile.E003")}
    text = " ".join(message.msg for message in errors)
    assert [word for word in words if word not in text] == []
    assert text.count("MAILGLASS_") >= len(words)
    assert not [value for value in ("soon", "a schema,", "short", "localhost", "canary") if f" {value}" in text]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("MAILGLASS_RETENTION_EVENT_DAYS", "Did you mean MAILGLASS_RETENTION_EVENTS_DAYS?"),
        ("MAILGLASS_TENANT_REQUIERD", "Did you mean MAILGLASS_TENANT_REQUIRED?"),
        ("MAILGLASS_DATABASE_ALAIS", "Did you mean MAILGLASS_DATABASE_ALIAS?"),
        ("MAILGLASS_COLOUR_OF_PAPER", "Remove it, or give it another prefix."),
    ],
)
def test_a_check_names_a_setting_that_does_not_exist_with_the_nearest_one(messages, name, hint):
    (warning,) = messages(**{name: "canary"})
    assert (warning.level, warning.id) == (WARNING, "mailglass_reconcile.W004")
    assert (warning.msg, warning.hint) == (f"There is no setting {name}, so it has no effect.", hint)


def test_a_check_says_that_djangos_databases_replace_our_url(messages):
    (warning,) = messages(MAILGLASS_DATABASE_URL="postgresql://me:canary@127.0.0.1/elsewhere")
    assert (warning.level, warning.id) == (WARNING, "mailglass_reconcile.W005")
    assert warning.msg == "MAILGLASS_DATABASE_URL has no effect: the tables are in DATABASES['default']."
    assert "MAILGLASS_DATABASE_ALIAS" in warning.hint


def test_the_tables_of_models_follow_the_schema(project):
    """A test changes it while the models are loaded, as with any other setting."""
    from mailglass_reconcile.contrib.django.models import Delivery, Event, OpenOrphan  # noqa: PLC0415

    def read_schemas():
        queries = [
            Delivery.objects.with_state().filter(recipient="ada@example.com").order_by("pk"),
            Event.objects.with_delivery().filter(stored_delivery__tenant_id="acme"),
            OpenOrphan.objects.select_related("event__stored_delivery").filter(event__type="opened"),
        ]
        return set(re.findall(r'"(\w+)"\."mailglass_', " ".join(str(query.query) for query in queries)))

    assert read_schemas() == {"public"}
    with override_settings(MAILGLASS_DATABASE_SCHEMA="Mail_Glass"):
        assert read_schemas() == {"Mail_Glass"}
    assert read_schemas() == {"public"}


def test_updates_are_published_to_the_redis_of_the_setting(app, db, monkeypatch, redis_url, subscriber):
    monkeypatch.setenv("MAILGLASS_REDIS_URL", "redis://127.0.0.1:1/0")
    configure()  # Django's settings, not those of the test's database
    with override_settings(MAILGLASS_REDIS_URL=redis_url):
        with connection() as borrowed:
            record_send(borrowed, provider="postmark", sent=[Sent(recipient="ada@example.com", message_id="m-1")])
        with transaction.atomic(), connection() as borrowed:
            event = WebhookEvent(type="delivered", occurred_at=AT, provider_event_id="e-1", message_id="m-1")
            recorded = record_webhook(borrowed, provider="postmark", events=[event])
            transaction.on_commit(lambda: broadcast(recorded))
        assert flush()
    assert b'"type":"delivered"' in subscriber.get_message(timeout=5)["data"]
