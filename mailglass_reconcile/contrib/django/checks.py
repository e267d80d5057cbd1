"""System checks for `manage.py check`: of the settings, and with `--database` and before `migrate` of the database.

Nothing here is an error because of a database or of what a deployment lacks: Django's `migrate`, `test` and `runserver`
would end. `check --deploy` makes errors of the findings that lose or delay events.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from copy import copy
from typing import TYPE_CHECKING, Any

import anymail
import django
from anymail.backends.base import AnymailBaseBackend
from anymail.utils import get_anymail_setting
from django.apps import apps
from django.conf import settings
from django.core.checks import ERROR, CheckMessage, Error, Tags, Warning, register  # noqa: A004 - Django's own names
from django.db import DEFAULT_DB_ALIAS, router
from django.utils.module_loading import import_string
from django.utils.version import get_version_tuple

from mailglass_reconcile import runtime
from mailglass_reconcile.contrib.django import mounted, project
from mailglass_reconcile.contrib.django.views import WebhookView
from mailglass_reconcile.errors import ConfigurationError, MailglassReconcileError
from mailglass_reconcile.rules import handlers
from mailglass_reconcile.schedule import DISPATCH_TASK, SWEEP_TASK

if TYPE_CHECKING:
    from mailglass_reconcile.ops.checks import Finding

TIMEOUT_MS = 2_000
READS_MAILERS = django.VERSION >= (6, 1)
READS_VERSION_1 = (15, 2)
"""The last known version of Anymail that reads only version 1 of MailerSend's webhooks."""

TEST_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
"""The backend with which Django's test runner replaces the real one before it checks."""

NO_TENANT = Error(
    "MAILGLASS_TENANT_REQUIRED is set and MAILGLASS_TENANT is not, so every mail is refused.",
    hint="Set MAILGLASS_TENANT to a function that returns the tenant of a message.",
    id="mailglass_reconcile.E005",
)
NO_ANYMAIL = Warning(
    "No e-mail backend is Anymail's, so sends are not recorded and events stay unlinked.",
    hint="Set EMAIL_BACKEND, or since Django 6.1 MAILERS, to one of Anymail's, such as"
    " anymail.backends.postmark.EmailBackend.",
    id="mailglass_reconcile.W001",
)
MAILERS_NOT_READ = Warning(
    f"Django {django.get_version()} does not read MAILERS, so mail is not sent by the backend there, nor recorded.",
    hint="Set EMAIL_BACKEND to that backend in place of MAILERS, which is read since Django 6.1. Has pip installed an"
    " older Django beside another package, such as django-celery-beat 2.9?",
    id="mailglass_reconcile.W001",
)
OTHER_IDS = Warning(
    "SENDGRID_GENERATE_MESSAGE_ID is off, so SendGrid's events carry ids that differ from those of the sends and cannot"
    " be linked.",
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
    "Anymail up to 15.2 answers version 2 of MailerSend's webhooks, the only one since 2026-12-01, with 500.",
    hint='Add path("webhooks/", include("mailglass_reconcile.contrib.django.urls")) to your urlpatterns, enter'
    " /webhooks/mailersend at MailerSend, and remove Anymail's URLs, or silence this check.",
    id="mailglass_reconcile.W006",
)
NO_SECRETS = Warning(
    "The URLs of the webhooks are mounted, and there is no secret, so every webhook is answered with 503.",
    hint="Set MAILGLASS_WEBHOOK_SECRETS, in the environment or in Django's settings, to each provider's secret.",
    id="mailglass_reconcile.W007",
)
NOT_MIGRATED = "the database is not migrated, so nothing can be recorded or linked"

_serious_warnings: dict[str, list[CheckMessage]] = {}
"""What the last run of each check found that is an error of a deployment."""


@register
def check_settings(**_kwargs: Any) -> list[CheckMessage]:
    """Return the problems in the settings of Django, Anymail and Celery."""
    problems = list(_settings_problems())
    _serious_warnings["settings"] = [problem for problem in problems if problem.id == NO_SECRETS.id]
    return problems


@register(Tags.database)
def check_database(*, databases: Collection[str] | None = None, **_kwargs: Any) -> list[CheckMessage]:
    """Return the findings of the doctor's fast checks, as warnings, so that none stops `migrate`."""
    try:
        findings = _run_fast_checks() if project.alias() in (databases or ()) else []
    except ConfigurationError:  # E001 to E003 report it
        findings = []
    problems = [(finding.status, _to_check_message(finding)) for finding in findings]
    _serious_warnings["database"] = [problem for status, problem in problems if status == "error"]
    return [problem for _, problem in problems]


@register(deploy=True)
def check_deployed_settings(**_kwargs: Any) -> list[CheckMessage]:
    """Make errors of the serious warnings about settings: Django runs the checks of a deployment after all others."""
    return _make_errors("settings")


@register(Tags.database, deploy=True)
def check_deployed_database(**_kwargs: Any) -> list[CheckMessage]:
    """Make errors of the doctor's errors, in the same way; since Django 6.1, only `--database` runs this."""
    return _make_errors("database")


def _make_errors(kind: str) -> list[CheckMessage]:
    for problem in _serious_warnings.get(kind, ()):
        problem.level = ERROR
    return []


def _run_fast_checks() -> list[Finding]:
    from mailglass_reconcile.ops import checks  # noqa: PLC0415 - loading it takes long

    try:
        with runtime.database().reading(TIMEOUT_MS) as tx:
            if tx.revision() is None:
                return [checks.Finding("schema", checks.ERROR, NOT_MIGRATED, f"run `{_migrate_command()}`")]
            findings = checks.run_fast(checks.CheckContext(tx))
    except MailglassReconcileError as error:
        return [checks.Finding("database", checks.ERROR, str(error))]
    # Django's test runner checks its new database, in which nothing has swept.
    return [finding for finding in findings if finding.check != "sweeps" or TEST_BACKEND not in _backends()]


