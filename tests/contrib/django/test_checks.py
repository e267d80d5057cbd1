"""`manage.py check`: what is missing in the settings, found without a database."""

import os
import re
import sys

import django
import pytest
from celery import Celery, current_app
from django.apps import apps
from django.core.checks import WARNING, Tags, run_checks
from django.test import override_settings

import factories
import processes
from django_project import another_database, leave_the_app
from mailglass_reconcile import beat_schedule, reconcile
from mailglass_reconcile.errors import SchemaOutdatedError, unavailable_error
from mailglass_reconcile.handlers.registration import log_new
from mailglass_reconcile.store.tables.handled_types import Registration

pytestmark = pytest.mark.python_dependent

GOOD = {
    "EMAIL_BACKEND": "anymail.backends.postmark.EmailBackend",
    "CELERY_BEAT_SCHEDULE": {"sweeps": beat_schedule["mailglass-reconcile"]},
}


ANYMAIL_MAILERS = {"default": {"BACKEND": "anymail.backends.test.EmailBackend"}}
READS_MAILERS = django.VERSION >= (6, 1)


def find_reported_ids():
    """Return the ids of our checks' messages; the database does not exist, so that none may connect."""
    return [run_check.id for run_check in run_checks() if run_check.id.startswith("mailglass_reconcile.")]


@pytest.fixture
def other_database(anymail_django):
    """A database that is not PostgreSQL."""
    with another_database(ENGINE="django.db.backends.sqlite3", NAME=":memory:"):
        yield


@pytest.fixture(autouse=True)
def bare_celery():
    """Make an app without a schedule the current one."""
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
        ({"MAILERS": ANYMAIL_MAILERS, "EMAIL_BACKEND": "x.Y"}, [] if READS_MAILERS else ["W001"]),
        ({"MAILERS": {}}, ["W001"] if READS_MAILERS else []),
        ({"ROOT_URLCONF": "webhook_urls"}, ["W003"]),
        ({"CELERY_BEAT_SCHEDULE": {"other": {"task": "shop.other", "schedule": 1}}}, ["W002"]),
        ({"MAILGLASS_DATABASE_ALIAS": "absent"}, ["E001"]),
        ({"MAILGLASS_DATABASE_ALIAS": "other"}, ["E001"]),
        ({"MAILGLASS_TENANT": "nowhere.tenant"}, ["E002"]),
        ({"MAILGLASS_TENANT": 5}, ["E002"]),
        ({"MAILGLASS_TENANT": ""}, []),
        ({"MAILGLASS_TENANT_REQUIRED": True}, ["E005"]),
        ({"MAILGLASS_TENANT_REQUIRED": True, "MAILGLASS_TENANT": ""}, ["E005"]),
        ({"MAILGLASS_DELIVERY": "nowhere.values"}, ["E004"]),
        ({"MAILGLASS_DELIVERY": 5}, ["E004"]),
        ({"MAILGLASS_TENANT": "acme"}, []),
        ({"MAILGLASS_TENANT": len}, []),
    ],
    ids=str,
)
def test_a_check_says_what_is_missing_and_nothing_else(anymail_django, changed, expected):
    """Each message can be silenced by its id."""
    with override_settings(**{**GOOD, **changed}):
        assert find_reported_ids() == [f"mailglass_reconcile.{number}" for number in expected]


@pytest.fixture
def project(anymail_django):
    """Our app reads Django's settings, without a database."""
    apps.get_app_config("mailglass_reconcile").ready()
    yield
    leave_the_app()


@pytest.mark.parametrize(
    ("secrets", "expected"),
    [
        ({"postmark": "me:a, b"}, []),
        ({"postmark": ["me:a", "me:b"], "ses": "arn:aws:sns:eu-central-1:123456789012:mail"}, []),
        ("postmark=me:a,postmark=me:b", []),
        ({}, ["W003"]),
        ({"postmark": None}, ["E003"]),
        ({"postmark": "me:"}, ["E003"]),
        ({"postmark": "me:${PASSWORD}"}, ["E003"]),
        (["postmark"], ["E003"]),
        ("@/nowhere", ["E003"]),
    ],
    ids=str,
)
def test_secrets_of_webhooks_may_be_a_setting_of_djangos_and_unusable_ones_are_errors(project, secrets, expected):
    """Otherwise the provider finds them first, and the answer to its GET is 200."""
    with override_settings(**GOOD, ROOT_URLCONF="webhook_urls", MAILGLASS_WEBHOOK_SECRETS=secrets):
        messages = [message for message in run_checks() if message.id.startswith("mailglass_reconcile.")]
    assert [message.id.partition(".")[2] for message in messages] == expected
    assert "PASSWORD" not in str(messages)


