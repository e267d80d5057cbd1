"""Whole ways through the pages, from an empty folder to a goal: each runs only what the pages print, in order."""

import json
import re

import django
import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

import catalog
import factories
import pages
import raw_webhooks
import senders
import shapes
from machine import Machine, Reader
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from ses_api import ses_api
from waiting import wait_until

pytestmark = [pytest.mark.long, pytest.mark.slow]

DOCS = pages.ROOT / "docs"
STATES = "SELECT tenant_id, recipient, last_event_type FROM mailglass_deliveries ORDER BY 1, 2"


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> Machine:
    """The machine after the README's lines of Install, which the stories share because it takes seconds."""
    return Machine(tmp_path_factory.mktemp("machine"))


@pytest.fixture
def reader(machine, empty_database_url, redis_url, tmp_path):
    """A reader who has made the tables, in a folder of their own."""
    with Reader(machine, empty_database_url, redis_url, tmp_path) as reader:
        catalog.installation(empty_database_url).migrate()
        yield reader


def states(url: str) -> list[tuple[str, ...]]:
    """Return tenant, recipient and state of each delivery."""
    with engines.create_engine(Settings(database_url=url)).connect() as connection:
        return [tuple(row) for row in connection.execute(sa.text(STATES))]


def test_the_readme_in_a_clone_without_a_database(machine):
    """`demo --keep` has both servers; an event is linked, Celery sweeps, and each operator's command answers."""
    commands = [command.split("  #")[0].rstrip() for command in pages.commands(*pages.section(pages.README, "Try it"))]
    assert commands[2:] == ["make demo", "make test"]  # tests/demo/test_make.py runs both
    keeping, script, running = pages.section(pages.README, "The two calls")
    celery_app, working, calling = pages.section(pages.README, "Celery")
    (operating,) = pages.section(pages.README, "Operate it")
    with Reader(machine, "postgresql://none/none", "redis://none", machine.clone) as reader:
        reader.environment.clear()
        reader.environment["PATH"] = machine.given["PATH"]
        reader.paste(keeping)
        reader.save("first.py", script.text)
        reader.paste(running)
        assert any("DATABASE_URL='postgresql+psycopg://" in line for line in reader._started)
        reader.follow([celery_app, working, calling])
        reader.process.wait_for("mailglass_reconcile.tasks.reconcile")
        reader.process.wait_for("succeeded")
        for command in pages.commands(operating)[:2]:
            reader._run(command, machine.clone)
        assert "delivered" in reader._run("echo ada@example.com | mailglass-reconcile find -", machine.clone)


def test_the_readme_has_a_door_for_each_reader_before_it_asks_for_more():
    """Its first screen has the picture, both commands, and a page for each kind of application."""
    first_screen = pages.README.read_text().partition("## Is it for me?")[0]
    assert re.findall(r"^\$ make .*$", first_screen, re.M) == ["$ make demo", "$ make test"]
    assert "](docs/race.svg)" in first_screen
    doors = {f"docs/{name}.md" for name in ("celery", "django", "fastapi", "with-mailglass")}
    assert doors <= set(re.findall(r"\]\(([^)#]+)\)", first_screen))
    assert len(pages.README.read_text().split()) <= 1_000


def test_fastapi_with_postmark_from_the_readme_to_a_shown_status(reader, empty_database_url):
    """The application is mounted and sends; Postmark's webhook comes first, the send links it, and the order shows
    it.
    """
    assert "docs/fastapi.md" in pages.links(pages.README)
    assert {"order-status.md", "providers.md"} <= pages.links(DOCS / "fastapi.md")
    reader.follow(pages.section(DOCS / "fastapi.md", "FastAPI, Flask and plain Python"))
    reader.follow(pages.section(DOCS / "fastapi.md", "FastAPI"))
    assert states(empty_database_url) == [("default", "bob@example.com", "delivered")]


def test_flask_with_mailgun(reader, empty_database_url):
    """A webhook comes first, and the send links it."""
    reader.follow(pages.section(DOCS / "fastapi.md", "FastAPI, Flask and plain Python"))
    reader.follow(pages.chapter(DOCS / "fastapi.md", "Flask"))
    assert states(empty_database_url) == [("default", "carol@example.com", "bounced")]


