"""What `manage.py check` can say: by the settings, and with `--database` and before `migrate`, by the database."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import anymail
from anymail.backends.base import AnymailBaseBackend
from anymail.utils import get_anymail_setting
from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register  # noqa: A004 - Django's own names
from django.db import router
from django.utils.module_loading import import_string

from mailglass_reconcile import runtime
from mailglass_reconcile.contrib.django import database, receivers
from mailglass_reconcile.errors import ConfigurationError, MailglassReconcileError
from mailglass_reconcile.ops import checks
from mailglass_reconcile.ops.checks import ERROR, Finding, Look
from mailglass_reconcile.rules import handlers
from mailglass_reconcile.schedule import DISPATCH_TASK, SWEEP_TASK

TIMEOUT_MS = 2_000
READS_VERSION_1 = (15, 2)
"""The last version of Anymail, as far as we know, that reads only the old version of MailerSend's webhooks."""

OF_TESTS = "django.core.mail.backends.locmem.EmailBackend"
"""Django's test runner puts it in the place of the real one, and then checks."""

NO_ANYMAIL = Warning(
    "No e-mail backend is Anymail's, so sends are not recorded and no event finds its delivery.",
    hint="Set EMAIL_BACKEND to one such as anymail.backends.postmark.EmailBackend.",
    id="mailglass_reconcile.W001",
)
OTHER_IDS = Warning(
    "SENDGRID_GENERATE_MESSAGE_ID is off, so SendGrid's events name other ids than those of their sends.",
    hint="Remove it from ANYMAIL: it is on by default.",
    id="mailglass_reconcile.W002",
)
NO_SWEEPS = Warning(
    "Celery's beat schedule has no entry for sweeps, so open events stay open.",
    hint="Add the entries of mailglass_reconcile.beat_schedule to your CELERY_BEAT_SCHEDULE. If cron runs"
    " `manage.py mailglass sweep`, or the entry is in django-celery-beat's tables only, silence this check.",
    id="mailglass_reconcile.W003",
)
NO_DISPATCH = Warning(
    "Celery's beat schedule has no dispatch entry, so handlers in this project will never run.",
    hint="Add the dispatch entry from mailglass_reconcile.beat_schedule, or silence this check if cron runs"
    " `manage.py mailglass dispatch`.",
    id="mailglass_reconcile.W004",
)
MAILERSEND = Warning(
    "Anymail up to 15.2 answers version 2 of MailerSend's webhooks, the only one from 2026-12-01, with 500.",
    hint='Add path("webhooks/", include("mailglass_reconcile.contrib.django.urls")) to your urlpatterns, and enter'
    " /webhooks/mailersend at MailerSend. Silence this check when it is done.",
    id="mailglass_reconcile.W006",
)


@register
def check(**_others: Any) -> list[CheckMessage]:
    """Return what is wrong with the settings of Django, Anymail and Celery that matter here."""
    return list(_found())


@register(Tags.database)
def check_database(*, databases: Collection[str] | None = None, **_others: Any) -> list[CheckMessage]:
    """Return what the cheap checks of the doctor find, as warnings, so that none stops `migrate`."""
    try:
        asked = database.alias() in (databases or ())
        return [_as_djangos(one) for one in _findings()] if asked else []
    except ConfigurationError:  # E001 to E003 say so
        return []


def _findings() -> list[Finding]:
    try:
        with runtime.database().reading(TIMEOUT_MS) as tx:
            # Before the first `migrate` there is nothing to look at.
            return [] if tx.revision() is None else checks.cheap(Look(tx))
    except MailglassReconcileError as error:
        return [Finding("database", ERROR, str(error))]


def _as_djangos(one: Finding) -> CheckMessage:
    return Warning(f"{one.message}.", hint=one.remedy, id=f"mailglass_reconcile.{one.check}")


def _found() -> Iterator[CheckMessage]:
    yield from _usable("E001", lambda: database.wrapper(database.alias()))
    yield from _usable("E002", receivers.tenant_function)
    yield from _usable("E003", runtime.get_settings)
    if not any(backend == OF_TESTS or _is_anymails(backend) for backend in _backends()):
        yield NO_ANYMAIL
    if not get_anymail_setting("generate_message_id", esp_name="SendGrid", default=True):
        yield OTHER_IDS
    if _anymail() <= READS_VERSION_1 and any("mailersend" in backend for backend in _backends()):
        yield MAILERSEND
    if runtime.available() and not _schedules(SWEEP_TASK):
        yield NO_SWEEPS
    if handlers.types():
        if runtime.available() and not _schedules(DISPATCH_TASK):
            yield NO_DISPATCH
        yield from _elsewhere()


def _usable(number: str, look: Callable[[], object]) -> Iterator[CheckMessage]:
    try:
        look()
    except ConfigurationError as error:
        yield Error(f"{error}.", id=f"mailglass_reconcile.{number}")


def _anymail() -> tuple[int, ...]:
    return tuple(int(part) for part in anymail.__version__.split(".")[:2])


def _backends() -> set[str]:
    mailers = getattr(settings, "MAILERS", None)  # since Django 6.1
    return {mailer.get("BACKEND", "") for mailer in mailers.values()} if mailers else {settings.EMAIL_BACKEND}


def _is_anymails(backend: str) -> bool:
    try:
        return issubclass(import_string(backend), AnymailBaseBackend)
    except (ImportError, TypeError):  # Django names it when it is used
        return False


def _elsewhere() -> Iterator[CheckMessage]:
    """Name the apps whose models a handler cannot write exactly once."""
    ours = database.alias()
    models = (model for model in apps.get_models() if model._meta.managed)
    others = sorted({model._meta.app_label for model in models if router.db_for_write(model) != ours})
    if others:
        yield Warning(
            f"Handlers write exactly once only in DATABASES[{ours!r}]; models of these apps are elsewhere:"
            f" {', '.join(others)}.",
            hint="Make what a handler writes there idempotent, by event.event_id, and silence this check.",
            id="mailglass_reconcile.W005",
        )


def _schedules(task: str) -> bool:
    from celery import current_app  # noqa: PLC0415 - Celery may be missing

    schedules = (current_app.conf.beat_schedule, getattr(settings, "CELERY_BEAT_SCHEDULE", {}))
    return any(entry.get("task") == task for schedule in schedules for entry in (schedule or {}).values())
