"""Every command of docs/ on real servers; test_stories.py follows whole pages."""

import os
import re
import shlex
import tempfile
import tomllib
from collections.abc import Iterator

import click.testing
import httpx
import pytest
import redis

import factories
import mailglass_reconcile
import pages
import processes
from mailglass_reconcile.cli import command
from mailglass_reconcile.rules import handlers as registry
from mailglass_reconcile.testing.servers import free_port

pytestmark = [pytest.mark.long, pytest.mark.slow]

PATIENCE = 60
EVENT, DELIVERY = "0197a0c4-5a1e-7c3b-9d53-3f2b8f1c6a10", "0197a0c4-4f00-7d11-8a6e-2a8f0f1d2c3b"
LINKABLE = "0197a0c7-1b2c-7d3e-8f40-5a6b7c8d9e0f"
STUCK = "0197a0c9-6f1d-7a52-b4e8-91c3d0f7a2b6"
MESSAGE, DEAD = "36cee7b1-6d2c-4d0b-9a2e-3f9f0c3d8f11", "01980d0a-7e1c-7d6e-9a3e-2f0c1f3f9b5e"
"""The ids that the pages name."""
SHELL = re.compile(r"[|&<>;$]")
ASKS = re.compile(r"sweep (?!.*--(yes|dry-run)).*--event|reconcile link (?!.*--(yes|dry-run))")
ENDLESS = re.compile(r"mailglass-reconcile (listen|follow|receive|serve)|celery -A \S+ (worker|beat)")

CODES = {
    ("doctor.md", "mailglass-reconcile doctor"): 1,
    ("doctor.md", "mailglass-reconcile sweep"): 1,
    ("production.md", "mailglass-reconcile doctor"): 1,  # there is no worker
}
"""Commands that the pages show failing; any other must end with 0."""

WITH_COMPARED_OUTPUT = {("trouble.md", "explain"), ("trouble.md", "reconcile link "), ("trouble.md", "find -")}
"""Commands whose output the pages show in full; numbers, ids and times may differ."""


def console(name: str) -> list[pages.Block]:
    """Return a page's blocks of commands that are run."""
    result = pages.blocks(pages.ROOT / "docs" / name)
    return [block for block in result if block.language == "console" and not block.not_run]


STORIES = {"README.md", "amazon-ses.md", "celery.md", "fastapi.md", "django.md", "with-mailglass.md"}
PAGES = [page.name for page in pages.PAGES if page.name not in STORIES and console(page.name)]


@pytest.fixture
def story(db, monkeypatch) -> Iterator[None]:
    """Insert the rows that the pages assume: an event of the tenant `default` and its delivery of another tenant;
    events that can be linked; an event whose handlers have failed for the last time."""
    arrived = {"age_seconds": 3_700}
    ids = [factories.new_id() for _ in range(3)]
    metadata = {"provider": "postmark", "message_id": MESSAGE}
    misdirected = factories.delivery_row(MESSAGE, id=DELIVERY, recipient="ada@example.com", mailable="Welcome")
    linkable = [factories.delivery_row(id_, recipient=f"{id_}@example.com") for id_ in ids]
    deliveries = [misdirected, *linkable]
    orphans = [
        factories.orphan_row(metadata, id=EVENT, tenant_id="default", **arrived),
        factories.orphan_row(factories.postmark(ids[0]), id=LINKABLE, **arrived),
        *(factories.orphan_row(factories.postmark(id_), type="bounced", **arrived) for id_ in ids[1:]),
        factories.orphan_row(factories.postmark(factories.new_id()), id=STUCK, **arrived),
        factories.orphan_row(factories.postmark(factories.new_id()), **arrived),
    ]
    factories.insert(db, deliveries, orphans)
    db.run("UPDATE mailglass_open_orphans SET state = 'tenant_mismatch' WHERE event_id = CAST(:id AS uuid)", id=EVENT)
    bounce = factories.orphan_row(factories.postmark(ids[0]), id=DEAD, type="bounced", delivery_id=linkable[0]["id"],
                                  needs_reconciliation=False)  # fmt: skip
    factories.insert(db, events=[bounce])
    db.run(
        "INSERT INTO mailglass_handler_outbox (event_id, handler, delivery_id, type, state, attempts, error, next_at,"
        " inserted_at, finished_at)"
        " VALUES (CAST(:id AS uuid), 'suppress', CAST(:delivery AS uuid), 'bounced', 'dead', 9, 'ValueError', now(),"
        " now(), now())",
        id=DEAD, delivery=linkable[0]["id"],
    )  # fmt: skip
    db.broken.update(("I2", "I14"))  # the bounce was inserted by the test
    yield
    registry._registered.clear()


