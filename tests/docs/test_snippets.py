"""All other code of the README and docs/: Python is run; SQL, JSON and unit files are read."""

import configparser
import datetime as dt
import json
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import click
import pytest
import sqlalchemy as sa
import yaml
from celery.bin.base import CLIContext
from celery.bin.worker import worker as celery_worker

import commands
import pages
import processes
import readme
import record_refusal
from mailglass_reconcile import Sent, WebhookEvent, celery, record_send, record_webhook
from mailglass_reconcile.cli import command

pytestmark = pytest.mark.version_independent

ELSEWHERE = {
    ("README.md", "console"): "test_stories.py",
    ("README.md", "python"): "test_stories.py",
    ("celery.md", "console"): "test_stories.py",
    ("fastapi.md", "python"): "test_stories.py; the one for async code stands in an example (test_pages.py)",
    ("live-updates.md", "python"): "test_live_updates.py",
    ("order-status.md", "python"): "test_order_status.py",
    ("order-status.md", "sql"): "test_order_status.py",
    ("record-and-receive.md", "sql"): "test_other_languages.py",
    ("trouble.md", "python"): "test_misrouted.py",
    ("own-provider.md", "python"): "test_own_provider.py",
    ("testing.md", "python"): "testing/test_plugin.py",
    ("upgrading.md", "sql"): "store/migration/test_removal.py",
    ("with-mailglass.md", "sql"): "mailglass_compat/test_moving.py",
    ("with-mailglass.md", "console"): "test_stories.py",
    ("with-mailglass.md", "cron"): "test_stories.py",
    ("moving-here.md", "sql"): "by the snippets of the page, below",
    ("handlers.md", "sql"): "by the snippets of the page, below",
    ("performance.md", "sql"): "by the test of queries and settings for sizing, below",
    ("personal-data.md", "sql"): "by the test of an export, below",
    ("production.md", "cron"): "test_pages.py",
    ("production.md", "nginx"): "receiver/test_nginx.py",
    ("kubernetes.md", "yaml"): "test_deploy.py",
    ("kubernetes.md", "text"): "stories/test_redis_servers.py",
    ("monitoring.md", "yaml"): "monitoring/test_files.py",
}
"""Blocks that another test runs."""


class Frame(NamedTuple):
    """Code before and after a page's snippets: what they assume, and what must hold afterwards."""

    before: str
    after: str = ""


ENGINE = """
import os, datetime as dt, sqlalchemy as sa
from sqlalchemy import text
engine = sa.create_engine(os.environ["MAILGLASS_DATABASE_URL"])
"""
ACCOUNTS = (
    "CREATE TABLE accounts (provider text, tenant text, secret text)",
    "INSERT INTO accounts VALUES ('postmark', 'acme', 'me:change-me')",
)
MAILS = (
    "CREATE TABLE mails (id int, email text, message_id text, status text, sent_at timestamptz, delivery_id uuid)",
    "INSERT INTO mails SELECT number, name || '@b.example', 'm-' || number, 'delivered', now()"
    " FROM unnest('{Ada,bob,cid}'::text[]) WITH ORDINALITY AS mail (name, number)",
)


def statements(page: str) -> list[str]:
    """Return a page's SQL."""
    return [block.text for block in pages.blocks(pages.ROOT / "docs" / page) if block.language == "sql"]


