"""`manage.py check`: what is missing in the settings, said without asking a database."""

import pytest
from celery import Celery, current_app
from django.core.checks import run_checks
from django.test import override_settings
from django_project import another_database

from mailglass_reconcile import beat_schedule

GOOD = {
    "EMAIL_BACKEND": "anymail.backends.postmark.EmailBackend",
    "CELERY_BEAT_SCHEDULE": {"sweeps": beat_schedule["mailglass-reconcile"]},
}


def found():
    """Return the ids of what our checks say; none of them connects, since the database is nowhere."""
    return [one.id for one in run_checks() if one.id.startswith("mailglass_reconcile.")]


@pytest.fixture
def other_database(anymail_django):
    """A database that is not PostgreSQL."""
    with another_database(ENGINE="django.db.backends.sqlite3"):
        yield


@pytest.fixture(autouse=True)
def bare_celery():
    """A Celery app without a schedule, whatever app another test has left as the current one."""
    before = current_app._get_current_object()
    Celery("bare").set_current()
    yield
    before.set_current()


@pytest.mark.usefixtures("other_database")
@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, []),
        ({"EMAIL_BACKEND": "django.core.mail.backends.locmem.EmailBackend"}, []),
        ({"EMAIL_BACKEND": "django.core.mail.backends.smtp.EmailBackend"}, ["W001"]),
        ({"EMAIL_BACKEND": "nowhere.EmailBackend"}, ["W001"]),
        ({"MAILERS": {"default": {"BACKEND": "anymail.backends.test.EmailBackend"}}, "EMAIL_BACKEND": "x.Y"}, []),
        ({"ANYMAIL": {"SENDGRID_GENERATE_MESSAGE_ID": False}}, ["W002"]),
        ({"ANYMAIL_SENDGRID_GENERATE_MESSAGE_ID": False}, ["W002"]),
        ({"CELERY_BEAT_SCHEDULE": {"other": {"task": "shop.other", "schedule": 1}}}, ["W003"]),
        ({"MAILGLASS_DATABASE_ALIAS": "absent"}, ["E001"]),
        ({"MAILGLASS_DATABASE_ALIAS": "other"}, ["E001"]),
        ({"MAILGLASS_TENANT": "shop.nowhere.tenant"}, ["E002"]),
        ({"MAILGLASS_TENANT": 5}, ["E002"]),
        ({"MAILGLASS_TENANT": "acme"}, []),
        ({"MAILGLASS_TENANT": len}, []),
    ],
    ids=str,
)
def test_a_check_says_what_is_missing_and_nothing_else(anymail_django, changed, expected):
    """Each of them can be silenced by its id."""
    with override_settings(**{**GOOD, **changed}):
        assert found() == [f"mailglass_reconcile.{number}" for number in expected]


def test_a_setting_of_the_environment_that_cannot_be_used_is_named(anymail_django, monkeypatch):
    """At the start, and not at the first mail."""
    monkeypatch.setenv("MAILGLASS_GRACE_SECONDS", "soon")
    with override_settings(**GOOD):
        (one,) = [one for one in run_checks() if one.id == "mailglass_reconcile.E003"]
    assert "MAILGLASS_GRACE_SECONDS" in one.msg
