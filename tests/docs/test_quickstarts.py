"""The README's first example and quickstarts, pasted on an empty machine, on a test's own Postgres and Redis."""

import re

import pytest
import sqlalchemy as sa

import catalog
import factories
import pages
import shapes
from machine import Machine
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from mailglass_reconcile.testing.servers import free_port

pytestmark = pytest.mark.slow

MOST_LINES = 12  # without what they print
STATE = "SELECT last_event_type FROM mailglass_deliveries WHERE recipient = :recipient"

# What the README takes for granted: a Django project with Anymail, on Postgres, with a Celery app.
SETTINGS = """
import os
from psycopg.conninfo import conninfo_to_dict
where = conninfo_to_dict(os.environ["MAILGLASS_DATABASE_URL"])
DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", "NAME": where.pop("dbname"), "OPTIONS": where}}
INSTALLED_APPS = (*INSTALLED_APPS, "anymail")
CELERY_BEAT_SCHEDULE = {"own": {"task": "shop.own", "schedule": 3600}}
EMAIL_BACKEND = "shop.mail.EmailBackend"
ANYMAIL = {"WEBHOOK_SECRET": "postmark:change-me"}
CELERY_BROKER_URL = os.environ["MAILGLASS_REDIS_URL"]
"""
MAIL = """
from anymail.backends import test

class EmailBackend(test.EmailBackend):
    esp_name = "Postmark"

    def get_esp_message_id(self, message):
        return "id-" + message.to[0]
"""
RACE = """
import django.utils.timezone
from anymail.signals import AnymailTrackingEvent, tracking
from django.core.mail import send_mail
early = AnymailTrackingEvent(event_type="delivered", message_id="id-bob@example.com", recipient="bob@example.com",
                             timestamp=django.utils.timezone.now(),
                             esp_event={"RecordType": "Delivery", "MessageID": "id-bob@example.com"})
tracking.send(sender=object, event=early, esp_name="Postmark")
send_mail("Hello", "Hello", None, ["bob@example.com"])
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> Machine:
    """The machine after the section Start; the quickstarts share it, because making it takes seconds."""
    return Machine(tmp_path_factory.mktemp("machine"))


def quickstart(heading: str) -> list[pages.Block]:
    """Return the blocks of a quickstart, which have at most twelve lines to paste in all."""
    found = pages.section(pages.README, heading)
    assert sum(len(line.splitlines()) for block in found for line in to_paste(block)) <= MOST_LINES
    return found


def to_paste(block: pages.Block) -> list[str]:
    """Return what a reader pastes of a block: its commands, or all of it if it is a file."""
    return pages.commands(block) if block.language == "console" else [block.text]


def pasted(block: pages.Block) -> tuple[str, str]:
    """Return the lines of a block as they are pasted, and the last one, which does not end, apart."""
    lines = pages.commands(block)
    *ending, last = lines if lines[-1].startswith("celery") else [*lines, ""]
    return "\n".join(ending), last


def state(url: str, recipient: str) -> str:
    """Return what a delivery shows."""
    engine = engines.create_engine(Settings(database_url=url))
    with engine.connect() as connection:
        return connection.execute(sa.text(STATE), {"recipient": recipient}).scalar_one()


def test_the_first_example(machine, empty_database_url, redis_url, tmp_path):
    """At most twelve lines of both calls and the SELECT; it prints what the README says."""
    servers = {"url": empty_database_url, "redis_url": redis_url, "where": tmp_path}
    (example,) = pages.section(pages.README, "mailglass-reconcile")
    assert len(example.text.splitlines()) <= MOST_LINES
    machine.paste("mailglass-reconcile migrate", **servers)
    (tmp_path / "first.py").write_text(machine.paste(f"cat <<'END'\n{example.text}END", **servers))
    printed = machine.paste("python first.py", **servers).strip()
    assert f"It prints `{printed}`" in pages.README.read_text()


def test_django_and_anymail(machine, empty_database_url, redis_url, tmp_path):
    """From an empty project to a webhook that came before its send; the worker and its beat start."""
    servers = {"url": empty_database_url, "redis_url": redis_url, "where": tmp_path}
    machine.run(f"{machine.exports} cd {tmp_path}; django-admin startproject shop .", tmp_path)
    project = tmp_path / "shop"
    with (project / "settings.py").open("a") as settings:
        settings.write(SETTINGS)
    (project / "mail.py").write_text(MAIL)
    (project / "celery.py").write_text((pages.ROOT / "examples/django/shop/celery.py").read_text())
    (project / "__init__.py").write_text("from shop.celery import app\n")

    (block,) = quickstart("Django and Anymail")
    lines, worker = pasted(block)
    printed = machine.paste(lines, **servers)
    assert " ada@example.com | dispatched\n" in printed
    assert " ada@example.com | dispatched\n" in block.text
    machine.paste(f"python manage.py shell -c '{RACE}'", **servers)
    assert state(empty_database_url, "bob@example.com") == "delivered"
    with machine.running(worker, until="beat: Starting", **servers):
        pass


def test_fastapi(machine, empty_database_url, redis_url, tmp_path):
    """Migrate, mount, send: Postmark's webhook comes first, as the page simulates it, and the send links it."""
    servers = {"url": empty_database_url, "redis_url": redis_url, "where": tmp_path}
    shop, serving, simulated, send, sending = quickstart("FastAPI")
    for name, script in (("shop.py", shop), ("send.py", send)):
        (tmp_path / name).write_text(machine.paste(f"cat <<'END'\n{script.text}END", **servers))
    (making, line), port = pages.commands(serving), free_port()
    machine.paste(making, **servers)
    with machine.running(
        f"{line} --port {port}".replace("MAILGLASS", "env MAILGLASS", 1), until="startup complete", **servers
    ):
        (webhook,) = pages.commands(simulated)
        machine.paste(webhook.replace(":8000", f":{port}"), **servers)
    (command,) = pages.commands(sending)
    assert without_ids(machine.paste(command, **servers)) == without_ids(sending.text.partition("\n")[2])
    assert state(empty_database_url, "bob@example.com") == "delivered"


def without_ids(printed: str) -> str:
    """Return an output without the ids that each run makes."""
    return re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "ID", printed)


def test_with_mailglass(machine, empty_database_url, redis_url, tmp_path):
    """Twelve orphans: ten by the first sweep, the rest by the second; then the worker starts."""
    catalog.live(empty_database_url, "mailglass", "2.x")
    settings = shapes.settings_of(empty_database_url, "2.x")
    mailglass = catalog.Installation(settings, engines.create_engine(settings))
    ids = [factories.new_id() for _ in range(12)]
    deliveries = [factories.delivery_row(one, recipient=f"{one}@example.com") for one in ids]
    factories.insert(mailglass, deliveries, [factories.orphan_row(factories.postmark(one)) for one in ids])
    servers = {"url": empty_database_url, "redis_url": redis_url, "where": tmp_path}
    (block,) = quickstart("With Mailglass")
    lines, worker = pasted(block)
    printed = machine.paste(lines, **servers)
    assert [int(number) for number in re.findall(r"linked (\d+) of", printed)] == [10, 2]
    seen = settings.database_url.get_secret_value()
    assert {state(seen, f"{one}@example.com") for one in ids} == {"delivered"}
    chosen = next(line for line in lines.splitlines() if line.startswith("export "))
    with machine.running(
        worker.replace("celery", f"env {chosen.partition(' ')[2]} celery", 1), until=" ready.", **servers
    ):
        pass