def for_this_django(block: pages.Block) -> pages.Block:
    """Return a block of the page as a reader with this Django types it: before 6.1, with the other setting."""
    if django.VERSION >= (6, 1):
        return block
    return block._replace(
        text=re.sub(r'MAILERS = \{"default": \{"BACKEND": (.+?)\}\}', r"EMAIL_BACKEND = \1", block.text)
    )


PROJECT = pages.Block(
    page="django.md",
    line=0,
    language="console",
    not_run="",
    text="""$ pip install ".[django]"
$ mkdir ../shop && cd ../shop
$ django-admin startproject shop .
$ cat >> shop/settings.py <<'END'
DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "app", "HOST": "localhost"}}
INSTALLED_APPS = [*INSTALLED_APPS, "anymail", "shop"]
MAILERS = {"default": {"BACKEND": "shop.mail.EmailBackend"}}
END
$ cat > shop/mail.py <<'END'
from anymail.backends import test

class EmailBackend(test.EmailBackend):
    esp_name = "Postmark"

    def get_esp_message_id(self, message):
        return "id-" + message.to[0]
END
$ cat > shop/models.py <<'END'
from django.db import models

class Suppressed(models.Model):
    email = models.EmailField(unique=True)
END
$ python manage.py makemigrations shop
""",
)
"""What a reader of the page has already: a project with Anymail and a model, here with a backend that sends nothing."""


def suppressed(url: str) -> list[str]:
    """Return the addresses that the page's handler has stored."""
    return list(catalog.installation(url).values("SELECT email FROM shop_suppressed"))


@pytest.mark.every_version
@pytest.mark.python_dependent
def test_django_with_anymail_ses_and_celery_beat(reader, empty_database_url, tmp_path):
    """A project with Anymail gets the app, and a bounce is handled; then SES through SNS, handled by a tick of beat.

    Only the two hosts of AWS are not there: one that accepts a send, and that of SNS's certificate.
    """
    page = DOCS / "django.md"
    reader.replacements["MESSAGE_ID"] = "id-ada@example.com"
    reader.paste(for_this_django(PROJECT))
    reader.follow(pages.section(page, "Add it to your project"))
    assert states(empty_database_url) == [("default", "ada@example.com", "delivered")]
    reader.follow(pages.section(page, "Handlers in Django"))
    assert states(empty_database_url) == [("default", "ada@example.com", "bounced")]
    assert suppressed(empty_database_url) == ["ada@example.com"]
    catalog.installation(empty_database_url).run("DELETE FROM shop_suppressed")
    (tmp_path / "certificates.json").write_text(
        json.dumps({senders.CERTIFICATE_URL: senders.serve_certificate(senders.CERTIFICATE_URL).decode()})
    )
    (tmp_path / "sitecustomize.py").write_text("import canned_certificates")
    bounce = senders.load_payloads("ses")[0]
    with ses_api(lambda: bounce.message_id) as endpoint:
        reader.environment |= {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "key",
            "TEST_CERTIFICATES": str(tmp_path / "certificates.json"),
            "PYTHONPATH": f"{tmp_path}:{pages.ROOT / 'tests/support'}",
        }
        reader.follow(map(for_this_django, pages.chapter(page, "Amazon SES through SNS")))
    reader.follow(pages.section(page, "Celery"))
    of_ada = json.loads(json.dumps(bounce.payload).replace("recipient@example.com", "ada@example.com"))
    (sent,) = senders.make_requests("ses", [of_ada])
    address = f"http://127.0.0.1:{reader.ports['8000']}/webhooks/ses"
    wait_until(lambda: httpx.post(address, content=sent.body, headers=sent.headers).status_code == 200)
    reader.process.wait_for("'handled': 1")
    assert suppressed(empty_database_url) == ["ada@example.com"]
    assert states(empty_database_url) == [("default", "ada@example.com", "bounced")] * 2


def test_celery_with_an_app_of_its_own(reader, empty_database_url):
    """Its worker and beat sweep, a call by name is answered, and the doctor has no finding; then with a queue of our
    own, which the worker before did not consume.
    """
    page = DOCS / "celery.md"
    *installing, calling, checking = [
        block for block in pages.section(page, "Add it to your app") if block.language != "text"
    ]
    reader.follow([*installing, calling])
    tables = catalog.installation(empty_database_url)
    swept = "SELECT status FROM mailglass_reconcile_runs WHERE kind = 'full' AND origin = 'call'"
    wait_until(lambda: tables.values(swept) == ["ok"])
    reader.paste(checking)
    reader.follow(pages.section(page, "The tasks"))
    reader.process.wait_for("'tenant_id': 'acme'")
    (app,) = [block.text for block in installing if block.text.startswith("# shop.py")]
    options, routes, working, *_ = pages.section(page, "Queues and options")
    *start, _ = app.splitlines()
    reader.save("shop.py", "\n".join([*start, options.text, routes.text]))
    reader.process.stop()
    reader.follow([working, calling])
    wait_until(lambda: tables.values(swept) == ["ok"] * 3)
    reader.paste(checking)
    reader.follow(pages.section(page, "Receive the webhooks"))
    assert tables.values("SELECT type FROM mailglass_events") == ["bounced"]


