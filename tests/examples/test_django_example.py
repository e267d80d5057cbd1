"""`examples/django`, started and used by its README: server, worker, beat, admin, command and tests."""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

import factories
import processes
import readme
from mailglass_reconcile.testing.servers import free_port
from waiting import wait_until

pytestmark = pytest.mark.slow

MANAGE = "python manage.py"
MISSING = """
from django.core.management import call_command
call_command('check', fail_level='WARNING')
call_command('makemigrations', check_changes=True, dry_run=True)
"""
SOONER = """
from django_celery_beat.models import IntervalSchedule, PeriodicTask, PeriodicTasks
second = IntervalSchedule.objects.create(every=1, period='seconds')
print(PeriodicTask.objects.filter(name='mailglass-reconcile').update(crontab=None, interval=second))
PeriodicTasks.update_changed()
"""


@pytest.fixture
def terminal(db, redis_url):
    """The environment of a reader's terminal, in which only Django knows the database."""
    env = {**readme.environment(db, redis_url), **readme.exports("django"), "DATABASE_URL": db.url}
    del env["MAILGLASS_DATABASE_URL"]
    commands = processes.forker(*processes.FRAMEWORKS).commands
    return {**env, "PATH": f"{commands}{os.pathsep}{env['PATH']}", "PYTHONUNBUFFERED": "1"}


def run(terminal, *words):
    """Run the only command of the README with these words, and return its output."""
    return readme.run("django", readme.command("django", *words).text, terminal)


def check_project(terminal):
    """Run Django's checks, and check that no migration is missing."""
    readme.run("django", f'{MANAGE} shell -c "{MISSING}"', terminal)


def post_complaint(base, message_id):
    """Post a complaint of Postmark, the same one each time."""
    payload = {"RecordType": "SpamComplaint", "ID": 43, "MessageID": message_id, "Email": "ada@example.com",
            "BouncedAt": "2026-05-01T10:00:05Z"}  # fmt: skip
    login = tuple(readme.exports("django")["WEBHOOK_SECRET"].split(":"))
    assert httpx.post(f"{base}/anymail/postmark/tracking/", json=payload, auth=login).status_code == 200


def log_in(browser):
    """Log in to the admin, as the README says."""
    browser.get("/admin/login/")
    words = readme.command("django", "createsuperuser").text.split()
    arguments = {"username": words[words.index("--username") + 1], "password": words[0].partition("=")[2]}
    token = {"csrfmiddlewaretoken": browser.cookies["csrftoken"]}
    assert "Log out" in browser.post("/admin/login/?next=/admin/", data={**arguments, **token}).text


def test_an_order_is_confirmed_and_its_webhook_changes_its_status(db, terminal):
    run(terminal, "manage.py migrate")
    run(terminal, "createsuperuser")
    for bounce, recipient in (("hard", "bob@example.com"), ("soft", "eve@example.com")):
        raced = factories.new_id()
        factories.delivery(db, raced, recipient=recipient)
        factories.orphan(db, factories.postmark(raced, bounce=bounce), type="bounced")
    assert "linked 2 of 2" in run(terminal, "mailglass sweep")
    assert db.rows("SELECT email FROM shop_suppressed") == [("bob@example.com",)]
    check_project(terminal)
    port = free_port()
    serve = readme.command("django", "runserver").text.replace("8000", str(port))
    with readme.start("django", serve, terminal, "Quit the server"):
        base = f"http://localhost:{port}"
        placed = readme.curl(readme.command("django", "curl", "email=ada").text, base).json()
        readme.trigger("django", "delivered", base, placed["message_id"], terminal)
        status_command = readme.command("django", "curl", "/orders/1/")
        assert readme.curl(status_command.text, base).text == status_command.output
        assert db.value("SELECT count(*) FROM mailglass_events") == 6
        with httpx.Client(base_url=base, follow_redirects=True) as browser:
            log_in(browser)
            assert "ada@example.com" in browser.get("/admin/mailglass_reconcile/delivery/").text
            assert browser.get("/admin/mailglass_reconcile/delivery/add/").status_code == 403

        work = readme.command("django", "celery -A").text
        with readme.start("django", work, terminal, " ready."):
            readme.trigger("django", "bounced", base, placed["message_id"], terminal)
            wait_until(lambda: db.value("SELECT count(*) FROM shop_suppressed") == 2, 60)
            skipped = readme.command("django", "curl", "ADA@")
            assert readme.curl(skipped.text, base).text == skipped.output
            for _ in range(2):
                post_complaint(base, placed["message_id"])
            wait_until(lambda: db.value("SELECT count(*) FROM shop_ticket") == 1, 60)

            factories.insert_pairs(db, 1)
            wait_until(lambda: readme.run("django", f'{MANAGE} shell -c "{SOONER}"', terminal).split()[-1] == "1", 60)
            wait_until(lambda: db.count_links() == 3, 60)
    assert "handled 0 jobs" in run(terminal, "mailglass dispatch")
    assert "0 open orphans" in run(terminal, "mailglass status")


def test_its_own_tests_pass(terminal):
    """Django makes the test database, with our tables."""
    run(terminal, "manage.py test")


def test_no_order_of_arrival_loses_or_doubles_an_event_with_its_settings(mailglass_postgres_url, redis_url):
    """The races are those of the app's tests, with one provider in each order."""
    environment = {
        **os.environ,
        **readme.exports("django"),
        "DATABASE_URL": "postgresql:///nowhere",
        "DJANGO_SETTINGS_MODULE": "shop.settings",
        "MAILGLASS_REDIS_URL": redis_url,
        "MAILGLASS_TEST_DATABASE_URL": mailglass_postgres_url,
        "MAILGLASS_TEST_REDIS_URL": redis_url,
        "PYTHONPATH": f"{readme.EXAMPLES / 'django'}{os.pathsep}{readme.EXAMPLES.parent}",
    }
    races = Path(__file__).parents[1] / "stories" / "test_django_races.py"
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow"]
    command = [sys.executable, "-m", "pytest", *options, str(races)]
    process = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert re.search(r"^3 passed", process.stdout, re.MULTILINE), process.stdout
