"""The pytest plugin for adopters, and the race that its fixture produces."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

import mailglass_reconcile
import pages
from mailglass_reconcile import Sent, record_send
from mailglass_reconcile.testing import race
from recording import event, record

pytestmark = pytest.mark.slow

USED = """

@pytest.fixture(autouse=True)
def used(mailglass_database):
    names = ("MAILGLASS_DATABASE_URL", "MAILGLASS_REDIS_URL")
    pathlib.Path("used").write_text(" ".join(os.environ[name] for name in names))
"""
"""Tells which servers an adopter's test had."""


def files_of(page: str) -> dict[str, str]:
    """Return a page's files of Python by name."""
    blocks = [block.text for block in pages.blocks(pages.ROOT / "docs" / page)]
    return dict(text.removeprefix("# ").split("\n", 1) for text in blocks if re.match(r"# \S+\.py\n", text))


def adopters(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the test files of docs/testing.md in a folder and environment without our own settings."""
    files = files_of("testing.md")
    files["conftest.py"] = f"import os, pathlib, pytest\n{files['conftest.py']}{USED}"
    application = files_of("fastapi.md")
    for name, text in {**files, **{name: application[name] for name in ("postmark.py", "shop.py")}}.items():
        (folder / name).write_text(text)
    (folder / "tmp").mkdir()
    package = str(Path(mailglass_reconcile.__file__).parent.parent)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAILGLASS_", "PYTEST_"))}
    options = ["-q", "-p", "no:cacheprovider", f"--rootdir={folder}", "--durations=0"]
    options += ["-W", "ignore:Using `httpx` with"]  # of Starlette's test client
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=folder,
        env={**inherited, "PYTHONPATH": package, "TMPDIR": str(folder / "tmp"), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_an_adopter_s_tests_run_as_the_page_says_and_leave_nothing(tmp_path):
    """Their own servers and folders are gone afterwards, and there is no warning."""
    result = adopters(tmp_path)
    assert "1 passed in" in result.stdout, result.stdout + result.stderr
    postgres, valkey = map(sa.make_url, (tmp_path / "used").read_text().split())
    assert not Path(postgres.query["host"]).exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((valkey.host, valkey.port))
    assert list((tmp_path / "tmp").iterdir()) == []


def test_an_adopter_s_servers_are_used_if_configured(tmp_path, mailglass_databases, mailglass_postgres_url, redis_url):
    """No server starts, and the test's database is dropped."""
    arguments = {"MAILGLASS_TEST_DATABASE_URL": mailglass_postgres_url, "MAILGLASS_TEST_REDIS_URL": redis_url}
    result = adopters(tmp_path, MAILGLASS_TEST_POSTGRES_PROGRAMS="/nowhere", **arguments)
    assert "1 passed in" in result.stdout, result.stdout + result.stderr
    used, valkey = (tmp_path / "used").read_text().split()
    assert (sa.make_url(used).query, valkey) == (sa.make_url(mailglass_postgres_url).query, redis_url)
    query = "SELECT count(*) FROM pg_database WHERE datname = %s"
    with mailglass_databases.engine.connect() as connection:
        assert connection.exec_driver_sql(query, (sa.make_url(used).database,)).scalar_one() == 0


def test_the_plugin_is_loaded_on_request_only(tmp_path):
    """There is no entry point: pytest beside this package has no fixture of ours."""
    (tmp_path / "test_nothing.py").write_text("def test_it(mailglass_database): pass\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert "fixture 'mailglass_database' not found" in process.stdout


def send(db):
    """Record a send in a transaction of its own."""
    with db.engine.begin() as connection:
        sent = [Sent(recipient="ada@example.com", message_id="m-1")]
        return record_send(connection, tenant_id="acme", provider="postmark", sent=sent)


def report(db):
    """Record a webhook in a transaction of its own."""
    with db.engine.begin() as connection:
        return record(connection, event("m-1", recipient="ada@example.com"))


def test_the_webhook_is_recorded_while_its_send_waits(db, mailglass_webhook_first):
    """Both results are returned; the send has linked the earlier event."""
    ((sent,), (recorded,)) = mailglass_webhook_first(lambda: send(db), lambda: report(db))
    assert (sent.linked, recorded.delivery_id) == (1, None)


def test_a_send_that_records_nothing_fails_the_test(db, mailglass_webhook_first):
    with pytest.raises(AssertionError, match="does it call record_send"):
        mailglass_webhook_first(lambda: None, lambda: pytest.fail("too early"))
    with pytest.raises(ZeroDivisionError):
        mailglass_webhook_first(lambda: 1 / 0, lambda: pytest.fail("too early"))
    assert db.value("SELECT count(*) FROM mailglass_events") == 0


def test_a_webhook_that_waits_for_its_own_send_fails_the_test(db):
    """It does not wait for ever: the lock times out, the send goes on, and the error says why."""

    def delete() -> None:
        with db.engine.begin() as connection:
            connection.exec_driver_sql("SET LOCAL lock_timeout = '10s'")
            connection.exec_driver_sql("DELETE FROM mailglass_deliveries WHERE provider_message_id = 'none'")

    with pytest.raises(AssertionError, match=r"webhook\(\) took longer than 1 s"):
        race.webhook_first(db, lambda: send(db), delete, seconds=1)
    assert db.value("SELECT count(*) FROM mailglass_deliveries") == 1


def test_an_error_of_the_webhook_lets_the_send_go_on(db, mailglass_webhook_first):
    """The test gets the error; the send is not rolled back."""
    with pytest.raises(ZeroDivisionError):
        mailglass_webhook_first(lambda: send(db), lambda: 1 / 0)
    assert db.value("SELECT count(*) FROM mailglass_deliveries") == 1