def test_a_module_that_cannot_be_imported_is_an_error(project, monkeypatch):
    """Without its key rules nothing is recorded: each webhook would be answered with 503."""
    monkeypatch.setenv("MAILGLASS_IMPORTS", "no_such_module")
    with override_settings(**GOOD, MAILGLASS_TENANT="acme"):  # which reads the settings again
        (message,) = [message for message in run_checks() if message.id.startswith("mailglass_reconcile.")]
    assert message.id == "mailglass_reconcile.E003"
    assert message.msg == "MAILGLASS_IMPORTS: cannot import no_such_module (ModuleNotFoundError)."


PROJECT = """
import django
from django.conf import settings
settings.configure(
    INSTALLED_APPS=("django.contrib.contenttypes", "mailglass_reconcile.contrib.django"),
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "nowhere"}},
    EMAIL_BACKEND="anymail.backends.test.EmailBackend",
)
django.setup()
from django.core.management import call_command
call_command("check")
"""


@pytest.mark.slow
def test_a_setting_of_the_environment_that_cannot_be_used_is_named():
    """The check of a starting project says so, without a traceback."""
    environment = {**os.environ, "MAILGLASS_GRACE_SECONDS": "soon"}
    result = processes.run(["-c", PROJECT], environment)
    last = result.stderr.strip().splitlines()
    assert "SystemCheckError" in result.stderr
    assert [line for line in last if "(mailglass_reconcile.E003) MAILGLASS_GRACE_SECONDS" in line], result.stderr