RECIPES = [*MAILS, *statements("moving-here.md")]
DJANGO = """
import datetime as dt, os, types, uuid
os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
import django
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
from mailglass_reconcile.contrib.django.models import Delivery
INSTALLED_APPS = ()
CELERY_BEAT_SCHEDULE = {"own": {}}
address, message_id = "ada@example.com", "m-1"
"""
FRAMES = {
    "api.md": Frame(
        f"""{ENGINE}
os.environ["MAILGLASS_GRACE_SECONDS"] = "0"
from mailglass_reconcile import WebhookEvent, record_webhook
with engine.begin() as connection:
    at = dt.datetime.now(dt.UTC)
    event = WebhookEvent(type="delivered", occurred_at=at, provider_event_id="e-1", message_id="m-2")
    record_webhook(connection, tenant_id="acme", provider="postmark", events=[event])
""",
        """
assert orphan.candidate_ids == ("m-2",)
""",
    ),
    "django.md": Frame(
        ENGINE + DJANGO,
        """
assert Delivery.objects.filter(provider_message_id="m-1").count() == 1
for type_, bounce, suppressed in (
    ("bounced", "soft", False), ("bounced", None, False), ("bounced", "hard", True), ("complained", None, True)
):
    suppress(None, types.SimpleNamespace(recipient="bob@example.com", type=type_, bounce=bounce))
    assert Suppressed.objects.filter(email="bob@example.com").exists() is suppressed
    Suppressed.objects.all().delete()
assert {"own", "mailglass-reconcile"} <= set(CELERY_BEAT_SCHEDULE)
""",
    ),
    "handlers.md": Frame(
        f"""{ENGINE}
import types
from mailglass_reconcile import Sent, WebhookEvent, dispatch, record_send, record_webhook
update_crm = types.SimpleNamespace(apply_async=lambda *arguments, **options: called.append(options))
called = []
with engine.begin() as connection:
    for statement in {statements("handlers.md")!r}:
        connection.execute(text(statement))
""",
        """
dispatch()  # it notes the types of the handlers
kinds = {"hard": "bounced", "soft": "bounced", None: "bounced", "spam": "complained"}
called.clear()
with engine.begin() as connection:
    sends = [Sent(recipient=f"{kind}@b.example", message_id=f"m-{kind}") for kind in kinds]
    record_send(connection, tenant_id="acme", provider="ses", sent=sends)
    recorded = record_webhook(connection, tenant_id="acme", provider="ses", events=[
        WebhookEvent(type=type_, occurred_at=dt.datetime.now(dt.UTC), provider_event_id=f"{kind}-{number}",
                     message_id=f"m-{kind}", bounce=kind if kind in ("hard", "soft") else None)
        for kind, type_ in kinds.items() for number in range(2)
    ])
assert dispatch().failed == 0
with engine.begin() as connection:
    suppressed = connection.execute(text("SELECT address FROM suppressed ORDER BY address")).scalars().all()
    statement = "SELECT attempt, not_before > now() + interval '23 hours' FROM mails_to_repeat"
    assert [tuple(row) for row in connection.execute(text(statement))] == [(2, True)]
assert suppressed == ["hard@b.example", "spam@b.example"]
assert {call["task_id"] for call in called} == {str(item.event_id) for item in recorded[:6]}
assert not any(call["retry"] for call in called)
""",
    ),
    "record-and-receive.md": Frame(
        f"""{ENGINE}
import types
os.environ["MAILGLASS_WEBHOOK_SECRETS"] = "postmark=me:change-me"
mounted = []
app = types.SimpleNamespace(mount=lambda path, receiver: mounted.append(path))
provider, headers = "postmark", {{"Authorization": "Basic bWU6Y2hhbmdlLW1l"}}
body = b'{{"RecordType": "Open", "MessageID": "m-1", "Recipient": "ada@example.com"}}'
postmark = types.SimpleNamespace(send=lambda *_: {{"MessageID": "m-1"}})
address, when, webhook_id, message_id = "ada@example.com", dt.datetime.now(dt.UTC), "w-1", "m-1"
""",
        """
assert mounted == ["/webhooks"] and recorded[0].event_id
with engine.connect() as connection:
    types = connection.execute(text("SELECT type FROM mailglass_events WHERE delivery_id IS NOT NULL")).scalars()
    assert set(types) == {"dispatched", "delivered"}
""",
    ),
    "providers.md": Frame(
        f"""{ENGINE}
import types
to, domain, message = "ada@example.com", "example.com", {{}}
class Client:
    "Any provider's: every call and attribute leads to its answer."
    def __init__(self, answer):
        self.answer = answer
    def __getattr__(self, name):
        return self
    def __call__(self, *arguments, **options):
        return self.answer
Wrapped = lambda answer: Client(types.SimpleNamespace(json=lambda: answer))
Headed = lambda: Client(types.SimpleNamespace(headers={{"X-Message-Id": "m-1"}}))
ses, brevo = Client({{"MessageId": "m-1"}}), Client(types.SimpleNamespace(message_id="<m-1@relay>"))
mailersend, sendgrid, mailgun = Headed(), Headed(), Wrapped({{"id": "<m-1@example.com>"}})
mailjet = Wrapped({{"Messages": [{{"To": [{{"MessageID": 576460752303423489}}]}}]}})
mailtrap, mandrill = Client({{"message_ids": ["m-1"]}}), Client([{{"_id": "m-1"}}])
postal = Wrapped({{"data": {{"messages": {{to: {{"id": 12345}}}}}}}})
postmark, resend, sparkpost = Client({{"MessageID": "m-1"}}), Client({{"id": "m-1"}}), Client({{"id": "m-1"}})
scaleway = Client(types.SimpleNamespace(emails=[types.SimpleNamespace(id="m-1")]))
unisender_go = Wrapped({{"job_id": "m-1"}})
azure = Client(types.SimpleNamespace(result=lambda: {{"id": "m-1"}}))
smtp2go = Client(types.SimpleNamespace(json={{"data": {{"email_id": "m-1"}}}}))
zeptomail = Wrapped({{"request_id": "m-1"}})
""",
        """
with engine.connect() as connection:
    assert connection.execute(text("SELECT count(*) FROM mailglass_deliveries")).scalar_one() == 17
""",
    ),
    "tenants.md": Frame(
        f"""{ENGINE}
import types
os.environ |= {{"POSTMARK_PASSWORD_ACME": "acme-password", "POSTMARK_PASSWORD_EMCA": "emca-password"}}
os.environ["MAILGLASS_WEBHOOK_SECRETS"] = "postmark=me:change-me"
app = types.SimpleNamespace(mount=lambda path, receiver: mounted.append(path))
mounted = []
with engine.begin() as connection:
    for statement in {ACCOUNTS}:
        connection.execute(text(statement))
""",
        """
assert mounted == ["/webhooks", "/webhooks/acme", "/webhooks/emca", "/webhooks"]
assert secrets("postmark", "acme") == "me:change-me" and secrets("postmark", "emca") is None
from base64 import b64encode
from mailglass_reconcile.webhooks import SignatureError
headers = {"Authorization": "Basic " + b64encode(KEYS["acme"].encode()).decode()}
body = b'{"RecordType": "Open", "MessageID": "m-1", "Recipient": "ada@example.com"}'
with engine.begin() as connection:
    assert receive_for("acme", connection, body, headers)[0].event_id
    try:
        receive_for("emca", connection, body, headers)
    except SignatureError:
        pass
    else:
        raise AssertionError
    assert connection.scalar(text("SELECT tenant_id FROM mailglass_events")) == "acme"
from django.conf import settings
settings.configure()
assert tenant_of(types.SimpleNamespace(metadata={"tenant": "acme"})) == "acme"
from anymail.message import AnymailMessage
from django.core.mail import EmailMessage
for source in (types.SimpleNamespace(), types.SimpleNamespace(metadata=None), EmailMessage(), AnymailMessage()):
    assert tenant_of(source) == "default"
""",
    ),
    "moving-here.md": Frame(
        f"""{ENGINE}
with engine.begin() as connection:
    for statement in {RECIPES!r}:
        connection.execute(text(statement))
""",
        """
from mailglass_reconcile import WebhookEvent, record_webhook

with engine.begin() as connection:
    at = dt.datetime.now(dt.UTC)
    event = WebhookEvent(type="delivered", occurred_at=at, provider_event_id="e-2", message_id="m-2")
    record_webhook(connection, provider="postmark", events=[event])
assert import_mails(engine, batch_size=2) == 3 and import_mails(engine) == 0
assert engine.connect().scalar(text("SELECT count(*) FROM mailglass_open_orphans")) == 0
""",
    ),
    "celery.md": Frame(
        f"""{ENGINE}
TWICE, TRIES = {record_refusal.TWICE!r}, {record_refusal.TRIES!r}
class postmark:
    sent = []

    def send(*arguments):
        postmark.sent.append(f"m-{{len(postmark.sent)}}")
        return {{"MessageID": postmark.sent[-1]}}
""",
        """
with engine.begin() as connection:
    for statement in TWICE:
        connection.execute(text(statement))
app.conf.task_always_eager = True
send_receipt.delay("ada@example.com")
with engine.connect() as connection:
    assert connection.scalar(text(TRIES)) == 3
    recorded = connection.scalars(text("SELECT provider_message_id FROM mailglass_deliveries")).all()
assert postmark.sent == recorded == ["m-0"]
"""
        "from mailglass_reconcile import runtime\nassert runtime.get_redis() is client\n"
        "assert set(app.conf.beat_schedule) >= {'mailglass-reconcile', 'mailglass-reconcile-prune'}\n"
        "assert len(app.conf.beat_schedule) == 3\n"
        "assert app.amqp.router.route({}, 'mailglass_reconcile.tasks.reconcile')['queue'].name == 'mail'\n"
        "assert app.amqp.router.route({}, 'mailglass_reconcile.tasks.dispatch')['queue'].name == 'mailglass_handlers'",
    ),
    "production.md": Frame(
        "import types\napp = types.SimpleNamespace(conf=types.SimpleNamespace(beat_schedule={'own': {}}))",
        """
assert app.conf.beat_schedule.pop("own") == {}
queues = {name: entry["options"]["queue"] for name, entry in app.conf.beat_schedule.items()}
assert len(queues) == 6 and queues["mailglass-reconcile-us"] == "mail-us"
""",
    ),
    "settings.md": Frame(
        "", "from mailglass_reconcile import runtime\nassert runtime.get_settings().grace_seconds == 30"
    ),
    "dashboard.md": Frame(
        "import os\nos.environ['MAILGLASS_WEB_TOKEN'] = 'a-token-of-24-characters'",
        "assert [route.path for route in app.routes][-1] == '/ops/mail'",
    ),
    "upgrading.md": Frame(
        f"""{ENGINE}
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
connection, metadata = engine.connect(), sa.MetaData()
configurations = []
context = type("", (), {{"configure": staticmethod(lambda **options: configurations.append(options))}})
""",
        """
options = {"include_object": configurations[0]["include_object"]}
dropped = compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
assert dropped == []
""",
    ),
}

