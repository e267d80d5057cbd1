"""`examples/celery`, as its README says."""

import re
from urllib.parse import urlsplit

import pytest

import readme
import record_refusal
from factories import insert_pairs
from mailglass_reconcile.testing.servers import free_port
from waiting import wait_until

pytestmark = [pytest.mark.long, pytest.mark.version_independent]

SUPPRESSED = "SELECT address, reason FROM suppressed"
QUEUES = """
from shop.celery import app
app.loader.import_default_modules()
for task in sorted(app.tasks):
    print(task, app.amqp.router.route({}, task)["queue"].name)
"""


def call(env, *words):
    """Run the README's only `celery` command with all of *words*, and return what it prints."""
    return readme.run("celery", readme.command("celery", "celery -A shop", *words).text, env).strip()


@pytest.mark.slow
def test_a_shop_sends_in_a_task_receives_a_bounce_and_sends_no_second_receipt(db, redis_url):
    """Its own tasks, handlers and sweeps have queues of their own, and all of them are consumed."""
    insert_pairs(db, ["m-1"])
    redis = urlsplit(redis_url)._replace(path="/9").geturl()
    env = {**readme.environment(db, redis), **readme.exports("celery")}
    for words in ("mailglass-reconcile migrate", "alembic upgrade", "mailglass-reconcile dispatch"):
        readme.run("celery", readme.command("celery", words).text, env)
    worker = readme.command("celery", "worker").text
    port = free_port()
    web = re.sub(r"--port \d+", f"--port {port}", readme.command("celery", "uvicorn").text)
    with (
        readme.start("celery", worker, env, " ready.") as process,
        readme.start("celery", web, env, "startup complete"),
    ):
        base = f"http://127.0.0.1:{port}"

        def order() -> str:
            task = readme.curl(readme.command("celery", "curl").text, base).json()["task"]
            wait_until(lambda: f"[{task}] succeeded" in process.output)
            return readme.run("celery", readme.command("celery", "result").text.replace("TASK", task), env).strip()

        message_id = order()
        readme.trigger("celery", "bounced", base, message_id, env)
        call(env, "tasks.dispatch")
        wait_until(lambda: db.rows(SUPPRESSED) == [("ada@example.com", "bounced")])
        assert order() == ""  # no message id
        call(env, "tasks.reconcile")
        wait_until(lambda: db.count_links() == 1)
    assert db.value("SELECT count(*) FROM mailglass_deliveries WHERE recipient = 'ada@example.com'") == 1


@pytest.mark.slow
def test_a_receipt_is_sent_once_while_the_database_refuses_to_record_it_twice(db, redis_url):
    """The task that sends is not retried, the one that records is."""
    redis = urlsplit(redis_url)._replace(path="/9").geturl()
    env = {**readme.environment(db, redis), **readme.exports("celery")}
    readme.run("celery", readme.command("celery", "alembic upgrade").text, env)
    for statement in record_refusal.TWICE:
        db.run(statement)
    with readme.start("celery", readme.command("celery", "worker").text, env, " ready.") as process:
        readme.run("celery", "celery -A shop call shop.mail.send_receipt --args '[\"ada@example.com\"]'", env)
        wait_until(lambda: db.value("SELECT count(*) FROM mailglass_deliveries") == 1)
        wait_until(lambda: len(re.findall(r"record_receipt\[\S+\] succeeded", process.output)) == 1)
    assert db.value(record_refusal.TRIES) == 3
    assert len(re.findall(r"send_receipt\[\S+\] received", process.output)) == 1
    assert len(re.findall(r"record_receipt\[\S+\] retry", process.output)) == 2


@pytest.mark.slow
def test_autogenerate_leaves_the_tables_of_the_package_alone(db, redis_url):
    """It would drop all of them without `include_object`."""
    env = readme.environment(db, redis_url)
    readme.run("celery", readme.command("celery", "alembic upgrade").text, env)
    assert "No new upgrade operations detected" in readme.run("celery", "alembic check", env)


def test_each_task_has_the_queue_of_its_kind(db, redis_url):
    """The worker of the README consumes all four."""
    printed = readme.run("celery", f"python -c '{QUEUES}'", readme.environment(db, redis_url))
    queues = dict(line.split() for line in printed.splitlines() if not line.startswith("celery."))
    assert queues == {
        "mailglass_reconcile.tasks.dispatch": "handlers",
        "mailglass_reconcile.tasks.prune": "sweeps",
        "mailglass_reconcile.tasks.reconcile": "sweeps",
        "mailglass_reconcile.tasks.reconcile_recent": "sweeps",
        "shop.mail.list_suppressed": "mail",
        "shop.mail.record_receipt": "mail",
        "shop.mail.send_receipt": "mail",
    }
    (consumed,) = re.findall(r"-Q (\S+)", readme.command("celery", "worker").text)
    assert set(consumed.split(",")) == {"shop", *queues.values()}