@pytest.mark.parametrize(
    ("secret", "expected"),
    [
        ("ses=arn:aws:sns:eu-central-1:123456789012:mail", ["E003"]),
        ("sendgrid=key", ["E003"]),
        ("postmark=me:a", []),
    ],
    ids=["ses", "sendgrid", "postmark"],
)
def test_a_provider_whose_signatures_need_an_extra_is_an_error_without_it(project, monkeypatch, secret, expected):
    """Otherwise the gate is green, and each of its webhooks is answered with 503."""
    for name in ["cryptography", *(name for name in sys.modules if name.startswith("cryptography."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with override_settings(**GOOD, ROOT_URLCONF="webhook_urls", MAILGLASS_WEBHOOK_SECRETS=secret):
        messages = [message for message in run_checks() if message.id.startswith("mailglass_reconcile.")]
    assert [message.id.partition(".")[2] for message in messages] == expected
    assert all("pip install '.[webhooks]' in a clone" in message.msg for message in messages)


def run_database_checks(*databases):
    """Return the messages of the checks with the tag `database`, by id."""
    messages = run_checks(tags=[Tags.database], databases=databases)
    return {message.id: message for message in messages if message.id.startswith("mailglass_reconcile.")}


def test_the_fast_checks_of_the_doctor_are_warnings_with_the_tag_database(app, db):
    """Thus none stops `migrate`; they run for our database only, and once it is migrated."""
    reconcile()
    assert run_database_checks("default") == {}
    db.run("DROP INDEX mailglass_events_idempotency_key_idx")
    assert run_database_checks() == {}
    (message,) = run_database_checks("default").values()
    assert (message.id, message.level) == ("mailglass_reconcile.indexes.error", WARNING)
    assert message.msg.endswith("so nothing can be recorded or linked.")
    assert message.hint == "run `manage.py mailglass migrate`"
    db.run("CREATE UNIQUE INDEX mailglass_events_idempotency_key_idx ON mailglass_events (idempotency_key)"
           " WHERE idempotency_key IS NOT NULL")  # fmt: skip


def test_who_silences_the_warnings_of_a_check_still_gets_its_errors(app, db):
    """A newer schema of the same major serves this version, as after an update of another service; another does not."""
    reconcile()
    (current,) = db.rows("SELECT version_num FROM mailglass_reconcile_version")
    reported = []
    with override_settings(SILENCED_SYSTEM_CHECKS=["mailglass_reconcile.schema"]):
        for revision in ("0999", "1000"):
            db.run(f"UPDATE mailglass_reconcile_version SET version_num = '{revision}'")  # noqa: S608
            messages = run_database_checks("default").values()
            reported.append([(message.id.partition(".")[2], message.is_silenced()) for message in messages])
    db.run(f"UPDATE mailglass_reconcile_version SET version_num = '{current.version_num}'")  # noqa: S608
    assert reported == [[("schema", True)], [("schema.error", False)]]


TESTS = """
from django.test import TestCase
from mailglass_reconcile.contrib.django.models import Delivery
class Empty(TestCase):
    def test_nothing_is_recorded(self):
        self.assertEqual(Delivery.objects.count(), 0)
"""


def findings_of(result):
    """Return the exit code of a command, and the ids of our findings in its output by level."""
    _, *texts = re.split(r"^(ERRORS|WARNINGS):$", result.stderr, flags=re.MULTILINE)
    pairs = zip(texts[::2], texts[1::2], strict=True)
    return result.returncode, {level: re.findall(r"\(mailglass_reconcile\.([\w.]+)\)", text) for level, text in pairs}


@pytest.mark.slow
def test_a_check_that_fails_at_warnings_is_a_gate_and_no_finding_ends_djangos_own_commands(manage, tmp_path):
    """`migrate` and `test` check the database too: before the first `migrate`, it has none of our tables."""
    gate = ("check", "--database", "default", "--fail-level", "WARNING")
    (tmp_path / "shop" / "tests.py").write_text(TESTS)
    nothing = {"MAILGLASS_WEBHOOK_SECRETS": ""}
    assert findings_of(manage("check", "--database", "default", **nothing)) == (
        0,
        {"WARNINGS": ["W003", "schema.error"]},
    )
    assert findings_of(manage(*gate, **nothing)) == (1, {"WARNINGS": ["W003", "schema.error"]})
    result = manage(*gate)
    assert findings_of(result) == (1, {"WARNINGS": ["schema.error"]})
    assert "HINT: run `manage.py migrate`" in result.stderr
    assert findings_of(manage("migrate", "-v", "0")) == (0, {"WARNINGS": ["schema.error"]})
    assert findings_of(manage("test")) == (0, {}), "a test database was never swept"
    assert findings_of(manage(*gate)) == (1, {"WARNINGS": ["sweeps.error"]})
    assert manage("mailglass", "sweep").returncode == 0
    assert findings_of(manage(*gate)) == (0, {})


def test_hints_about_handlers_are_those_of_a_django_project(app, db, caplog):
    """`ready()` loads them in the web process and in Celery's worker, and no variable names their modules."""
    reconcile()
    db.run("INSERT INTO mailglass_handled_types (type, handler, seen_at, seen_by)"
           " VALUES ('bounced', 'suppress', now() AT TIME ZONE 'UTC' - interval '2 hours', 'web, pid 7')")  # fmt: skip
    (finding,) = run_checks(tags=[Tags.database], databases=["default"])
    assert "start a dispatcher with the handler's module imported in an AppConfig's ready()" in finding.hint
    assert "`manage.py mailglass dispatch --forget --handler suppress`" in finding.hint
    assert repr(SchemaOutdatedError("run `mailglass-reconcile migrate`")) == (
        "SchemaOutdatedError('run `manage.py mailglass migrate`')"
    ), "Celery logs this"
    assert "check DATABASES['default'] and the server" in str(unavailable_error("08006"))
    log_new([Registration("suppress", "bounced")])
    assert "mailglass-reconcile" not in caplog.text


def test_a_hint_about_tenants_names_the_view(app, db):
    """A project has no receiver of its own, and a view with a tenant does not ask MAILGLASS_TENANT."""
    factories.delivery(db, "m-1", tenant_id="acme")
    factories.orphan(db, factories.postmark("m-1"), tenant_id="default")
    reconcile()
    (finding,) = run_checks(tags=[Tags.database], databases=["default"])
    assert "tenant of webhook_view, tenant_id of receive or record_webhook, or MAILGLASS_TENANT;" in finding.hint
