"""System checks for `manage.py check`: of the settings, and with `--database` and before `migrate` of the database.

Nothing here is an error because of a database or of what a deployment lacks: Django's `migrate`, `test` and `runserver`
would end. `check --fail-level WARNING` makes a gate of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

import django
from anymail.backends.base import AnymailBaseBackend
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register  # noqa: A004 - Django's own names
from django.db import DEFAULT_DB_ALIAS
from django.urls import get_resolver
from django.utils.module_loading import import_string

from mailglass_reconcile import runtime
from mailglass_reconcile.contrib.django import project
from mailglass_reconcile.contrib.django.views import WebhookView
from mailglass_reconcile.errors import ConfigurationError, MailglassReconcileError
from mailglass_reconcile.rules.humanize import sanitize
from mailglass_reconcile.schedule import SWEEP_TASK
from mailglass_reconcile.settings import ENV_PREFIX, VARIABLES, find_closest_variable, load_web_token

if TYPE_CHECKING:
    from mailglass_reconcile.ops.checks import Finding

TIMEOUT_MS = 2_000
READS_MAILERS = django.VERSION >= (6, 1)
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
NO_SWEEPS = Warning(
    "Celery's beat schedule has no entry for sweeps, so open events stay open.",
    hint="Add the entries of mailglass_reconcile.beat_schedule to your CELERY_BEAT_SCHEDULE. If cron runs"
    " `manage.py mailglass sweep`, or the entry is in django-celery-beat's tables only, silence this check.",
    id="mailglass_reconcile.W002",
)
NO_SECRETS = Warning(
    "The URLs of the webhooks are mounted, and there is no secret, so every webhook is answered with 503.",
    hint="Set MAILGLASS_WEBHOOK_SECRETS, in the environment or in Django's settings, to each provider's secret.",
    id="mailglass_reconcile.W003",
)
NOT_MIGRATED = "the database is not migrated, so nothing can be recorded or linked"


@register
def check_settings(**_kwargs: Any) -> list[CheckMessage]:
    """Return the problems in the settings of Django, Anymail and Celery."""
    return list(_settings_problems())


@register(Tags.database)
def check_database(*, databases: Collection[str] | None = None, **_kwargs: Any) -> list[CheckMessage]:
    """Return the findings of the doctor's fast checks, as warnings, so that none stops `migrate`."""
    try:
        findings = _run_fast_checks() if project.alias() in (databases or ()) else []
    except ConfigurationError:  # E001 to E003 report it
        findings = []
    return [_to_check_message(finding) for finding in findings]


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
    """Return a warning, with an id of its own if the doctor has an error: who silences its warnings still gets that."""
    suffix = ".error" if finding.status == "error" else ""
    return Warning(f"{finding.message}.", hint=finding.remedy, id=f"mailglass_reconcile.{finding.check}{suffix}")


def _settings_problems() -> Iterator[CheckMessage]:
    yield from _report_configuration_error("E001", lambda: project.connection_wrapper(project.alias()))
    yield from _report_configuration_error("E002", project.load_tenant_function)
    yield from _our_settings_problems()
    yield from _webhook_problems()
    yield from _report_configuration_error("E004", lambda: project.load_function("MAILGLASS_DELIVERY"))
    if getattr(settings, "MAILGLASS_TENANT_REQUIRED", False) and not getattr(settings, "MAILGLASS_TENANT", None):
        yield NO_TENANT
    if not any(backend == TEST_BACKEND or _is_anymail_backend(backend) for backend in _backends()):
        yield NO_ANYMAIL
    if runtime.available() and not _is_sweep_scheduled():
        yield NO_SWEEPS


def _our_settings_problems() -> Iterator[CheckMessage]:
    """Yield each value that cannot be used, each name that does not exist, and what Django's settings replace."""
    problems = list(_report_configuration_error("E003", runtime.get_settings))
    for read_setting in () if problems else (runtime.load_imports, _read_secrets, _read_web_token, _read_redis_url):
        problems += _report_configuration_error("E003", read_setting)
    yield from problems
    known = {*VARIABLES, *project.DJANGO_ONLY}
    for name in dir(settings):
        if name.startswith(ENV_PREFIX) and name not in known:
            closest = find_closest_variable(name, *project.DJANGO_ONLY)
            yield Warning(
                f"There is no setting {sanitize(name)}, so it has no effect.",
                hint=f"Did you mean {closest}?" if closest else "Remove it, or give it another prefix.",
                id="mailglass_reconcile.W004",
            )
    if getattr(settings, project.IGNORED, ""):
        yield Warning(
            f"{project.IGNORED} has no effect: the tables are in DATABASES[{project.alias()!r}].",
            hint="Remove it. To use another database, add it to DATABASES and name it in MAILGLASS_DATABASE_ALIAS.",
            id="mailglass_reconcile.W005",
        )


def _webhook_problems() -> Iterator[CheckMessage]:
    """Yield what is wrong with the secrets of our views, of those outside of namespaces."""
    views = []
    if getattr(settings, "ROOT_URLCONF", None):
        views = [view for view in get_resolver().reverse_dict if isinstance(view, WebhookView)]
    for view in views:
        if view.secrets is not None:
            yield from _report_configuration_error("E003", view.load_secrets)
    if any(view.secrets is None for view in views) and not _has_webhook_secrets():
        yield NO_SECRETS


def _has_webhook_secrets() -> bool:
    try:
        return bool(runtime.get_settings().webhook_secrets)
    except ConfigurationError:  # E003 reports it
        return True


def _read_secrets() -> None:
    if runtime.get_settings().webhook_secrets:
        from mailglass_reconcile.receiver import secret_store  # noqa: PLC0415 - loading it takes long

        secret_store.from_setting(runtime.get_settings())


def _read_web_token() -> None:
    load_web_token(runtime.get_settings())


def _read_redis_url() -> None:
    if runtime.is_redis_configured():
        runtime.get_redis()


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


def _is_sweep_scheduled() -> bool:
    schedules = [getattr(settings, "CELERY_BEAT_SCHEDULE", {})]
    if "celery" in sys.modules:  # a project with an app of its own has loaded it
        from celery import current_app  # noqa: PLC0415 - Celery may be missing

        schedules.append(current_app.conf.beat_schedule)
    return any(entry.get("task") == SWEEP_TASK for schedule in schedules for entry in (schedule or {}).values())