@pytest.fixture
def terminal(db, redis_url, tmp_path, monkeypatch) -> dict[str, str]:
    """A reader's environment: an empty folder, the test's servers, the installed commands, forked, and a stub."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "send-alert").write_text("#!/bin/sh\n")
    (tmp_path / "send-alert").chmod(0o755)
    environment = db.environment(redis_url)
    paths = [str(tmp_path), str(processes.forker().commands), environment["PATH"]]
    return {**environment, "PATH": os.pathsep.join(paths), "PYTHONPATH": str(pages.ROOT)}


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_does_what_it_says(page, db, story, terminal, redis_url, tmp_path):
    """In order, each ends with 0, unless the page shows a failure, and prints what the page shows."""
    for block in console(page):
        exports = ""
        for command_shown, output in pages.commands_with_output(block):
            expected = output.strip("\n")
            text = command_shown.replace("/var/lib/mailglass", tempfile.mkdtemp(dir=tmp_path)).split("  #")[0].rstrip()
            if text.startswith("export "):
                exports += f"{text}; "
                continue
            if text.startswith("pip install "):
                installs(text)
                continue
            run = run_until_done if ENDLESS.match(text) else run_to_its_end
            printed = run(exports + text, page, db, terminal, redis_url)
            if any(page == name and words in text + " " for name, words in WITH_COMPARED_OUTPUT):
                missing = [part for part in expected.split("\n\n") if normal(part) not in normal(printed)]
                assert not missing, printed


def installs(text: str) -> None:
    """Check that a line installs the clone with existing extras; test_stories.py runs pip."""
    (extra,) = re.fullmatch(r'pip install "(?:\.|PATH_OF_THE_CLONE)\[(\w+)\]"', text).groups()
    project = tomllib.loads((pages.ROOT / "pyproject.toml").read_text())["project"]
    assert extra in project["optional-dependencies"]


def normal(text: str) -> str:
    """Normalize line breaks, which depend on the terminal, and what differs from run to run."""
    text = re.sub(r"[0-9a-fA-F]{8}-[0-9a-fA-F-]{27}", "ID", re.sub(r"\s+", " ", text))
    return re.sub(r"\s+", " ", re.sub(r"\d+|\([^()]* ago\)|\(in [^()]*\)", " ", text)).strip()


def run_to_its_end(text: str, page: str, _db, terminal: dict[str, str], _redis_url: str) -> str:
    """Run a command to its end, and return its output; our own command runs in this process."""
    expected = CODES.get((page, text), 0)
    if text.startswith("mailglass-reconcile ") and not (SHELL.search(text) or ASKS.search(text) or expected):
        result = click.testing.CliRunner().invoke(command, shlex.split(text)[1:], input="ada@example.com\n")
        assert result.exit_code == 0, result.output
        return result.output
    if page == "doctor.md":
        terminal = {**terminal, "MAILGLASS_DATABASE_URL": "postgresql://localhost:1/app"}
    shell = ["script", "-qec", text, "/dev/null"] if ASKS.search(text) else ["bash", "-c", text]
    process_result = processes.run(shell, terminal, stdin="y\n")
    assert process_result.returncode == expected, process_result.stdout + process_result.stderr
    return process_result.stdout


def run_until_done(text: str, _page: str, db, terminal: dict[str, str], redis_url: str) -> str:
    """Run an endless command until it has done its work, stop it with SIGTERM, and return its output."""
    port = free_port()
    script = re.sub(r"reconcile (serve|receive)", rf"reconcile \1 --port {port}", text)
    with (
        redis.Redis.from_url(redis_url) as client,
        processes.start(["bash", "-c", script], terminal, session=True) as process,
    ):
        if re.search(" serve| receive", text):
            process.wait_for(lambda: answers(port))
        elif " follow" in text:
            linked = db.count_links()
            factories.insert_pairs(db, 1, age_seconds=1)
            process.wait_for(lambda: db.count_links() > linked)
        elif " listen" in text:
            process.wait_for(lambda: client.pubsub_numpat() or client.pubsub_channels("mailglass:*"))
            factories.insert_pairs(db, 1)
            assert mailglass_reconcile.reconcile().linked
        else:
            process.wait_for("beat: Starting")
            return ""
        for member in process.family():
            if member.name() not in ("bash", "jq"):
                member.terminate()
        process.wait()
        return process.stdout


def answers(port: int) -> bool:
    """Return True if the dashboard responds."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/healthz").is_success
    except httpx.TransportError:
        return False