def test_the_bundled_celery_app(reader):
    """A worker with beat starts, takes a call by name, and beat starts by itself."""
    *blocks, beat = pages.section(DOCS / "celery.md", "Without an app of your own")
    reader.follow(blocks)
    reader.process.wait_for("'tenant_id': 'acme'")
    reader.follow([beat])


def test_from_an_address_to_an_answer(reader, tmp_path):
    """`find` prints a command for the README's delivery, whose output has a row in the page's table."""
    _, script, _ = pages.section(pages.README, "The two calls")
    reader.save("first.py", script.text)
    reader._run("python first.py", tmp_path)
    finding, explaining, *_ = pages.section(DOCS / "trouble.md", "From an address to an answer")
    (find,) = pages.commands(finding)
    result = reader._run(f"echo ada@example.com | {find}", tmp_path)
    (explain,) = re.findall(r"^ *(mailglass-reconcile explain \S+)$", result, re.M)
    assert re.sub(r"\S+$", "ID", explain) == re.sub(r"\S+$", "ID", pages.commands(explaining)[0])
    answer = reader._run(explain, tmp_path)
    (state,) = re.findall(r"^delivery \S+: (\w+) since", answer, re.M)
    assert re.search(rf"^\| [^|]*`{state}`[^|]* \|", (DOCS / "trouble.md").read_text(), re.M)


def test_elixir_with_mailglass_from_the_readme_to_swept_tables(
    machine, empty_database_url, redis_url, tmp_path, server_roles
):
    """There is no Python: an image, a role, twelve links, ten first; a Cc's bounce is not linked to the To's
    delivery.
    """
    assert "docs/with-mailglass.md" in pages.links(pages.README)
    catalog.live(empty_database_url, "mailglass", "2.x")
    mailglass = catalog.Installation(
        shapes.settings_of(empty_database_url, "2.x"),
        engines.create_engine(shapes.settings_of(empty_database_url, "2.x")),
    )
    ids = [factories.new_id() for _ in range(13)]
    deliveries = [factories.delivery_row(id_, recipient="john@example.com") for id_ in ids]
    factories.insert(mailglass, deliveries, [factories.orphan_row(factories.postmark(factories.new_id()))])
    payload = raw_webhooks.payload("postmark", "bounced")
    for number, message_id in enumerate(ids):
        raw = payload | {"Email": "john@example.com" if number else "cc@example.com", "MessageID": message_id}
        events = [{"provider_event_id": message_id, "message_id": message_id}]
        raw_webhooks.store(mailglass, "postmark", raw, events, raw_id=message_id)
    server_roles(empty_database_url, "mailglass_sweeper")
    owner = make_url(empty_database_url)
    replacements = {
        f"postgresql://{login}@db.internal/my_app": owner.set(username=role).render_as_string(hide_password=False)
        for login, role in (
            ("my_app:secret", owner.username),
            ("mailglass_sweeper:$(cat sweeper-password)", "mailglass_sweeper"),
        )
    }
    blocks = pages.chapter(DOCS / "with-mailglass.md", "The first sweep")
    with Reader(machine, empty_database_url, redis_url, tmp_path, replacements) as reader:
        reader.follow(blocks)
        (cron,) = [block.text for block in blocks if block.language == "cron"]
        for line in re.findall(r" app +(.*)$", cron, re.MULTILINE):
            reader._run(line.replace("/etc/mailglass/", ""), tmp_path)
    assert mailglass.values("SELECT last_event_type FROM mailglass_deliveries ORDER BY 1") == [
        *["bounced"] * 12,
        "dispatched",
    ]
    assert mailglass.values("SELECT kind FROM mailglass_reconcile_runs WHERE origin = 'command'")[-1] == "prune"
