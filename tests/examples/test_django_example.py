"""`examples/django`, started and used by its README: an ASGI server, worker, beat, admin, command and tests.

Only AWS is not there: one server accepts sends like its API, and the certificate of SNS is one of tests.
"""

import json
import os
import uuid

import httpx
import pytest

import pages
import processes
import readme
import senders
from mailglass_reconcile.testing.servers import free_port
from ses_api import ses_api
from waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.python_dependent]

PASSWORD = uuid.uuid4().hex
STATES = "SELECT tenant_id, recipient, last_event_type FROM mailglass_deliveries ORDER BY inserted_at"


@pytest.fixture
def terminal(db, redis_url, tmp_path):
    """The environment of a reader's terminal, in which only Django knows the database."""
    env = {**readme.environment(db, redis_url), **readme.exports("django"), "DATABASE_URL": db.url}
    del env["MAILGLASS_DATABASE_URL"]
    certificates = {senders.CERTIFICATE_URL: senders.serve_certificate(senders.CERTIFICATE_URL).decode()}
    (tmp_path / "certificates.json").write_text(json.dumps(certificates))
    (tmp_path / "sitecustomize.py").write_text("import canned_certificates")
    commands = processes.forker(*processes.FRAMEWORKS).commands
    return {
        **env,
        "PATH": f"{commands}{os.pathsep}{env['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(pages.ROOT / "tests/support"), env["PYTHONPATH"]]),
        "PYTHONUNBUFFERED": "1",
        "TEST_CERTIFICATES": str(tmp_path / "certificates.json"),
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "key",
    }


class Site:
    """The running site, as its visitors and SNS see it."""

    def __init__(self, terminal, port) -> None:
        """Send requests to the server at a port, which each tenant's name would lead to."""
        self.terminal, self.base = terminal, f"http://127.0.0.1:{port}"

    def curl(self, tenant, *words):
        """Send the request of the README's only `curl` with these words to a tenant's subdomain."""
        text = readme.command("django", "curl", *words).text.replace("http://acme.", "http://")
        return readme.curl(text, self.base, host=f"{tenant}.localhost")

    def report(self, tenant, topic, message_id, recipient="ada@example.com"):
        """Post a hard bounce as SNS does for a topic, and return the status of the response."""
        bounce = senders.load_payloads("ses")[0]
        text = json.dumps(bounce.payload).replace(bounce.message_id, message_id)
        message = {"Message": text.replace("recipient@example.com", recipient), "Type": "Notification"}
        sent = senders.notification("ses", {**message, "TopicArn": self.terminal[f"TOPIC_{topic.upper()}"]})
        headers = {**sent.headers, "host": f"{tenant}.localhost"}
        url, timeout = f"{self.base}/webhooks/ses", PATIENCE
        return httpx.post(url, content=sent.body, headers=headers, timeout=timeout).status_code

    def report_until_recorded(self, *arguments):
        """Post a hard bounce until it is recorded, as SNS repeats what is answered with 503."""
        wait_until(lambda: self.report(*arguments) == 200)


def run(terminal, *words):
    """Run the only command of the README with these words, and return its output."""
    return readme.run("django", readme.command("django", *words).text, terminal)


def log_in(browser):
    """Log in to the admin, as the README says."""
    browser.get("/admin/login/")
    words = readme.command("django", "createsuperuser").text.split()
    arguments = {"username": words[words.index("--username") + 1], "password": PASSWORD}
    token = {"csrfmiddlewaretoken": browser.cookies["csrftoken"]}
    assert "Log out" in browser.post("/admin/login/?next=/admin/", data={**arguments, **token}).text


@pytest.mark.every_version
def test_two_tenants_order_under_asgi_and_each_bounce_reaches_its_own_handler(db, terminal):
    """SES reports the first bounce before the order is committed; beat has the handlers run."""
    run(terminal, "manage.py migrate")
    run(terminal, "mailglass sweep")
    run(terminal, "--fail-level WARNING")
    superuser = readme.command("django", "createsuperuser").text + " --noinput"  # without a terminal it does not ask
    readme.run("django", superuser, {**terminal, "DJANGO_SUPERUSER_PASSWORD": PASSWORD})
    site = Site(terminal, port := free_port())

    def accept() -> str:
        message_id = str(uuid.uuid4())
        site.report_until_recorded("acme", "acme", message_id)
        return message_id

    with ses_api(accept) as endpoint:
        serve = readme.command("django", "uvicorn shop").text.replace("8000", str(port))
        environment = {**terminal, "AWS_ENDPOINT_URL": endpoint}
        work = readme.command("django", "celery -A").text
        with (
            readme.start("django", serve, environment, "Uvicorn running") as server,
            readme.start("django", work, environment, " ready.") as worker,
        ):
            raced = site.curl("acme", "email=ada").json()
            status = readme.command("django", "curl", "/orders/1/")
            wait_until(lambda: site.curl("acme", "/orders/1/").text == status.output)
            wait_until(lambda: db.value("SELECT count(*) FROM shop_suppressed") == 1, PATIENCE)
            assert site.report("acme", "emca", raced["message_id"]) == 401
            assert site.report("other", "acme", raced["message_id"]) == 404
            skipped = readme.command("django", "curl", "ADA@")
            assert site.curl("acme", "ADA@").text == skipped.output
            kept = site.curl("emca", "email=ada").json()
            assert db.rows(STATES) == [
                ("acme", "ada@example.com", "bounced"),
                ("emca", "ada@example.com", "dispatched"),
            ]
            site.report_until_recorded("emca", "emca", kept["message_id"])
            wait_until(lambda: db.value("SELECT count(*) FROM shop_suppressed WHERE tenant = 'emca'") == 1, PATIENCE)
            options = {"headers": {"host": "acme.localhost"}, "follow_redirects": True, "timeout": PATIENCE}
            with httpx.Client(base_url=site.base, **options) as browser:
                log_in(browser)
                assert "ada@example.com" in browser.get("/admin/mailglass_reconcile/delivery/").text
                assert browser.get("/admin/mailglass_reconcile/delivery/add/").status_code == 403
    assert "ses: 1 event, 1 waiting" in server.output
    assert "ses: 1 event, 1 attached" in server.output
    assert "'handled': 1" in worker.output


def test_its_own_tests_pass_and_no_migration_is_missing(terminal):
    """Django makes the test database, with our tables."""
    run(terminal, "manage.py test")
    readme.run("django", "python manage.py makemigrations --check --dry-run", terminal)
    assert "no issues" in readme.run("django", "python manage.py check --fail-level WARNING", terminal)


@pytest.mark.guard
def test_the_page_shows_the_project():
    """The lines of each block that names a file of the project are lines of that file, in its order."""
    shown = [block.text.splitlines() for block in pages.chapter(pages.ROOT / "docs" / "tenants.md", "In Django")][1:]
    assert [name for name, *_ in shown] == [f"# shop/{name}.py" for name in ("tenants", "urls")]
    for name, *lines in shown:
        file = iter(map(str.strip, (readme.EXAMPLES / "django" / name.removeprefix("# ")).read_text().splitlines()))
        assert [line for line in lines if line.strip() and line.strip() not in file] == [], name