ALL = [block for page in pages.PAGES for block in pages.blocks(page)]


def test_every_block_is_run_or_says_why_not():
    """This file, test_commands.py or a named test runs it; a plain text is no code."""
    unnamed = [
        f"{block.page}:{block.line}"
        for block in ALL
        if not block.not_run
        and (block.page, block.language) not in ELSEWHERE
        and block.language not in ("console", "text", "json", "ini", "yaml")
        and not (block.language == "python" and block.page in FRAMES)
    ]
    assert unnamed == []


@pytest.mark.slow
@pytest.mark.parametrize("page", FRAMES)
def test_the_snippets_of_a_page_run_one_after_the_other(page, db, redis_url, tmp_path):
    """They run in a process of their own, between the page's assumptions and the checks."""
    snippets = [block.text for block in ALL if (block.page, block.language, block.not_run) == (page, "python", "")]
    assert snippets
    source = "\n".join([FRAMES[page].before, *snippets, FRAMES[page].after])
    source = source.replace("…", "").replace("redis://localhost:6379/0", redis_url)
    (tmp_path / "snippets.py").write_text(source)
    environment = {
        **db.environment(redis_url),
        "PYTHONPATH": f"{pages.ROOT}:{pages.ROOT / 'examples/django'}",
        "DATABASE_URL": db.url,
        **readme.exports("django"),
    }
    result = processes.run(["-m", "snippets"], environment, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_queries_and_settings_for_sizing_are_those_of_the_tables(db):
    """The query adds up indexes that all exist, and the settings for autovacuum are accepted."""
    measuring, setting = (block.text for block in ALL if (block.page, block.language) == ("performance.md", "sql"))
    names = re.findall(r"'(\w+_idx)'", measuring)
    existing = "SELECT count(*) FROM pg_stat_user_indexes WHERE indexrelname = ANY (:names)"
    with db.engine.begin() as connection:
        assert connection.scalar(sa.text(existing), {"names": names}) == len(names) == 4
        assert len(connection.execute(sa.text(measuring)).all()) == 1
        connection.execute(sa.text(setting))


def test_the_export_of_one_person_has_deliveries_and_events(db):
    """It has attached and linked events of this person only."""
    [block] = [block for block in ALL if (block.page, block.language) == ("personal-data.md", "sql")]
    sent = [Sent(recipient=f"{name}@example.com", message_id=name) for name in ("Ada", "bob")]
    with db.engine.begin() as connection:
        record_webhook(connection, provider="postmark", events=[_event("delivered", "Ada"), _event("delivered", "bob")])
        record_send(connection, provider="postmark", sent=sent)
        record_webhook(connection, provider="postmark", events=[_event("opened", "Ada")])
        deliveries, events = (connection.execute(sa.text(word)).all() for word in block.text.split(";")[:2])
    assert [row.recipient for row in deliveries] == ["Ada@example.com"]
    assert sorted(row.type for row in events) == ["delivered", "dispatched", "opened"]


def _event(type_: str, name: str) -> WebhookEvent:
    at = dt.datetime.now(dt.UTC)
    return WebhookEvent(type=type_, occurred_at=at, provider_event_id=f"{type_} {name}", message_id=name)


@pytest.mark.parametrize(
    "block", [block for block in ALL if block.language == "json"], ids=lambda code_block: code_block.page
)
def test_json_on_a_page_is_valid(block):
    """It is complete, without duplicate keys."""
    json.loads(block.text, object_pairs_hook=_refuse_duplicate_keys)


def _refuse_duplicate_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


@pytest.mark.parametrize(
    "block",
    [block for block in ALL if block.language == "yaml" and "scrape_configs" in block.text],
    ids=lambda code_block: code_block.page,
)
def test_yaml_on_a_page_is_a_valid_prometheus_configuration(block):
    """Its rule files exist, and its jobs scrape; monitoring/test_files.py reads the rules."""
    configuration = yaml.safe_load(block.text)
    assert all((pages.ROOT / "docs/monitoring" / name).exists() for name in configuration["rule_files"])
    for job in configuration["scrape_configs"]:
        assert job["job_name"]
        assert job.get("static_configs") or job["kubernetes_sd_configs"]


def test_a_block_of_settings_has_an_assignment_on_each_line():
    lines = [line for block in ALL if block.language == "ini" for line in block.text.splitlines()]
    assert lines
    assert [line for line in lines if not re.fullmatch(r"MAILGLASS_\w+=\S+", line)] == []


UNITS = sorted((pages.ROOT / "docs" / "deploy" / "systemd").iterdir())


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_file_starts_an_existing_command(unit):
    """It is parsed as systemd does; ExecStart is a subcommand with existing options, or Celery with the bundled app."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read_string(unit.read_text())
    if unit.suffix == ".timer":
        assert parser["Timer"]["OnCalendar"]
        assert unit.with_suffix(".service") in UNITS
        return
    assert (parser["Service"]["User"], parser["Service"]["EnvironmentFile"]) == ("app", "/etc/mailglass.env")
    assert ("Install" in parser) is (unit.with_suffix(".timer") not in UNITS), (
        "it would start at boot only with a target"
    )
    program, name, *arguments = shlex.split(parser["Service"]["ExecStart"])
    if Path(program).name == "celery":
        app, worker, *options = arguments
        assert (name, app, worker) == ("-A", "mailglass_reconcile", "worker")
        context = CLIContext(celery.app, no_color=True, workdir=None)
        started = celery_worker.make_context(worker, options, parent=click.Context(celery_worker, obj=context))
        assert Path(started.params["schedule_filename"]).parent == Path("/var/lib", parser["Service"]["StateDirectory"])
        return
    assert Path(program).name == "mailglass-reconcile"
    subcommand = commands.SUBCOMMANDS[name]
    subcommand.make_context(name, arguments, parent=click.Context(command))