def _migrate_command() -> str:
    alias = project.alias()
    return "manage.py migrate" + (f" --database={alias}" if alias != DEFAULT_DB_ALIAS else "")


def _to_check_message(finding: Finding) -> CheckMessage:
    return Warning(f"{finding.message}.", hint=finding.remedy, id=f"mailglass_reconcile.{finding.check}")


def _settings_problems() -> Iterator[CheckMessage]:
    yield from _report_configuration_error("E001", lambda: project.connection_wrapper(project.alias()))
    yield from _report_configuration_error("E002", _read_tenant_function)
    yield from _report_configuration_error("E003", _read_settings)
    yield from _webhook_problems()
    yield from _report_configuration_error("E004", _read_delivery_function)
    if getattr(settings, "MAILGLASS_TENANT_REQUIRED", False) and getattr(settings, "MAILGLASS_TENANT", None) is None:
        yield NO_TENANT
    if not any(backend == TEST_BACKEND or _is_anymail_backend(backend) for backend in _backends()):
        yield MAILERS_NOT_READ if hasattr(settings, "MAILERS") and not READS_MAILERS else NO_ANYMAIL
    if not get_anymail_setting("generate_message_id", esp_name="SendGrid", default=True):
        yield OTHER_IDS
    if runtime.available() and not _is_scheduled(SWEEP_TASK):
        yield NO_SWEEPS
    if handlers.types_with_handlers():
        if runtime.available() and not _is_scheduled(DISPATCH_TASK):
            yield NO_DISPATCH
        yield from _models_in_other_databases()


def _webhook_problems() -> Iterator[CheckMessage]:
    """Yield what is wrong with the URLs of webhooks, ours and Anymail's."""
    mounted_views = list(mounted.find_views())
    for mounted_view in mounted_views:
        view = mounted_view.function
        if not isinstance(view, WebhookView):
            continue
        if unread := view.find_unread(sorted(mounted_view.parameters)):
            yield Error(
                f"No function tenant= of webhook_view reads the parameter {unread[0]} of {mounted_view.route}, so each"
                " webhook there is answered with 404.",
                hint="Pass one that returns the tenant from request.resolver_match.kwargs, or None if there is none.",
                id="mailglass_reconcile.E006",
            )
        if view.secrets is not None:
            yield from _report_configuration_error("E003", view.load_secrets)
    if not _has_webhook_secrets() and any(
        isinstance(view.function, WebhookView) and view.function.secrets is None for view in mounted_views
    ):
        yield copy(NO_SECRETS)  # its level may be raised
    if (
        any(view.function.__module__ == "anymail.webhooks.mailersend" for view in mounted_views)
        and get_version_tuple(anymail.__version__)[:2] <= READS_VERSION_1
        and any("mailersend" in backend for backend in _backends())
    ):
        yield MAILERSEND


def _has_webhook_secrets() -> bool:
    try:
        return bool(runtime.get_settings().webhook_secrets)
    except ConfigurationError:  # E003 reports it
        return True


def _read_settings() -> None:
    runtime.load_imports()
    settings = runtime.get_settings()
    if settings.webhook_secrets:
        from mailglass_reconcile.receiver import secret_store  # noqa: PLC0415 - loading it takes long

        secret_store.from_setting(settings)


def _read_tenant_function() -> None:
    if getattr(settings, "MAILGLASS_TENANT", None) is not None:
        from mailglass_reconcile.contrib.django import signals  # noqa: PLC0415 - loading it takes long

        signals.tenant_function()


def _read_delivery_function() -> None:
    if getattr(settings, "MAILGLASS_DELIVERY", None) is not None:
        from mailglass_reconcile.contrib.django import message_values  # noqa: PLC0415 - loading it takes long

        message_values.delivery_function()


def _report_configuration_error(number: str, read_setting: Callable[[], object]) -> Iterator[CheckMessage]:
    try:
        read_setting()
    except ConfigurationError as error:
        yield Error(f"{error}.", id=f"mailglass_reconcile.{number}")


def _backends() -> set[str]:
    if READS_MAILERS and hasattr(settings, "MAILERS"):  # then there is no EMAIL_BACKEND
        return {mailer.get("BACKEND", "") for mailer in settings.MAILERS.values()}
    return {settings.EMAIL_BACKEND}


def _is_anymail_backend(backend: str) -> bool:
    try:
        return issubclass(import_string(backend), AnymailBaseBackend)
    except (ImportError, TypeError):  # Django reports it when the backend is used
        return False


def _models_in_other_databases() -> Iterator[CheckMessage]:
    """Warn about apps with models in other databases, which a handler cannot write exactly once."""
    our_alias = project.alias()
    models = (model for model in apps.get_models() if model._meta.managed)
    app_labels = sorted({model._meta.app_label for model in models if router.db_for_write(model) != our_alias})
    if app_labels:
        yield Warning(
            f"Handlers write exactly once only in DATABASES[{our_alias!r}]; models of these apps are elsewhere:"
            f" {', '.join(app_labels)}.",
            hint="Make what a handler writes there idempotent, by event.event_id, and silence this check.",
            id="mailglass_reconcile.W005",
        )


def _is_scheduled(task: str) -> bool:
    schedules = [getattr(settings, "CELERY_BEAT_SCHEDULE", {})]
    if "celery" in sys.modules:  # a project with an app of its own has loaded it
        from celery import current_app  # noqa: PLC0415 - Celery may be missing

        schedules.append(current_app.conf.beat_schedule)
    return any(entry.get("task") == task for schedule in schedules for entry in (schedule or {}).values())
